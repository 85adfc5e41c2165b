package extent

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// openLimited opens the store in dir for as many bytes of cached objects.
func openLimited(t testing.TB, dir string, limit int64) *Store {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	s, err := OpenStore(fd, Config{
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), BootID: bootA, SyncEvery: -1, Limit: limit,
	})
	must(t, err)
	return s
}

func named(content []byte, name string) Source {
	src := sourceOf(content)
	src.Path = layers.Path(name)
	return src
}

// readAll reads the object of src from beginning to end and compares.
func readCached(t testing.TB, s *Store, f Fetcher, src Source, content []byte) {
	t.Helper()
	o, err := s.Cached(src)
	must(t, err)
	want(t, string(src.Path), contentOf(t, o, f), content)
	must(t, o.Close())
}

func taken(t testing.TB, s *Store) int64 {
	t.Helper()
	_, sum, err := s.census()
	must(t, err)
	return sum
}

// Of many files those stay that were used last, before and after a remount.
func TestLeastRecentlyUsedGoes(t *testing.T) {
	const each, limit = 256 << 10, 4 << 20
	dir := t.TempDir()
	s := openLimited(t, dir, limit)
	var files []*source
	read := func(i int) (fetched bool) {
		f := files[i]
		f.bytes.Store(0)
		readCached(t, s, f, named(f.content, fmt.Sprint(i)), f.content)
		if n := taken(t, s); n > limit {
			t.Fatalf("%d bytes are taken of %d", n, limit)
		}
		return f.bytes.Load() > 0
	}
	next := func() {
		files = append(files, &source{content: noise(each, int64(len(files)))})
		if !read(len(files) - 1) {
			t.Fatal("from where did it come?")
		}
	}
	next()
	for range 40 {
		next()
		if read(0) {
			t.Fatalf("the file that is always used was evicted with %d others", len(files)-1)
		}
	}
	if read(len(files)-1) || read(len(files)-8) {
		t.Error("a recent file was evicted")
	}
	if n := taken(t, s); n < limit/2 {
		t.Errorf("only %d bytes are kept", n)
	}
	must(t, s.Close())

	s = openLimited(t, dir, limit)
	for range 4 {
		next()
	}
	if read(0) || read(len(files)-8) {
		t.Error("a recent file was evicted after a remount")
	}
	if !read(2) {
		t.Error("the oldest file is still here")
	}
	if used := s.used.Load(); used < taken(t, s)/2 || used > 2*taken(t, s) {
		t.Errorf("%d bytes are counted, %d are taken", used, taken(t, s))
	}
	must(t, s.Close())
}

// A file larger than the cache is read as if there were none, and fills it.
func TestScanOfALargeFile(t *testing.T) {
	const size, limit = 24 << 20, 6 << 20
	s := openLimited(t, t.TempDir(), limit)
	defer s.Close()
	src := &source{content: noise(size, 1)}
	o, err := s.Cached(sourceOf(src.content))
	must(t, err)
	b := make([]byte, 128<<10)
	for round := range 2 {
		src.bytes.Store(0)
		for off := int64(0); off < size; off += int64(len(b)) {
			if n, err := o.ReadAt(ctx, src, b, off); n != len(b) || err != nil {
				t.Fatal(n, err)
			}
			want(t, "scan", b, src.content[off:off+int64(len(b))])
			if n := taken(t, s); n > limit {
				t.Fatalf("%d bytes are taken of %d", n, limit)
			}
			// What is being read stays.
			if off >= 1<<20 && !o.PresentRange(off-1<<20, 1<<20) {
				t.Fatalf("round %d: what was read just before %d is gone", round, off)
			}
		}
		if n := src.bytes.Load(); n > size {
			t.Fatalf("round %d: %d bytes were fetched of %d", round, n, size)
		}
	}
	must(t, o.Close())
	// Nobody has it open: a part of it has to go, and not all.
	small := &source{content: noise(2<<20, 2)}
	readCached(t, s, small, named(small.content, "small"), small.content)
	if n := taken(t, s); n > limit || n < limit/2 {
		t.Errorf("%d bytes are taken of %d", n, limit)
	}
}

func TestPinnedAndPendingStay(t *testing.T) {
	const limit = 4 << 20
	s := openLimited(t, t.TempDir(), limit)
	defer s.Close()
	big := &source{content: noise(3<<20, 1)}
	pinned, err := s.Cached(named(big.content, "pinned"))
	must(t, err)
	defer pinned.Close()
	adopted, err := s.Cached(named(big.content, "adopted"))
	must(t, err)
	defer adopted.Close()
	must(t, adopted.Fill(ctx, big, 0, 3<<20))
	_, err = s.Adopt(adopted)
	must(t, err)
	must(t, pinned.Fill(ctx, big, 0, 3<<20))
	unpin := pinned.Pin()
	for i := range 20 {
		f := &source{content: noise(1<<20, int64(i))}
		readCached(t, s, f, named(f.content, fmt.Sprint(i)), f.content)
	}
	if adopted.Missing() != 0 || pinned.Missing() != 0 {
		t.Fatalf("missing: %d of the pending object, %d of the pinned one", adopted.Missing(), pinned.Missing())
	}
	unpin()
	s.barren = time.Time{}
	for i := range 20 {
		f := &source{content: noise(1<<20, int64(i+20))}
		readCached(t, s, f, named(f.content, fmt.Sprint(i+20)), f.content)
	}
	if adopted.Missing() != 0 || pinned.Missing() == 0 {
		t.Fatalf("missing: %d of the pending object, %d of what is pinned no more", adopted.Missing(), pinned.Missing())
	}
	if n := taken(t, s); n > limit {
		t.Errorf("%d bytes are taken of %d", n, limit)
	}
}

// No cache at all is slow and right.
func TestNothingIsKept(t *testing.T) {
	dir := t.TempDir()
	src := &source{content: noise(3<<20, 1)}
	s := openStore(t, dir, bootA)
	readCached(t, s, src, sourceOf(src.content), src.content)
	must(t, s.Close())
	s = openLimited(t, dir, -1)
	defer s.Close()
	readCached(t, s, src, sourceOf(src.content), src.content)
	s.reclaim(0)
	if n := taken(t, s); n != 0 {
		t.Errorf("%d bytes are taken", n)
	}
	readCached(t, s, src, sourceOf(src.content), src.content)
	o, id, err := s.NewPending(sourceOf(src.content))
	must(t, err)
	defer o.Close()
	must(t, o.Fill(ctx, src, 0, 3<<20))
	if s.reclaim(0); !o.Whole() {
		t.Errorf("pending object %s lost %d bytes", id, o.Missing())
	}
}

// What goes while it is read is not read as zeros.
func TestReadingWhatGoes(t *testing.T) {
	const size = 2 << 20
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	src := &source{content: noise(size, 1)}
	o, err := s.Cached(sourceOf(src.content))
	must(t, err)
	defer o.Close()
	b := make([]byte, 1<<20)
	for range 60 {
		must(t, o.Fill(ctx, src, 0, size))
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			o.shed(size)
		}()
		for off := int64(0); off < size; off += int64(len(b)) {
			if _, err := o.ReadAt(ctx, src, b, off); err != nil {
				t.Fatal(err)
			}
			want(t, "read", b, src.content[off:off+int64(len(b))])
		}
		<-gone
	}
}

// Readers see nothing of what goes under their feet.
func TestReadersWhileEvicting(t *testing.T) {
	dir := t.TempDir()
	const size, limit = 3 << 20, 2 << 20
	s := openLimited(t, dir, limit)
	src := [3]*source{}
	for i := range src {
		src[i] = &source{content: noise(size, int64(i))}
	}
	var wg sync.WaitGroup
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		rng := rand.New(rand.NewSource(99))
		for {
			select {
			case <-stop:
				return
			default:
			}
			s.mu.Lock()
			var any []kept
			for name := range s.objs {
				any = append(any, kept{name: name, size: rng.Int63n(size)})
			}
			s.mu.Unlock()
			for _, k := range any {
				s.evict(k, rng.Int63n(size))
			}
		}
	}()
	for i := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewSource(int64(i)))
			f := src[i%3]
			b := make([]byte, 256<<10)
			for range 8 {
				o, err := s.Cached(named(f.content, fmt.Sprint(i%3)))
				if err != nil {
					t.Error(err)
					return
				}
				for range 20 {
					off, n := rng.Int63n(size), rng.Intn(len(b))
					got, err := o.ReadAt(ctx, f, b[:n], off)
					if err != nil && err != io.EOF || !bytes.Equal(b[:got], f.content[off:min(size, off+int64(n))]) {
						t.Errorf("read %d+%d: %d bytes, %v", off, n, got, err)
						return
					}
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	close(stop)
	<-stopped
	must(t, s.Close())
}

// Whatever change of an eviction fails, or is the last before a death, a reader gets
// what the source has.
func TestEveryChangeOfAnEvictionFails(t *testing.T) {
	src := &source{content: noise(4<<20, 1)}
	for name, evict := range map[string]func(s *Store, o *Object){
		"of an open object":   func(_ *Store, o *Object) { o.shed(2 << 20) },
		"of one that is not":  func(s *Store, o *Object) { _ = o.Close(); s.evict(kept{name: o.name, size: 4 << 20}, 4<<20) },
		"of one by the store": func(s *Store, o *Object) { _ = o.Close(); _ = s.SetLimit(3<<20, 0); s.reclaim(0) },
	} {
		t.Run(name, func(t *testing.T) {
			everyFault(t, func(t *testing.T, which func(int) bool, dead bool) bool {
				dir := t.TempDir()
				s := openStore(t, dir, bootA)
				o, err := s.Cached(sourceOf(src.content))
				must(t, err)
				must(t, o.Fill(ctx, src, 0, 4<<20))
				fault := failing(t, which, unix.EIO)
				evict(s, o)
				fault.off()
				if !dead {
					readCached(t, s, src, sourceOf(src.content), src.content)
				}
				kill(s)
				for _, boot := range []string{bootA, bootB} {
					s = openStore(t, dir, boot)
					readCached(t, s, src, sourceOf(src.content), src.content)
					kill(s)
				}
				return fault.hits > 0
			})
		})
	}
}
