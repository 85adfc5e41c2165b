package overlay

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Two daemons over the same layers: one stands still before each change that its
// operation makes, another does its own meanwhile, from beginning to end, and breaks
// the claims of the first. What comes out must be what comes out if one operation
// follows the other.

var steppedHosts = stacking{name: "many hosts", mode: Migrate, lowers: 1, hosts: Many}

// action is one end of such a race.
type action struct {
	name  string
	files string // which actions it can meet: those that share one of these letters
	do    func(d *driver) unix.Errno
}

var actions = []action{
	{"write low", "l", func(d *driver) unix.Errno { return d.write("low", "WR", 0) }},
	{"write low further on", "l", func(d *driver) unix.Errno { return d.write("low", "IT", 6) }},
	{"truncate low", "l", func(d *driver) unix.Errno { return d.truncate("low", 3) }},
	{"chmod low", "l", func(d *driver) unix.Errno { return d.chmod("low", 0o600) }},
	{"utimes low", "l", func(d *driver) unix.Errno { return d.utimes("low", 77) }},
	{"setxattr low", "l", func(d *driver) unix.Errno { return d.setxattr("low", "user.more", "m") }},
	{"unlink low", "l", func(d *driver) unix.Errno { return d.unlink("low") }},
	{"rename low to new", "ln", func(d *driver) unix.Errno { return d.rename("low", "new", 0) }},
	{"rename low to other", "lo", func(d *driver) unix.Errno { return d.rename("low", "other", 0) }},
	{"rename low to up", "l", func(d *driver) unix.Errno { return d.rename("low", "up", 0) }},
	{"rename low into dir", "l", func(d *driver) unix.Errno { return d.rename("low", "dir/new", 0) }},
	{"rename other to low", "lo", func(d *driver) unix.Errno { return d.rename("other", "low", 0) }},
	{"rename up to low", "l", func(d *driver) unix.Errno { return d.rename("up", "low", 0) }},
	{"rename other to new", "on", func(d *driver) unix.Errno { return d.rename("other", "new", 0) }},
	{"exchange low and other", "lo", func(d *driver) unix.Errno { return d.rename("low", "other", unix.RENAME_EXCHANGE) }},
	{"link low to new", "ln", func(d *driver) unix.Errno { return d.link("low", "new") }},
	{"create new", "n", func(d *driver) unix.Errno { return d.create("new", "") }},
	{"mkdir new", "n", func(d *driver) unix.Errno { return d.mkdir("new") }},
	{"symlink new", "n", func(d *driver) unix.Errno { return d.symlink("to", "new") }},
	{"chown sym", "s", func(d *driver) unix.Errno { return d.chown("sym", 1002) }},
	{"unlink sym", "s", func(d *driver) unix.Errno { return d.unlink("sym") }},
	{"rename sym over up", "s", func(d *driver) unix.Errno { return d.rename("sym", "up", 0) }},

	{"write dir/a", "d", func(d *driver) unix.Errno { return d.write("dir/a", "WR", 0) }},
	{"unlink dir/a", "d", func(d *driver) unix.Errno { return d.unlink("dir/a") }},
	{"create dir/new", "d", func(d *driver) unix.Errno { return d.create("dir/new", "") }},
	{"chmod dir", "d", func(d *driver) unix.Errno { return d.chmod("dir", 0o700) }},
	{"rename dir to moved", "d", func(d *driver) unix.Errno { return d.rename("dir", "moved", 0) }},
	{"rename dir to empty", "de", func(d *driver) unix.Errno { return d.rename("dir", "empty", 0) }},
	{"exchange dir and empty", "de", func(d *driver) unix.Errno { return d.rename("dir", "empty", unix.RENAME_EXCHANGE) }},
	{"exchange dir and low", "dl", func(d *driver) unix.Errno { return d.rename("dir", "low", unix.RENAME_EXCHANGE) }},
	{"rmdir empty", "e", func(d *driver) unix.Errno { return d.rmdir("empty") }},
	{"create empty/new", "e", func(d *driver) unix.Errno { return d.create("empty/new", "") }},
	{"mkdir empty/new", "e", func(d *driver) unix.Errno { return d.mkdir("empty/new") }},
	{"rename other to empty/new", "eo", func(d *driver) unix.Errno { return d.rename("other", "empty/new", 0) }},

	{"write hard1", "h", func(d *driver) unix.Errno { return d.write("hard1", "WR", 0) }},
	{"write hard2", "h", func(d *driver) unix.Errno { return d.write("hard2", "IT", 4) }},
	{"unlink hard1", "h", func(d *driver) unix.Errno { return d.unlink("hard1") }},
	{"chmod hard2", "h", func(d *driver) unix.Errno { return d.chmod("hard2", 0o600) }},
	{"rename hard1", "h", func(d *driver) unix.Errno { return d.rename("hard1", "moved", 0) }},
	{"rename other to hard1", "ho", func(d *driver) unix.Errno { return d.rename("other", "hard1", 0) }},
}

// stepWorld is a small tree for races, with two daemons. All but one file lies in l.
func stepWorld(t testing.TB, base, l string) (a, b *world) {
	t.Helper()
	worldNumber++
	a = &world{t: t, dir: filepath.Join(base, fmt.Sprint(worldNumber)), kind: steppedHosts}
	for _, d := range []string{"", "upper", "work", "l1", "l2"} {
		must(t, os.Mkdir(filepath.Join(a.dir, d), 0o755))
	}
	for _, d := range []string{"dir", "empty"} {
		a.mkdir(l, d)
	}
	for _, f := range []string{"low", "other", "dir/a", "hard1"} {
		a.file(l, f, "lower "+f)
	}
	must(t, os.Link(a.at(l, "hard1"), a.at(l, "hard2")))
	must(t, os.Symlink("low", a.at(l, "sym")))
	a.file("upper", "up", "upper up")
	a.age()
	b = &world{t: t, dir: a.dir, kind: steppedHosts}
	must(t, a.open())
	must(t, b.open())
	return a, b
}

// goid is the number of the calling goroutine.
func goid() uint64 {
	b := make([]byte, 64)
	b = b[:runtime.Stack(b, false)]
	f := bytes.Fields(b)
	n, _ := strconv.ParseUint(string(f[1]), 10, 64)
	return n
}

// stepper stops one goroutine before its n-th change.
type stepper struct {
	at      int
	mu      sync.Mutex
	who     uint64
	n       int
	names   []string
	stopped chan struct{}
	resume  chan struct{}
}

func newStepper(at int) *stepper {
	return &stepper{at: at, stopped: make(chan struct{}), resume: make(chan struct{})}
}

func (s *stepper) hook(c sys.Change) error {
	s.mu.Lock()
	if s.who == 0 || goid() != s.who {
		s.mu.Unlock()
		return nil
	}
	s.n++
	s.names = append(s.names, string(c))
	stop := s.n == s.at
	s.mu.Unlock()
	if stop {
		close(s.stopped)
		<-s.resume
	}
	return nil
}

// outcome is what came of two actions.
type outcome struct {
	errs [2]unix.Errno
	seen sight
}

func (o outcome) String() string {
	return fmt.Sprintf("%v and %v", errno(o.errs[0]), errno(o.errs[1]))
}

func errno(e unix.Errno) string {
	if e == 0 {
		return "success"
	}
	return e.Error()
}

// matches reports why got is not o; the empty string if it is. Who has looked a file
// up that others then move or replace may be told that it is stale, and look again:
// whether what was asked for was done by then is as with a server that is asked.
func (o outcome) matches(got outcome) string {
	for i := range o.errs {
		if (o.errs[i] == 0) != (got.errs[i] == 0) && got.errs[i] != unix.ESTALE {
			return fmt.Sprintf("the results are %v, not %v", got, o)
		}
	}
	return o.seen.allow(got.seen).diff(got.seen)
}

func act(w *world, a *action) unix.Errno {
	d := &driver{fs: w.fs}
	defer d.end()
	return a.do(d)
}

// inTurn is what comes out of one after the other.
func inTurn(t *testing.T, base, l string, first, second *action) outcome {
	t.Helper()
	a, b := stepWorld(t, base, l)
	defer a.remove()
	defer b.close()
	var o outcome
	o.errs[0] = act(a, first)
	o.errs[1] = act(b, second)
	o.seen = sameSight(t, a, b)
	return o
}

// sameSight is what both daemons see, and one that was just started.
func sameSight(t *testing.T, a, b *world) sight {
	t.Helper()
	c := &world{t: t, dir: a.dir, kind: a.kind}
	must(t, c.open())
	defer c.close()
	seen, err := c.look()
	if err != nil {
		t.Errorf("a new daemon: %v", err)
	}
	for _, w := range []*world{a, b} {
		now, err := w.look()
		if err != nil {
			t.Errorf("an old daemon: %v", err)
		}
		if d := seen.diff(now); d != "" {
			t.Errorf("an old daemon does not see what a new one sees:\n\t%s", d)
		}
	}
	return seen
}

// step does first on one daemon, stopped before its n-th change until second is
// done on another. It reports whether first got there.
func step(t *testing.T, base string, first, second *action, n int, allowed []outcome) bool {
	t.Helper()
	a, b := stepWorld(t, base, "l1")
	defer a.remove()
	defer b.close()
	s := newStepper(n)
	sys.SetHook(s.hook)
	defer sys.SetHook(nil)
	var got outcome
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.mu.Lock()
		s.who = goid()
		s.mu.Unlock()
		got.errs[0] = act(a, first)
	}()
	select {
	case <-s.stopped:
	case <-done:
		return false
	}
	second2 := make(chan struct{})
	go func() {
		defer close(second2)
		got.errs[1] = act(b, second)
	}()
	wait(t, second2, "the second")
	close(s.resume)
	wait(t, done, "the first")
	sys.SetHook(nil)
	where := fmt.Sprintf("%s stopped before change %d of %s, %s meanwhile", first.name, n, strings.Join(s.names, " "), second.name)
	t.Run(fmt.Sprint(n), func(t *testing.T) {
		got.seen = sameSight(t, a, b)
		var whyNot []string
		for _, o := range allowed {
			why := o.matches(got)
			if why == "" {
				whyNot = nil
				break
			}
			whyNot = append(whyNot, why)
		}
		if whyNot != nil {
			t.Errorf("%s: %v\n    not one after the other, since\n\t%s\n    nor the other way round, since\n\t%s\n    nor the second alone, since\n\t%s",
				where, got, whyNot[0], whyNot[1], whyNot[len(whyNot)-1])
		}
		if t.Failed() {
			t.Logf("%s: %v", where, got)
		}
	})
	return true
}

func wait(t *testing.T, c <-chan struct{}, who string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s does not end:\n%s", who, buf[:runtime.Stack(buf, true)])
	}
}

func TestStepping(t *testing.T) {
	base := worlds(t)
	for i := range actions {
		for j := range actions {
			first, second := &actions[i], &actions[j]
			if !strings.ContainsAny(first.files, second.files) {
				continue
			}
			t.Run(first.name+" and "+second.name, func(t *testing.T) {
				// What a filesystem in one place does is right, too: it renames directories that
				// lie in two.
				var allowed []outcome
				for _, l := range []string{"l1", "upper"} {
					ab := inTurn(t, base, l, first, second)
					ba := inTurn(t, base, l, second, first)
					slices.Reverse(ba.errs[:])
					allowed = append(allowed, ab, ba)
				}
				none := &action{do: func(*driver) unix.Errno { return unix.ESTALE }}
				allowed = append(allowed, inTurn(t, base, "l1", none, second))
				for n := 1; step(t, base, first, second, n, allowed); n++ {
				}
			})
		}
	}
}

// TestNamesLookedUpMeanwhile looks the other name of a hard-linked file up while one
// comes up: it stays, whatever the name is that the file was last known by.
func TestNamesLookedUpMeanwhile(t *testing.T) {
	base := worlds(t)
	for n := 1; ; n++ {
		a, b := stepWorld(t, base, "l1")
		d := &driver{fs: a.fs}
		_, errno := d.find("hard2")
		if errno != 0 {
			t.Fatal(errno)
		}
		s := newStepper(n)
		s.who = goid()
		looked := make(chan struct{})
		go func() {
			defer close(looked)
			<-s.stopped
			other := &driver{fs: a.fs}
			defer other.end()
			resume := time.AfterFunc(20*time.Millisecond, func() { s.resume <- struct{}{} }) // it waits for what is stopped
			_, _ = other.find("hard2")
			if resume.Stop() {
				s.resume <- struct{}{}
			}
		}()
		sys.SetHook(s.hook)
		if errno := d.write("hard1", "WR", 0); errno != 0 {
			t.Errorf("write, with hard2 looked up before change %d of %q: %v", n, s.names, errno)
		}
		sys.SetHook(nil)
		met := s.n >= n
		if met {
			<-looked
		} else {
			close(s.stopped)
			<-s.resume
			<-looked
		}
		for _, name := range []string{"hard1", "hard2"} {
			if f := sameSight(t, a, b)[name]; f.content != "WRwer hard1" || f.nlink != 2 {
				t.Errorf("hard2 looked up before change %d of %q: %s is %v", n, s.names, name, f)
			}
		}
		d.end()
		b.close()
		a.remove()
		if !met {
			return
		}
	}
}

// stoppedBefore runs first on one daemon and second on another when first is about to
// make its n-th change.
func stoppedBefore(t *testing.T, n int, first, second func(*driver) unix.Errno, judge func(v sight, names []string)) {
	t.Helper()
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	s := newStepper(n)
	sys.SetHook(s.hook)
	defer sys.SetHook(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.mu.Lock()
		s.who = goid()
		s.mu.Unlock()
		act(a, &action{do: first})
	}()
	wait(t, s.stopped, "the first")
	if errno := act(b, &action{do: second}); errno != 0 {
		t.Errorf("before change %d: %v", n, errno)
	}
	close(s.resume)
	wait(t, done, "the first")
	sys.SetHook(nil)
	judge(sameSight(t, a, b), s.names)
}

// TestLinkedAndWrittenMeanwhile: a file that had one name when it was looked up comes
// up by another.
func TestLinkedAndWrittenMeanwhile(t *testing.T) {
	stoppedBefore(t, 1, func(d *driver) unix.Errno { return d.write("low", "WR", 0) }, func(d *driver) unix.Errno {
		if errno := d.link("low", "new"); errno != 0 {
			return errno
		}
		d.end() // it forgets the other name
		return d.write("new", "IT", 6)
	}, func(v sight, names []string) {
		if v["low"] != v["new"] || v["low"].content != "WRwer ITw" || v["low"].nlink != 2 {
			t.Errorf("after %q, low is %v, and new is %v", names, v["low"], v["new"])
		}
	})
}

// TestUnlinkedWhileNamed: a name of a file that came up by another one is removed by
// another host, which was faster than who brings the name up.
func TestUnlinkedWhileNamed(t *testing.T) {
	write := func(d *driver) unix.Errno { return d.write("hard1", "WR", 0) }
	rename := func(d *driver) unix.Errno {
		write(d)
		return d.rename("hard2", "moved", 0)
	}
	n := 0
	stoppedBefore(t, 1, rename, func(*driver) unix.Errno { return 0 }, func(_ sight, names []string) {
		n = slices.Index(names, "write") + 2 // the claim
	})
	stoppedBefore(t, n, rename, func(d *driver) unix.Errno { return d.unlink("hard2") }, func(v sight, names []string) {
		for _, name := range []string{"hard2", "moved"} {
			if f, ok := v[name]; ok {
				t.Errorf("after %q, %s is %v", names, name, f)
			}
		}
		if v["hard1"].nlink != 1 {
			t.Errorf("hard1 is %v", v["hard1"])
		}
	})
}

// TestLinkMetMeanwhile: another host writes to a name that a link has just made, or
// takes it away, before who makes it is done. It was made, then.
func TestLinkMetMeanwhile(t *testing.T) {
	t.Run("written", func(t *testing.T) {
		linkMet(t, func(d *driver) unix.Errno { return d.write("new", "WR", 0) }, func(v sight) bool {
			_, ok := v["low"]
			return ok && v["new"].size == 9
		})
	})
	t.Run("unlinked", func(t *testing.T) {
		linkMet(t, func(d *driver) unix.Errno { return d.unlink("new") }, func(v sight) bool {
			_, ok := v["new"]
			return !ok && v["low"].nlink == 1
		})
	})
}

func linkMet(t *testing.T, second func(*driver) unix.Errno, good func(sight) bool) {
	base, met := worlds(t), 0
	for n := 1; ; n++ {
		a, b := stepWorld(t, base, "l1")
		s := newStepper(n)
		sys.SetHook(s.hook)
		sys.SetLookHook(func() { _ = s.hook("look") })
		done := make(chan unix.Errno, 1)
		go func() {
			s.mu.Lock()
			s.who = goid()
			s.mu.Unlock()
			done <- act(a, &action{do: func(d *driver) unix.Errno { return d.link("low", "new") }})
		}()
		var errno unix.Errno
		stopped, there := false, false
		select {
		case <-s.stopped:
			stopped = true
			if there = a.has("l1/new"); there {
				met++
				if errno := act(b, &action{do: second}); errno != 0 {
					t.Errorf("the other, before change %d of %q: %v", n, s.names, errno)
				}
			}
			close(s.resume)
			errno = <-done
		case errno = <-done:
		}
		sys.SetHook(nil)
		sys.SetLookHook(nil)
		if errno != 0 {
			t.Errorf("link, and the other before change %d of %q: %v", n, s.names, errno)
		}
		if v := sameSight(t, a, b); there && !good(v) {
			t.Errorf("after the other before change %d of %q: %v and %v", n, s.names, v["low"], v["new"])
		}
		b.close()
		a.remove()
		if !stopped {
			break
		}
	}
	if met == 0 {
		t.Error("never met")
	}
}
