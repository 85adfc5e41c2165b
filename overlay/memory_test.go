package overlay

import (
	"fmt"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// TestTableShrinks: what was forgotten is not found, what was not is, by each of
// its keys, also after the maps were made anew; and that happens.
func TestTableShrinks(t *testing.T) {
	const most = 5 * manyNodes
	var tab table
	tab.init()
	fs := &FS{}
	find := func(ino uint64) *found {
		a := layers.Attr{Known: layers.KnownIno, Mode: unix.S_IFREG, Dev: 1, Ino: ino}
		return &found{attr: a, keys: []identity{{fileKey: fileKey{dev: 1, ino: ino}}}}
	}
	nodes := make(map[uint64]*node)
	for ino := uint64(2); ino < most; ino++ {
		nodes[ino] = tab.node(fs, find(ino))
	}
	shrinks := 0
	for ino, n := range nodes {
		if ino%100 == 0 {
			continue
		}
		gone, shrunk := tab.forget(n.id, 1)
		if gone != n {
			t.Fatalf("inode %d was not forgotten", ino)
		}
		if shrunk {
			shrinks++
		}
	}
	if shrinks != 1 || tab.peak > most/8 {
		t.Errorf("the maps were made anew %d times, for %d nodes; want once, for an eighth of %d", shrinks, tab.peak, most)
	}
	for ino, n := range nodes {
		if kept := ino%100 == 0; (tab.get(n.id) == n) != kept {
			t.Fatalf("inode %d is known: %v, want %v", ino, !kept, kept)
		} else if kept && (tab.node(fs, find(ino)) != n || tab.showing(n.ino) != n) {
			t.Fatalf("inode %d has another node", ino)
		}
	}
}

// TestCalledShrinks: who is called what is known of those that are, and of no others, and
// takes no room when most are forgotten.
func TestCalledShrinks(t *testing.T) {
	w := manyHosts(t)
	fs, dir := w.fs, w.fs.root
	const most = 2 * manyNodes
	var nodes []*node
	for ino := uint64(1 << 40); len(nodes) < most; ino++ {
		a := layers.Attr{Known: layers.KnownIno, Mode: unix.S_IFREG, Dev: 1, Ino: ino}
		n := fs.table.node(fs, &found{attr: a, keys: []identity{{fileKey: fileKey{dev: 1, ino: ino}}}})
		n.fs = fs
		fs.addName(n, dir, fmt.Sprint(ino))
		nodes = append(nodes, n)
	}
	before := reflect.ValueOf(fs.called).Pointer()
	for i, n := range nodes {
		if i%100 != 0 {
			fs.Forget(n.id, 1)
		}
	}
	if reflect.ValueOf(fs.called).Pointer() == before {
		t.Error("the map was not made anew")
	}
	for i, n := range nodes {
		d := dentry{dir, fmt.Sprint(uint64(1<<40) + uint64(i))}
		if kept := i%100 == 0; (fs.called[callHash(d)] == n) != kept {
			t.Fatalf("%s is known: %v", d.name, !kept)
		}
	}
}
