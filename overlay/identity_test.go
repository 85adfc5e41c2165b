package overlay

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// TestIdentity looks a file up with what was found before, and after, it came up:
// both are the file. An inode number that came back with another birth is not.
func TestIdentity(t *testing.T) {
	var tab table
	tab.init()
	tab.setRoot(&node{id: 1})
	at := func(dev, ino uint64, birth int64) identity {
		return identity{fileKey{dev: dev, ino: ino}, layers.Time{Sec: birth}}
	}
	file := func(k ...identity) *found {
		return &found{attr: layers.Attr{Mode: unix.S_IFREG}, keys: k}
	}
	lower, upper := at(1, 10, 100), at(2, 20, 200)
	n := tab.node(nil, file(lower))
	tab.also(n, upper)
	for name, f := range map[string]*found{
		"a look at the lower that is older than the copy-up": file(lower),
		"the upper":                      file(upper),
		"both, as the index has it":      file(upper, lower),
		"a layer that knows no births":   file(at(2, 20, 0)),
		"the lower, after all the above": file(lower),
	} {
		if got := tab.node(nil, f); got != n {
			t.Errorf("%s leads to another node", name)
		}
	}
	if got := tab.node(nil, file(at(2, 20, 201))); got == n {
		t.Error("another file with the upper's inode number is taken for it")
	}
	if got := tab.node(nil, file(lower)); got != n {
		t.Error("the lower is forgotten with the upper's inode number")
	}
}
