package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// A stacking is one way to put layers together.
type stacking struct {
	name   string
	mode   Mode
	lowers int
	remote bool // the lowers look as over SFTP: no inodes, whole seconds
	hosts  Hosts

	// Where else the directory that worlds are made in is shown, by a filesystem that
	// lacks things: to what stacks the upper and the lowers. Empty: nowhere.
	upperAt, lowersAt string
}

var stackings = []stacking{
	{name: "overlay", mode: Overlay, lowers: 1},
	{name: "overlay of two", mode: Overlay, lowers: 2},
	{name: "migrate", mode: Migrate, lowers: 1},
	{name: "migrate of two", mode: Migrate, lowers: 2},
	{name: "remote", mode: Overlay, lowers: 1, remote: true},
	{name: "many hosts", mode: Migrate, lowers: 1, hosts: Many},
}

// world is a set of layers on disk, and a filesystem over them while it is open.
type world struct {
	t    testing.TB
	dir  string
	kind stacking
	fs   *FS
	work *os.File

	tweak func(*Config) // of each open; nil: none
	first *driver       // what prepared the operation; its handles may be open
}

// worlds is where worlds are made: a tmpfs, since what is tested is what a dead
// process leaves, and thousands of fsyncs would add nothing but time.
func worlds(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: trusted xattrs, foreign owners, a tmpfs")
	}
	// Most of what is allocated here is dropped at once.
	gc := debug.SetGCPercent(1000)
	t.Cleanup(func() { debug.SetGCPercent(gc) })
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

var worldNumber int

// newWorld lays out the tree that operations work on.
func newWorld(t testing.TB, base string, kind stacking) *world {
	t.Helper()
	worldNumber++
	w := &world{t: t, dir: filepath.Join(base, fmt.Sprint(worldNumber)), kind: kind}
	for _, d := range []string{"", "upper", "work", "l1", "l2"} {
		must(t, os.Mkdir(filepath.Join(w.dir, d), 0o755))
	}
	w.fill("l1")
	if kind.lowers > 1 {
		w.fillSecond("l2")
	}
	w.fillUpper("upper")
	w.age()
	return w
}

func (w *world) fill(l string) {
	for _, d := range []string{"dir", "dir/sub", "empty", "whdir", "both dir", "target", "hid"} {
		w.mkdir(l, d)
	}
	for _, f := range []string{"low", "other", "both", "dir/a", "dir/b", "dir/sub/c", "whdir/x", "whdir/y", "both dir/l", "wh", "hid/h"} {
		w.file(l, f, "lower "+f)
	}
	w.file(l, "hard1", "linked")
	must(w.t, os.Link(w.at(l, "hard1"), w.at(l, "hard2")))
	must(w.t, os.Link(w.at(l, "hard1"), w.at(l, "dir/hard3")))
	must(w.t, os.Symlink("low", w.at(l, "sym")))
	must(w.t, unix.Mkfifo(w.at(l, "fifo"), 0o640))
	must(w.t, unix.Lchown(w.at(l, "sym"), 1000, 1001))
	if w.kind.mode == Migrate {
		must(w.t, os.RemoveAll(w.at(l, "whdir")))
		must(w.t, os.RemoveAll(w.at(l, "hid")))
		must(w.t, os.Remove(w.at(l, "wh")))
	}
}

// fillSecond puts older copies under what the first lower has, and a little of
// its own.
func (w *world) fillSecond(l string) {
	w.mkdir(l, "dir")
	w.mkdir(l, "only2")
	for _, f := range []string{"both", "low", "dir/a", "two", "only2/z"} {
		w.file(l, f, "older "+f)
	}
}

func (w *world) fillUpper(l string) {
	for _, d := range []string{"up dir", "both dir"} {
		w.mkdir(l, d)
	}
	for _, f := range []string{"up", "both", "up dir/u", "both dir/v"} {
		w.file(l, f, "upper "+f)
	}
	if w.kind.mode == Migrate {
		return
	}
	for _, f := range []string{"wh", "whdir/x", "whdir/y"} {
		if d := filepath.Dir(f); d != "." {
			_ = os.Mkdir(w.at(l, d), 0o755)
		}
		must(w.t, unix.Mknod(w.at(l, f), unix.S_IFCHR, 0))
	}
	// A directory that hides a lower one, and is not empty.
	w.mkdir(l, "hid")
	w.file(l, "hid/new", "upper hid/new")
	must(w.t, unix.Setxattr(w.at(l, "hid"), "trusted.overlay.opaque", []byte("y"), 0))
}

func (w *world) at(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

func (w *world) mkdir(l, name string) {
	must(w.t, os.MkdirAll(w.at(l, name), 0o755))
	must(w.t, os.Chmod(w.at(l, name), 0o750))
}

func (w *world) file(l, name, content string) {
	p := w.at(l, name)
	must(w.t, os.WriteFile(p, []byte(content), 0o600))
	must(w.t, os.Chown(p, 1000, 1001))
	must(w.t, os.Chmod(p, 0o4755))
	if !w.kind.remote {
		must(w.t, unix.Setxattr(p, "user.note", []byte("of "+content), 0))
	}
}

// past is when everything was last changed: what carries another time has been
// changed by the test.
var past = time.Unix(1_000_000_000, 123_456_789)

func (w *world) age() {
	when := past
	if w.kind.remote {
		when = time.Unix(past.Unix(), 0)
	}
	ts := []unix.Timespec{{Sec: when.Unix(), Nsec: int64(when.Nanosecond())}, {Sec: when.Unix(), Nsec: int64(when.Nanosecond())}}
	for _, l := range []string{"l1", "l2", "upper"} {
		must(w.t, filepath.WalkDir(w.at(l), func(p string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
		}))
	}
}

// open stacks the layers, as a new process would. Lowers are not read-only clones:
// a change that went astray shall be seen, not refused.
func (w *world) open() error {
	seen := func(through, l string) string {
		if through == "" {
			return w.at(l)
		}
		return filepath.Join(through, filepath.Base(w.dir), l)
	}
	upper, err := local.Open(seen(w.kind.upperAt, "upper"), local.Config{})
	must(w.t, err)
	w.work, err = os.Open(w.at("work"))
	must(w.t, err)
	cfg := Config{
		Mode: w.kind.mode, Hosts: w.kind.hosts, Upper: upper, Work: w.work, Format: whiteout.Trusted, Metacopy: true,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), gather: -1,
	}
	for i := range w.kind.lowers {
		l, err := local.Open(seen(w.kind.lowersAt, fmt.Sprintf("l%d", i+1)), local.Config{})
		must(w.t, err)
		low := Lower{Layer: l}
		if w.kind.remote {
			low.Layer = distant{l}
		}
		cfg.Lowers = append(cfg.Lowers, low)
	}
	if w.tweak != nil {
		w.tweak(&cfg)
	}
	w.fs, err = New(context.Background(), cfg)
	if err == nil {
		w.fs.fill.begin()
	}
	if err == nil && w.fs.many() {
		w.fs.turns.Stale = time.Millisecond // others are dead, or stand still until we are done
	}
	if err != nil {
		upper.Close()
		for _, l := range cfg.Lowers {
			l.Layer.Close()
		}
		w.work.Close()
		w.fs = nil
	}
	return err
}

// close lets go of the layers; it says nothing if changes are refused by then.
func (w *world) close() {
	if w.fs == nil {
		return
	}
	w.fs.handles.mu.Lock()
	var left []uint64
	for id := range w.fs.handles.m {
		left = append(left, id)
	}
	w.fs.handles.mu.Unlock()
	for _, id := range left {
		w.fs.Release(nil, &fuse.ReleaseIn{Fh: id})
	}
	if w.first != nil && w.first.fs == w.fs {
		w.first.open = nil
		w.first.end() // descriptors that are kept for what it knows
	}
	_ = w.fs.Close()
	w.work.Close()
	w.fs = nil
}

func (w *world) remove() {
	w.close()
	must(w.t, os.RemoveAll(w.dir))
}

// distant makes a local layer look like one that is reached over SFTP.
type distant struct{ l *local.Layer }

func (d distant) ID() string { return "distant:" + d.l.ID() }
func (d distant) blur(a layers.Attr) layers.Attr {
	a.Known &^= layers.KnownIno | layers.KnownCtime | layers.KnownBtime | layers.KnownAlloc
	a.Ino, a.Dev, a.Ctime, a.Btime, a.Blocks = 0, 0, layers.Time{}, layers.Time{}, 0
	a.Atime.Nsec, a.Mtime.Nsec = 0, 0
	return a
}

func (d distant) Stat(ctx context.Context, p layers.Path) (layers.Attr, error) {
	a, err := d.l.Stat(ctx, p)
	return d.blur(a), err
}

func (d distant) ReadDir(ctx context.Context, p layers.Path) ([]layers.Entry, error) {
	es, err := d.l.ReadDir(ctx, p)
	for i := range es {
		es[i].Ino = 0
	}
	return es, err
}

func (d distant) Readlink(ctx context.Context, p layers.Path) (string, error) {
	return d.l.Readlink(ctx, p)
}
func (d distant) Xattrs(context.Context, layers.Path) (layers.Xattrs, error) { return nil, nil }
func (d distant) Statfs(ctx context.Context) (layers.Statfs, error)          { return d.l.Statfs(ctx) }
func (d distant) Close() error                                               { return d.l.Close() }
func (d distant) Open(ctx context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	f, err := d.l.Open(ctx, p, nil)
	if err != nil {
		return nil, err
	}
	a := d.blur(f.Attr())
	if want != nil && !a.SameVersion(want) {
		f.Close()
		return nil, layers.ErrStale
	}
	return distantFile{f, a}, nil
}

type distantFile struct {
	f layers.File
	a layers.Attr
}

func (f distantFile) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	return f.f.ReadAt(ctx, b, off)
}
func (f distantFile) Attr() layers.Attr { return f.a }
func (f distantFile) Close() error      { return f.f.Close() }

// file is what a program sees of one name, as far as an operation must not
// change it unasked.
type file struct {
	typ, mode uint32
	uid, gid  uint32
	size      uint64
	content   string // or a symlink's target
	mtime     time.Time
	nlink     uint32 // of a file
	xattrs    string
}

func (f file) String() string {
	return fmt.Sprintf("%06o %d:%d links=%d size=%d mtime=%s xattrs=[%s] %q",
		f.typ|f.mode, f.uid, f.gid, f.nlink, f.size, f.mtime.UTC().Format("2006-01-02T15:04:05.999999999"), f.xattrs, f.content)
}

// sight is the whole merged tree.
type sight map[string]file

func (v sight) clone() sight { return maps.Clone(v) }

// diff says where got is not v; the empty string if nowhere.
func (v sight) diff(got sight) string {
	var lines []string
	for name, f := range v {
		g, ok := got[name]
		switch {
		case !ok:
			lines = append(lines, fmt.Sprintf("%s is gone", name))
		case g != f:
			lines = append(lines, fmt.Sprintf("%s is %v\n\t\tnot %v", name, g, f))
		}
	}
	for name, g := range got {
		if _, ok := v[name]; !ok {
			lines = append(lines, fmt.Sprintf("%s has come: %v", name, g))
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n\t")
}

// changed stands for any time that the operation gave: any but past.
var changed = time.Unix(2_000_000_000, 0)

// look reads the whole merged tree through the filesystem.
func (w *world) look() (sight, error) {
	v := sight{}
	d := &driver{fs: w.fs}
	defer d.end()
	err := w.walk(d, v, w.fs.root, "")
	return v, err
}

func (w *world) walk(d *driver, v sight, dir *node, path string) error {
	es, err := w.fs.readDir(context.Background(), dir)
	if err != nil {
		return fmt.Errorf("readdir %q: %w", path, err)
	}
	slices.SortFunc(es, func(a, b layers.Entry) int { return strings.Compare(a.Name, b.Name) })
	for i, e := range es {
		if e.Name == "." || e.Name == ".." {
			continue
		}
		if i > 0 && es[i-1].Name == e.Name {
			return fmt.Errorf("%q is listed twice in %q", e.Name, path)
		}
		p := strings.TrimPrefix(path+"/"+e.Name, "/")
		n, out, errno := d.lookup(dir.id, e.Name)
		if errno != 0 {
			return fmt.Errorf("%q is listed and not found: %w", p, errno)
		}
		f, err := w.describe(d, n, out)
		if err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		v[p] = f
		if n.isDir() {
			if err := w.walk(d, v, n, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) describe(d *driver, n *node, out *fuse.EntryOut) (file, error) {
	f := file{
		typ: out.Mode & unix.S_IFMT, mode: out.Mode & 0o7777, uid: out.Uid, gid: out.Gid,
		nlink: out.Nlink, mtime: time.Unix(int64(out.Mtime), int64(out.Mtimensec)),
	}
	if d := f.mtime.Sub(past); d != 0 && (!w.kind.remote || d != -time.Duration(past.Nanosecond())) {
		f.mtime = changed
	} else {
		f.mtime = past
	}
	names, err := w.fs.listXattrs(context.Background(), n)
	if err != nil {
		return f, err
	}
	sort.Strings(names)
	for _, name := range names {
		val, err := w.fs.getXattr(context.Background(), n, name)
		if err != nil {
			return f, err
		}
		f.xattrs += fmt.Sprintf("%s=%q ", name, val)
	}
	switch f.typ {
	case unix.S_IFREG:
		f.size = out.Size
		b, errno := d.readNode(n.id)
		if errno != 0 {
			return f, fmt.Errorf("reading: %w", errno)
		}
		f.content = string(b)
		if uint64(len(b)) != out.Size {
			return f, fmt.Errorf("%d bytes can be read and %d are announced", len(b), out.Size)
		}
	case unix.S_IFLNK:
		f.content, err = w.fs.readlink(context.Background(), n)
	case unix.S_IFDIR:
		f.nlink = 0 // says nothing in a merged directory
		f.mtime = past
	}
	if w.kind.remote && f.typ == unix.S_IFREG {
		f.nlink = 0 // of names that cannot be paired
	}
	return f, err
}

// leftovers says what the layers and the work directory hold that no user asked
// for; the empty string if nothing.
func (w *world) leftovers() string {
	var found []string
	list := func(dir string) []os.DirEntry {
		es, err := os.ReadDir(w.at(dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.t.Error(err)
		}
		return es
	}
	for _, e := range list("work") {
		if !slices.Contains([]string{"index", "links", "stubs", "objects", "whiteout"}, e.Name()) {
			found = append(found, "work/"+e.Name())
		}
	}
	index := "work/index"
	if w.kind.mode == Migrate {
		index = "upper/.migratefs/index"
		if es := list("upper/.migratefs/daemons"); len(es) > 1 {
			found = append(found, fmt.Sprintf("work directories of %d daemons", len(es)))
		}
		if w.fs != nil {
			for _, e := range list("upper/.migratefs/daemons/" + w.fs.self.name) {
				if e.Name() != aliveName {
					found = append(found, "upper/.migratefs/daemons/DAEMON/"+e.Name())
				}
			}
		}
		if w.fs != nil && w.fs.many() { // as after a while without change
			w.fs.turns.Stale = 0
			must(w.t, w.fs.sweeper.Look(context.Background()))
			must(w.t, w.fs.sweeper.Look(context.Background()))
		}
		for _, e := range list("upper/.migratefs/claims") {
			found = append(found, "upper/.migratefs/claims/"+e.Name())
		}
		for _, e := range append(append(list("upper/.migratefs"), list("l1/.migratefs")...), list("l2/.migratefs")...) {
			if !slices.Contains([]string{"id", "claims", "index", "daemons", "trash", "hl"}, e.Name()) {
				found = append(found, ".migratefs/"+e.Name())
			}
		}
	}
	for _, l := range []string{"l1", "l2"} {
		for _, e := range list(l + "/.migratefs/trash") {
			in, intent := strings.CutSuffix(e.Name(), ".path")
			if _, err := os.Lstat(w.at(l, ".migratefs/trash", in)); intent && err != nil && w.kind.hosts == Many {
				continue // another host may be about to carry it out
			}
			found = append(found, l+"/.migratefs/trash/"+e.Name())
		}
	}
	for _, e := range list(index) {
		var st unix.Stat_t
		must(w.t, unix.Lstat(w.at(index, e.Name()), &st))
		if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink > 1 {
			continue
		}
		// Names that still stand in a lower may lead to it.
		shown := make([]byte, 16)
		n, _ := unix.Getxattr(w.at(index, e.Name()), "trusted.overlay.nlink", shown)
		_, err := os.Lstat(w.at("l1/.migratefs/hl", e.Name()))
		if w.kind.mode == Overlay && string(shown[:max(n, 0)]) == "U-1" || w.kind.mode == Migrate && err != nil {
			found = append(found, index+"/"+e.Name()+", which no name leads to")
		}
	}
	for _, e := range list("work/stubs") {
		var st unix.Stat_t
		must(w.t, unix.Lstat(w.at("work/stubs", e.Name()), &st))
		if st.Nlink < 2 {
			found = append(found, "work/stubs/"+e.Name()+", a stub without another name")
		}
		if _, err := os.Stat(w.at("work/objects", "p"+e.Name()+".map")); err != nil {
			found = append(found, "work/stubs/"+e.Name()+", without its object")
		}
	}
	for _, e := range list("work/objects") {
		id, ok := strings.CutSuffix(strings.TrimPrefix(e.Name(), "p"), ".map")
		if ok && e.Name()[0] == 'p' {
			if _, err := os.Lstat(w.at("work/stubs", id)); err != nil {
				found = append(found, "work/objects/"+e.Name()+", without its stub")
			}
		}
	}
	if w.kind.mode == Migrate {
		_ = filepath.WalkDir(w.at("upper"), func(p string, e os.DirEntry, err error) error {
			if err == nil && e.Type()&os.ModeCharDevice != 0 {
				found = append(found, p+", a whiteout in a plain tree")
			}
			return err
		})
	}
	return strings.Join(found, "\n\t")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
