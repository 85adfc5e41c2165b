package seed

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// fake is a tree in memory that counts what it is asked.
type fake struct {
	nodes   map[layers.Path]layers.Attr
	data    map[layers.Path]string
	offline bool
	stats   int // paths asked one by one
	bursts  int
	opens   int
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newFake() *fake {
	f := &fake{nodes: map[layers.Path]layers.Attr{}, data: map[layers.Path]string{}}
	for _, d := range []layers.Path{"", "home", "home/u", "home/v", "proc", "sys", "etc"} {
		f.nodes[d] = layers.Attr{Known: layers.KnownOwner | layers.KnownTimes | layers.KnownSize, Mode: unix.S_IFDIR | 0o755, Size: 4096}
	}
	for p, s := range map[layers.Path]string{"home/u/f": "hello", "home/u/log": "line\n", "home/u/g": "other", "etc/conf": "c", "proc/1": "host A"} {
		f.data[p] = s
		f.nodes[p] = layers.Attr{
			Known: layers.KnownOwner | layers.KnownTimes | layers.KnownSize, Mode: unix.S_IFREG | 0o644,
			UID: 1000, GID: 100, Size: int64(len(s)), Mtime: layers.Time{Sec: 12345},
		}
	}
	f.nodes["home/u/link"] = layers.Attr{Mode: unix.S_IFLNK | 0o777}
	return f
}

func (f *fake) look(p layers.Path) (layers.Attr, error) {
	a, ok := f.nodes[p]
	switch {
	case f.offline:
		return a, layers.ErrOffline
	case !ok:
		return a, &layers.PathError{Op: "stat", Layer: "fake", Path: p, Err: unix.ENOENT}
	}
	return a, nil
}

func (f *fake) ID() string { return "fake" }

func (f *fake) Stat(_ context.Context, p layers.Path) (layers.Attr, error) {
	f.stats++
	return f.look(p)
}

func (f *fake) StatMany(_ context.Context, paths []layers.Path) ([]layers.Attr, []error, error) {
	f.bursts++
	if f.offline {
		return nil, nil, layers.ErrOffline
	}
	attrs, errs := make([]layers.Attr, len(paths)), make([]error, len(paths))
	for i, p := range paths {
		attrs[i], errs[i] = f.look(p)
	}
	return attrs, errs, nil
}

func (f *fake) ReadDir(_ context.Context, p layers.Path) ([]layers.Entry, error) {
	if _, err := f.look(p); err != nil {
		return nil, err
	}
	var es []layers.Entry
	for q, a := range f.nodes {
		if dir, name := q.Split(); dir == p && name != "" {
			es = append(es, layers.Entry{Name: name, Type: a.Type(), Ino: 7, Attr: &a})
		}
	}
	return es, nil
}

func (f *fake) Readlink(_ context.Context, p layers.Path) (string, error) {
	_, err := f.look(p)
	return "target", err
}

func (f *fake) Xattrs(_ context.Context, p layers.Path) (layers.Xattrs, error) {
	_, err := f.look(p)
	return layers.Xattrs{"user.x": []byte("y")}, err
}

func (f *fake) Open(_ context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	f.opens++
	a, err := f.look(p)
	switch {
	case err != nil:
		return nil, err
	case !a.IsRegular():
		return nil, layers.ErrNotRegular
	case want != nil && !a.SameVersion(want):
		return nil, layers.ErrStale
	}
	return &fakeFile{strings.NewReader(f.data[p]), a}, nil
}

func (f *fake) Statfs(context.Context) (layers.Statfs, error) { return layers.Statfs{Bsize: 512}, nil }
func (f *fake) Close() error                                  { return nil }

func (f *fake) Offline() error {
	if f.offline {
		return layers.ErrOffline
	}
	return nil
}

type fakeFile struct {
	r *strings.Reader
	a layers.Attr
}

func (f *fakeFile) ReadAt(_ context.Context, b []byte, off int64) (int, error) {
	return f.r.ReadAt(b, off)
}
func (f *fakeFile) Attr() layers.Attr { return f.a }
func (f *fakeFile) Close() error      { return nil }

func jobSeed() Seed {
	return Seed{
		Entries: []Entry{
			{Path: "home/u/f", Mode: unix.S_IFREG | 0o644, ModeKnown: true, Size: 5, SizeKnown: true},
			{Path: "home/u/log", Mode: unix.S_IFREG | 0o644, ModeKnown: true}, // opened only to append
			{Path: "home/u", Mode: unix.S_IFDIR | 0o755, ModeKnown: true},
		},
		Dirs: []layers.Path{"home/v"},
	}
}

func mustNew(t *testing.T, c Config) *Layer {
	t.Helper()
	c.Logger = quiet
	l, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func names(t *testing.T, l layers.Layer, p layers.Path) []string {
	t.Helper()
	es, err := l.ReadDir(t.Context(), p)
	if err != nil {
		t.Fatalf("ReadDir(%q): %v", p, err)
	}
	var ns []string
	for _, e := range es {
		ns = append(ns, e.Name)
	}
	slices.Sort(ns)
	return ns
}

func read(t *testing.T, l layers.Layer, p layers.Path) string {
	t.Helper()
	f, err := l.Open(t.Context(), p, nil)
	if err != nil {
		t.Fatalf("Open(%q): %v", p, err)
	}
	b := make([]byte, 100)
	n, err := f.ReadAt(t.Context(), b, 0)
	if err != io.EOF {
		t.Fatalf("ReadAt(%q): %v", p, err)
	}
	return string(b[:n])
}

func TestOneBurst(t *testing.T) {
	f := newFake()
	l := mustNew(t, Config{Seed: jobSeed(), Inner: f})
	for _, p := range []layers.Path{"home/u/f", "home/u/log", "home/u", "home", "home/v", ""} {
		a, err := l.Stat(t.Context(), p)
		if err != nil || a != f.nodes[p] {
			t.Errorf("Stat(%q) = %+v, %v, want the source's %+v", p, a, err, f.nodes[p])
		}
	}
	if f.bursts != 1 || f.stats != 0 {
		t.Errorf("%d bursts and %d stats, want one burst for all", f.bursts, f.stats)
	}
	if _, err := l.Stat(t.Context(), "etc/conf"); err != nil || f.stats != 1 {
		t.Errorf("a name that is not seeded: %v after %d stats", err, f.stats)
	}
	if got := read(t, l, "home/u/f"); got != "hello" {
		t.Errorf("read %q", got)
	}
	if l.ID() != "fake" {
		t.Errorf("ID %q: what is cached for the source itself is lost", l.ID())
	}
}

func TestMismatch(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(f *fake)
		want   map[layers.Path]string
	}{
		{"size", func(f *fake) { a := f.nodes["home/u/f"]; a.Size = 6; f.nodes["home/u/f"] = a }, map[layers.Path]string{"home/u/f": "size 6, was 5"}},
		{"mode", func(f *fake) { a := f.nodes["home/u/log"]; a.Mode = unix.S_IFREG | 0o4600; f.nodes["home/u/log"] = a }, map[layers.Path]string{"home/u/log": "mode 4600, was 0644"}},
		{"missing", func(f *fake) { delete(f.nodes, "home/u/f"); delete(f.nodes, "home/v") }, map[layers.Path]string{"home/u/f": "missing", "home/v": "missing"}},
		{"type", func(f *fake) { f.nodes["home/u"] = f.nodes["home/u/link"]; f.nodes["home"] = f.nodes["etc/conf"] }, map[layers.Path]string{"home/u": "a symlink, was a directory", "home": "a regular file, was a directory"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake()
			c.change(f)
			_, err := New(t.Context(), Config{Seed: jobSeed(), Inner: f, Logger: quiet})
			var mm *MismatchError
			if !errors.As(err, &mm) {
				t.Fatalf("made a layer of files that changed: %v", err)
			}
			got := map[layers.Path]string{}
			for _, m := range mm.Files {
				got[m.Path] = m.What
				if !strings.Contains(err.Error(), `"/`+string(m.Path)+`": `+m.What) {
					t.Errorf("%q does not name %q", err, m.Path)
				}
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("mismatches %v, want %v", got, c.want)
			}
		})
	}
}

// TestGrownLog: a file opened only to append has no size in the images, so
// whatever it has on the source is right.
func TestGrownLog(t *testing.T) {
	f := newFake()
	a := f.nodes["home/u/log"]
	a.Size = 500
	f.nodes["home/u/log"] = a
	l := mustNew(t, Config{Seed: jobSeed(), Inner: f})
	if got, err := l.Stat(t.Context(), "home/u/log"); err != nil || got.Size != 500 || !got.Has(layers.KnownSize) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestChangedLater: the version is that of the burst, whatever comes later.
func TestChangedLater(t *testing.T) {
	f := newFake()
	l := mustNew(t, Config{Seed: jobSeed(), Inner: f})
	a := f.nodes["home/u/f"]
	a.Mtime.Sec++
	f.nodes["home/u/f"], f.data["home/u/f"] = a, "HELLO"
	if _, err := l.Open(t.Context(), "home/u/f", nil); !errors.Is(err, layers.ErrStale) {
		t.Errorf("Open of a file that changed: %v, want stale", err)
	}
	if _, err := l.Open(t.Context(), "home/u/f", &a); !errors.Is(err, layers.ErrStale) {
		t.Errorf("Open of the new version: %v, want stale: the process had the old one", err)
	}
	f.nodes["home/u/new"] = a
	if got := names(t, l, "home/u"); !slices.Equal(got, []string{"f", "g", "link", "log", "new"}) {
		t.Errorf("home/u lists %q", got)
	}
	delete(f.nodes, "home/u/f")
	if got := names(t, l, "home/u"); !slices.Contains(got, "f") {
		t.Errorf("home/u lists %q: a file of the process is not there at all", got)
	}
	if _, err := l.Open(t.Context(), "home/u/f", nil); err == nil {
		t.Error("opened a file that is gone")
	}
}

func TestHide(t *testing.T) {
	f := newFake()
	l := mustNew(t, Config{Seed: jobSeed(), Inner: f, Hide: []layers.Path{"proc", "sys", "dev", "run"}})
	if got := names(t, l, ""); !slices.Equal(got, []string{"etc", "home"}) {
		t.Errorf("the root lists %q", got)
	}
	for _, p := range []layers.Path{"proc", "proc/1"} {
		if _, err := l.Stat(t.Context(), p); !errors.Is(err, unix.ENOENT) {
			t.Errorf("Stat(%q): %v", p, err)
		}
		if _, err := l.Open(t.Context(), p, nil); !errors.Is(err, unix.ENOENT) {
			t.Errorf("Open(%q): %v", p, err)
		}
		if _, err := l.ReadDir(t.Context(), p); !errors.Is(err, unix.ENOENT) {
			t.Errorf("ReadDir(%q): %v", p, err)
		}
	}
	_, errs, err := l.StatMany(t.Context(), []layers.Path{"proc/1", "home/u/f", "etc/conf", "etc/none"})
	if err != nil || !errors.Is(errs[0], unix.ENOENT) || errs[1] != nil || errs[2] != nil || !errors.Is(errs[3], unix.ENOENT) {
		t.Errorf("StatMany: %v, %v", errs, err)
	}
	if f.bursts != 2 {
		t.Errorf("%d bursts, want one more for the two names that are not seeded", f.bursts)
	}
	for _, bad := range []layers.Path{"", "a/b"} {
		if _, err := New(t.Context(), Config{Inner: f, Hide: []layers.Path{bad}}); err == nil {
			t.Errorf("hides %q", bad)
		}
	}
	if _, err := New(t.Context(), Config{Seed: Seed{Entries: []Entry{{Path: "proc/1"}}}, Hide: []layers.Path{"proc"}}); err == nil {
		t.Error("seeds what it hides")
	}
}

func TestFlat(t *testing.T) {
	f := newFake()
	l := mustNew(t, Config{Seed: jobSeed(), Inner: f, Names: Flat})
	if got := names(t, l, ""); !slices.Equal(got, []string{"home.u.f", "home.u.log"}) {
		t.Errorf("the root lists %q", got)
	}
	if a, err := l.Stat(t.Context(), "home.u.f"); err != nil || a != f.nodes["home/u/f"] {
		t.Errorf("Stat: %+v, %v", a, err)
	}
	if got := read(t, l, "home.u.f"); got != "hello" {
		t.Errorf("read %q", got)
	}
	for _, p := range []layers.Path{"home", "home/u/f", "etc.conf"} {
		if _, err := l.Stat(t.Context(), p); !errors.Is(err, unix.ENOENT) {
			t.Errorf("Stat(%q): %v", p, err)
		}
	}
	if l.ID() == f.ID() {
		t.Error("a flat layer has the ID of the tree")
	}
	var col *CollisionError
	_, err := New(t.Context(), Config{Names: Flat, Seed: Seed{Entries: []Entry{{Path: "a/b.c", Mode: unix.S_IFREG}, {Path: "a.b/c", Mode: unix.S_IFREG}}}})
	if !errors.As(err, &col) || !strings.Contains(err.Error(), `"/a/b.c"`) || !strings.Contains(err.Error(), `"/a.b/c"`) {
		t.Errorf("collision: %v", err)
	}
	long := layers.Path(strings.Repeat("a", 200) + "/" + strings.Repeat("b", 200))
	if _, err := New(t.Context(), Config{Names: Flat, Seed: Seed{Entries: []Entry{{Path: long, Mode: unix.S_IFREG}}}}); err == nil {
		t.Error("made a name of 401 bytes")
	}
}

// TestAlone: without a source, what the seed says and no more.
func TestAlone(t *testing.T) {
	l := mustNew(t, Config{Seed: jobSeed()})
	a, err := l.Stat(t.Context(), "home/u/f")
	if err != nil || a.Mode != unix.S_IFREG|0o644 || a.Size != 5 || a.Known != layers.KnownSize {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := l.Stat(t.Context(), "home/u/log"); err != nil || a.Known != 0 {
		t.Errorf("a size or more is known of what was opened to append: %+v, %v", a, err)
	}
	if got := names(t, l, "home"); !slices.Equal(got, []string{"u", "v"}) {
		t.Errorf("home lists %q", got)
	}
	if _, err := l.Open(t.Context(), "home/u/f", nil); !errors.Is(err, layers.ErrOffline) {
		t.Errorf("Open: %v, want offline", err)
	}
	if _, err := l.Open(t.Context(), "home/u", nil); !errors.Is(err, layers.ErrNotRegular) {
		t.Errorf("Open of a directory: %v", err)
	}
	if _, err := l.Stat(t.Context(), "home/x"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Stat of another name: %v", err)
	}
	if l.Offline() == nil {
		t.Error("is not offline")
	}
}

// TestUnknownType: of a watched file the images have the name only.
func TestUnknownType(t *testing.T) {
	s := jobSeed()
	s.Entries = append(s.Entries, Entry{Path: "home/u/g"})
	for _, c := range []struct {
		name  string
		inner layers.Layer
		names Names
		path  layers.Path
		there bool
	}{
		{"source", newFake(), Tree, "home/u/g", true},
		{"none", nil, Tree, "home/u/g", false},
		{"flat", newFake(), Flat, "home.u.g", false},
		{"flat, none", nil, Flat, "home.u.g", false},
	} {
		l := mustNew(t, Config{Seed: s, Inner: c.inner, Names: c.names})
		if _, err := l.Stat(t.Context(), c.path); (err == nil) != c.there {
			t.Errorf("%s: Stat: %v", c.name, err)
		}
		dir, name := c.path.Split()
		if got := names(t, l, dir); slices.Contains(got, name) != c.there {
			t.Errorf("%s: lists %q", c.name, got)
		}
		// Whatever is listed can be looked at.
		for _, name := range names(t, l, dir) {
			if _, err := l.Stat(t.Context(), dir.Join(name)); err != nil {
				t.Errorf("%s: %q is listed: %v", c.name, name, err)
			}
		}
	}
}

// TestAway: a source that is away at first serves the seed, and nothing is
// trusted before it was compared.
func TestAway(t *testing.T) {
	f := newFake()
	f.offline = true
	l := mustNew(t, Config{Seed: jobSeed(), Inner: f})
	if a, err := l.Stat(t.Context(), "home/u/f"); err != nil || a.Size != 5 || a.Has(layers.KnownOwner) {
		t.Errorf("%+v, %v", a, err)
	}
	for _, p := range []layers.Path{"etc/conf", "no/such"} {
		if _, err := l.Stat(t.Context(), p); !errors.Is(err, layers.ErrOffline) {
			t.Errorf("Stat(%q): %v, want offline", p, err)
		}
	}
	if _, err := l.Open(t.Context(), "home/u/f", nil); !errors.Is(err, layers.ErrOffline) {
		t.Errorf("Open: %v, want offline", err)
	}
	if es, err := l.ReadDir(t.Context(), "home/u"); !errors.Is(err, layers.ErrOffline) {
		t.Errorf("ReadDir: %v, %v: half a directory looks like files are gone", es, err)
	}
	_, errs, err := l.StatMany(t.Context(), []layers.Path{"home/u/f", "etc/conf"})
	if err != nil || errs[0] != nil || !errors.Is(errs[1], layers.ErrOffline) {
		t.Errorf("StatMany: %v, %v", errs, err)
	}

	a := f.nodes["home/u/log"]
	a.Mode = unix.S_IFREG | 0o600
	f.nodes["home/u/log"] = a
	f.offline = false
	if a, err := l.Stat(t.Context(), "home/u/f"); err != nil || a != f.nodes["home/u/f"] {
		t.Errorf("back again: %+v, %v", a, err)
	}
	if got := read(t, l, "home/u/f"); got != "hello" {
		t.Errorf("back again: read %q", got)
	}
	if _, err := l.Open(t.Context(), "home/u/log", nil); !errors.Is(err, layers.ErrStale) {
		t.Errorf("back again, but changed: %v, want stale", err)
	}
	n := f.stats
	if _, err := l.Stat(t.Context(), "home/u/f"); err != nil || f.stats != n {
		t.Errorf("asked again about what it had compared: %v", err)
	}
}

func TestBadSeed(t *testing.T) {
	for _, s := range []Seed{
		{Entries: []Entry{{Path: "../x"}}},
		{Entries: []Entry{{Path: "/x"}}},
		{Entries: []Entry{{Path: "a\x00"}}},
		{Entries: []Entry{{Path: "a"}, {Path: "a"}}},
		{Entries: []Entry{{Path: "a", Size: -1, SizeKnown: true}}},
		{Entries: []Entry{{Path: "a", Mode: unix.S_IFREG | 0o644}, {Path: "a/b"}}},
		{Dirs: []layers.Path{"a//b"}},
	} {
		if _, err := New(t.Context(), Config{Seed: s}); err == nil {
			t.Errorf("took %+v", s)
		}
	}
}

// TestManyDirectories: a few long paths must not take all memory there is.
func TestManyDirectories(t *testing.T) {
	var s Seed
	deep := layers.Path(strings.Repeat("/a", 2000))
	for i := range 1000 {
		s.Entries = append(s.Entries, Entry{Path: layers.Path(strconv.Itoa(i)) + deep})
	}
	if _, err := New(t.Context(), Config{Seed: s}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("took two million directories: %v", err)
	}
}

func TestInnerError(t *testing.T) {
	f := newFake()
	if _, err := New(t.Context(), Config{Seed: jobSeed(), Inner: &denied{f}, Logger: quiet}); !errors.Is(err, layers.ErrDenied) {
		t.Errorf("a refused login: %v", err)
	}
}

type denied struct{ *fake }

func (*denied) StatMany(context.Context, []layers.Path) ([]layers.Attr, []error, error) {
	return nil, nil, layers.ErrDenied
}
