// Package layertest is the suite that every layers.Layer must pass: it makes a
// tree of everything that is hard to get right, opens it as a layer, compares
// what the layer says with what the kernel says of the same tree, and then
// changes the tree under open files. It says in tests what the package comment
// of layers says in words.
//
// Start reading at Run.
package layertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Limits says what a layer cannot do by its nature. The zero value is a layer
// that sees everything.
type Limits struct {
	// Unknown are fields that Stat of a regular file need not know.
	Unknown layers.Known

	// WholeSeconds: times have no nanoseconds.
	WholeSeconds bool

	// NoXattrs: Xattrs returns nil for every file.
	NoXattrs bool

	// NoStatfs: Statfs may return ENOSYS.
	NoStatfs bool

	// Live: a file that is written to in place shows that to whoever has it
	// open, as it does to every process of that host.
	Live bool

	// Fixed: the layer holds a copy of what the tree was, so changes of the
	// tree are not seen, and tests that make some are left out.
	Fixed bool
}

// Run runs the suite. New returns a layer of the directory source, which the
// suite has filled; it registers its own cleanup with t.
func Run(t *testing.T, limits Limits, new func(t *testing.T, source string) layers.Layer) {
	s := &suite{limits: limits, new: new}
	t.Run("tree", s.tree)
	if !limits.Fixed {
		t.Run("changes", s.changes)
	}
	t.Run("identity", s.identity)
	t.Run("close", s.close)
}

type suite struct {
	limits Limits
	new    func(t *testing.T, source string) layers.Layer
}

// tree runs everything that changes nothing over one tree.
func (s *suite) tree(t *testing.T) {
	source := t.TempDir()
	populate(t, source)
	v := &view{suite: s, source: source, l: s.new(t, source)}
	for name, f := range map[string]func(*testing.T){
		"stat":           v.stat,
		"bulk stat":      v.statMany,
		"readdir":        v.readdir,
		"readlink":       v.readlink,
		"content":        v.content,
		"end of file":    v.endOfFile,
		"xattrs":         v.xattrs,
		"absent":         v.absent,
		"symlinks":       v.symlinks,
		"not regular":    v.notRegular,
		"want":           v.want,
		"bad paths":      v.badPaths,
		"unreadable":     v.unreadable,
		"cancelled":      v.cancelled,
		"at once":        v.atOnce,
		"statfs":         v.statfs,
		"left as it was": v.untouched,
	} {
		t.Run(name, f)
	}
}

// view is a layer and the tree it shows.
type view struct {
	*suite
	source string
	l      layers.Layer
}

// patience bounds every call of the suite: what hangs fails.
const patience = 2 * time.Minute

func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// real is the path of p in the source tree, for calls that take one: it must be
// short.
func (v *view) real(p layers.Path) string { return filepath.Join(v.source, string(p)) }

// lstat is what the kernel says of p.
func (v *view) lstat(t *testing.T, p layers.Path) *unix.Stat_t {
	t.Helper()
	dirfd, err := unix.Open(v.source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dirfd)
	name := string(p)
	if name == "" {
		name = "."
	}
	st := new(unix.Stat_t)
	if err := unix.Fstatat(dirfd, name, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatalf("lstat %q: %v", p, err)
	}
	return st
}

// compare reports where a, which the layer says, differs from st, which the
// kernel says. Fields that the layer does not claim to know are not compared.
func (s *suite) compare(t *testing.T, p layers.Path, a *layers.Attr, st *unix.Stat_t) {
	t.Helper()
	bad := func(what string, got, want any) {
		t.Helper()
		t.Errorf("%q: %s is %v, want %v", p, what, got, want)
	}
	if a.Mode != st.Mode {
		bad("mode", a.Mode, st.Mode)
	}
	if a.Has(layers.KnownSize) && a.Size != st.Size {
		bad("size", a.Size, st.Size)
	}
	if a.Has(layers.KnownOwner) && (a.UID != st.Uid || a.GID != st.Gid) {
		bad("owner", []uint32{a.UID, a.GID}, []uint32{st.Uid, st.Gid})
	}
	if a.Has(layers.KnownTimes) {
		if want := s.time(st.Mtim); a.Mtime != want {
			bad("mtime", a.Mtime, want)
		}
	}
	if a.Has(layers.KnownCtime) {
		if want := s.time(st.Ctim); a.Ctime != want {
			bad("ctime", a.Ctime, want)
		}
	}
	if a.Has(layers.KnownNlink) && uint64(a.Nlink) != uint64(st.Nlink) { //nolint:unconvert // 32 bits on arm64
		bad("nlink", a.Nlink, st.Nlink)
	}
	if a.Has(layers.KnownIno) && (a.Ino != st.Ino || a.Dev != st.Dev) {
		bad("inode", []uint64{a.Dev, a.Ino}, []uint64{st.Dev, st.Ino})
	}
	if a.Has(layers.KnownAlloc) && a.Blocks != st.Blocks {
		bad("blocks", a.Blocks, st.Blocks)
	}
}

func (s *suite) time(ts unix.Timespec) layers.Time {
	w := layers.Time{Sec: ts.Sec, Nsec: uint32(ts.Nsec)}
	if s.limits.WholeSeconds {
		w.Nsec = 0
	}
	return w
}

func (s *suite) identity(t *testing.T) {
	one, other := t.TempDir(), t.TempDir()
	a, again, b := s.new(t, one), s.new(t, one), s.new(t, other)
	if a.ID() == "" || a.ID() != again.ID() {
		t.Errorf("the same tree has the IDs %q and %q", a.ID(), again.ID())
	}
	if a.ID() == b.ID() {
		t.Errorf("two trees have the ID %q", a.ID())
	}
}

// close: nothing works after Close, and nothing looks like an empty tree.
func (s *suite) close(t *testing.T) {
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "f"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := background(t)
	l := s.new(t, source)
	f, err := l.Open(ctx, "f", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("closing a file: %v", err)
	}
	if n, err := f.ReadAt(ctx, make([]byte, 4), 0); err == nil || n != 0 {
		t.Errorf("ReadAt of a closed file: %d, %v", n, err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closing the layer: %v", err)
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%s of a closed layer: %v, want an error that does not say that the file is absent", what, err)
		}
	}
	_, err = l.Stat(ctx, "f")
	refused("Stat", err)
	_, err = l.ReadDir(ctx, "")
	refused("ReadDir", err)
	_, err = l.Open(ctx, "f", nil)
	refused("Open", err)
}
