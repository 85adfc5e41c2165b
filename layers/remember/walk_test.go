package remember

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

func hashed(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name))
	return h.Sum64()
}

// walker walks a tree as find does.
type walker struct {
	t     *testing.T
	l     *Layer
	order func([]layers.Entry) []string
	look  bool // at each name, as du does
	links bool
	dirs  int // that it came to
	most  int // so many it comes to; 0: all
}

func (w *walker) walk(p layers.Path) {
	if w.most > 0 && w.dirs >= w.most {
		return
	}
	w.dirs++
	es, err := w.l.ReadDir(w.t.Context(), p)
	if err != nil {
		w.t.Fatal(err)
	}
	is := make(map[string]uint32)
	for _, e := range es {
		is[e.Name] = e.Type
	}
	for _, name := range w.order(es) {
		q := p.Join(name)
		if w.look {
			if _, err := w.l.Stat(w.t.Context(), q); err != nil {
				w.t.Fatal(err)
			}
		}
		if w.links && is[name] == unix.S_IFLNK {
			if s, err := w.l.Readlink(w.t.Context(), q); err != nil || s == "" {
				w.t.Fatal(s, err)
			}
		}
		if is[name] == unix.S_IFDIR {
			w.walk(q)
		}
	}
}

// TestWalk: a tree takes about as many exchanges as it is deep, and no directory is
// listed twice, whatever the order in which the walker goes.
func TestWalk(t *testing.T) {
	listed := func(es []layers.Entry) []string { return names(es, hashed) }
	sorted := func(es []layers.Entry) []string { return names(es, nil) }
	for _, c := range []struct {
		name         string
		width, depth int
		order        func([]layers.Entry) []string
		most         int64 // waits
	}{
		// Waits that overlap count each, so a little more than exchanges one after the other.
		{"narrow", 3, 5, listed, 14}, // 364 directories
		{"wide", 10, 3, listed, 16},  // 1111
		{"flat", 1000, 1, listed, 16},
		{"deep", 1, 40, listed, 41},
		{"narrow, by name", 3, 5, sorted, 14},
		{"wide, by name", 10, 3, sorted, 16},
		{"flat, by name", 1000, 1, sorted, 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFar(wide(c.width, c.depth, 4)...)
			f.delay = 5 * time.Millisecond
			l, _ := around(t, f, func(c *Config) { c.Order = hashed })
			w := walker{t: t, l: l, order: c.order, look: true}
			w.walk("")
			s := l.Stats()
			if s.Waits > c.most {
				t.Errorf("%d directories: waited %d times, want at most %d", w.dirs, s.Waits, c.most)
			}
			t.Logf("%d directories, %d waits, %d exchanges, %d ahead", w.dirs, s.Waits, f.total(), s.Ahead)
			if len(f.dirs) != w.dirs || f.count("stat") != 0 {
				t.Errorf("%d listings of %d directories, %d stats", len(f.dirs), w.dirs, f.count("stat"))
			}
			before := f.total()
			w.walk("")
			if f.total() != before {
				t.Errorf("a second walk takes %d exchanges", f.total()-before)
			}
		})
	}
}

// TestWalkAgain: a walk that begins anew when all is too old is run ahead of again.
func TestWalkAgain(t *testing.T) {
	f := newFar(wide(10, 3, 1)...)
	f.delay = 5 * time.Millisecond
	l, clock := around(t, f, func(c *Config) { c.Order = hashed })
	listed := func(es []layers.Entry) []string { return names(es, hashed) }
	for range 3 {
		before := l.Stats().Waits
		w := walker{t: t, l: l, order: listed}
		w.walk("")
		if n := l.Stats().Waits - before; n > 16 {
			t.Errorf("waited %d times", n)
		}
		clock.pass(5 * time.Second)
	}
}

// TestSlowWalker: who takes his time has no more listed ahead than stays valid until he
// comes to it.
func TestSlowWalker(t *testing.T) {
	f := newFar(wide(2000, 1, 1)...)
	l, clock := around(t, f, func(c *Config) { c.Order = hashed })
	if _, err := l.ReadDir(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	es, _ := l.ReadDir(t.Context(), "")
	for i, name := range names(es, hashed)[1:] { // "file0" and directories, in their order
		if name == "file0" {
			continue
		}
		if _, err := l.ReadDir(t.Context(), layers.Path(name)); err != nil {
			t.Fatal(err)
		}
		l.settle()
		clock.pass(100 * time.Millisecond)
		if i == 500 {
			break
		}
	}
	if len(f.dirs) > 500+firstAhead+2*slowest {
		t.Errorf("%d listings for one who came to 500", len(f.dirs))
	}
	if s := l.Stats(); s.Waits > 500/5 {
		t.Errorf("waited %d times", s.Waits)
	}
}

// TestBare: attributes that say so are all there is to know of extended ones.
func TestBare(t *testing.T) {
	f := newFar("f")
	f.tree["f"] = layers.Attr{Known: layers.KnownBare | layers.KnownSize, Mode: unix.S_IFREG | 0o644}
	l, _ := around(t, f)
	if _, err := l.Stat(t.Context(), "f"); err != nil {
		t.Fatal(err)
	}
	if x, err := l.Xattrs(t.Context(), "f"); x != nil || err != nil || f.count("xattrs") != 0 {
		t.Errorf("%v, %v, %d requests", x, err, f.count("xattrs"))
	}
}

// TestWalkBound: who stops has had no more listed than four times what he came to, but
// for the first few.
func TestWalkBound(t *testing.T) {
	tree := wide(10, 3, 1)
	for _, most := range []int{1, 2, 3, 10, 50, 200} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			f := newFar(tree...)
			l, _ := around(t, f, func(c *Config) { c.Order = hashed })
			w := walker{t: t, l: l, most: most, order: func(es []layers.Entry) []string { return names(es, hashed) }}
			w.walk("")
			until(t, func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.flights) == 0 })
			bound := max(firstAhead, perUsed*w.dirs) + w.dirs
			if most == 1 {
				bound = 1 // it does not walk
			}
			if len(f.dirs) > bound {
				t.Logf("%q", f.dirs)
				t.Errorf("%d directories were listed for one who came to %d", len(f.dirs), w.dirs)
			}
		})
	}
}

// TestWalkAtRandom: a walker whose way cannot be foreseen gets what is there, and wastes
// no more than another.
func TestWalkAtRandom(t *testing.T) {
	f := newFar(wide(6, 4, 2)...)
	l, _ := around(t, f, func(c *Config) { c.Order = hashed })
	random := rand.New(rand.NewPCG(1, 2))
	w := walker{t: t, l: l, look: true, order: func(es []layers.Entry) []string {
		all := names(es, nil)
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		return all
	}}
	w.walk("")
	if s := l.Stats(); int(s.Waits) > w.dirs/4 {
		t.Errorf("%d directories: waited %d times", w.dirs, s.Waits)
	}
	if len(f.dirs) != w.dirs {
		t.Errorf("%d listings of %d directories", len(f.dirs), w.dirs)
	}
}

// TestWalkersAtOnce: many walk at the same time, through the same tree and others.
func TestWalkersAtOnce(t *testing.T) {
	f := newFar(wide(5, 4, 2)...)
	l, _ := around(t, f, func(c *Config) { c.Order = hashed })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			w := walker{t: t, l: l, look: true, order: func(es []layers.Entry) []string { return names(es, hashed) }}
			w.walk(layers.Path([]string{"", "dir0", "dir1", "dir2"}[i%4]))
		})
	}
	wg.Wait()
	if len(f.dirs) != 781 {
		t.Errorf("%d listings of 781 directories", len(f.dirs))
	}
}

// TestNoWalk: without a walker, and with NoAhead, nothing is asked for that nobody asked
// for.
func TestNoWalk(t *testing.T) {
	t.Run("one directory", func(t *testing.T) {
		f := newFar(wide(10, 2, 10)...)
		l, _ := around(t, f)
		for _, p := range []layers.Path{"", "file0", "", "file1", "dir0", "dir0/file3"} {
			if p == "" {
				_, _ = l.ReadDir(t.Context(), p)
			} else if _, err := l.Stat(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
		if f.count("readdirs") != 0 || len(f.dirs) != 1 {
			t.Errorf("listed %q", f.dirs)
		}
	})
	t.Run("off", func(t *testing.T) {
		f := newFar(append(wide(5, 2, 5), "l@", "k@", "j@")...)
		l, _ := around(t, f, func(c *Config) { c.NoAhead = true })
		w := walker{t: t, l: l, look: true, links: true, order: func(es []layers.Entry) []string { return names(es, nil) }}
		w.walk("")
		if f.count("readdirs") != 0 || len(f.dirs) != w.dirs || f.count("readlink") != 3 {
			t.Errorf("%v for %d directories", f.asked, w.dirs)
		}
	})
	t.Run("in the background", func(t *testing.T) {
		f := newFar(wide(5, 2, 5)...)
		l, _ := around(t, f)
		for _, p := range []layers.Path{"", "dir0", "dir1", "dir1/dir1"} {
			if _, err := l.ReadDir(layers.Background(t.Context()), p); err != nil {
				t.Error(err)
			}
		}
		if f.count("readdirs") != 0 {
			t.Errorf("listed %q ahead of who does not wait himself", f.dirs)
		}
	})
}

// TestNamesOneByOne: who looks at the names of a directory one by one has the rest from
// the second on, and who does so in one directory after the other is a walker.
func TestNamesOneByOne(t *testing.T) {
	const width, depth, files = 6, 3, 12
	f := newFar(wide(width, depth, files)...)
	l, _ := around(t, f, func(c *Config) { c.Order = hashed })
	ctx := t.Context()
	dirs := 0
	var walk func(p layers.Path, level int)
	walk = func(p layers.Path, level int) {
		dirs++
		for i := range files {
			if _, err := l.Stat(ctx, p.Join(fmt.Sprintf("file%d", i))); err != nil {
				t.Fatal(err)
			}
			l.settle()
		}
		for i := range width {
			if level < depth {
				sub := p.Join(fmt.Sprintf("dir%d", i))
				if _, err := l.Stat(ctx, sub); err != nil {
					t.Fatal(err)
				}
				walk(sub, level+1)
			}
		}
	}
	walk("", 0)
	if s := l.Stats(); s.Waits > 30 {
		t.Errorf("%d names in %d directories: waited %d times", dirs*files, dirs, s.Waits)
	}
	// What is not there is known as well.
	before := f.total()
	for i := range 20 {
		_, _ = l.Stat(ctx, layers.Path(fmt.Sprintf("dir3/absent%d", i)))
	}
	if n := f.total() - before; n != 0 {
		t.Errorf("%d requests for names that are not there", n)
	}
}

// settle waits until nothing is on its way.
func (l *Layer) settle() {
	for {
		l.mu.Lock()
		n := len(l.flights)
		l.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// TestLargeDirectory: one that is large is not listed for two of its names, nor for
// somebody who walks.
func TestLargeDirectory(t *testing.T) {
	f := newFar("a/", "a/b/", "a/big/", "a/c/")
	for i := range 100 {
		f.put(layers.Path(fmt.Sprintf("a/big/f%d", i)), unix.S_IFREG|0o644, 1)
	}
	f.put("a/big", unix.S_IFDIR|0o755, 1<<20)
	l, _ := around(t, f)
	ctx := t.Context()
	for _, p := range []layers.Path{"", "a", "a/b"} {
		if _, err := l.ReadDir(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	l.settle()
	for i := range 10 {
		if _, err := l.Stat(ctx, layers.Path(fmt.Sprintf("a/big/f%d", i))); err != nil {
			t.Fatal(err)
		}
		l.settle()
	}
	if slices.Contains(f.dirs, "a/big") {
		t.Error("listed a directory of 1 MiB for ten of its names")
	}
	if !slices.Contains(f.dirs, "a/c") {
		t.Error("did not list its neighbour")
	}
	for i := range 90 {
		if _, err := l.Stat(ctx, layers.Path(fmt.Sprintf("a/big/f%d", 10+i))); err != nil {
			t.Fatal(err)
		}
		l.settle()
	}
	if !slices.Contains(f.dirs, "a/big") {
		t.Error("did not list it for a hundred")
	}
}

// TestSameNameAgain: who watches one name has not asked for two.
func TestSameNameAgain(t *testing.T) {
	f := newFar("d/", "d/f", "d/g")
	l, clock := around(t, f, func(c *Config) { c.Keep = time.Second })
	for range 10 {
		if _, err := l.Stat(t.Context(), "d/f"); err != nil {
			t.Fatal(err)
		}
		clock.pass(time.Second)
	}
	l.settle()
	if f.count("readdirs") != 0 {
		t.Errorf("listed %q", f.dirs)
	}
}

// TestLinks: the targets of the symlinks in a directory come together, and those of a
// walk with its listings.
func TestLinks(t *testing.T) {
	var paths []string
	for i := range 5 {
		paths = append(paths, fmt.Sprintf("d%d/", i))
		for j := range 100 {
			paths = append(paths, fmt.Sprintf("d%d/l%d@", i, j))
		}
	}
	f := newFar(paths...)
	l, _ := around(t, f, func(c *Config) { c.Order = hashed })
	w := walker{t: t, l: l, links: true, order: func(es []layers.Entry) []string { return names(es, hashed) }}
	w.walk("")
	if n := f.count("readlink"); n != 500 {
		t.Errorf("%d requests for 500 targets", n)
	}
	if s := l.Stats(); s.Waits > 500 {
		t.Errorf("waited %d times", s.Waits)
	}
	before := f.total()
	w.walk("")
	if f.total() != before {
		t.Errorf("a second walk takes %d requests", f.total()-before)
	}
}

// TestSlowBackground: who comes to what was asked ahead, but does not come, asks himself.
func TestSlowBackground(t *testing.T) {
	f := newFar(wide(10, 2, 1)...)
	l, _ := around(t, f, func(c *Config) { c.Order, c.patience = hashed, time.Millisecond })
	stuck := &holding{far: f, hold: make(chan struct{})}
	l.Layer = stuck
	w := walker{t: t, l: l, order: func(es []layers.Entry) []string { return names(es, hashed) }}
	w.walk("")
	if w.dirs != 111 || stuck.held() == 0 {
		t.Errorf("came to %d directories of 111, with %d requests stuck", w.dirs, stuck.held())
	}
	close(stuck.hold)
}

// holding is far with a background that gets nowhere.
type holding struct {
	*far
	hold chan struct{}
	n    atomic.Int64
}

func (h *holding) held() int64 { return h.n.Load() }

func (h *holding) ReadDirs(ctx context.Context, paths []layers.Path) ([]layers.Listing, error) {
	h.n.Add(1)
	select {
	case <-h.hold:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return h.far.ReadDirs(ctx, paths)
}

// TestWalkerStops: when the walker comes to nothing any more, what is asked for him is
// given up.
func TestWalkerStops(t *testing.T) {
	f := newFar(wide(10, 2, 1)...)
	l, clock := around(t, f)
	for _, p := range []layers.Path{"", "dir0"} {
		if p == "dir0" {
			f.mu.Lock()
			f.hold = make(chan struct{})
			f.mu.Unlock()
		}
		go func() { _, _ = l.ReadDir(t.Context(), p) }()
		if p == "" {
			until(t, func() bool { l.settle(); return f.count("readdir") == 1 })
		}
	}
	until(t, func() bool { return f.count("readdirs") > 0 })
	f.hold <- struct{}{} // for one of the two
	f.hold <- struct{}{}
	until(t, func() bool { return f.count("readdirs") > 1 })
	l.mu.Lock()
	w := l.walks[0]
	l.mu.Unlock()
	clock.pass(pause)
	l.look(w)
	l.busy.Wait() // nothing lets it through
	if len(l.walks) != 0 || len(l.flights) != 0 {
		t.Errorf("%d walks, %d requests", len(l.walks), len(l.flights))
	}
}
