package remember

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// TestSecondLook: what was seen costs nothing until it is too old, of whatever kind.
func TestSecondLook(t *testing.T) {
	f := newFar("d/", "d/f", "d/l@")
	l, clock := around(t, f, func(c *Config) { c.NoAhead = true })
	ctx := t.Context()
	looks := map[string]func() string{
		"stat":     func() string { a, err := l.Stat(ctx, "d/f"); return fmt.Sprint(a.Size, err) },
		"of root":  func() string { a, err := l.Stat(ctx, ""); return fmt.Sprint(a.Mode, err) },
		"readdir":  func() string { es, err := l.ReadDir(ctx, "d"); return fmt.Sprint(names(es, nil), err) },
		"readlink": func() string { _, _ = l.Stat(ctx, "d/l"); s, err := l.Readlink(ctx, "d/l"); return fmt.Sprint(s, err) },
		"xattrs": func() string {
			_, _ = l.Stat(ctx, "d/f")
			x, err := l.Xattrs(ctx, "d/f")
			s := fmt.Sprint(string(x["user.of"]), err)
			delete(x, "user.of") // a caller may
			return s
		},
		"statfs": func() string { st, err := l.Statfs(ctx); return fmt.Sprint(st.Blocks, err) },
	}
	for what, look := range looks {
		first := look()
		before := f.total()
		clock.pass(time.Second)
		if again := look(); again != first || f.total() != before {
			t.Errorf("%s: %q, then %q at %d requests", what, first, again, f.total()-before)
		}
		clock.pass(5 * time.Second)
		if again := look(); again != first || f.total() == before {
			t.Errorf("%s: too old, but %q was answered at %d requests", what, again, f.total()-before)
		}
	}
}

// TestChangesShow: a change shows after Keep at the latest, in each kind of answer and
// whatever was asked in between.
func TestChangesShow(t *testing.T) {
	f := newFar("d/", "d/f")
	l, clock := around(t, f)
	ctx := t.Context()
	look := func() string {
		es, err := l.ReadDir(ctx, "d")
		if err != nil {
			t.Error(err)
		}
		a, err := l.Stat(ctx, "d/f")
		_, newErr := l.Stat(ctx, "d/new")
		return fmt.Sprint(names(es, nil), a.Size, err, errors.Is(newErr, unix.ENOENT))
	}
	if s := look(); s != "[f] 1 <nil> true" {
		t.Fatal(s)
	}
	f.put("d/f", unix.S_IFREG|0o644, 7)
	f.put("d/new", unix.S_IFREG|0o644, 7)
	for range 5 {
		clock.pass(time.Second - 1)
		look()
	}
	clock.pass(5)
	if s := look(); s != "[f new] 7 <nil> false" {
		t.Errorf("after Keep: %s", s)
	}
}

// TestAge: who passes an answer on learns how old it is.
func TestAge(t *testing.T) {
	f := newFar("f")
	l, clock := around(t, f)
	l.born = time.Now().Add(-time.Minute) // the clock has told nothing of that minute
	clock.pass(time.Minute)
	_, err := l.Stat(t.Context(), "f")
	if err != nil {
		t.Fatal(err)
	}
	l.born = l.born.Add(-3 * time.Second)
	clock.pass(3 * time.Second)
	var age layers.AsOf
	ctx := context.WithValue(t.Context(), layers.AsOfKey, &age)
	if _, err := l.Stat(ctx, "f"); err != nil {
		t.Fatal(err)
	}
	if got := age.Age(); got < 3*time.Second || got > 5*time.Second {
		t.Errorf("%v old, want 3 s", got)
	}
}

// TestAbsent: a name is absent by a listing or by an answer, for Absent.
func TestAbsent(t *testing.T) {
	f := newFar("d/", "d/f", "e/")
	l, clock := around(t, f, func(c *Config) { c.Absent = 2 * time.Second })
	ctx := t.Context()
	absent := func(p layers.Path) bool {
		_, err := l.Stat(ctx, p)
		return errors.Is(err, unix.ENOENT)
	}
	if _, err := l.ReadDir(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	before := f.total()
	if !absent("d/x") || !absent("d/y") || f.total() != before {
		t.Errorf("%d requests for names that the listing has not", f.total()-before)
	}
	if !absent("e/x") || f.total() != before+1 {
		t.Errorf("%d requests for a name that nothing is known of", f.total()-before)
	}
	if !absent("e/x") || f.total() != before+1 {
		t.Error("asked again for a name that was said not to be there")
	}
	clock.pass(2 * time.Second)
	f.put("d/x", unix.S_IFREG|0o644, 1)
	f.put("e/x", unix.S_IFREG|0o644, 1)
	if absent("d/x") || absent("e/x") {
		t.Error("absent for longer than Absent")
	}
}

// TestAbsentIsForgotten: who creates a name on the source and lists sees it.
func TestListingAfterLook(t *testing.T) {
	f := newFar("d/", "d/f", "d/g")
	l, _ := around(t, f)
	ctx := t.Context()
	if _, err := l.ReadDir(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	f.remove("d/g")
	l.Forget("d/g")
	if _, err := l.Stat(ctx, "d/g"); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	if es, err := l.ReadDir(ctx, "d"); err != nil || len(es) != 1 {
		t.Errorf("%v, %v: lists what was seen not to be there", names(es, nil), err)
	}
}

// TestStale: a file that turns out to be another one is looked at anew at once, whatever
// Keep says, and so are the directories that lead to it.
func TestStale(t *testing.T) {
	for _, kind := range []string{"open", "read"} {
		t.Run(kind, func(t *testing.T) {
			f := newFar("d/", "d/f", "d/g")
			l, _ := around(t, f, func(c *Config) { c.Keep, c.Absent = Forever, Forever })
			ctx := t.Context()
			for _, p := range []layers.Path{"", "d"} {
				if _, err := l.ReadDir(ctx, p); err != nil {
					t.Fatal(err)
				}
			}
			a, err := l.Stat(ctx, "d/f")
			if err != nil {
				t.Fatal(err)
			}
			h, err := l.Open(ctx, "d/f", &a)
			if err != nil {
				t.Fatal(err)
			}
			f.put("d/f", unix.S_IFREG|0o644, 7)
			before := f.count("stat")
			if kind == "open" {
				_, err = l.Open(ctx, "d/f", &a)
			} else {
				_, err = h.ReadAt(ctx, make([]byte, 1), 0)
			}
			if !errors.Is(err, layers.ErrStale) {
				t.Fatal(err)
			}
			if a, err := l.Stat(ctx, "d/f"); err != nil || a.Size != 7 {
				t.Errorf("size %d, %v: what is remembered is known to be wrong", a.Size, err)
			}
			if _, err := l.Stat(ctx, "d"); err != nil {
				t.Error(err)
			}
			if _, err := l.Stat(ctx, "d/g"); err != nil {
				t.Error(err)
			}
			if n := f.count("stat") - before; n != 2 {
				t.Errorf("%d requests: the file and its directory are to be asked for, its neighbour not", n)
			}
			if es, err := l.ReadDir(ctx, "d"); err != nil || len(es) != 2 {
				t.Errorf("%d names, %v", len(es), err)
			}
		})
	}
}

// TestReplaced: once the storage is known to be another one, what was seen before is not
// valid any more, and an error; what is seen when the right one is back is.
func TestReplaced(t *testing.T) {
	f := newFar("d/", "d/f", "d/g", "e/")
	l, clock := around(t, f, func(c *Config) { c.Keep, c.Absent = Forever, Forever })
	ctx := t.Context()
	look := func() (errs []error) {
		_, err := l.Stat(ctx, "d/f")
		_, absent := l.Stat(ctx, "d/x")
		_, listing := l.ReadDir(ctx, "d")
		return []error{err, absent, listing}
	}
	if errs := look(); errs[0] != nil || !errors.Is(errs[1], unix.ENOENT) || errs[2] != nil {
		t.Fatal(errs)
	}
	for _, notice := range []func(){
		func() { _, _ = l.Stat(ctx, "e/y") },
		func() { _, _ = l.Open(ctx, "d/g", nil) },
	} {
		clock.pass(1)
		f.mu.Lock()
		f.gone = layers.ErrReplaced
		f.mu.Unlock()
		notice()
		for i, err := range look() {
			if !errors.Is(err, layers.ErrReplaced) {
				t.Errorf("look %d: %v", i, err)
			}
		}
		f.mu.Lock()
		f.gone = nil
		f.mu.Unlock()
		clock.pass(1)
		if errs := look(); errs[0] != nil || !errors.Is(errs[1], unix.ENOENT) || errs[2] != nil {
			t.Error("back again:", errs)
		}
		l.settle()
		before := f.total()
		look()
		if f.total() != before {
			t.Error("back again, and asked every time")
		}
		l.Forget("e/y")
		l.Forget("e")
	}
}

// TestStaleAnswerOnItsWay: what was asked before it turned out to be wrong is not kept,
// and nobody who asks afterwards gets it.
func TestStaleAnswerOnItsWay(t *testing.T) {
	f := newFar("d/", "d/f")
	f.hold = make(chan struct{})
	l, _ := around(t, f)
	for _, kind := range []string{"stat", "listing"} {
		f.put("d/f", unix.S_IFREG|0o644, 1)
		early := make(chan error, 1)
		count := f.total()
		go func() {
			var err error
			if kind == "stat" {
				_, err = l.Stat(t.Context(), "d/f")
			} else {
				_, err = l.ReadDir(t.Context(), "d")
			}
			early <- err
		}()
		until(t, func() bool { return f.total() > count }) // the answer is made, and held
		f.put("d/f", unix.S_IFREG|0o644, 7)
		l.Forget("d/f")
		late := make(chan int64, 1)
		go func() { a, _ := l.Stat(t.Context(), "d/f"); late <- a.Size }()
		until(t, func() bool { return f.total() > count+1 })
		f.hold <- struct{}{}
		f.hold <- struct{}{}
		if err := <-early; err != nil {
			t.Error(err)
		}
		if size := <-late; size != 7 {
			t.Errorf("%s: size %d for who asked after it was known to be wrong", kind, size)
		}
		go func() { f.hold <- struct{}{} }()
		if a, err := l.Stat(t.Context(), "d/f"); err != nil || a.Size != 7 {
			t.Errorf("%s: size %d, %v is remembered", kind, a.Size, err)
		}
		l.Forget("d/f")
		_, _ = l.Stat(t.Context(), "d/f") // takes what is left to be let through
	}
}

func until(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
	}
}

// TestOldAnswerLast: of two answers the one that was asked for last counts, in whatever
// order they come.
func TestOldAnswerLast(t *testing.T) {
	f := newFar("d/", "d/f")
	f.hold = make(chan struct{}, 10)
	l, clock := around(t, f)
	listed := make(chan error, 1)
	go func() { _, err := l.ReadDir(t.Context(), "d"); listed <- err }()
	until(t, func() bool { return f.count("readdir") == 1 })
	clock.pass(1)
	f.put("d/f", unix.S_IFREG|0o644, 7)
	statted := make(chan layers.Attr, 1)
	go func() { a, _ := l.Stat(t.Context(), "d/f"); statted <- a }()
	until(t, func() bool { return f.count("stat") == 1 })
	l.mu.Lock()
	f.hold <- struct{}{}
	f.hold <- struct{}{}
	l.mu.Unlock()
	<-statted
	if err := <-listed; err != nil {
		t.Fatal(err)
	}
	if a, err := l.Stat(t.Context(), "d/f"); err != nil || a.Size != 7 {
		t.Errorf("size %d, %v: an older listing has taken its place", a.Size, err)
	}
	if es, err := l.ReadDir(t.Context(), "d"); err != nil || len(es) != 1 || es[0].Attr.Size != 7 {
		t.Errorf("%v, %v", es, err)
	}
	if f.total() != 2 {
		t.Errorf("%d requests, want 2", f.total())
	}
}

// TestOneRequest: who asks for what is being asked for waits for that; one of them giving
// up is nothing to the others, and when all have given up so does the request.
func TestOneRequest(t *testing.T) {
	f := newFar("d/", "d/f")
	f.hold = make(chan struct{})
	l, _ := around(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := l.Stat(ctx, "d/f"); first <- err }()
	until(t, func() bool { return f.count("stat") == 1 })
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if a, err := l.Stat(t.Context(), "d/f"); err != nil || a.Size != 1 {
				t.Errorf("%d, %v", a.Size, err)
			}
		})
	}
	until(t, func() bool { return l.Stats().Waits == 51 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	close(f.hold)
	wg.Wait()
	if n := f.count("stat"); n != 1 {
		t.Errorf("%d requests for one thing", n)
	}

	f.hold = make(chan struct{})
	ctx, cancel = context.WithCancel(t.Context())
	go func() { _, err := l.ReadDir(ctx, "d"); first <- err }()
	until(t, func() bool { return f.count("readdir") == 1 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	l.busy.Wait() // the request has ended as well: nothing lets it through
}

// TestBound: what is remembered takes no more than it may; what is used stays.
func TestBound(t *testing.T) {
	f := newFar("used/", "used/f")
	for i := range 200 {
		f.put(layers.Path(fmt.Sprintf("d%d", i)), unix.S_IFDIR|0o755, 4096)
		for j := range 20 {
			f.put(layers.Path(fmt.Sprintf("d%d/some name%d", i, j)), unix.S_IFREG|0o644, 1)
		}
	}
	l, _ := around(t, f, func(c *Config) { c.Max, c.NoAhead = 100<<10, true })
	ctx := t.Context()
	for i := range 200 {
		if _, err := l.ReadDir(ctx, layers.Path(fmt.Sprintf("d%d", i))); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Stat(ctx, "used/f"); err != nil {
			t.Fatal(err)
		}
		if s := l.Stats(); s.Bytes > 100<<10 || s.Bytes < 0 {
			t.Fatalf("%d bytes are remembered", s.Bytes)
		}
	}
	if n := f.count("stat"); n != 1 {
		t.Errorf("what is used all the time was asked for %d times", n)
	}
	sum := 0
	for p, d := range l.dirs {
		need := dirBytes + len(p)
		for base, n := range d.names {
			need += n.bytes(base)
		}
		if need != d.bytes {
			t.Errorf("%q is said to take %d bytes, not %d", p, d.bytes, need)
		}
		sum += need
	}
	if sum != l.bytes {
		t.Errorf("%d bytes are remembered, %d counted", sum, l.bytes)
	}
}

// TestNothingKept: with Keep 0 every question is asked.
func TestNothingKept(t *testing.T) {
	f := newFar("d/", "d/f")
	l, _ := around(t, f, func(c *Config) { c.Keep, c.Absent = 0, 0 })
	for range 3 {
		for _, p := range []layers.Path{"", "d"} {
			if _, err := l.ReadDir(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Stat(t.Context(), "d/f"); err != nil {
			t.Fatal(err)
		}
	}
	if f.total() != 9 {
		t.Errorf("%d requests for 9 questions", f.total())
	}
}
