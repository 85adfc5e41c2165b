package overlay

import (
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
	case <-time.After(20 * time.Second):
		t.Fatal("the rename and the worker wait for each other")
	}
}
