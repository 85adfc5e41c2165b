package overlay

import (
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
