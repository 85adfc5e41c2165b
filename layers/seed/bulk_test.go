package seed

import (
	"context"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// bulky is a fake that reads many files at once, and knows who walks.
type bulky struct {
	*fake
	asked []layers.Wanted
}

func (f *bulky) ReadMany(_ context.Context, files []layers.Wanted) ([]layers.Content, error) {
	f.asked = append(f.asked, files...)
	out := make([]layers.Content, len(files))
	for i, w := range files {
		if a, err := f.look(w.Path); err != nil || !a.SameVersion(w.Attr) {
			out[i].Err = errors.Join(layers.ErrStale, err)
		} else {
			out[i] = layers.Content{Data: []byte(f.data[w.Path]), Settled: true}
		}
	}
	return out, nil
}

func (f *bulky) Coming(layers.Path, int) (next []layers.Listed) {
	for _, p := range []layers.Path{"home/u", "proc"} {
		es, _ := f.ReadDir(context.Background(), p)
		next = append(next, layers.Listed{Path: p, Entries: es})
	}
	return next
}

// ReadMany reads what Open would open, each as the version that was compared, at one
// exchange for all that was not.
func TestReadMany(t *testing.T) {
	f := &bulky{fake: newFake()}
	f.offline = true
	regular := func(p layers.Path, size int64) Entry {
		return Entry{Path: p, Mode: unix.S_IFREG | 0o644, ModeKnown: true, Size: size, SizeKnown: true}
	}
	l, err := New(t.Context(), Config{
		Seed: Seed{Entries: []Entry{
			regular("home/u/f", 5), regular("home/u/log", 500), regular("home/u/gone", 1),
			{Path: "home/u/link", Mode: unix.S_IFLNK | 0o777, ModeKnown: true},
		}},
		Inner: f, Hide: []layers.Path{"proc"}, Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	f.offline = false
	old := f.nodes["home/u/g"]
	old.Mtime.Sec--
	attr := func(p layers.Path) *layers.Attr { a := f.nodes[p]; return &a }
	files := []layers.Wanted{
		{Path: "home/u/f", Attr: attr("home/u/f")},
		{Path: "home/u/g", Attr: attr("home/u/g")},
		{Path: "home/u/log", Attr: attr("home/u/log")},
		{Path: "home/u/gone", Attr: attr("home/u/f")},
		{Path: "home/u/link", Attr: attr("home/u/link")},
		{Path: "proc/1", Attr: attr("proc/1")},
		{Path: "home/u/g", Attr: &old},
		{Path: "home/u/f", Attr: &old},
	}
	bursts := f.bursts
	got, err := l.ReadMany(t.Context(), files)
	if err != nil || len(got) != len(files) {
		t.Fatal(len(got), err)
	}
	if f.bursts != bursts+1 || f.stats != 0 || f.opens != 0 {
		t.Errorf("%d bursts, %d stats, %d opens", f.bursts-bursts, f.stats, f.opens)
	}
	for i, want := range []any{"hello", "other", layers.ErrStale, layers.ErrStale, layers.ErrNotRegular, unix.ENOENT, layers.ErrStale, layers.ErrStale} {
		switch want := want.(type) {
		case string:
			if string(got[i].Data) != want || got[i].Err != nil || !got[i].Settled {
				t.Errorf("%q: %q, %v", files[i].Path, got[i].Data, got[i].Err)
			}
		case error:
			if !errors.Is(got[i].Err, want) || got[i].Data != nil {
				t.Errorf("%q: %q, %v, want %v", files[i].Path, got[i].Data, got[i].Err, want)
			}
		}
	}
	if len(f.asked) != 3 {
		t.Errorf("%d files were asked for", len(f.asked))
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}

	if l, err = New(t.Context(), Config{Inner: newFake(), Logger: quiet}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ReadMany(t.Context(), files[:1]); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("of a source that cannot: %v", err)
	}
	if next := l.Coming("", 10); next != nil {
		t.Errorf("%d directories", len(next))
	}
}

// What comes next shows what the seed shows.
func TestComing(t *testing.T) {
	f := &bulky{fake: newFake()}
	l, err := New(t.Context(), Config{
		Seed:  Seed{Entries: []Entry{{Path: "home/u/f", Mode: unix.S_IFREG | 0o644, ModeKnown: true, Size: 5, SizeKnown: true}}},
		Inner: f, Hide: []layers.Path{"proc"}, Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	delete(f.nodes, "home/u/f")
	next := l.Coming("home", 10)
	if len(next) != 1 || next[0].Path != "home/u" {
		t.Fatalf("%+v", next)
	}
	i := slices.IndexFunc(next[0].Entries, func(e layers.Entry) bool { return e.Name == "f" })
	if i < 0 || next[0].Entries[i].Attr.Size != 5 {
		t.Errorf("the seeded file: %+v", next[0].Entries)
	}
}
