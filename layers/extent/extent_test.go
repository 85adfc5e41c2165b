package extent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

var ctx = context.Background()

const (
	bootA = "boot-aaaaaaaaaaa"
	bootB = "boot-bbbbbbbbbbb"
)

// openStore opens the store in dir as a process of the given boot would.
func openStore(t testing.TB, dir, boot string) *Store {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s, err := OpenStore(fd, Config{
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), BootID: boot, SyncEvery: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// kill lets go of a store's directory as a killed process does: nothing is
// written any more.
func kill(s *Store, objs ...*Object) {
	for _, o := range objs {
		o.closeFds()
	}
	s.closeFds()
}

// noise returns n bytes without a zero among them, so that a hole shows.
func noise(n int, seed int64) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	for i := range b {
		b[i] |= 1
	}
	return b
}

func sourceOf(content []byte) Source {
	return Source{
		LayerID: "ssh://host/data",
		Path:    "dir/file",
		Version: layers.Version{Size: int64(len(content)), Mtime: layers.Time{Sec: 1e9}},
		Mode:    unix.S_IFREG | 0o644,
	}
}

// A source is a Fetcher over bytes that counts, and can fail or wait.
type source struct {
	content []byte
	err     error
	gate    chan struct{} // if not nil, each fetch waits for a value
	entered chan struct{} // if not nil, gets a value when a fetch begins

	mu     sync.Mutex
	asked  []Range
	bytes  atomic.Int64
	closed atomic.Bool
}

func (s *source) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	s.mu.Lock()
	s.asked = append(s.asked, Range{off, int64(len(b))})
	s.mu.Unlock()
	if s.entered != nil {
		s.entered <- struct{}{}
	}
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if s.closed.Load() {
		return 0, os.ErrClosed
	}
	if s.err != nil {
		return 0, s.err
	}
	s.bytes.Add(int64(len(b)))
	return bytes.NewReader(s.content).ReadAt(b, off)
}

// unsettled is a source whose version may still hide a change.
type unsettled struct{ *source }

func (unsettled) Settled() bool { return false }

func contentOf(t testing.TB, o *Object, f Fetcher) []byte {
	t.Helper()
	b := make([]byte, o.Size()+10)
	n, err := o.ReadAt(ctx, f, b, 0)
	if err != io.EOF {
		t.Fatalf("read: %v after %d of %d bytes", err, n, o.Size())
	}
	return b[:n]
}

func want(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range got {
		if i >= len(want) || got[i] != want[i] {
			t.Fatalf("%s: differs at %d of %d (want %d bytes)", what, i, len(got), len(want))
		}
	}
	t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCachedIsFetchedOnce(t *testing.T) {
	dir := t.TempDir()
	src := &source{content: noise(3*page+100, 1)}
	s := openStore(t, dir, bootA)
	o, err := s.Cached(sourceOf(src.content))
	must(t, err)
	b := make([]byte, 10)
	n, err := o.ReadAt(ctx, src, b, page+5)
	must(t, err)
	want(t, "first read", b[:n], src.content[page+5:page+15])
	if len(src.asked) != 1 || src.asked[0] != (Range{page, page}) {
		t.Fatalf("asked for %v, want one page", src.asked)
	}
	if got := o.Missing(); got != 2*page+100 {
		t.Fatalf("missing %d", got)
	}
	want(t, "all of it", contentOf(t, o, src), src.content)
	must(t, o.Close())
	must(t, s.Close())

	// Killed, remounted, rebooted after a clean end: nothing is fetched again.
	for _, boot := range []string{bootA, bootB} {
		s = openStore(t, dir, boot)
		o, err = s.Cached(sourceOf(src.content))
		must(t, err)
		if o.Missing() != 0 {
			t.Fatalf("after a remount in %s, %d bytes are missing", boot, o.Missing())
		}
		want(t, "after a remount", contentOf(t, o, nil), src.content)
		if !o.Whole() {
			t.Fatal("it was read and is not proved")
		}
		must(t, o.Close())
		must(t, s.Close())
	}
	if src.bytes.Load() != int64(len(src.content)) {
		t.Fatalf("fetched %d bytes of %d", src.bytes.Load(), len(src.content))
	}
}

func TestVersionsAreOtherObjects(t *testing.T) {
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	a, b := noise(page, 1), noise(page, 2)
	srcA, srcB := sourceOf(a), sourceOf(b)
	srcB.Version.Mtime.Sec++
	oa, err := s.Cached(srcA)
	must(t, err)
	defer oa.Close()
	want(t, "first version", contentOf(t, oa, &source{content: a}), a)
	ob, err := s.Cached(srcB)
	must(t, err)
	defer ob.Close()
	want(t, "second version", contentOf(t, ob, &source{content: b}), b)
	again, err := s.Cached(srcA)
	must(t, err)
	defer again.Close()
	if again != oa {
		t.Fatal("one object on disk, two in memory")
	}
}

func TestReadErrors(t *testing.T) {
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	content := noise(2*page, 1)
	o, err := s.Cached(sourceOf(content))
	must(t, err)
	defer o.Close()
	b := make([]byte, page)
	for _, c := range []struct {
		name  string
		fetch Fetcher
		want  error
	}{
		{"no source", nil, layers.ErrOffline},
		{"offline", &source{err: layers.ErrOffline}, layers.ErrOffline},
		{"stale", &source{err: layers.ErrStale}, layers.ErrStale},
		{"source became shorter", &source{content: content[:100]}, layers.ErrStale},
	} {
		if n, err := o.ReadAt(ctx, c.fetch, b, 0); !errors.Is(err, c.want) || n != 0 {
			t.Errorf("%s: %d, %v", c.name, n, err)
		}
	}
	if n, err := o.ReadAt(ctx, nil, b, 2*page); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := o.ReadAt(ctx, &source{content: content}, make([]byte, page), 2*page-10); n != 10 || err != io.EOF {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if _, err := o.ReadAt(ctx, nil, b, -1); err != unix.EINVAL {
		t.Errorf("before the beginning: %v", err)
	}
}

func TestUnsettledIsNotKept(t *testing.T) {
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	content := noise(page, 1)
	o, err := s.Cached(sourceOf(content))
	must(t, err)
	defer o.Close()
	src := unsettled{&source{content: content}}
	want(t, "first", contentOf(t, o, src), content)
	want(t, "second", contentOf(t, o, src), content)
	if len(src.asked) != 2 || o.Missing() != page {
		t.Fatalf("asked %d times, missing %d", len(src.asked), o.Missing())
	}
	if err := o.Fill(ctx, src, 0, page); !errors.Is(err, ErrUnsettled) {
		t.Fatalf("fill: %v", err)
	}

	// Without a Settler, the mtime and this host's clock decide.
	synctest.Test(t, func(t *testing.T) {
		young := sourceOf(content)
		young.Version.Mtime.Sec = time.Now().Unix()
		y, err := s.Cached(young)
		must(t, err)
		defer y.Close()
		want(t, "young", contentOf(t, y, src.source), content)
		if y.Missing() != page {
			t.Fatal("an mtime of this second is settled")
		}
	})
}

func TestWritesNeverFetch(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, bootA)
	content := noise(4*page, 1)
	o, id, err := s.NewPending(sourceOf(content))
	must(t, err)
	model := append([]byte(nil), content...)
	w := func(b []byte, off int64) {
		n, err := o.WriteAt(b, off)
		if n != len(b) || err != nil {
			t.Fatal(n, err)
		}
		if end := off + int64(len(b)); end > int64(len(model)) {
			model = append(model, make([]byte, end-int64(len(model)))...)
		}
		copy(model[off:], b)
	}
	w([]byte("hello"), 100)
	w([]byte("over the end"), int64(4*page-3))
	w([]byte("far away"), 6*page)
	want(t, "dirty", flat(o.Dirty()), flat([]Range{{100, 5}, {4*page - 3, 2*page + 3 + 8}}))
	src := &source{content: content}
	want(t, "content", contentOf(t, o, src), model)
	if !o.Whole() {
		t.Fatal("not whole")
	}
	kill(s, o)
	s = openStore(t, dir, bootA)
	defer s.Close()
	o, err = s.Pending(id)
	must(t, err)
	defer o.Close()
	want(t, "after a kill", contentOf(t, o, nil), model)
	want(t, "dirty after a kill", flat(o.Dirty()), flat([]Range{{100, 5}, {4*page - 3, 2*page + 3 + 8}}))
}

func flat(rs []Range) (b []byte) {
	for _, r := range rs {
		b = append(b, []byte(slog.AnyValue(r).String())...)
	}
	return b
}

func TestCachedRefusesWrites(t *testing.T) {
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	o, err := s.Cached(sourceOf(noise(page, 1)))
	must(t, err)
	defer o.Close()
	_, werr := o.WriteAt([]byte("x"), 0)
	for _, err := range []error{werr, o.Truncate(0), o.Punch(0, 10), o.Allocate(0, 10, true)} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("got %v", err)
		}
	}
}

func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, bootA)
	content := noise(4*page, 1)
	src := &source{content: content}
	o, err := s.Cached(sourceOf(content))
	must(t, err)
	b := make([]byte, page)
	_, err = o.ReadAt(ctx, src, b, 0)
	must(t, err)
	id, err := s.Adopt(o)
	must(t, err)
	_, err = o.WriteAt([]byte("mine"), 10)
	must(t, err)
	if same, err := s.Pending(id); err != nil || same != o {
		t.Fatal("an adopted object is opened twice", err)
	}
	must(t, o.Close())
	fresh, err := s.Cached(sourceOf(content))
	must(t, err)
	if fresh == o || fresh.Missing() != 4*page {
		t.Fatal("the cache still has what was adopted")
	}
	want(t, "fresh", contentOf(t, fresh, src), content)
	if _, err := s.Adopt(o); err == nil {
		t.Fatal("adopted twice")
	}
	kill(s, o, fresh)

	s = openStore(t, dir, bootA)
	defer s.Close()
	ids, err := s.Pendings()
	must(t, err)
	if len(ids) != 1 || ids[0] != id {
		t.Fatalf("pending: %v", ids)
	}
	o, err = s.Pending(id)
	must(t, err)
	if o.Missing() != 3*page || o.Source() != sourceOf(content) {
		t.Fatalf("missing %d of %+v", o.Missing(), o.Source())
	}
	model := append([]byte(nil), content...)
	copy(model[10:], "mine")
	want(t, "adopted", contentOf(t, o, src), model)
	must(t, s.Remove(id))
	want(t, "removed and open", contentOf(t, o, nil), model)
	must(t, o.Close())
	if _, err := s.Pending(id); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	must(t, s.Remove(id))
}

func TestTruncateNeverResurrects(t *testing.T) {
	for _, boot := range []string{bootA, bootB} {
		dir := t.TempDir()
		s := openStore(t, dir, bootA)
		content := noise(4*page, 1)
		src := &source{content: content}
		o, id, err := s.NewPending(sourceOf(content))
		must(t, err)
		must(t, o.Truncate(page+7))
		must(t, o.Truncate(3*page))
		model := append(append([]byte(nil), content[:page+7]...), make([]byte, 2*page-7)...)
		must(t, o.Sync(true))
		kill(s, o)
		s = openStore(t, dir, boot)
		o, err = s.Pending(id)
		must(t, err)
		want(t, "cut and grown", contentOf(t, o, src), model)
		for _, r := range src.asked {
			if r.Off+r.Len > page+7 {
				t.Errorf("asked for %v beyond the limit", r)
			}
		}
		must(t, o.Close())
		must(t, s.Close())
	}
}

func TestPunchAndSeek(t *testing.T) {
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	content := noise(16*page, 1)
	src := &source{content: content}
	o, _, err := s.NewPending(sourceOf(content))
	must(t, err)
	defer o.Close()
	seek := func(f func(int64) (int64, error), off, want int64) {
		t.Helper()
		if got, err := f(off); err != nil || got != want {
			t.Errorf("seek from %d: %d, %v; want %d", off, got, err, want)
		}
	}
	seek(o.SeekData, 5, 5)
	seek(o.SeekHole, 5, 16*page)
	must(t, o.Punch(4*page, 4*page))
	seek(o.SeekHole, 0, 4*page)
	seek(o.SeekData, 4*page, 8*page)
	seek(o.SeekHole, 8*page, 16*page)
	must(t, o.Truncate(20*page))
	seek(o.SeekHole, 8*page, 16*page)
	if _, err := o.SeekData(16 * page); err != unix.ENXIO {
		t.Errorf("data in a hole at the end: %v", err)
	}
	if _, err := o.SeekHole(20 * page); err != unix.ENXIO {
		t.Errorf("hole beyond the end: %v", err)
	}
	must(t, o.Fallocate(unix.FALLOC_FL_ZERO_RANGE, 19*page, 2*page))
	must(t, o.Allocate(0, 22*page, false))
	if err := o.Fallocate(unix.FALLOC_FL_COLLAPSE_RANGE, 0, page); err != unix.EOPNOTSUPP {
		t.Error(err)
	}
	model := append([]byte(nil), content...)
	clear(model[4*page : 8*page])
	model = append(model, make([]byte, 6*page)...)
	if o.Missing() != 12*page {
		t.Errorf("missing %d: allocating is not having", o.Missing())
	}
	want(t, "content", contentOf(t, o, src), model)
}

func TestFullDisk(t *testing.T) {
	s := openStore(t, t.TempDir(), bootA)
	defer s.Close()
	content := noise(4*page, 1)
	src := &source{content: content}
	o, _, err := s.NewPending(sourceOf(content))
	must(t, err)
	defer o.Close()

	fail := failing(t, func(int) bool { return true }, unix.ENOSPC)
	want(t, "read on a full disk", contentOf(t, o, src), content)
	if o.Missing() != 4*page {
		t.Error("what could not be stored counts as present")
	}
	if err := o.Fill(ctx, src, 0, page); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("fill: %v", err)
	}
	fail.off()

	// The data is written, the record is not.
	fail = failing(t, func(n int) bool { return n >= 2 }, unix.ENOSPC)
	if _, err := o.WriteAt([]byte("first"), 10); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write: %v", err)
	}
	if _, err := o.WriteAt([]byte("second"), 2*page); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write: %v", err)
	}
	fail.off()
	model := append([]byte(nil), content...)
	copy(model[10:], "first")
	want(t, "the first has happened, the second not", contentOf(t, o, src), model)
	must(t, o.Sync(true))
	if _, err := o.WriteAt([]byte("third"), 3*page); err != nil {
		t.Error(err)
	}
	copy(model[3*page:], "third")
	want(t, "with space again", contentOf(t, o, src), model)
}

func TestTheStoreSyncsByItself(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	s, err := OpenStore(fd, Config{BootID: bootA, SyncEvery: time.Millisecond})
	must(t, err)
	content := noise(2*page, 1)
	o, id, err := s.NewPending(sourceOf(content))
	must(t, err)
	_, err = o.WriteAt([]byte("mine"), 5)
	must(t, err)
	for deadline := time.Now().Add(time.Minute); s.durableEpoch(s.boot) == 0; {
		if time.Now().After(deadline) {
			t.Fatal("nothing was made durable")
		}
		time.Sleep(time.Millisecond)
	}
	// The power goes: no one had called Sync.
	close(s.stop)
	<-s.stopped
	kill(s, o)
	s = openStore(t, dir, bootB)
	defer s.Close()
	o, err = s.Pending(id)
	must(t, err)
	defer o.Close()
	copy(content[5:], "mine")
	if want(t, "after a power loss", contentOf(t, o, &source{content: noise(2*page, 1)}), content); o.Dirty()[0] != (Range{5, 4}) {
		t.Fatalf("dirty: %v", o.Dirty())
	}
}

// A syncfs that failed once proves nothing later: the kernel has forgotten what
// it could not write.
func TestFailedSyncOfTheStore(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, bootA)
	content := noise(2*page, 1)
	o, id, err := s.NewPending(sourceOf(content))
	must(t, err)
	_, err = o.WriteAt([]byte("mine"), 5)
	must(t, err)
	fault := failing(t, func(n int) bool { return n == 1 }, unix.EIO)
	if err := s.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	fault.off()
	_, err = o.WriteAt([]byte("more"), page)
	must(t, err)
	if err := s.Sync(); !errors.Is(err, unix.EIO) {
		t.Fatalf("the second: %v", err)
	}
	kill(s, o)
	s = openStore(t, dir, bootB)
	defer s.Close()
	o, err = s.Pending(id)
	must(t, err)
	defer o.Close()
	want(t, "nothing is believed", contentOf(t, o, &source{content: content}), content)
}
