package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/tests/testbed"
)

// drainAll drains and returns what stays, by path.
func (w *world) drainAll(cfg DrainConfig) (map[string]error, *DrainCounts) {
	w.t.Helper()
	stays := map[string]error{}
	cfg.Failed = func(f DrainFailure) { stays[string(f.Path)] = f.Err }
	cfg.Seen = new(DrainCounts)
	must(w.t, w.fs.Drain(context.Background(), cfg))
	return stays, cfg.Seen
}

// namesIn lists what is below a layer's root, but for what is ours.
func (w *world) namesIn(l string) (names []string) {
	must(w.t, filepath.WalkDir(w.at(l), func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Name() == Reserved {
			return filepath.SkipDir
		}
		if rel, _ := filepath.Rel(w.at(l), p); rel != "." {
			names = append(names, rel)
		}
		return nil
	}))
	return names
}

var migrateOfTwo = stackings[3]

// TestDrain drains everything: the upper is then what was seen, with all its
// metadata, and in the lowers is only what something else hides.
func TestDrain(t *testing.T) {
	for _, jobs := range []int{1, 8} {
		t.Run(fmt.Sprint(jobs), func(t *testing.T) {
			w := newWorld(t, worlds(t), migrateOfTwo)
			must(t, w.open())
			defer w.remove()
			before, err := w.look()
			must(t, err)
			stays, seen := w.drainAll(DrainConfig{Jobs: jobs})
			after, err := w.look()
			must(t, err)
			if d := before.diff(after); d != "" {
				t.Errorf("a drain shows:\n\t%s", d)
			}
			for path, err := range stays {
				if !errors.Is(err, ErrShadowed) {
					t.Errorf("%q stays: %v", path, err)
				}
			}
			hidden := []string{"both", "dir", "dir/a", "low"}
			if got := w.namesIn("l1"); !slices.Equal(got, []string{"both"}) {
				t.Errorf("left in the first lower: %q", got)
			}
			if got := w.namesIn("l2"); !slices.Equal(got, hidden) {
				t.Errorf("left in the second lower: %q, not %q", got, hidden)
			}
			if len(stays) != 3 || seen.Left.Load() != 4 {
				t.Errorf("%d names are said to stay, %v", seen.Left.Load(), stays)
			}
			if left := w.leftovers(); left != "" {
				t.Errorf("left over:\n\t%s", left)
			}
			upper := map[string]bool{}
			for _, name := range w.namesIn("upper") {
				upper[name] = true
			}
			for name := range before {
				if !upper[name] {
					t.Errorf("%q is not in the upper", name)
				}
			}
		})
	}
}

// tree makes a lower of many kinds of files, and returns what it is.
func (w *world) tree(l string, dirs, files int) *testbed.Tree {
	for i := range dirs {
		d := fmt.Sprintf("d%d/sub%d", i%7, i)
		w.mkdir(l, d)
		for j := range files {
			w.file(l, fmt.Sprintf("%s/f%d", d, j), fmt.Sprintf("content %d of %d", j, i))
		}
		must(w.t, os.Link(w.at(l, d, "f0"), w.at(l, fmt.Sprintf("hard %d", i))))
		must(w.t, os.Symlink("f0", w.at(l, d, "sym")))
		must(w.t, unix.Mkfifo(w.at(l, d, "fifo"), 0o640))
		must(w.t, unix.Mknod(w.at(l, d, "device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		must(w.t, unix.Mknod(w.at(l, d, "socket"), unix.S_IFSOCK|0o600, 0))
		w.mkdir(l, d+"/nothing")
		must(w.t, unix.Setxattr(w.at(l, d), "user.dir", []byte("x"), 0))
		must(w.t, os.Chown(w.at(l, d), 1000+i, 1000))
	}
	w.age()
	return testbed.Snapshot(w.t, w.at(l), testbed.Usual|testbed.Mtime)
}

// plain ends the filesystem, and takes what is ours out of the upper.
func (w *world) plain() {
	w.close()
	must(w.t, os.RemoveAll(w.at("upper", Reserved)))
	must(w.t, os.Chtimes(w.at("upper"), past, past))
}

// emptyWorld is a world of empty layers.
func emptyWorld(t testing.TB, base string, k stacking) *world {
	w := newWorld(t, base, k)
	for _, l := range []string{"l1", "l2", "upper"} {
		must(t, os.RemoveAll(w.at(l)))
		must(t, os.Mkdir(w.at(l), 0o755))
	}
	return w
}

// TestDrainKeepsEverything compares the upper with what the lower was: modes,
// owners, times, xattrs, links, those of directories too.
func TestDrainKeepsEverything(t *testing.T) {
	w := emptyWorld(t, worlds(t), stackings[2])
	defer w.remove()
	w.mkdir("l1", "wide")
	for i := range 500 {
		w.file("l1", fmt.Sprint("wide/", i), "one of many")
	}
	was := w.tree("l1", 20, 20)
	must(t, w.open())
	if stays, _ := w.drainAll(DrainConfig{Jobs: 6}); len(stays) > 0 {
		t.Fatalf("%v", stays)
	}
	if left := w.namesIn("l1"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	w.plain()
	testbed.Same(t, "the lower before", was, "the upper after", testbed.Snapshot(t, w.at("upper"), testbed.Usual|testbed.Mtime))
}

// TestDrainSelection moves what is meant and nothing else.
func TestDrainSelection(t *testing.T) {
	base := worlds(t)
	long := past.Add(-time.Hour)
	for _, c := range []struct {
		name  string
		s     Selection
		moves []string
	}{
		{"older", Selection{Older: past}, []string{"old"}},
		{"newer", Selection{Newer: past}, []string{"big", "small", "theirs"}},
		{"small", Selection{MaxSize: 10}, []string{"old", "small", "theirs"}},
		{"big", Selection{MinSize: 11}, []string{"big"}},
		{"user", Selection{UIDs: []uint32{2000}}, []string{"theirs"}},
		{"group", Selection{GIDs: []uint32{2001}}, []string{"theirs"}},
		{"user and size", Selection{UIDs: []uint32{1000}, MaxSize: 5}, []string{"old", "small"}},
		{"all", Selection{}, []string{"big", "old", "small", "theirs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := emptyWorld(t, base, stackings[2])
			defer w.remove()
			w.mkdir("l1", "d")
			for _, f := range []string{"big", "small", "old", "theirs"} {
				w.file("l1", "d/"+f, "12345"[:5-len(f)%2])
			}
			w.file("l1", "d/big", "more than ten bytes")
			must(t, os.Chown(w.at("l1", "d/theirs"), 2000, 2001))
			w.age()
			must(t, os.Chtimes(w.at("l1", "d/old"), long, long))
			must(t, w.open())
			count := new(DrainCounts)
			must(t, CountDrain(context.Background(), w.fs.cfg.Lowers, DrainConfig{Select: c.s, Seen: count}))
			stays, seen := w.drainAll(DrainConfig{Select: c.s})
			if len(stays) > 0 || seen.Files.Load() != int64(len(c.moves)) || seen.Other.Load() != int64(4-len(c.moves)) {
				t.Errorf("%d moved, %d left, and %v", seen.Files.Load(), seen.Other.Load(), stays)
			}
			if count.Files.Load() != seen.Files.Load() || count.Bytes.Load() != seen.Bytes.Load() || !count.Known.Load() {
				t.Errorf("counted %d files of %d bytes, and %d of %d came up", count.Files.Load(), count.Bytes.Load(), seen.Files.Load(), seen.Bytes.Load())
			}
			for _, f := range []string{"big", "small", "old", "theirs"} {
				_, below := os.Lstat(w.at("l1", "d", f))
				_, above := os.Lstat(w.at("upper", "d", f))
				if meant := slices.Contains(c.moves, f); meant != (above == nil) || meant == (below == nil) {
					t.Errorf("%s: below %v, above %v", f, below, above)
				}
			}
		})
	}
}

// TestDrainShards has shards one after the other bring up everything, no directory
// twice, hard links kept.
func TestDrainShards(t *testing.T) {
	const shards = 3
	w := emptyWorld(t, worlds(t), stackings[2])
	defer w.remove()
	was := w.tree("l1", 12, 5)
	must(t, w.open())
	var moved int64
	for i := range shards {
		stays, seen := w.drainAll(DrainConfig{Shard: i, Shards: shards, Jobs: 2})
		if len(stays) > 0 || seen.Files.Load() == 0 {
			t.Errorf("shard %d: %d files moved, and %v", i, seen.Files.Load(), stays)
		}
		moved += seen.Files.Load()
	}
	if left := w.namesIn("l1"); len(left) > 0 {
		t.Errorf("left after %d: %q", moved, left)
	}
	w.plain()
	testbed.Same(t, "the lower before", was, "the upper after", testbed.Snapshot(t, w.at("upper"), testbed.Usual|testbed.Mtime))
}

// TestDrainEndsRemovals: names in both layers of the same file lose the lower one; of
// other content, or where the upper one lacks anything, neither.
func TestDrainEndsRemovals(t *testing.T) {
	w := emptyWorld(t, worlds(t), stackings[2])
	defer w.remove()
	for _, l := range []string{"l1", "upper"} {
		w.mkdir(l, "d")
		w.file(l, "d/same", "the same")
		w.file(l, "d/differs", "differs "+l[:2])
		w.file(l, "d/longer", "longer "+l)
		must(t, os.Symlink("there", w.at(l, "d/sym")))
		must(t, os.Symlink("to "+l, w.at(l, "d/other sym")))
		must(t, unix.Mkfifo(w.at(l, "d/fifo"), 0o600))
		w.file(l, "d/less", "less")
	}
	// As rsync without -X leaves it.
	must(t, unix.Setxattr(w.at("l1/d/less"), "user.kept", []byte("x"), 0))
	for _, name := range []string{"d/same", "d/sym", "d/fifo", "d/less"} {
		times := []unix.Timespec{{Sec: 1}, {Sec: 2}}
		for _, l := range []string{"l1", "upper"} {
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, w.at(l, name), times, unix.AT_SYMLINK_NOFOLLOW))
		}
	}
	w.file("l1", "d/kind", "a file")
	w.mkdir("upper", "d/kind")
	w.mkdir("l1", "d/kind2")
	w.file("l1", "d/kind2/f", "below")
	w.file("upper", "d/kind2", "a file")
	must(t, w.open())
	stays, _ := w.drainAll(DrainConfig{})
	want := []string{"d/differs", "d/kind", "d/kind2", "d/less", "d/longer", "d/other sym"}
	var got []string
	for path, err := range stays {
		got = append(got, path)
		if !errors.Is(err, ErrShadowed) {
			t.Errorf("%q: %v", path, err)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("reported: %q, not %q", got, want)
	}
	if left := w.namesIn("l1"); !slices.Equal(left, []string{"d", "d/differs", "d/kind", "d/kind2", "d/kind2/f", "d/less", "d/longer", "d/other sym"}) {
		t.Errorf("left: %q", left)
	}
	for _, name := range []string{"differs", "longer"} {
		b, err := os.ReadFile(w.at("upper/d", name))
		must(t, err)
		if string(b) != name+" "+map[string]string{"differs": "up", "longer": "upper"}[name] {
			t.Errorf("the upper's %s is %q", name, b)
		}
	}
}

// TestDrainKnowsSuccessors: a copy that was changed since is the successor still.
func TestDrainKnowsSuccessors(t *testing.T) {
	w := emptyWorld(t, worlds(t), stackings[2])
	defer w.remove()
	w.mkdir("l1", "d")
	w.file("l1", "d/f", "the old content")
	must(t, os.Symlink("there", w.at("l1", "d/sym")))
	must(t, w.open())
	d := &driver{fs: w.fs}
	sys.SetHook(func(c sys.Change) error {
		if c == "symlink" { // of the trash: the lower copy stays
			return unix.EIO
		}
		return nil
	})
	errno := d.write("d/f", "THE", 0)
	sys.SetHook(nil)
	d.end()
	if below := w.namesIn("l1"); errno != 0 || !slices.Contains(below, "d/f") {
		t.Fatalf("%v, and the lower has %q", errno, below)
	}
	if stays, _ := w.drainAll(DrainConfig{}); len(stays) > 0 || len(w.namesIn("l1")) > 0 {
		t.Errorf("stay: %v, %q", stays, w.namesIn("l1"))
	}
	b, err := os.ReadFile(w.at("upper/d/f"))
	must(t, err)
	if string(b) != "THE old content" {
		t.Errorf("%q", b)
	}
}

// TestDrainVerifies: a copy that is stored otherwise than it was written does not
// replace the lower file.
func TestDrainVerifies(t *testing.T) {
	w := emptyWorld(t, worlds(t), stackings[2])
	defer w.remove()
	for i := range 3 {
		w.file("l1", fmt.Sprint(i), strings.Repeat("content ", 1000))
	}
	must(t, w.open())
	n := 0
	sys.SetHook(func(c sys.Change) error {
		if c == "fdatasync" {
			if n++; n == 2 {
				corrupt(t, w.at("upper"))
			}
		}
		return nil
	})
	stays, seen := w.drainAll(DrainConfig{Verify: true})
	sys.SetHook(nil)
	if n != 3 || len(stays) != 1 || seen.Files.Load() != 2 {
		t.Fatalf("%d copies were read again, %d moved, and %v", n, seen.Files.Load(), stays)
	}
	for path, err := range stays {
		if !errors.Is(err, copyup.ErrDiffers) {
			t.Errorf("%q: %v", path, err)
		}
		if _, err := os.Lstat(w.at("upper", path)); err == nil {
			t.Errorf("%q is in the upper", path)
		}
		b, err := os.ReadFile(w.at("l1", path))
		must(t, err)
		if string(b) != strings.Repeat("content ", 1000) {
			t.Errorf("the lower's %q is %q", path, b)
		}
	}
	if stays, _ := w.drainAll(DrainConfig{Verify: true}); len(stays) > 0 {
		t.Errorf("once more: %v", stays)
	}
}

// corrupt changes a byte of the files without a name below dir.
func corrupt(t *testing.T, dir string) {
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range fds {
		fd, _ := strconv.Atoi(e.Name())
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if strings.HasPrefix(target, dir) && strings.HasSuffix(target, "(deleted)") {
			if _, err := unix.Pwrite(fd, []byte("X"), 5000); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestDrainGoesOn: what cannot come up stays, with its reason, and the rest comes.
func TestDrainGoesOn(t *testing.T) {
	w := emptyWorld(t, worlds(t), stackings[2])
	defer w.remove()
	w.mkdir("l1", "d")
	for i := range 5 {
		w.file("l1", fmt.Sprintf("d/f%d", i), "content")
	}
	must(t, w.open())
	// The second file's data.
	seen := 0
	sys.SetHook(func(c sys.Change) error {
		if c == "truncate" {
			if seen++; seen == 2 {
				return unix.EDQUOT
			}
		}
		return nil
	})
	stays, _ := w.drainAll(DrainConfig{})
	sys.SetHook(nil)
	if len(stays) != 1 {
		t.Errorf("stay: %v", stays)
	}
	for path, err := range stays {
		if !errors.Is(err, unix.EDQUOT) {
			t.Errorf("%q: %v", path, err)
		}
		if left := w.namesIn("l1"); !slices.Equal(left, []string{"d", path}) {
			t.Errorf("left: %q", left)
		}
	}
	if stays, _ := w.drainAll(DrainConfig{}); len(stays) > 0 || len(w.namesIn("l1")) > 0 {
		t.Errorf("once more: %v, %q", stays, w.namesIn("l1"))
	}
}

// TestDrainStops where the upper is full, and when it is told to.
func TestDrainStops(t *testing.T) {
	w := emptyWorld(t, worlds(t), stackings[2])
	defer w.remove()
	for i := range 100 {
		w.mkdir("l1", fmt.Sprintf("d%d", i))
		w.file("l1", fmt.Sprintf("d%d/f", i), "content")
	}
	must(t, w.open())
	sys.SetHook(func(c sys.Change) error {
		if c == "tmpfile" {
			return unix.ENOSPC
		}
		return nil
	})
	seen := new(DrainCounts)
	err := w.fs.Drain(context.Background(), DrainConfig{Seen: seen})
	sys.SetHook(nil)
	if !errors.Is(err, unix.ENOSPC) || seen.Left.Load() != 1 || seen.Known.Load() {
		t.Errorf("a full upper: %v, after %d failures", err, seen.Left.Load())
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	err = w.fs.Drain(ctx, DrainConfig{Seen: seen, Hold: func(ctx context.Context) error {
		if n++; n == 10 {
			cancel()
		}
		return ctx.Err()
	}})
	if !errors.Is(err, context.Canceled) || seen.Files.Load() != 9 {
		t.Errorf("stopped: %v, after %d", err, seen.Files.Load())
	}
	must(t, w.fs.Drain(context.Background(), DrainConfig{Seen: seen}))
	if seen.Files.Load() != 100 || len(w.namesIn("l1")) > 0 {
		t.Errorf("%d of 100 came up, and left is %q", seen.Files.Load(), w.namesIn("l1"))
	}
}

// TestDrainMemory: what a drain holds does not grow with what it drains.
func TestDrainMemory(t *testing.T) {
	files := 50_000
	w := emptyWorld(t, worlds(t), stackings[2])
	defer w.remove()
	for i := range files {
		if i%25_000 == 0 {
			must(t, os.Mkdir(w.at("l1", fmt.Sprint(i/25_000)), 0o755))
		}
		must(t, os.WriteFile(w.at("l1", fmt.Sprint(i/25_000), fmt.Sprintf("file with a long name, number %d", i)), nil, 0o600))
	}
	must(t, w.open())
	var peak atomic.Uint64
	n := 0
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	start := live()
	_, seen := w.drainAll(DrainConfig{Jobs: 1, Hold: func(context.Context) error {
		if n++; n%5000 == 0 {
			peak.Store(max(peak.Load(), live()))
		}
		return nil
	}})
	if got := seen.Files.Load(); got != int64(files) || len(w.namesIn("l1")) > 0 {
		t.Errorf("%d of %d came up", got, files)
	}
	if more := int64(peak.Load()) - int64(start); more > 4<<20 {
		t.Errorf("%d bytes more while %d files are drained", more, files)
	}
	if nodes := len(w.fs.table.byID); nodes != 1 {
		t.Errorf("%d nodes are left in the table", nodes)
	}
}

// TestDrainNeedsMigrate: in overlay mode lowers are not touched.
func TestDrainNeedsMigrate(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[0])
	must(t, w.open())
	defer w.remove()
	if err := w.fs.Drain(context.Background(), DrainConfig{}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
}
