package remember

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// preorder are all directories of f with what they lie in before them, in the order in
// which a walker comes to them.
func preorder(f *far, order func([]layers.Entry) []string, p layers.Path) (all []layers.Path) {
	all = append(all, p)
	es, _ := f.list(p)
	for _, name := range order(es) {
		if a := f.tree[p.Join(name)]; a.IsDir() {
			all = append(all, preorder(f, order, p.Join(name))...)
		}
	}
	return all
}

// settled waits until nothing is being listed.
func settled(t *testing.T, l *Layer) {
	t.Helper()
	for {
		l.mu.Lock()
		n := len(l.flights)
		l.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("something is being listed for good")
		}
	}
}

// TestComing: what a walker will come to is told in the order in which it comes there, with
// all names, and nobody is asked for that.
func TestComing(t *testing.T) {
	for _, c := range []struct {
		name  string
		order func([]layers.Entry) []string
	}{
		{"as listed", func(es []layers.Entry) []string { return names(es, hashed) }},
		{"by name", func(es []layers.Entry) []string { return names(es, nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFar(wide(6, 3, 3)...)
			all := preorder(f, c.order, "")
			f.dirs = nil
			l, _ := around(t, f, func(c *Config) { c.Order = hashed })
			if next := l.Coming("", 1000); next != nil {
				t.Errorf("nobody walks, and %d directories come next", len(next))
			}
			w := walker{t: t, l: l, order: c.order, most: 30}
			w.walk("")
			settled(t, l)
			before := f.total()
			rest := all[w.dirs:]
			told := 0
			for from := all[w.dirs-1]; ; {
				next := l.Coming(from, 20)
				if len(next) == 0 {
					break
				}
				files := 0
				for _, d := range next {
					i := slices.Index(rest, d.Path)
					if i < 0 {
						t.Fatalf("%q comes after %q", d.Path, from)
					}
					rest, from = rest[i+1:], d.Path
					told++
					n := 0
					for _, e := range d.Entries {
						if e.Type == unix.S_IFREG && e.Attr != nil {
							n++
						}
					}
					if n != 3 {
						t.Errorf("%q has %d files", d.Path, n)
					}
					files += n
				}
				if files > 20 {
					t.Errorf("%d files in %d directories", files, len(next))
				}
			}
			if told < 20 {
				t.Errorf("%d directories come next of %d", told, len(all)-w.dirs)
			}
			if f.total() != before {
				t.Error("somebody was asked")
			}
		})
	}
}

// TestComingTooLarge: a directory of many files is told of by itself, of very many not at
// all, and what comes after it is.
func TestComingTooLarge(t *testing.T) {
	paths := []string{"a/", "a/f", "b/", "b/f", "e/", "e/f"}
	for i := range 100 {
		paths = append(paths, "c/f"+string(rune('A'+i)))
	}
	for i := range mostScouted + 1 {
		paths = append(paths, "d/f"+string(rune('A'+i)))
	}
	f := newFar(append(paths, "c/", "d/")...)
	l, _ := around(t, f)
	w := walker{t: t, l: l, order: func(es []layers.Entry) []string { return names(es, nil) }, most: 3}
	w.walk("")
	settled(t, l)
	for _, want := range [][]layers.Path{{"c"}, {"e"}, nil} {
		from := layers.Path("b")
		switch {
		case want == nil:
			from = "e"
		case want[0] == "e":
			from = "c"
		}
		var got []layers.Path
		for _, d := range l.Coming(from, 10) {
			got = append(got, d.Path)
		}
		if !slices.Equal(got, want) {
			t.Errorf("after %q come %q, want %q", from, got, want)
		}
	}
}
