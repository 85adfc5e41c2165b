package overlay

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// A hard-linked file comes up under one of its names, and that is the one that goes
// from below, also if somebody has looked up another just then.
func TestOnlyThePublishedNameGoes(t *testing.T) {
	w := emptyWorld(t, worlds(t), stackings[5])
	defer w.remove()
	w.mkdir("l1", "a")
	w.mkdir("l1", "b")
	w.file("l1", "a/one", "linked")
	w.file("l1", "b/x", "x")
	must(t, unix.Link(w.at("l1", "a/one"), w.at("l1", "b/two")))
	must(t, w.open())
	d := &driver{fs: w.fs}
	defer d.end()
	node := func(path string) *node {
		id, errno := d.find(path)
		if errno != 0 {
			t.Fatalf("%s: %v", path, errno)
		}
		return w.fs.table.get(id)
	}
	n, b := node("a/one"), node("b")
	if errno := d.write("b/x", "X", 0); errno != 0 { // which brings b up
		t.Fatal(errno)
	}
	links := 0
	sys.SetHook(func(c sys.Change) error {
		if c != "link" {
			return nil
		}
		if links++; links == 2 { // the marker, the name
			w.fs.addName(n, b, "two")
		}
		return nil
	})
	errno := d.write("a/one", "W", 0)
	sys.SetHook(nil)
	if errno != 0 || links < 2 {
		t.Fatalf("%v, %d links", errno, links)
	}
	for _, name := range []string{"a/one", "b/two"} {
		if got := d.content(t, name); string(got) != "Winked" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
