package overlay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// faraway is a source in memory that counts what it is asked for.
type faraway struct {
	delay time.Duration // of each exchange; immutable

	mu     sync.Mutex
	files  map[layers.Path]*farFile
	away   bool          // it cannot be reached
	gate   chan struct{} // if not nil, what nobody waits for waits for its end
	opens  int
	reads  int           // that somebody waited for
	ahead  int           // that nobody did
	bulk   int           // ReadManys that somebody waited for
	burst  int           // that nobody did
	given  int64         // bytes of files
	under  int64         // bytes that are being read ahead
	most   int64         // of under, at once
	ended  int           // reads that were given up
	brings []layers.Path // by ReadMany
}

type farFile struct {
	content   []byte
	mtime     int64
	unsettled bool
}

func (l *faraway) put(p layers.Path, content []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.files == nil {
		l.files = make(map[layers.Path]*farFile)
	}
	l.files[p] = &farFile{content: content, mtime: 1e9}
}

func (l *faraway) file(p layers.Path) *farFile {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.files[p]
}

func (l *faraway) count(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

// bytes is how much of files was fetched.
func (l *faraway) bytes() (n int64) {
	l.count(func() { n = l.given })
	return n
}

func (f *farFile) attr() layers.Attr {
	return layers.Attr{
		Known: layers.KnownSize | layers.KnownOwner | layers.KnownTimes | layers.KnownNlink,
		Mode:  unix.S_IFREG | 0o644, Nlink: 1, Size: int64(len(f.content)), Mtime: layers.Time{Sec: f.mtime},
	}
}

func (l *faraway) ID() string { return "faraway" }
func (l *faraway) Stat(_ context.Context, p layers.Path) (layers.Attr, error) {
	if f := l.file(p); f != nil {
		return f.attr(), nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for q := range l.files {
		if p == layers.Root || strings.HasPrefix(string(q), string(p)+"/") {
			return layers.Attr{Known: layers.KnownOwner | layers.KnownTimes, Mode: unix.S_IFDIR | 0o755}, nil
		}
	}
	return layers.Attr{}, unix.ENOENT
}

func (l *faraway) ReadDir(_ context.Context, p layers.Path) (es []layers.Entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	dirs := map[string]bool{}
	for q, f := range l.files {
		rest, ok := strings.CutPrefix(string(q), string(p)+"/")
		if p == layers.Root {
			rest, ok = string(q), true
		}
		if name, _, below := strings.Cut(rest, "/"); ok && below {
			dirs[name] = true
		} else if ok {
			es = append(es, layers.Entry{Name: name, Type: unix.S_IFREG, Attr: ptr(f.attr())})
		}
	}
	for name := range dirs {
		es = append(es, layers.Entry{Name: name, Type: unix.S_IFDIR})
	}
	return es, nil
}

func (l *faraway) Readlink(context.Context, layers.Path) (string, error) { return "", unix.EINVAL }
func (l *faraway) Xattrs(context.Context, layers.Path) (layers.Xattrs, error) {
	return nil, nil
}
func (l *faraway) Statfs(context.Context) (layers.Statfs, error) { return layers.Statfs{}, nil }
func (l *faraway) Close() error                                  { return nil }

func (l *faraway) Open(_ context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	time.Sleep(l.delay)
	away := false
	l.count(func() { l.opens++; away = l.away })
	if away {
		return nil, layers.ErrOffline
	}
	f := l.file(p)
	if f == nil {
		return nil, unix.ENOENT
	}
	if a := f.attr(); want != nil && !a.SameVersion(want) {
		return nil, layers.ErrStale
	}
	return &farHandle{l, p, f}, nil
}

func (l *faraway) ReadMany(ctx context.Context, files []layers.Wanted) ([]layers.Content, error) {
	l.mu.Lock()
	if layers.IsBackground(ctx) {
		l.burst++
	} else {
		l.bulk++
	}
	l.mu.Unlock()
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	out := make([]layers.Content, len(files))
	for i, w := range files {
		f := l.file(w.Path)
		if f == nil {
			out[i].Err = unix.ENOENT
		} else if a := f.attr(); !a.SameVersion(w.Attr) {
			out[i].Err = layers.ErrStale
		} else {
			out[i] = layers.Content{Data: bytes.Clone(f.content), Settled: !f.unsettled}
		}
		l.count(func() {
			l.given += int64(len(out[i].Data))
			l.brings = append(l.brings, w.Path)
		})
	}
	return out, nil
}

// wait is the time that an exchange takes.
func (l *faraway) wait(ctx context.Context) error {
	l.mu.Lock()
	gate, away := l.gate, l.away
	l.mu.Unlock()
	if away {
		return layers.ErrOffline
	}
	if gate != nil && layers.IsBackground(ctx) {
		select {
		case <-gate:
		case <-ctx.Done():
			l.count(func() { l.ended++ })
			return ctx.Err()
		}
	}
	time.Sleep(l.delay)
	return nil
}

type farHandle struct {
	l    *faraway
	path layers.Path
	f    *farFile
}

func (h *farHandle) Attr() layers.Attr { return h.f.attr() }
func (h *farHandle) Close() error      { return nil }
func (h *farHandle) Settled() bool     { return !h.f.unsettled }
func (h *farHandle) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	l := h.l
	l.mu.Lock()
	if layers.IsBackground(ctx) {
		l.ahead++
		l.under += int64(len(b))
		l.most = max(l.most, l.under)
		defer l.count(func() { l.under -= int64(len(b)) })
	} else {
		l.reads++
	}
	l.mu.Unlock()
	if err := l.wait(ctx); err != nil {
		return 0, err
	}
	if l.file(h.path) != h.f {
		return 0, layers.ErrStale
	}
	n, err := bytes.NewReader(h.f.content).ReadAt(b, off)
	l.count(func() { l.given += int64(n) })
	return n, err
}

// slowly is a source that has no layers.BulkReader.
type slowly struct{ layers.Layer }

// aheadWorld is a mount of a faraway source.
type aheadWorld struct {
	t   testing.TB
	far *faraway
	fs  *FS
	*driver
}

func newAheadWorld(t testing.TB, far *faraway, tweak ...func(*Config)) *aheadWorld {
	t.Helper()
	dir := worlds(t)
	for _, d := range []string{"upper", "work"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	upper, err := local.Open(filepath.Join(dir, "upper"), local.Config{})
	must(t, err)
	work, err := os.Open(filepath.Join(dir, "work"))
	must(t, err)
	cfg := Config{
		Mode: Overlay, Upper: upper, Work: work, Format: whiteout.Trusted,
		Lowers: []Lower{{Layer: far, Changes: true}},
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, f := range tweak {
		f(&cfg)
	}
	fs, err := New(context.Background(), cfg)
	must(t, err)
	w := &aheadWorld{t: t, far: far, fs: fs, driver: &driver{fs: fs}}
	t.Cleanup(func() {
		w.end()
		must(t, fs.Close())
		work.Close()
	})
	return w
}

// readOnly makes a mount one without an upper.
func readOnly(c *Config) {
	c.Upper.Close()
	c.Upper, c.Work = nil, nil
}

func (w *aheadWorld) must(what string, errno unix.Errno) {
	w.t.Helper()
	if errno != 0 {
		w.t.Fatalf("%s: %v", what, errno)
	}
}

// openFile returns a handle of the file path.
func (w *aheadWorld) openFile(path string) uint64 {
	w.t.Helper()
	var out fuse.OpenOut
	w.must("open "+path, w.on(path, func(h fuse.InHeader) fuse.Status {
		return w.fs.Open(nil, &fuse.OpenIn{InHeader: h}, &out)
	}))
	return out.Fh
}

func (w *aheadWorld) readAt(fh uint64, off, n int) []byte {
	w.t.Helper()
	buf := make([]byte, n)
	res, st := w.fs.Read(nil, &fuse.ReadIn{Fh: fh, Offset: uint64(off), Size: uint32(n)}, buf)
	w.must("read", unix.Errno(st))
	defer res.Done()
	b, st := res.Bytes(buf)
	w.must("read", unix.Errno(st))
	return slices.Clone(b)
}

func (w *aheadWorld) release(fh uint64) { w.fs.Release(nil, &fuse.ReleaseIn{Fh: fh}) }

// ls lists a directory with attributes, as ls -l does, and returns its names in order.
func (w *aheadWorld) ls(path string) (names []string) {
	w.t.Helper()
	id, errno := w.find(path)
	w.must("find "+path, errno)
	var out fuse.OpenOut
	h := fuse.InHeader{NodeId: id}
	w.must("opendir", unix.Errno(w.fs.OpenDir(nil, &fuse.OpenIn{InHeader: h}, &out)))
	defer w.fs.ReleaseDir(&fuse.ReleaseIn{Fh: out.Fh})
	hd := w.fs.handles.get(out.Fh).(*dirHandle)
	w.must("readdir", unix.Errno(w.fs.ReadDir(nil, &fuse.ReadIn{InHeader: h, Fh: out.Fh}, fuse.NewDirEntryList(make([]byte, 4096), 0))))
	for _, e := range hd.list.entries {
		if e.Name != "." && e.Name != ".." {
			names = append(names, e.Name)
		}
	}
	return names
}

// noise is n bytes that do not repeat.
func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

const kernelReads = 128 << 10

// A sequential reader waits for its first requests, and from then on finds what it
// reads here or on its way; what is under way grows to what the link holds, and
// nothing is fetched twice.
func TestSequentialReader(t *testing.T) {
	t.Run("with an upper", func(t *testing.T) { testSequentialReader(t, func(*Config) {}) })
	t.Run("without", func(t *testing.T) { testSequentialReader(t, readOnly) })
}

func testSequentialReader(t *testing.T, tweak func(*Config)) {
	far := &faraway{delay: 5 * time.Millisecond}
	want := noise(24<<20+777, 1)
	far.put("file", want)
	w := newAheadWorld(t, far, tweak)
	fh := w.openFile("file")
	for off := 0; off < len(want); off += kernelReads {
		if got := w.readAt(fh, off, kernelReads); !bytes.Equal(got, want[off:min(off+kernelReads, len(want))]) {
			t.Fatalf("at %d: other bytes", off)
		}
	}
	w.release(fh)
	if far.reads > 4 {
		t.Errorf("%d requests of the reader went to the source, want those before it was known to be sequential", far.reads)
	}
	if given := far.bytes(); given != int64(len(want)) {
		t.Errorf("%d bytes were fetched of %d", given, len(want))
	}
	if far.most < 1<<20 {
		t.Errorf("at most %d bytes were under way", far.most)
	}
}

// The kernel sends the requests of one reader side by side, in any order.
func TestSequentialReaderOutOfOrder(t *testing.T) {
	far := &faraway{}
	want := noise(16<<20, 2)
	far.put("file", want)
	w := newAheadWorld(t, far)
	fh := w.openFile("file")
	for off := 0; off < len(want); off += 4 * kernelReads {
		for _, i := range []int{1, 0, 3, 2} {
			at := off + i*kernelReads
			if got := w.readAt(fh, at, kernelReads); !bytes.Equal(got, want[at:at+kernelReads]) {
				t.Fatalf("at %d: other bytes", at)
			}
		}
	}
	w.release(fh)
	if far.reads > 12 {
		t.Errorf("%d of %d requests went to the source by themselves", far.reads, len(want)/kernelReads)
	}
}

// Who does not read in order gets what he asks for, and at most three times as much
// besides.
func TestRandomReaders(t *testing.T) {
	const size = 64 << 20
	random := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name string
		n    int
		at   func(i int) int
	}{
		{"pages at random", 4 << 10, func(int) int { return random.IntN(size>>12) << 12 }},
		{"64 KiB at random", 64 << 10, func(int) int { return random.IntN(size>>16) << 16 }},
		{"half a page at random", 2 << 10, func(int) int { return random.IntN(size>>12) << 12 }},
		{"strided pages", 4 << 10, func(i int) int { return i * 12 << 10 }},
		{"strided by much", 4 << 10, func(i int) int { return i * 130 << 10 }},
		{"every other 128 KiB", 128 << 10, func(i int) int { return i * 256 << 10 }},
		{"backward by pages", 4 << 10, func(i int) int { return size - (i+1)<<12 }},
		{"backward by 128 KiB", 128 << 10, func(i int) int { return size - (i+1)<<17 }},
		{"two requests at each place", 128 << 10, func(i int) int { return random.IntN(size>>20)<<20 + i%2<<17 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			far := &faraway{}
			want := noise(size, 3)
			far.put("file", want)
			w := newAheadWorld(t, far)
			fh := w.openFile("file")
			asked, base := 0, 0
			for i := range 256 {
				off := c.at(i)
				if c.name == "two requests at each place" {
					if i%2 == 0 {
						base = off
					}
					off = base + i%2<<17
				}
				got := w.readAt(fh, off, c.n)
				if !bytes.Equal(got, want[off:off+c.n]) {
					t.Fatalf("at %d: other bytes", off)
				}
				asked += len(got)
			}
			w.release(fh)
			w.fs.ahead.work.Wait()
			if given := far.bytes(); given > 4*int64(asked) {
				t.Errorf("%d bytes were fetched for %d", given, asked)
			}
		})
	}
}

// What is fetched before a reader ends when he goes elsewhere, and when he closes.
func TestReaderLeaves(t *testing.T) {
	for name, leave := range map[string]func(w *aheadWorld, fh uint64){
		"jumps":  func(w *aheadWorld, fh uint64) { w.readAt(fh, 20<<20, 4096) },
		"closes": func(w *aheadWorld, fh uint64) { w.release(fh) },
	} {
		t.Run(name, func(t *testing.T) {
			far := &faraway{gate: make(chan struct{})}
			far.put("file", noise(32<<20, 4))
			w := newAheadWorld(t, far)
			fh := w.openFile("file")
			w.readAt(fh, 0, kernelReads)
			w.readAt(fh, kernelReads, kernelReads)
			until(t, "something is fetched ahead", func() (ok bool) {
				far.count(func() { ok = far.under > 0 })
				return ok
			})
			leave(w, fh)
			until(t, "it has ended", func() (ok bool) {
				far.count(func() { ok = far.under == 0 && far.ended > 0 })
				return ok
			})
			if name == "closes" && w.fs.ahead.streams != 0 {
				t.Errorf("%d streams are counted with no file open", w.fs.ahead.streams)
			}
		})
	}
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// What cannot be kept, since its source has changed just now, is not fetched ahead.
func TestUnsettledIsNotFetchedAhead(t *testing.T) {
	far := &faraway{}
	want := noise(2<<20, 5)
	far.put("d/file", want)
	far.put("d/small", want[:100])
	far.put("d/other", want[:100])
	for _, f := range far.files {
		f.unsettled = true
	}
	w := newAheadWorld(t, far)
	w.ls("d")
	fh := w.openFile("d/file")
	for off := 0; off < len(want); off += kernelReads {
		if got := w.readAt(fh, off, kernelReads); !bytes.Equal(got, want[off:off+kernelReads]) {
			t.Fatalf("at %d: other bytes", off)
		}
	}
	w.release(fh)
	for range 3 {
		if got, errno := w.readFile("d/small"); errno != 0 || !bytes.Equal(got, want[:100]) {
			t.Errorf("small: %d bytes, %v", len(got), errno)
		}
	}
	w.fs.ahead.work.Wait()
	if far.ahead != 0 || far.burst > 1 {
		t.Errorf("%d reads and %d bursts for what cannot be kept", far.ahead, far.burst)
	}
}

func (w *aheadWorld) readFile(path string) ([]byte, unix.Errno) {
	id, errno := w.find(path)
	if errno != 0 {
		return nil, errno
	}
	return w.readNode(id)
}

// smallFiles puts n small files into directory d of far, and returns their contents.
func smallFiles(far *faraway, d string, n int) map[string][]byte {
	all := make(map[string][]byte)
	for i := range n {
		name := fmt.Sprintf("%s/f%05d", d, i)
		all[name] = noise(1+i*37%9000, byte(i))
		far.put(layers.Path(name), all[name])
	}
	return all
}

// Who reads the small files of a directory one after the other waits for the first:
// no other costs an exchange that he waits for, whichever order he reads them in, and
// none comes twice.
func TestSiblings(t *testing.T) {
	for _, order := range []string{"as listed", "by name", "without an upper"} {
		t.Run(order, func(t *testing.T) {
			far := &faraway{delay: time.Millisecond}
			all := smallFiles(far, "d", 1000)
			w := newAheadWorld(t, far, func(c *Config) {
				if order == "without an upper" {
					readOnly(c)
				}
			})
			names := w.ls("d")
			if order == "by name" {
				slices.Sort(names)
			}
			sum := int64(0)
			for _, name := range names {
				got, errno := w.readFile("d/" + name)
				if errno != 0 || !bytes.Equal(got, all["d/"+name]) {
					t.Fatalf("%s: %d bytes, %v", name, len(got), errno)
				}
				sum += int64(len(got))
			}
			w.fs.ahead.work.Wait()
			if given := far.bytes(); given != sum {
				t.Errorf("%d bytes were fetched of %d", given, sum)
			}
			if waits := far.opens + far.reads + far.bulk; waits > 16 {
				t.Errorf("%d exchanges that somebody waited for", waits)
			}
			if far.burst > 40 {
				t.Errorf("%d bursts for %d files", far.burst, len(names))
			}
		})
	}
}

// Of a directory of which one file is read, a few come with it, and of one that is only
// listed none.
func TestFewSiblings(t *testing.T) {
	far := &faraway{}
	smallFiles(far, "d", 500)
	w := newAheadWorld(t, far)
	names := w.ls("d")
	if far.burst+far.bulk != 0 {
		t.Error("listing has read files")
	}
	for range 3 {
		_, errno := w.readFile("d/" + names[10])
		w.must("read", errno)
	}
	w.fs.ahead.work.Wait()
	if n := len(far.brings); n > 1+siblingsFirst {
		t.Errorf("%d files came with one", n)
	}
	if far.opens+far.reads != 0 {
		t.Errorf("the file itself took %d opens and %d reads besides", far.opens, far.reads)
	}
}

// The directories of a walk begin with what served in the one before.
func TestSiblingsOfAWalk(t *testing.T) {
	far := &faraway{delay: time.Millisecond}
	var all []map[string][]byte
	for i := range 8 {
		all = append(all, smallFiles(far, fmt.Sprintf("d%d", i), 100))
	}
	w := newAheadWorld(t, far)
	before := 0
	for i, files := range all {
		dir := fmt.Sprintf("d%d/", i)
		for _, name := range w.ls(dir[:len(dir)-1]) {
			if got, errno := w.readFile(dir + name); errno != 0 || !bytes.Equal(got, files[dir+name]) {
				t.Fatalf("%s: %d bytes, %v", name, len(got), errno)
			}
		}
		w.fs.ahead.work.Wait()
		if n := far.burst - before; i >= 3 && n > 2 {
			t.Errorf("directory %d took %d bursts", i, n)
		}
		before = far.burst
	}
}

// A small file that has changed since it was listed never shows one version under the
// attributes of the other.
func TestSiblingChanges(t *testing.T) {
	far := &faraway{}
	all := smallFiles(far, "d", 20)
	w := newAheadWorld(t, far)
	names := w.ls("d")
	for _, name := range names[1:] {
		p := "d/" + name
		far.put(layers.Path(p), bytes.ToUpper(all[p]))
		far.files[layers.Path(p)].mtime += 5
	}
	for i, name := range names {
		p := "d/" + name
		want := all[p]
		if i > 0 {
			want = bytes.ToUpper(want)
		}
		if got, errno := w.readFile(p); errno != 0 || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), errno)
		}
	}
}

// With prefetch=off nothing is asked for but what somebody reads.
func TestNoPrefetch(t *testing.T) {
	far := &faraway{}
	all := smallFiles(far, "d", 50)
	far.put("big", noise(4<<20, 6))
	w := newAheadWorld(t, far, func(c *Config) { c.NoPrefetch = true })
	for _, name := range w.ls("d")[:10] {
		if got, errno := w.readFile("d/" + name); errno != 0 || !bytes.Equal(got, all["d/"+name]) {
			t.Fatalf("%s: %d bytes, %v", name, len(got), errno)
		}
	}
	fh := w.openFile("big")
	for off := 0; off < 2<<20; off += kernelReads {
		w.readAt(fh, off, kernelReads)
	}
	w.release(fh)
	if far.ahead+far.burst+far.bulk != 0 {
		t.Errorf("%d reads, %d bursts and %d bulk reads", far.ahead, far.burst, far.bulk)
	}
}

// A source that cannot read many files at once is read one by one.
func TestSiblingsOneByOne(t *testing.T) {
	far := &faraway{}
	all := smallFiles(far, "d", 20)
	w := newAheadWorld(t, far, func(c *Config) { c.Lowers[0].Layer = slowly{far} })
	for _, name := range w.ls("d") {
		if got, errno := w.readFile("d/" + name); errno != 0 || !bytes.Equal(got, all["d/"+name]) {
			t.Fatalf("%s: %d bytes, %v", name, len(got), errno)
		}
	}
	if far.bulk+far.burst != 0 || far.opens != 20 {
		t.Errorf("%d opens, %d bulk reads", far.opens, far.bulk+far.burst)
	}
}

// In a cache that is smaller than what is read, nothing that was fetched ahead goes
// before it was read.
func TestPrefetchIntoASmallCache(t *testing.T) {
	far := &faraway{}
	all := smallFiles(far, "d", 400)
	want := noise(32<<20, 7)
	far.put("big", want)
	w := newAheadWorld(t, far, func(c *Config) { c.Cache.Limit = 4 << 20 })
	fh := w.openFile("big")
	for off := 0; off < len(want); off += kernelReads {
		if got := w.readAt(fh, off, kernelReads); !bytes.Equal(got, want[off:off+kernelReads]) {
			t.Fatalf("at %d: other bytes", off)
		}
	}
	w.release(fh)
	if far.given > int64(len(want))*11/10 {
		t.Errorf("%d bytes were fetched of %d", far.given, len(want))
	}
	far.given = 0
	sum := int64(0)
	for _, name := range w.ls("d") {
		got, errno := w.readFile("d/" + name)
		if errno != 0 || !bytes.Equal(got, all["d/"+name]) {
			t.Fatalf("%s: %d bytes, %v", name, len(got), errno)
		}
		sum += int64(len(got))
	}
	w.fs.ahead.work.Wait()
	if far.given > sum*11/10 {
		t.Errorf("%d bytes were fetched of small files of %d", far.given, sum)
	}
}

// Where nothing may be kept, or nothing can be, nothing is fetched ahead for long.
func TestPrefetchWithoutACache(t *testing.T) {
	far := &faraway{}
	want := noise(4<<20, 8)
	far.put("big", want)
	all := smallFiles(far, "d", 50)
	w := newAheadWorld(t, far, func(c *Config) { c.Cache.Limit = -1 })
	fh := w.openFile("big")
	for off := 0; off < len(want); off += kernelReads {
		if got := w.readAt(fh, off, kernelReads); !bytes.Equal(got, want[off:off+kernelReads]) {
			t.Fatalf("at %d: other bytes", off)
		}
	}
	w.release(fh)
	for _, name := range w.ls("d") {
		if got, errno := w.readFile("d/" + name); errno != 0 || !bytes.Equal(got, all["d/"+name]) {
			t.Fatalf("%s: %d bytes, %v", name, len(got), errno)
		}
	}
	if far.ahead+far.burst+far.bulk != 0 {
		t.Errorf("%d reads, %d bursts and %d bulk reads", far.ahead, far.burst, far.bulk)
	}
}

// What is fetched ahead never shows over what is written, cut off or zeroed meanwhile.
func TestPrefetchBesideChanges(t *testing.T) {
	far := &faraway{delay: 200 * time.Microsecond}
	content := noise(12<<20, 9)
	far.put("file", content)
	w := newAheadWorld(t, far)
	id, errno := w.find("file")
	w.must("find", errno)
	var out fuse.OpenOut
	h := fuse.InHeader{NodeId: id}
	w.must("open", unix.Errno(w.fs.Open(nil, &fuse.OpenIn{InHeader: h, Flags: unix.O_RDWR}, &out)))
	fh := out.Fh
	const half = 8 << 20 // what lies beyond is cut off while it is read
	mine := bytes.Repeat([]byte("mine"), 1024)
	var wg sync.WaitGroup
	wg.Go(func() { // every other page of the first half, from the end
		for off := half - 4096; off > 0; off -= 8192 {
			if n, st := w.fs.Write(nil, &fuse.WriteIn{InHeader: h, Fh: fh, Offset: uint64(off), Size: 4096}, mine); st != 0 || n != 4096 {
				t.Errorf("write at %d: %v", off, st)
			}
		}
	})
	wg.Go(func() {
		time.Sleep(2 * time.Millisecond)
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_SIZE, Size: half}}
		if st := w.fs.SetAttr(nil, &in, &fuse.AttrOut{}); st != 0 {
			t.Errorf("truncate: %v", st)
		}
	})
	zeros := make([]byte, 4096)
	for range 4 {
		var own fuse.OpenOut
		w.must("open", unix.Errno(w.fs.Open(nil, &fuse.OpenIn{InHeader: h}, &own)))
		wg.Go(func() {
			defer w.release(own.Fh)
			buf := make([]byte, kernelReads)
			for off := 0; off < len(content); off += kernelReads {
				res, st := w.fs.Read(nil, &fuse.ReadIn{InHeader: h, Fh: own.Fh, Offset: uint64(off), Size: kernelReads}, buf)
				if st != 0 {
					t.Errorf("read at %d: %v", off, st)
					return
				}
				b, _ := res.Bytes(make([]byte, kernelReads))
				for i := 0; i+4096 <= len(b); i += 4096 {
					at, page := off+i, b[i:i+4096]
					same := bytes.Equal(page, content[at:at+4096]) || at/4096%2 == 1 && bytes.Equal(page, mine)
					if !same || bytes.Equal(page, zeros) {
						t.Errorf("at %d: neither the source's nor what was written", at)
					}
				}
				res.Done()
			}
		})
	}
	wg.Wait()
	w.fs.ahead.work.Wait()
	for off := 0; off < half; off += 4096 {
		want := content[off : off+4096]
		if off/4096%2 == 1 {
			want = mine
		}
		if got := w.readAt(fh, off, 4096); !bytes.Equal(got, want) {
			t.Fatalf("at %d: other bytes afterwards", off)
		}
	}
	if got := w.readAt(fh, half, 4096); len(got) != 0 {
		t.Errorf("%d bytes beyond the end", len(got))
	}
	w.release(fh)
}

// A small file of a source that is away is asked for once when it is opened, and read
// when the source is back, with others.
func TestSmallFilesOfASourceThatWasAway(t *testing.T) {
	far := &faraway{}
	all := smallFiles(far, "d", 50)
	w := newAheadWorld(t, far)
	names := w.ls("d")
	far.count(func() { far.away = true })
	fh := w.openFile("d/" + names[0])
	if far.bulk != 1 || far.opens != 0 {
		t.Errorf("opening has asked %d times, and then %d times", far.bulk, far.opens)
	}
	if _, st := w.fs.Read(nil, &fuse.ReadIn{Fh: fh, Size: 4096}, make([]byte, 4096)); st == 0 {
		t.Error("what is away can be read")
	}
	w.release(fh)
	far.count(func() { far.away = false })
	for _, name := range names {
		if got, errno := w.readFile("d/" + name); errno != 0 || !bytes.Equal(got, all["d/"+name]) {
			t.Fatalf("%s: %d bytes, %v", name, len(got), errno)
		}
	}
	w.fs.ahead.work.Wait()
	if waits := far.bulk + far.opens; waits > 20 {
		t.Errorf("%d files took %d exchanges", len(names), waits)
	}
}
