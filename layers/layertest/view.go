package layertest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// walk calls f for every path of the tree, the root and the deep one included.
func (v *view) walk(t *testing.T, f func(p layers.Path, fi os.FileInfo)) {
	t.Helper()
	must(t, filepath.Walk(v.source, func(name string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(v.source, name)
		if rel == "." {
			rel = ""
		}
		f(layers.Path(rel), fi)
		return err
	}))
}

func (v *view) paths(t *testing.T) (all []layers.Path) {
	v.walk(t, func(p layers.Path, _ os.FileInfo) { all = append(all, p) })
	if want := manyNames + len(sizes) + len(odd); len(all) < want {
		t.Fatalf("the tree has %d names, which is too few", len(all))
	}
	return all
}

func (v *view) stat(t *testing.T) {
	ctx := background(t)
	for i, p := range v.paths(t) {
		if dir, _ := p.Split(); dir == "many" && i%50 != 0 {
			continue
		}
		a, err := v.l.Stat(ctx, p)
		if err != nil {
			t.Errorf("%q: %v", p, err)
			continue
		}
		v.compare(t, p, &a, v.lstat(t, p))
		all := layers.KnownSize | layers.KnownOwner | layers.KnownTimes | layers.KnownCtime | layers.KnownNlink | layers.KnownIno | layers.KnownAlloc
		if need := all &^ v.limits.Unknown; a.IsRegular() && !a.Has(need) {
			t.Errorf("%q: known is %b, want at least %b", p, a.Known, need)
		}
	}
}

func (v *view) statMany(t *testing.T) {
	bulk, ok := v.l.(layers.BulkStater)
	if !ok {
		return // an optional ability
	}
	ctx := background(t)
	paths := append(v.paths(t), "missing", "sub/missing", "sub/file/x", "missing/x", "links/directory/file")
	attrs, errs, err := bulk.StatMany(ctx, paths)
	must(t, err)
	if len(attrs) != len(paths) || len(errs) != len(paths) {
		t.Fatalf("%d attributes and %d errors for %d paths", len(attrs), len(errs), len(paths))
	}
	n := len(paths) - 5
	for i, p := range paths[:n] {
		if errs[i] != nil {
			t.Errorf("%q: %v", p, errs[i])
			continue
		}
		v.compare(t, p, &attrs[i], v.lstat(t, p))
	}
	for i, want := range []error{unix.ENOENT, unix.ENOENT, unix.ENOTDIR, unix.ENOENT, unix.ENOTDIR} {
		if !errors.Is(errs[n+i], want) {
			t.Errorf("%q: %v, want %v", paths[n+i], errs[n+i], want)
		}
	}
	if attrs, errs, err := bulk.StatMany(ctx, nil); err != nil || len(attrs) != 0 || len(errs) != 0 {
		t.Errorf("no paths: %v %v %v", attrs, errs, err)
	}
}

func (v *view) readdir(t *testing.T) {
	ctx := background(t)
	v.walk(t, func(p layers.Path, fi os.FileInfo) {
		if !fi.IsDir() {
			return
		}
		list, err := v.l.ReadDir(ctx, p)
		if err != nil {
			t.Errorf("%q: %v", p, err)
			return
		}
		var got []string
		for _, e := range list {
			got = append(got, e.Name)
			st := v.lstat(t, p.Join(e.Name))
			if e.Type != 0 && e.Type != st.Mode&unix.S_IFMT {
				t.Errorf("%q in %q: type %o, want %o", e.Name, p, e.Type, st.Mode&unix.S_IFMT)
			}
			if e.Ino != 0 && e.Ino != st.Ino {
				t.Errorf("%q in %q: inode %d, want %d", e.Name, p, e.Ino, st.Ino)
			}
			if e.Attr != nil {
				v.compare(t, p.Join(e.Name), e.Attr, st)
			}
		}
		sort.Strings(got)
		want := names(t, v.source, p)
		if len(got) != len(want) {
			t.Errorf("%q: %d names, want %d", p, len(got), len(want))
			return
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%q: %q, want %q", p, got[i], want[i])
			}
		}
	})
	for _, p := range []layers.Path{"sub/file", "links/directory", "special/fifo"} {
		if list, err := v.l.ReadDir(ctx, p); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("ReadDir(%q): %d names, %v, want ENOTDIR", p, len(list), err)
		}
	}
	if _, err := v.l.ReadDir(ctx, "sub/missing"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("ReadDir of a missing directory: %v", err)
	}
}

// names returns the sorted names in p, by os.ReadDir.
func names(t *testing.T, source string, p layers.Path) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(source, string(p)))
	must(t, err)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	sort.Strings(list)
	return list
}

func (v *view) readlink(t *testing.T) {
	ctx := background(t)
	for _, name := range names(t, v.source, "links") {
		p := layers.Path("links").Join(name)
		want, err := os.Readlink(v.real(p))
		must(t, err)
		if got, err := v.l.Readlink(ctx, p); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", p, got, err, want)
		}
	}
	for p, want := range map[layers.Path]error{
		"sub": unix.EINVAL, "sub/file": unix.EINVAL, "links/none": unix.ENOENT, "sub/file/x": unix.ENOTDIR,
	} {
		if got, err := v.l.Readlink(ctx, p); !errors.Is(err, want) {
			t.Errorf("Readlink(%q): %q, %v, want %v", p, got, err, want)
		}
	}
}

func (v *view) xattrs(t *testing.T) {
	ctx := background(t)
	for _, p := range []layers.Path{"", "sub", "sub/file", "sub/deeper/file", "links/dangling", "special/fifo"} {
		got, err := v.l.Xattrs(ctx, p)
		if err != nil {
			t.Errorf("%q: %v", p, err)
			continue
		}
		want := layers.Xattrs{}
		if !v.limits.NoXattrs {
			want = kernelXattrs(v.real(p))
		}
		if len(got) != len(want) {
			t.Errorf("%q: %d xattrs, want %d", p, len(got), len(want))
		}
		for name, value := range want {
			if string(got[name]) != string(value) {
				t.Errorf("%q: %s is %q, want %q", p, name, got[name], value)
			}
		}
	}
}

func kernelXattrs(name string) layers.Xattrs {
	x := layers.Xattrs{}
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, b)
	if err != nil {
		return x
	}
	for start, i := 0, 0; i < n; i++ {
		if b[i] == 0 {
			attr := string(b[start:i])
			start = i + 1
			value := make([]byte, 64<<10)
			if m, err := unix.Lgetxattr(name, attr, value); err == nil {
				x[attr] = value[:m]
			}
		}
	}
	return x
}

// absent: ENOENT and ENOTDIR as lstat(2) gives them.
func (v *view) absent(t *testing.T) {
	ctx := background(t)
	for p, want := range map[layers.Path]error{
		"missing": unix.ENOENT, "sub/missing": unix.ENOENT, "missing/x": unix.ENOENT, "missing/x/y/z": unix.ENOENT,
		"sub/file/x": unix.ENOTDIR, "sub/file/x/y": unix.ENOTDIR, "special/fifo/x": unix.ENOTDIR,
		"Sub": unix.ENOENT, "empty/x": unix.ENOENT, "sub/new\nline": unix.ENOENT,
	} {
		if _, err := v.l.Stat(ctx, p); !errors.Is(err, want) {
			t.Errorf("Stat(%q): %v, want %v", p, err, want)
		}
		if _, err := v.l.Open(ctx, p, nil); !errors.Is(err, want) {
			t.Errorf("Open(%q): %v, want %v", p, err, want)
		}
		if _, err := v.l.ReadDir(ctx, p); !errors.Is(err, want) {
			t.Errorf("ReadDir(%q): %v, want %v", p, err, want)
		}
	}
}

// symlinks are never followed, neither as the last component nor on the way.
func (v *view) symlinks(t *testing.T) {
	ctx := background(t)
	for _, p := range []layers.Path{
		"links/directory/file", "links/directory/deeper/file", "links/up/x", "links/root/etc", "links/root/etc/passwd",
		"links/dangling/x", "links/self/x", "links/directory/missing",
	} {
		// Whatever the target holds, the path has a symlink where a directory must be.
		for what, err := range map[string]error{
			"Stat":     second(v.l.Stat(ctx, p)),
			"Open":     second(v.l.Open(ctx, p, nil)),
			"ReadDir":  second(v.l.ReadDir(ctx, p)),
			"Readlink": second(v.l.Readlink(ctx, p)),
		} {
			if !errors.Is(err, unix.ENOTDIR) {
				t.Errorf("%s(%q): %v, want ENOTDIR", what, p, err)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

// notRegular: opening anything but a regular file is refused, hangs nowhere and
// takes no writer's data.
func (v *view) notRegular(t *testing.T) {
	ctx := background(t)
	for _, p := range []layers.Path{
		"", "sub", "special/fifo", "special/socket", "links/dangling", "links/file", "links/directory", "links/self",
	} {
		a, err := v.l.Stat(ctx, p)
		must(t, err)
		for _, want := range []*layers.Attr{nil, &a} {
			if _, err := v.l.Open(ctx, p, want); !errors.Is(err, layers.ErrNotRegular) {
				t.Errorf("Open(%q): %v, want ErrNotRegular", p, err)
			}
		}
	}
}

// want: what does not fit is stale, whichever field it is.
func (v *view) want(t *testing.T) {
	ctx := background(t)
	a, err := v.l.Stat(ctx, "sub/file")
	must(t, err)
	f, err := v.l.Open(ctx, "sub/file", &a)
	must(t, err)
	got := f.Attr()
	v.compare(t, "sub/file", &got, v.lstat(t, "sub/file"))
	must(t, f.Close())
	for name, change := range map[string]func(*layers.Attr){
		"size":  func(a *layers.Attr) { a.Size++ },
		"mtime": func(a *layers.Attr) { a.Mtime.Sec-- },
		"mode":  func(a *layers.Attr) { a.Mode ^= 0o100 },
		"owner": func(a *layers.Attr) { a.UID += 7 },
	} {
		other := a
		change(&other)
		if _, err := v.l.Open(ctx, "sub/file", &other); !errors.Is(err, layers.ErrStale) {
			t.Errorf("another %s: %v, want ErrStale", name, err)
		}
	}
}

// badPaths: a caller that breaks the contract of Path gets nothing for it.
func (v *view) badPaths(t *testing.T) {
	ctx := background(t)
	for _, p := range []layers.Path{"..", "../x", "sub/..", "sub/../sub/file", "sub/../..", "sub\x00", "/etc/passwd"} {
		if _, err := v.l.Stat(ctx, p); err == nil {
			t.Errorf("Stat(%q) succeeds", p)
		}
		if _, err := v.l.Open(ctx, p, nil); err == nil {
			t.Errorf("Open(%q) succeeds", p)
		}
		if _, err := v.l.ReadDir(ctx, p); err == nil {
			t.Errorf("ReadDir(%q) succeeds", p)
		}
	}
}

// unreadable: mode 0 is EACCES, but for root, who reads it.
func (v *view) unreadable(t *testing.T) {
	ctx := background(t)
	f, err := v.l.Open(ctx, "modes/0000", nil)
	if os.Geteuid() != 0 {
		if !errors.Is(err, unix.EACCES) {
			t.Errorf("%v, want EACCES", err)
		}
		return
	}
	must(t, err)
	defer f.Close()
	b := make([]byte, 10)
	if n, err := f.ReadAt(ctx, b, 0); string(b[:n]) != "text" || err != io.EOF {
		t.Errorf("%q, %v", b[:n], err)
	}
}

// cancelled: a call whose context is over does not wait. It may succeed where
// there is nothing to wait for.
func (v *view) cancelled(t *testing.T) {
	f, err := v.l.Open(background(t), "sub/file", nil)
	must(t, err)
	defer f.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for what, err := range map[string]error{
		"Stat":     second(v.l.Stat(ctx, "sub")),
		"ReadDir":  second(v.l.ReadDir(ctx, "sub")),
		"Readlink": second(v.l.Readlink(ctx, "links/file")),
		"ReadAt":   second(f.ReadAt(ctx, make([]byte, 5), 0)),
		"Statfs":   second(v.l.Statfs(ctx)),
	} {
		if err != nil && !errors.Is(err, context.Canceled) && !(v.limits.NoStatfs && errors.Is(err, unix.ENOSYS)) {
			t.Errorf("%s: %v, want Canceled", what, err)
		}
	}
	// What was cancelled leaves the layer usable.
	if _, err := v.l.Stat(background(t), "sub/file"); err != nil {
		t.Error(err)
	}
}

func (v *view) statfs(t *testing.T) {
	st, err := v.l.Statfs(background(t))
	if v.limits.NoStatfs && errors.Is(err, unix.ENOSYS) {
		return
	}
	must(t, err)
	var want unix.Statfs_t
	must(t, unix.Statfs(v.source, &want))
	if st.Blocks*uint64(st.Frsize) != want.Blocks*uint64(want.Frsize) || uint64(st.NameLen) != uint64(want.Namelen) {
		t.Errorf("%+v, want %+v", st, want)
	}
}

// untouched: looking at the tree has changed nothing in it but, perhaps, atimes.
func (v *view) untouched(t *testing.T) {
	v.walk(t, func(p layers.Path, _ os.FileInfo) {
		dir, _ := p.Split()
		if dir != "sizes" && dir != "odd" && dir != "many" {
			return
		}
		if st := v.lstat(t, p); st.Mtim.Sec != old.Unix() {
			t.Errorf("%q has another mtime", p)
		}
	})
}
