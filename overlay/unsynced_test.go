package overlay

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// What hides a name waits for the loss of that name below to be durable: also if others
// in the same directory make that durable at the same time.
func TestUnsyncedAtTheSameTime(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[2])
	w.tweak = waits
	must(t, w.open())
	defer w.remove()
	d := &driver{fs: w.fs}
	defer d.end()
	rewrite(d)
	defer sys.SetHook(nil)
	root := w.fs.root
	k := unsyncedDir{w.fs.lowers[0], root.lowers[0].id()}

	// A lower copy is just being removed.
	met := false
	sys.SetHook(func(c sys.Change) error {
		if c == "rename" {
			sys.SetHook(nil)
			met = true
			must(t, w.fs.settle(root))
		}
		return nil
	})
	w.fs.finishRemovals()
	sys.SetHook(nil)
	if dir, _ := w.fs.unsynced.last(k); dir == 0 || !met {
		t.Errorf("a removal is taken for durable that came after the sync")
	}

	// A sync is on its way, and fails.
	syncs := 0
	sys.SetHook(func(c sys.Change) error {
		if c != "fsync" {
			return nil
		}
		if syncs++; syncs == 1 {
			if err := w.fs.settle(root); err != nil {
				t.Error(err)
			}
			w.fs.unsynced.changed(k.layer, &dirFD{id: k.id})
		}
		return nil
	})
	must(t, w.fs.settle(root))
	sys.SetHook(nil)
	if dir, _ := w.fs.unsynced.last(k); syncs != 2 || dir == 0 {
		t.Errorf("%d syncs by two at once, and of a change meanwhile %d is left", syncs, dir)
	}
	must(t, w.fs.settle(root))
	if dir, all := w.fs.unsynced.last(k); dir != 0 || all != 0 {
		t.Error("what is durable is still noted")
	}
}

// A rename needs a directory brought up, for which there is no room before the lower
// copy of the very file that it renames has gone.
func TestRenameWhileRemovalsWait(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[2])
	w.tweak = waits
	must(t, w.open())
	defer w.remove()
	d := &driver{fs: w.fs}
	defer d.end()
	rewrite(d)
	q := &w.fs.removals
	q.mu.Lock()
	q.busy = removalsMax
	q.mu.Unlock()
	came := make(chan unix.Errno, 1)
	go func() { came <- d.rename("low", "empty/low", 0) }()
	time.Sleep(20 * time.Millisecond) // it may be waiting by now
	go w.fs.finishRemovals()
	select {
	case errno := <-came:
		if errno != 0 {
			t.Error(errno)
		}
	case <-time.After(time.Minute):
		t.Fatal("the rename and the worker wait for each other")
	}
}

// With many hosts the loss below may be another daemon's: it is durable before what
// that daemon brought up loses its name here, and is synced once.
func TestLossesOfOthersAreSettled(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	d := &driver{fs: b.fs}
	for _, name := range []string{"low", "other"} {
		if errno := d.write(name, "W", 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	d.end()
	b.fs.finishRemovals()
	changed := func(do func(d *driver) unix.Errno) (changes []string) {
		d := &driver{fs: a.fs}
		defer d.end()
		sys.SetHook(func(c sys.Change) error {
			changes = append(changes, string(c))
			return nil
		})
		defer sys.SetHook(nil)
		if errno := do(d); errno != 0 {
			t.Fatal(errno)
		}
		return changes
	}
	got := changed(func(d *driver) unix.Errno { return d.unlink("low") })
	if sync, unlink := slices.Index(got, "fsync"), slices.Index(got, "unlink"); sync < 0 || unlink < sync {
		t.Errorf("unlink: %q", got)
	}
	// The lower directory is as it was then.
	root := a.fs.root
	var st unix.Stat_t
	must(t, unix.Lstat(a.at("l1"), &st))
	a.fs.unsynced.settle(unsyncedDir{a.fs.lowers[0], root.lowers[0].id()}, st.Ctim)
	got = changed(func(d *driver) unix.Errno { return d.rename("other", "moved", 0) })
	if slices.Contains(got, "fsync") {
		t.Errorf("what is durable is synced again: %q", got)
	}
}

// TestLossIsDurableBeforeARename: before a file that came up gets another name, the loss of
// its lower copy is durable, whoever's rights requests have.
func TestLossIsDurableBeforeARename(t *testing.T) {
	for _, asCaller := range []bool{false, true} {
		w := newWorld(t, worlds(t), oneHost)
		w.tweak = func(c *Config) { c.AsCaller = asCaller }
		must(t, w.open())
		d := &driver{fs: w.fs}
		rewrite(d)
		var did []string
		sys.SetHook(func(c sys.Change) error { did = append(did, string(c)); return nil })
		errno := d.rename("low", "moved", 0)
		sys.SetHook(nil)
		if sync, rename := slices.Index(did, "fsync"), slices.Index(did, "rename"); errno != 0 || sync < 0 || rename < sync {
			t.Errorf("creds=caller %v: %v, after %q", asCaller, errno, did)
		}
		d.end()
		w.remove()
	}
}
