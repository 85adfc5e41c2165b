package overlay

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// What was seen of the layers a while ago may be of files that are gone, whose inode
// numbers others have by now, and whose names lead elsewhere.

// TestLookFromBefore is told late what a directory was before it was drained, and what
// another had in the lower whose number is that directory's by now: both are still what
// they are.
func TestLookFromBefore(t *testing.T) {
	for _, births := range []bool{true, false} {
		var tab table
		tab.init()
		tab.setRoot(&node{id: 1})
		at := func(ino uint64, birth int64, upper bool) identity {
			k := identity{fileKey: fileKey{dev: 1, ino: ino}, upper: upper}
			if births {
				k.birth = layers.Time{Sec: birth}
			}
			return k
		}
		dir := func(keys ...identity) *found {
			return &found{attr: layers.Attr{Mode: unix.S_IFDIR}, keys: keys}
		}
		one := tab.node(nil, dir(at(10, 100, false)))
		tab.also(one, at(20, 200, true))
		two := tab.node(nil, dir(at(10, 300, true)))
		if tab.node(nil, dir(at(20, 200, true), at(10, 100, false))) != one {
			t.Errorf("births %v: a look from before it was drained finds another", births)
		}
		if tab.node(nil, dir(at(10, 300, true))) != two {
			t.Errorf("births %v: after that, who has the number is another", births)
		}
		if got := tab.shownIno(identity{fileKey: at(10, 0, true).fileKey, upper: true}, false); got != two.ino {
			t.Errorf("births %v: listed as %d, shows %d", births, got, two.ino)
		}
		if got := tab.inoFound(dir(at(10, 300, true))); got != two.ino {
			t.Errorf("births %v: found as %d, shows %d", births, got, two.ino)
		}
	}
}

// TestFoundBeforeItWentUp drains everything between a look at a name and what is made of
// it: what is made of it is what came up, with all that is in it.
func TestFoundBeforeItWentUp(t *testing.T) {
	for _, name := range []string{"dir", "low"} {
		w := newWorld(t, worlds(t), oneHost)
		must(t, w.open())
		looks := 0
		n, _, err := w.fs.findBy(w.fs.root, name, func() (*found, error) {
			f, err := w.fs.lookup(context.Background(), w.fs.root, name)
			if looks++; looks == 1 {
				w.drainAll(DrainConfig{})
			}
			return f, err
		})
		must(t, err)
		if !n.isUpper() || w.has("l1/"+name) {
			t.Errorf("%s: what was found is in the upper: %v; in the lower: %v", name, n.isUpper(), w.has("l1/"+name))
		}
		if name == "dir" {
			in, _, err := w.fs.find(context.Background(), n, "a")
			if err != nil {
				t.Errorf("dir/a: %v", err)
			} else {
				w.fs.Forget(in.id, 1)
			}
		}
		w.fs.Forget(n.id, 1)
		if left := w.leftovers(); left != "" {
			t.Errorf("left over:\n\t%s", left)
		}
		w.remove()
	}
}

// TestFoundBeforeItMoved renames a name between a look at it and what is made of that: it
// is not there, and what has moved lies where it went.
func TestFoundBeforeItMoved(t *testing.T) {
	for _, name := range []string{"dir", "low", "up"} {
		w := newWorld(t, worlds(t), oneHost)
		must(t, w.open())
		d := &driver{fs: w.fs}
		was, _, errno := d.lookup(w.fs.root.id, name)
		if errno != 0 {
			t.Fatal(errno)
		}
		looks := 0
		n, _, err := w.fs.findBy(w.fs.root, name, func() (*found, error) {
			f, err := w.fs.lookup(context.Background(), w.fs.root, name)
			if looks++; looks == 1 {
				if errno := d.rename(name, "moved", 0); errno != 0 {
					t.Fatal(errno)
				}
			}
			return f, err
		})
		if err != unix.ENOENT {
			t.Errorf("%s is found after it moved: %v", name, err)
			w.fs.Forget(n.id, 1)
		}
		if p, _ := was.path(); p != "moved" {
			t.Errorf("%s lies at %q", name, p)
		}
		d.end()
		w.remove()
	}
}

// TestNameDoesNotComeBack: a file that was moved in the lower, by another program, comes
// up where it is, and nowhere else.
func TestNameDoesNotComeBack(t *testing.T) {
	for _, k := range []stacking{oneHost, {name: "many hosts", mode: Migrate, lowers: 1, hosts: Many}} {
		w := newWorld(t, worlds(t), k)
		must(t, w.open())
		d := &driver{fs: w.fs}
		if _, _, errno := d.lookup(w.fs.root.id, "low"); errno != 0 {
			t.Fatal(errno)
		}
		must(t, os.Rename(w.at("l1/low"), w.at("l1/moved")))
		if errno := d.write("moved", "WRITTEN", 0); errno != 0 {
			t.Errorf("%s: %v", k.name, errno)
		}
		if _, _, errno := d.lookup(w.fs.root.id, "low"); errno != unix.ENOENT {
			t.Errorf("%s: the old name is back: %v", k.name, errno)
		}
		b, err := os.ReadFile(w.at("upper/moved"))
		if err != nil || string(b) != "WRITTENow" {
			t.Errorf("%s: %q, %v", k.name, b, err)
		}
		d.end()
		w.remove()
	}
}

// TestNumberReusedBelow has a lower file replaced by one that got its inode number: what
// was opened before does not come up as that, and does not write to it.
func TestNumberReusedBelow(t *testing.T) {
	for _, k := range stackings[:3] {
		w := newWorld(t, worlds(t), k)
		must(t, w.open())
		d := &driver{fs: w.fs}
		n, _, errno := d.lookup(w.fs.root.id, "low")
		if errno != 0 {
			t.Fatal(errno)
		}
		n.mu.Lock()
		was := *n.lowers[0].attr
		was.Btime.Sec-- // what it was looked up as; the one there now was born later
		n.lowers[0].attr = &was
		n.mu.Unlock()
		if was.Btime.Sec == -1 {
			t.Fatal("no birth times here")
		}
		if err := w.fs.up(context.Background(), n, whole); errnoOf(err) != unix.ESTALE {
			t.Errorf("%s: it comes up as another file: %v", k.name, err)
		}
		if _, err := w.fs.openBelow(context.Background(), n); errnoOf(err) != unix.ESTALE {
			t.Errorf("%s: another file is read for it: %v", k.name, err)
		}
		if w.has("upper/low") || !w.has("l1/low") {
			t.Errorf("%s: the other file was touched", k.name)
		}
		d.end()
		w.remove()
	}
}

// TestIntentOfAnother: while another mount is at an interrupted rename, this one waits,
// then says so, and changes nothing.
func TestIntentOfAnother(t *testing.T) {
	defer func(d time.Duration) { intentPatience = d }(intentPatience)
	w := newWorld(t, worlds(t), oneHost)
	defer w.remove()
	must(t, w.open())
	d := &driver{fs: w.fs}
	dyingAt(3)
	errno := d.rename("both dir", "new", 0)
	sys.SetHook(nil)
	if errno != unix.EIO || !w.has("upper/.migratefs/rename") {
		t.Fatalf("not split: %v", errno)
	}
	d.end()
	w.close()
	other, err := os.Open(w.at("upper/.migratefs/rename"))
	must(t, err)
	defer other.Close()
	fd := int(other.Fd())
	must(t, unix.Flock(fd, unix.LOCK_EX))
	intentPatience = 0
	if err := w.open(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("mounted beside who ends the rename: %v", err)
	}
	if !w.has("l1/new/l") || !w.has("upper/both dir/v") || !w.has("upper/.migratefs/rename") {
		t.Error("it was ended by who did not have its lock")
	}
	w.close()
	intentPatience = time.Minute
	done := make(chan error)
	go func() { done <- unix.Flock(fd, unix.LOCK_UN) }()
	must(t, w.open())
	must(t, <-done)
	if !w.has("l1/new/l") || !w.has("upper/new/v") || w.has("upper/.migratefs/rename") {
		t.Error("it is not ended once nobody is at it")
	}
}

// TestDeathInACreate has a daemon die when it has just made a file, to whose name another
// has begun to rename one in the lower: that is what has the name, and its content shows.
func TestDeathInACreate(t *testing.T) {
	for name, do := range map[string]func(d *driver) unix.Errno{
		"create":  func(d *driver) unix.Errno { return d.create("new", "") },
		"symlink": func(d *driver) unix.Errno { return d.symlink("to", "new") },
	} {
		w := newWorld(t, worlds(t), stacking{name: "many hosts", mode: Migrate, lowers: 1, hosts: Many})
		must(t, w.open())
		other := w.second(t)
		w.fs.turns.Stale, other.turns.Stale = 2*time.Second, 2*time.Second
		renamed, me, claimed, made := make(chan unix.Errno, 1), goid(), false, false
		sys.SetHook(func(c sys.Change) error {
			switch {
			case goid() != me:
				return nil
			case made:
				return errDead
			case string(c) != name:
				return nil
			case name == "symlink" && !claimed:
				claimed = true // that is what a claim is
				return nil
			}
			made = true
			began := time.Now()
			go func() {
				d := &driver{fs: other}
				defer d.end()
				renamed <- d.rename("low", "new", 0)
			}()
			select {
			case errno := <-renamed:
				if time.Since(began) < other.turns.Stale {
					t.Errorf("%s: somebody else had the name as it was made: %v", name, errno)
				}
				renamed <- errno
			case <-time.After(50 * time.Millisecond):
			}
			return nil
		})
		d := &driver{fs: w.fs}
		_ = do(d)
		if !made {
			sys.SetHook(nil)
			t.Fatalf("%s: it was made without a claim", name)
		}
		if errno := <-renamed; errno != 0 {
			t.Errorf("%s: renamed: %v", name, errno)
		}
		sys.SetHook(nil)
		v, err := w.look()
		must(t, err)
		if v["new"].content != "lower low" || v["low"].content != "" {
			t.Errorf("%s: after its maker died, new is %v", name, v["new"])
		}
		d.end()
		w.remove()
	}
}
