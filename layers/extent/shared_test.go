package extent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// openShared opens the store in dir as one of several processes does.
func openShared(t testing.TB, dir, boot string, limit int64) *Store {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	s, err := OpenStore(fd, Config{
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), BootID: boot, SyncEvery: -1, Shared: true, Limit: limit,
	})
	must(t, err)
	return s
}

func cached(t testing.TB, s *Store, src Source) *Object {
	t.Helper()
	o, err := s.Cached(src)
	must(t, err)
	return o
}

// part reads [off, off+n) and compares, and returns how many bytes were fetched.
func part(t testing.TB, o *Object, src *source, off, n int64) int64 {
	t.Helper()
	before := src.bytes.Load()
	b := make([]byte, n)
	if _, err := o.ReadAt(ctx, src, b, off); err != nil {
		t.Fatal(err)
	}
	want(t, fmt.Sprintf("%d+%d", off, n), b, src.content[off:off+n])
	return src.bytes.Load() - before
}

// One process has a file, others read what it has, and fetch the rest for themselves.
func TestGuestsReadWhatTheOwnerHas(t *testing.T) {
	const mib = 1 << 20
	dir := t.TempDir()
	src := &source{content: noise(4*mib+77, 1)}
	a, b := openShared(t, dir, bootA, 0), openShared(t, dir, bootA, 0)
	oa := cached(t, a, sourceOf(src.content))
	part(t, oa, src, 0, mib)
	ob := cached(t, b, sourceOf(src.content))
	if oa.guest.Load() || !ob.guest.Load() {
		t.Fatal("who has it?")
	}
	if n := part(t, ob, src, 1000, mib-1000); n != 0 {
		t.Errorf("%d bytes were fetched that the owner has", n)
	}
	if n := part(t, ob, src, mib-5, 10); n != page {
		t.Errorf("%d bytes were fetched for 5", n)
	}
	if n := part(t, ob, src, mib, 5); n != page {
		t.Error("a guest has kept something")
	}
	part(t, oa, src, 2*mib, 2*mib+77) // what it says of that comes later than B looked
	if n := part(t, ob, src, 2*mib, 2*mib+77); n != 0 {
		t.Errorf("%d bytes were fetched that the owner has got meanwhile", n)
	}
	oa.shed(8 * mib)
	part(t, ob, src, 0, 4*mib)
	part(t, oa, src, 0, 4*mib)
	if n := part(t, ob, src, 0, 4*mib); n != 0 {
		t.Errorf("%d bytes were fetched that the owner has got again", n)
	}
	// It dies. Who opens it next has it.
	kill(a, oa)
	must(t, ob.Close())
	ob = cached(t, b, sourceOf(src.content))
	if ob.guest.Load() {
		t.Fatal("a dead process keeps it")
	}
	if n := part(t, ob, src, 0, 4*mib); n != 0 {
		t.Errorf("%d bytes were fetched that the dead had", n)
	}
	must(t, ob.Close())
	must(t, b.Close())
	// After a loss of power it is proved, and not thrown away.
	a = openShared(t, dir, bootB, 0)
	oa = cached(t, a, sourceOf(src.content))
	if n := part(t, oa, src, 0, 4*mib); n != 0 {
		t.Errorf("%d bytes were fetched again", n)
	}
	must(t, oa.Close())
	must(t, a.Close())
}

// Who was a guest when it opened a file keeps what it fetches once the owner has closed
// it, and knows what that did last; not if it was thrown away meanwhile.
func TestGuestInherits(t *testing.T) {
	const mib = 1 << 20
	dir := t.TempDir()
	src := &source{content: noise(4*mib+77, 1)}
	a, b := openShared(t, dir, bootA, 0), openShared(t, dir, bootA, 0)
	oa := cached(t, a, sourceOf(src.content))
	part(t, oa, src, 0, mib)
	ob := cached(t, b, sourceOf(src.content))
	for range 2 {
		if n := part(t, ob, src, mib, mib); n != mib {
			t.Errorf("a guest fetched %d bytes", n)
		}
	}
	part(t, oa, src, 3*mib, mib+77)
	oa.syncMu.Lock()
	oa.wmu.Lock()
	must(t, oa.compact())
	oa.wmu.Unlock()
	oa.syncMu.Unlock()
	part(t, oa, src, 2*mib, 1000)
	must(t, oa.Close())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got := make([]byte, mib)
			if _, err := ob.ReadAt(ctx, src, got, mib); err != nil || !bytes.Equal(got, src.content[mib:2*mib]) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ob.guest.Load() {
		t.Fatal("nobody has it, and it is a guest")
	}
	for _, off := range []int64{0, mib, 3 * mib} {
		if n := part(t, ob, src, off, mib); n != 0 {
			t.Errorf("%d: %d bytes were fetched again", off, n)
		}
	}
	if n := part(t, ob, src, 2*mib, 1000); n != 0 {
		t.Errorf("%d bytes were fetched again", n)
	}
	oa = cached(t, a, sourceOf(src.content))
	if !oa.guest.Load() {
		t.Error("two processes have it")
	}
	must(t, ob.Close())
	must(t, b.discard(ob.name)) // which oa does not keep from it
	if part(t, oa, src, mib, mib); oa.inherit() {
		t.Error("what was thrown away was inherited")
	}
	must(t, oa.Close())
	for _, s := range []*Store{a, b} {
		must(t, s.Close())
	}
}

// Looking for an object makes none, and who wants one at that moment gets it.
func TestExisting(t *testing.T) {
	dir := t.TempDir()
	src := &source{content: noise(3000, 1)}
	s := openShared(t, dir, bootA, 0)
	defer s.Close()
	if _, err := s.Existing(sourceOf(src.content)); err != unix.ENOENT || len(names(t, dir)) != 1 {
		t.Fatalf("%v, and there is %q", err, names(t, dir))
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Add(2)
		go func() {
			defer wg.Done()
			if o, err := s.Existing(sourceOf(src.content)); err == nil {
				_ = o.Close()
			}
		}()
		go func() {
			defer wg.Done()
			o, err := s.Cached(sourceOf(src.content))
			if err != nil {
				t.Error(err)
				return
			}
			_ = o.Close()
		}()
		wg.Wait()
		must(t, s.discard((&Source{LayerID: "ssh://host/data", Path: "dir/file", Version: sourceOf(src.content).Version}).key()))
	}
	readCached(t, s, src, sourceOf(src.content), src.content)
	o, err := s.Existing(sourceOf(src.content))
	must(t, err)
	defer o.Close()
	want(t, "existing", contentOf(t, o, nil), src.content)
}

// What another process has open is not removed, and what a dead one had is.
func TestSharedEviction(t *testing.T) {
	const limit, each = 4 << 20, 1 << 20
	dir := t.TempDir()
	a, b := openShared(t, dir, bootA, limit), openShared(t, dir, bootA, limit)
	src := &source{content: noise(each, 1)}
	mine := cached(t, a, named(src.content, "mine"))
	part(t, mine, src, 0, each)
	for i := range 12 {
		readCached(t, b, src, named(src.content, fmt.Sprint(i)), src.content)
		if n := taken(t, b); n > limit {
			t.Fatalf("%d bytes are taken of %d", n, limit)
		}
	}
	if n := part(t, mine, src, 0, each); n != 0 || mine.Missing() != 0 {
		t.Error("what is open was evicted")
	}
	kill(a, mine)
	for i := range 12 {
		readCached(t, b, src, named(src.content, fmt.Sprint(i)), src.content)
	}
	if b.Holds(named(src.content, "mine")) {
		t.Error("what a dead process had open stays")
	}
	must(t, b.Close())
}

// A process that was stopped in the middle of something delays others a little.
func TestLockOfTheDirectoryIsTaken(t *testing.T) {
	dir := t.TempDir()
	src := &source{content: noise(page, 1)}
	s := openShared(t, dir, bootA, 0)
	fd, err := unix.Open(filepath.Join(dir, lockName), unix.O_RDWR, 0)
	must(t, err)
	must(t, unix.Flock(fd, unix.LOCK_EX))
	if _, err := s.Cached(sourceOf(src.content)); !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	unix.Close(fd)
	if _, err := s.Cached(sourceOf(src.content)); !errors.Is(err, unix.EBUSY) {
		t.Fatal("each open waits for it")
	}
	other := openShared(t, dir, bootA, 0)
	readCached(t, other, src, sourceOf(src.content), src.content)
	must(t, other.Close())
	must(t, s.Close())
}

// Adopting what lies in a shared store leaves it there.
func TestAdoptFromAShared(t *testing.T) {
	src := &source{content: noise(3<<20+5, 1)}
	model := bytes.Clone(src.content)
	copy(model[10:], "mine")
	for _, guest := range []bool{false, true} {
		for _, damaged := range []bool{false, true} {
			shared, private := t.TempDir(), t.TempDir()
			s, other, p := openShared(t, shared, bootA, 0), openShared(t, shared, bootA, 0), openStore(t, private, bootA)
			o := cached(t, s, sourceOf(src.content))
			part(t, o, src, 0, 2<<20)
			if damaged {
				must(t, poke(filepath.Join(shared, o.name+dataSuffix), 1<<20, 0))
			}
			from := o
			if guest {
				from = cached(t, other, sourceOf(src.content))
			}
			id, err := p.Adopt(from)
			must(t, err)
			mine, err := p.Pending(id)
			must(t, err)
			if mine.Missing() != 1<<20+5 {
				t.Errorf("%d bytes are missing", mine.Missing())
			}
			_, err = mine.WriteAt([]byte("mine"), 10)
			must(t, err)
			before := src.bytes.Load()
			want(t, "adopted", contentOf(t, mine, src), model)
			most := int64(1<<20 + 5)
			if damaged {
				most += chunkLeast
			}
			if n := src.bytes.Load() - before; n != most {
				t.Errorf("%d bytes were fetched, want %d", n, most)
			}
			if !damaged {
				part(t, o, src, 0, 1<<20) // it is what it was
			}
			must(t, mine.Sync(false))
			kill(p, mine)
			p = openStore(t, private, bootB)
			mine, err = p.Pending(id)
			must(t, err)
			want(t, "after a loss of power", contentOf(t, mine, nil), model)
			must(t, mine.Close())
			if guest {
				must(t, from.Close())
			}
			must(t, o.Close())
			for _, s := range []*Store{s, other, p} {
				must(t, s.Close())
			}
		}
	}
}

// Many processes do everything at once.
func TestSharedByMany(t *testing.T) {
	const size, limit = 1500 << 10, 3 << 20
	dir := t.TempDir()
	var files [4]*source
	for i := range files {
		files[i] = &source{content: noise(size, int64(i))}
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewSource(int64(i)))
			s := openShared(t, dir, bootA, limit)
			for range 30 {
				if rng.Intn(8) == 0 {
					kill(s)
					s = openShared(t, dir, bootA, limit)
				}
				k := rng.Intn(len(files))
				o, err := s.Cached(named(files[k].content, fmt.Sprint(k)))
				if errors.Is(err, unix.EBUSY) {
					continue // it was the turn of others for too long
				}
				if err != nil {
					t.Error(err)
					return
				}
				for range 6 {
					off, b := rng.Int63n(size), make([]byte, rng.Intn(300<<10))
					n, err := o.ReadAt(ctx, files[k], b, off)
					if err != nil && err != io.EOF || !bytes.Equal(b[:n], files[k].content[off:min(size, off+int64(len(b)))]) {
						t.Errorf("process %d, file %d, %d+%d: %d bytes, %v", i, k, off, len(b), n, err)
						return
					}
					switch rng.Intn(8) {
					case 0:
						o.shed(rng.Int63n(size))
					case 1:
						other := rng.Intn(len(files))
						src := named(files[other].content, fmt.Sprint(other))
						s.evict(kept{name: src.key(), size: size}, size)
					case 2:
						if !o.guest.Load() {
							o.syncMu.Lock()
							o.wmu.Lock()
							if err := o.compact(); err != nil {
								t.Error(err)
							}
							o.wmu.Unlock()
							o.syncMu.Unlock()
						}
					}
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	s := openShared(t, dir, bootA, limit)
	defer s.Close()
	for k, f := range files {
		readCached(t, s, f, named(f.content, fmt.Sprint(k)), f.content)
	}
	for _, name := range names(t, dir) {
		if strings.HasSuffix(name, tmpSuffix) {
			t.Errorf("%s is left", name)
		}
	}
}

// Whatever happens to the files of a cache, nobody ever reads anything but what the
// source has.
func TestDamagedCache(t *testing.T) {
	runs := int64(24)
	if testing.Short() {
		runs = 6
	}
	for seed := range runs {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			rng := rand.New(rand.NewSource(seed))
			dir := t.TempDir()
			var files []*source
			for i := range 5 {
				size := []int{200 << 10, 200 << 10, 1 << 20, 5000, 1<<20 + 1}[i]
				files = append(files, &source{content: noise(size, seed*100+int64(i))})
			}
			shared := seed%2 == 0
			for range 12 {
				boot := []string{bootA, bootB}[rng.Intn(2)]
				var s *Store
				if shared {
					s = openShared(t, dir, boot, 2<<20)
				} else {
					s = openLimited(t, dir, 2<<20)
				}
				var open []*Object
				for range 1 + rng.Intn(6) {
					k := rng.Intn(len(files))
					f := files[k]
					o := cached(t, s, named(f.content, fmt.Sprint(k)))
					for range rng.Intn(5) {
						off, b := rng.Int63n(int64(len(f.content))), make([]byte, 1+rng.Intn(200<<10))
						n, err := o.ReadAt(ctx, f, b, off)
						if err != nil && err != io.EOF {
							t.Fatal(err)
						}
						want(t, fmt.Sprint("file ", k, " at ", off), b[:n], f.content[off:min(int64(len(f.content)), off+int64(len(b)))])
					}
					if rng.Intn(2) == 0 {
						must(t, o.Close())
					} else {
						open = append(open, o)
					}
				}
				if rng.Intn(2) == 0 {
					seen := map[*Object]bool{}
					for _, o := range open {
						if !seen[o] {
							o.closeFds()
						}
						seen[o] = true
					}
					s.closeFds()
				} else {
					for _, o := range open {
						must(t, o.Close())
					}
					must(t, s.Close())
				}
				for range rng.Intn(4) {
					damage(t, rng, dir)
				}
			}
		})
	}
}

// damage does something to a file in dir that no program of ours does.
func damage(t *testing.T, rng *rand.Rand, dir string) {
	all := names(t, dir)
	if len(all) == 0 {
		return
	}
	pick := func() string { return filepath.Join(dir, all[rng.Intn(len(all))]) }
	path := pick()
	b, err := os.ReadFile(path)
	must(t, err)
	switch rng.Intn(7) {
	case 0, 1:
		for range 1 + rng.Intn(3) {
			if len(b) > 0 {
				b[rng.Intn(len(b))] ^= 1 << rng.Intn(8)
			}
		}
		must(t, os.WriteFile(path, b, 0o600))
	case 2:
		must(t, os.Truncate(path, rng.Int63n(int64(len(b))+100)))
	case 3:
		if len(b) > 0 { // a hole, or another file's bytes
			at := rng.Intn(len(b))
			clear(b[at:min(len(b), at+page)])
			must(t, os.WriteFile(path, b, 0o600))
		}
	case 4:
		must(t, os.Remove(path))
	case 5, 6:
		other := pick()
		if filepath.Ext(other) != filepath.Ext(path) || other == path {
			return
		}
		must(t, os.Rename(path, path+"x"))
		must(t, os.Rename(other, path))
		must(t, os.Rename(path+"x", other))
	}
}
