package overlay

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// stops holds goroutines before a change that each is to stop at, once.
type stops struct {
	mu      sync.Mutex
	at      map[uint64]sys.Change
	stopped map[uint64]chan struct{}
	resume  map[uint64]chan struct{}
}

func newStops() *stops {
	s := &stops{at: map[uint64]sys.Change{}, stopped: map[uint64]chan struct{}{}, resume: map[uint64]chan struct{}{}}
	sys.SetHook(s.hook)
	return s
}

func (s *stops) hook(c sys.Change) error {
	id := goid()
	s.mu.Lock()
	stop := s.at[id] == c
	if stop {
		delete(s.at, id)
	}
	stopped, resume := s.stopped[id], s.resume[id]
	s.mu.Unlock()
	if stop {
		close(stopped)
		<-resume
	}
	return nil
}

// start runs f until it is about to make the change c.
func (s *stops) start(c sys.Change, f func()) (stopped, resume, done chan struct{}) {
	stopped, resume, done = make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		id := goid()
		s.mu.Lock()
		s.at[id], s.stopped[id], s.resume[id] = c, stopped, resume
		s.mu.Unlock()
		f()
	}()
	return stopped, resume, done
}

// TestClaimBrokenBeforeChange: who changes a lower file stands still before that, and
// another host breaks its claim and makes a copy of the file. It has looked at the file
// for the last time, and is about to give the copy its name, when the first goes on.
func TestClaimBrokenBeforeChange(t *testing.T) {
	gone := func(names ...string) func(t *testing.T, v sight) {
		return func(t *testing.T, v sight) {
			for _, n := range names {
				if f, ok := v[n]; ok {
					t.Errorf("%s is %v", n, f)
				}
			}
		}
	}
	for _, x := range []struct {
		name  string
		at    sys.Change
		do    func(d *driver) unix.Errno
		judge func(t *testing.T, v sight)
	}{
		{"unlink", "unlink", func(d *driver) unix.Errno { return d.unlink("low") }, gone("low")},
		{"rename", "rename", func(d *driver) unix.Errno { return d.rename("low", "new", 0) }, gone("low")},
		{"rename no replace", "unlink", func(d *driver) unix.Errno { return d.rename("low", "new", unix.RENAME_NOREPLACE) }, gone("low")},
		{"rename over it", "rename", func(d *driver) unix.Errno { return d.rename("other", "low", 0) }, func(t *testing.T, v sight) {
			gone("other")(t, v)
			if v["low"].content != "lower other" {
				t.Errorf("low is %v", v["low"])
			}
		}},
		{"chmod", "chmod", func(d *driver) unix.Errno { return d.chmod("low", 0o600) }, func(t *testing.T, v sight) {
			if v["low"].mode != 0o600 {
				t.Errorf("low is %v", v["low"])
			}
		}},
		{"link", "link", func(d *driver) unix.Errno { return d.link("low", "new") }, func(t *testing.T, v sight) {
			if v["low"] != v["new"] || v["low"].nlink != 2 {
				t.Errorf("low is %v, and new is %v", v["low"], v["new"])
			}
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			a, b := stepWorld(t, worlds(t), "l1")
			defer a.remove()
			defer b.close()
			s := newStops()
			defer sys.SetHook(nil)
			var errno unix.Errno
			slow, goOn, done := s.start(x.at, func() { errno = act(a, &action{do: x.do}) })
			wait(t, slow, "the first")
			linking, publish, written := s.start("link", func() {
				act(b, &action{do: func(d *driver) unix.Errno { return d.write("low", "WR", 0) }})
			})
			wait(t, linking, "the copy")
			close(goOn)
			wait(t, done, "the first")
			close(publish)
			wait(t, written, "the copy")
			sys.SetHook(nil)
			if errno != 0 && errno != unix.ESTALE {
				t.Errorf("%v", errno)
			}
			v := sameSight(t, a, b)
			x.judge(t, v)
			if len(v["low"].content)+len(v["new"].content) == 0 && x.name != "unlink" {
				t.Errorf("it is gone: %v", v)
			}
		})
	}
}

// TestLinkOfWhatIsPublished: who brings a file up stands still when the copy has its name,
// and the lower one is still there. Another host, which has not seen that, breaks the
// claim and links the file.
func TestLinkOfWhatIsPublished(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	s := newStops()
	defer sys.SetHook(nil)
	var errno unix.Errno
	claiming, goOn, linked := s.start("symlink", func() {
		errno = act(b, &action{do: func(d *driver) unix.Errno { return d.link("low", "new") }})
	})
	wait(t, claiming, "the link")
	removing, end, written := s.start("rename", func() {
		act(a, &action{do: func(d *driver) unix.Errno { return d.write("low", "WR", 0) }})
	})
	wait(t, removing, "the copy")
	close(goOn)
	wait(t, linked, "the link")
	close(end)
	wait(t, written, "the copy")
	sys.SetHook(nil)
	v := sameSight(t, a, b)
	if errno != 0 || v["low"] != v["new"] || v["low"].nlink != 2 {
		t.Errorf("%v, low is %v, and new is %v", errno, v["low"], v["new"])
	}
}

// TestTrashOfHardLink: a daemon dies when it has moved a name of a hard-linked file to the
// trash, and another removes that name before anybody has looked there.
func TestTrashOfHardLink(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	var mu sync.Mutex
	dead := false
	sys.SetHook(func(c sys.Change) error {
		mu.Lock()
		defer mu.Unlock()
		if dead {
			return errDead
		}
		dead = c == "rename"
		return nil
	})
	act(a, &action{do: func(d *driver) unix.Errno { return d.write("hard1", "WR", 0) }})
	a.close()
	sys.SetHook(nil)
	if b.has("l1/hard1") || !b.has("upper/hard1") || b.leftovers() == "" {
		t.Fatal("it is not what it should be a test of")
	}
	if errno := act(b, &action{do: func(d *driver) unix.Errno { return d.unlink("hard1") }}); errno != 0 {
		t.Error(errno)
	}
	b.close()
	must(t, a.open())
	if left := a.leftovers(); left != "" {
		t.Errorf("left over:\n\t%s", left)
	}
	v, err := a.look()
	must(t, err)
	if f := v["hard2"]; f.content != "lower hard1" || len(v["hard1"].content) > 0 {
		t.Errorf("hard2 is %v", f)
	}
}

// TestDirectoryCameUpMeanwhile: while who changes a lower file waits for its claim, its
// directory and the file come up, and the lower copy waits to be removed.
func TestDirectoryCameUpMeanwhile(t *testing.T) {
	for name, x := range map[string]struct {
		do    func(d *driver) unix.Errno
		shows map[string]string
	}{
		"unlink": {func(d *driver) unix.Errno { return d.unlink("dir/a") }, map[string]string{"dir/a": ""}},
		"rename": {func(d *driver) unix.Errno { return d.rename("dir/a", "new", 0) }, map[string]string{"dir/a": "", "new": "WRwer dir/a"}},
		"no replace": {func(d *driver) unix.Errno { return d.rename("dir/a", "new", unix.RENAME_NOREPLACE) },
			map[string]string{"dir/a": "", "new": "WRwer dir/a"}},
		"rename over it": {func(d *driver) unix.Errno { return d.rename("other", "dir/a", 0) }, map[string]string{"dir/a": "lower other", "other": ""}},
		"link":           {func(d *driver) unix.Errno { return d.link("dir/a", "new") }, map[string]string{"dir/a": "WRwer dir/a", "new": "WRwer dir/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := stepWorld(t, worlds(t), "l1")
			defer a.remove()
			defer b.close()
			a.close()
			a.tweak = waits
			must(t, a.open())
			s := newStops()
			defer sys.SetHook(nil)
			var errno unix.Errno
			claiming, goOn, done := s.start("symlink", func() { errno = act(b, &action{do: x.do}) })
			wait(t, claiming, "the second")
			if errno := act(a, &action{do: func(d *driver) unix.Errno { return d.write("dir/a", "WR", 0) }}); errno != 0 {
				t.Error(errno)
			}
			close(goOn)
			wait(t, done, "the second")
			sys.SetHook(nil)
			a.fs.finishRemovals()
			v := sameSight(t, a, b)
			for name, want := range x.shows {
				if f, ok := v[name]; errno != 0 || ok != (want != "") || f.content != want {
					t.Errorf("%v, and %s is %v, not %q", errno, name, f, want)
				}
			}
		})
	}
}
