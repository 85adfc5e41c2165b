package remember

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// far is a layer in memory that counts what it is asked.
type far struct {
	mu    sync.Mutex
	tree  map[layers.Path]layers.Attr
	kids  map[layers.Path]map[string]bool
	delay time.Duration // of each answer, so that a walker waits for what is on its way
	links map[layers.Path]string
	asked map[string]int // by kind: "stat", "readdir", "readdirs", "readlink"
	dirs  []layers.Path  // that were listed, each time
	off   bool
	gone  error // the answer to everything

	// hold, if not nil, is received from before an answer is given, and after it was made.
	hold chan struct{}
}

func newFar(paths ...string) *far {
	f := &far{tree: map[layers.Path]layers.Attr{}, kids: map[layers.Path]map[string]bool{}, links: map[layers.Path]string{}, asked: map[string]int{}}
	f.put("", unix.S_IFDIR|0o755, 4096)
	for _, p := range paths {
		switch {
		case strings.HasSuffix(p, "/"):
			f.put(layers.Path(p[:len(p)-1]), unix.S_IFDIR|0o755, 4096)
		case strings.HasSuffix(p, "@"):
			f.put(layers.Path(p[:len(p)-1]), unix.S_IFLNK|0o777, 3)
			f.links[layers.Path(p[:len(p)-1])] = "to " + p
		default:
			f.put(layers.Path(p), unix.S_IFREG|0o644, 1)
		}
	}
	return f
}

func (f *far) put(p layers.Path, mode uint32, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tree[p] = layers.Attr{Known: layers.KnownSize | layers.KnownTimes, Mode: mode, Size: size, Mtime: layers.Time{Sec: 1000}}
	dir, name := p.Split()
	if f.kids[dir] == nil {
		f.kids[dir] = map[string]bool{}
	}
	f.kids[dir][name] = true
}

func (f *far) remove(p layers.Path) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tree, p)
}

func (f *far) total() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	sum := 0
	for _, n := range f.asked {
		sum += n
	}
	return sum
}

func (f *far) count(kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[kind]
}

// answer makes an answer by g and gives it when that is let through.
func (f *far) answer(ctx context.Context, kind string, g func() error) error {
	f.mu.Lock()
	f.asked[kind]++
	err, hold := layers.ErrOffline, f.hold
	switch {
	case f.gone != nil:
		err = f.gone
	case !f.off:
		err = g()
	}
	f.mu.Unlock()
	time.Sleep(f.delay)
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (f *far) ID() string { return "far" }

func (f *far) Stat(ctx context.Context, p layers.Path) (a layers.Attr, err error) {
	if layers.IsBackground(ctx) {
		return a, layers.ErrOffline // only to make a connection, if it had some
	}
	err = f.answer(ctx, "stat", func() error {
		var ok bool
		if a, ok = f.tree[p]; !ok {
			return &layers.PathError{Op: "stat", Path: p, Err: unix.ENOENT}
		}
		return nil
	})
	return a, err
}

// list lists p. The caller holds mu.
func (f *far) list(p layers.Path) (es []layers.Entry, err error) {
	f.dirs = append(f.dirs, p)
	if a, ok := f.tree[p]; !ok || !a.IsDir() {
		return nil, unix.ENOTDIR
	}
	for name := range f.kids[p] {
		if a, ok := f.tree[p.Join(name)]; ok && name != "" {
			es = append(es, layers.Entry{Name: name, Type: a.Type(), Attr: &a})
		}
	}
	return es, nil
}

func (f *far) ReadDir(ctx context.Context, p layers.Path) (es []layers.Entry, err error) {
	err = f.answer(ctx, "readdir", func() (err error) { es, err = f.list(p); return err })
	return es, err
}

func (f *far) ReadDirs(ctx context.Context, paths []layers.Path) (lists []layers.Listing, err error) {
	if !layers.IsBackground(ctx) {
		panic("listed ahead in the foreground")
	}
	err = f.answer(ctx, "readdirs", func() error {
		for _, p := range paths {
			es, err := f.list(p)
			lists = append(lists, layers.Listing{Entries: es, Err: err})
		}
		return nil
	})
	return lists, err
}

func (f *far) Readlink(ctx context.Context, p layers.Path) (target string, err error) {
	err = f.answer(ctx, "readlink", func() error {
		if _, ok := f.tree[p]; !ok {
			return unix.ENOENT
		}
		target = f.links[p]
		return nil
	})
	return target, err
}

func (f *far) Xattrs(ctx context.Context, p layers.Path) (x layers.Xattrs, err error) {
	err = f.answer(ctx, "xattrs", func() error { x = layers.Xattrs{"user.of": []byte(p)}; return nil })
	return x, err
}

func (f *far) Statfs(ctx context.Context) (layers.Statfs, error) {
	return layers.Statfs{Blocks: 1}, f.answer(ctx, "statfs", func() error { return nil })
}

func (f *far) Open(ctx context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	err := f.answer(ctx, "open", func() error {
		if a, ok := f.tree[p]; !ok || want != nil && !a.SameVersion(want) {
			return layers.ErrStale
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return farFile{f, p}, nil
}

func (f *far) Close() error { return nil }

type farFile struct {
	f *far
	p layers.Path
}

func (f farFile) ReadAt(context.Context, []byte, int64) (int, error) {
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	if a, ok := f.f.tree[f.p]; !ok || a.Size != 1 {
		return 0, layers.ErrStale
	}
	return 1, nil
}

func (f farFile) Attr() layers.Attr { return layers.Attr{} }
func (f farFile) Close() error      { return nil }

// clock is a clock that stands still.
type clock struct {
	mu  sync.Mutex
	now moment
}

func (c *clock) read() moment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += moment(d)
}

// around returns a layer around f that keeps what it saw for 5 s of its clock.
func around(t *testing.T, f layers.Layer, change ...func(*Config)) (*Layer, *clock) {
	t.Helper()
	c := &clock{now: 1}
	cfg := Config{Keep: 5 * time.Second, Absent: 5 * time.Second, now: c.read, patience: time.Minute}
	for _, g := range change {
		g(&cfg)
	}
	l := New(f, cfg)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l, c
}

// wide is a tree of so many directories in each, to so many levels, with some files.
func wide(width, depth, files int) (paths []string) {
	var grow func(dir string, level int)
	grow = func(dir string, level int) {
		for i := range files {
			paths = append(paths, fmt.Sprintf("%sfile%d", dir, i))
		}
		if level == depth {
			return
		}
		for i := range width {
			sub := fmt.Sprintf("%sdir%d/", dir, i)
			paths = append(paths, sub)
			grow(sub, level+1)
		}
	}
	grow("", 0)
	return paths
}

// names are the names of es in the order that less has.
func names(es []layers.Entry, key func(string) uint64) []string {
	var all []string
	for _, e := range es {
		all = append(all, e.Name)
	}
	slices.SortFunc(all, func(a, b string) int {
		if key != nil && key(a) != key(b) {
			if key(a) < key(b) {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return all
}
