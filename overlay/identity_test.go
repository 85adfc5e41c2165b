package overlay

import (
	"context"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// TestIdentity looks a file up with what was found before, and after, it came up:
// both are the file. An inode number that came back with another birth is not.
func TestIdentity(t *testing.T) {
	var tab table
	tab.init()
	tab.setRoot(&node{id: 1})
	at := func(dev, ino uint64, birth int64) identity {
		return identity{fileKey: fileKey{dev: dev, ino: ino}, birth: layers.Time{Sec: birth}}
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

// TestIdentityAcrossLayers has an upper on the filesystem of the lower, which gives
// the inode of a directory that was drained to the next one that comes up.
func TestIdentityAcrossLayers(t *testing.T) {
	const lowers, uppers = false, true
	for _, typ := range []uint32{unix.S_IFDIR, unix.S_IFREG} {
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
			found := func(keys ...identity) *found { return &found{attr: layers.Attr{Mode: typ}, keys: keys} }
			one := tab.node(nil, found(at(10, 100, lowers)))
			tab.also(one, at(20, 200, uppers))
			two := tab.node(nil, found(at(10, 300, uppers), at(11, 100, lowers)))
			if two == one || two.ino == one.ino {
				t.Errorf("type %o, births %v: who has the inode number next is taken for who had it", typ, births)
			}
			if tab.node(nil, found(at(20, 200, uppers))) != one || tab.node(nil, found(at(10, 300, uppers))) != two {
				t.Errorf("type %o, births %v: looked up again, it is another", typ, births)
			}
			if births && tab.node(nil, found(at(20, 400, uppers))) == one {
				t.Errorf("type %o: born later, it is taken for who was there before", typ)
			}
		}
	}
}

// TestNamesKeepDirectories forgets a directory that a file of two names lies in,
// as the kernel does under pressure, and then the file.
func TestNamesKeepDirectories(t *testing.T) {
	var fs FS
	fs.table.init()
	fs.table.next = 3
	fs.root = &node{fs: &fs, id: 1, typ: unix.S_IFDIR}
	fs.table.setRoot(fs.root)
	look := func(parent *node, name string, ino uint64, typ uint32) *node {
		k := identity{fileKey: fileKey{dev: 1, ino: ino}}
		return fs.table.adopt(&fs, &found{attr: layers.Attr{Mode: typ}, keys: []identity{k}}, parent, name)
	}
	a, b := look(fs.root, "a", 10, unix.S_IFDIR), look(fs.root, "b", 11, unix.S_IFDIR)
	f := look(a, "x", 12, unix.S_IFREG)
	if look(b, "y", 12, unix.S_IFREG) != f {
		t.Fatal("two names lead to two nodes")
	}
	if p, _ := f.path(); p != "b/y" {
		t.Errorf("looked for as %q, last seen as b/y", p)
	}
	fs.Forget(a.id, 1)
	if look(fs.root, "a", 10, unix.S_IFDIR) != a {
		t.Error("the directory of a name that is known is another node when it is looked up again")
	}
	fs.Forget(a.id, 1)
	fs.Forget(b.id, 1)
	fs.Forget(f.id, 2)
	if len(fs.table.byID) != 1 || len(fs.table.byKey) != 0 {
		t.Errorf("after all was forgotten: %d nodes, %d keys", len(fs.table.byID), len(fs.table.byKey))
	}
}

// TestDirectoriesChangePlaces: b in a becomes a in b, and of that is first seen what
// a descriptor of b shows. No directory is above itself, and nothing is kept.
func TestDirectoriesChangePlaces(t *testing.T) {
	var fs FS
	fs.table.init()
	fs.table.next = 3
	fs.root = &node{fs: &fs, id: 1, typ: unix.S_IFDIR}
	fs.table.setRoot(fs.root)
	look := func(parent *node, name string, ino uint64) *node {
		k := identity{fileKey: fileKey{dev: 1, ino: ino}}
		return fs.table.adopt(&fs, &found{attr: layers.Attr{Mode: unix.S_IFDIR}, keys: []identity{k}}, parent, name)
	}
	a := look(fs.root, "a", 10)
	b := look(a, "b", 11)
	c := look(b, "c", 12)
	look(b, "a", 10)
	if p, ok := a.path(); ok {
		t.Errorf("a is %q, below what nobody knows the place of", p)
	}
	look(fs.root, "b", 11)
	for n, want := range map[*node]string{a: "b/a", b: "b", c: "b/c"} {
		if p, _ := n.path(); string(p) != want {
			t.Errorf("%q, want %q", p, want)
		}
	}
	fs.Forget(c.id, 1)
	fs.Forget(a.id, 2)
	fs.Forget(b.id, 2)
	if len(fs.table.byID) != 1 {
		t.Errorf("after all was forgotten: %d nodes", len(fs.table.byID))
	}
}

// TestLookedUpAsItComesUp looks a name up as soon as the copy has it: that is the
// file that came up, and no second one with pages and locks of its own.
func TestLookedUpAsItComesUp(t *testing.T) {
	base := worlds(t)
	for _, k := range stackings {
		for name, change := range map[string]func(d *driver) unix.Errno{
			"low":  func(d *driver) unix.Errno { return d.write("low", "W", 0) },
			"fifo": func(d *driver) unix.Errno { return d.link("fifo", "fifo2") },
			"dir":  func(d *driver) unix.Errno { return d.create("dir/new", "") },
		} {
			if k.remote && name == "fifo" || k.mode == Migrate && name != "low" {
				continue // linked, or made, where it is
			}
			w := newWorld(t, base, k)
			must(t, w.open())
			d := &driver{fs: w.fs}
			n, _, errno := d.lookup(fuse.FUSE_ROOT_ID, name)
			if errno != 0 {
				t.Fatal(errno)
			}
			looks := 0
			sys.SetHook(func(sys.Change) error {
				if _, err := os.Lstat(w.at("upper", name)); err != nil || looks > 0 {
					return nil
				}
				looks++
				f, err := w.fs.lookup(context.Background(), w.fs.root, name)
				if err != nil {
					t.Errorf("%s: %s: %v", k.name, name, err)
					return nil
				}
				if m := w.fs.table.node(w.fs, f); m != n {
					t.Errorf("%s: %s is another file when its copy is found", k.name, name)
				}
				d.seen = append(d.seen, n.id)
				return nil
			})
			errno = change(d)
			sys.SetHook(nil)
			if errno != 0 || looks == 0 {
				t.Errorf("%s: %s: %v, looked up %d times", k.name, name, errno, looks)
			}
			d.end()
			w.remove()
		}
	}
}

// TestNumberGivenAway has a file come up and keep the number of its lower copy,
// which the filesystem then gives to another file: what a listing says of that one
// is what it shows once it is looked up.
func TestNumberGivenAway(t *testing.T) {
	var tab table
	tab.init()
	tab.dev, tab.next = 1, 3
	key := identity{fileKey: fileKey{dev: 1, ino: 10}}
	f := &found{attr: layers.Attr{Mode: unix.S_IFREG}, keys: []identity{key}}
	old := tab.node(nil, f)
	tab.also(old, identity{fileKey: fileKey{dev: 1, ino: 20}})
	tab.mu.Lock()
	delete(tab.byKey, key.fileKey)
	tab.mu.Unlock()
	listed := tab.shownIno(key, false)
	now := tab.node(nil, f)
	if now == old || now.ino == old.ino {
		t.Fatalf("two files show %d", now.ino)
	}
	if listed != now.ino {
		t.Errorf("listed as %d, shows %d", listed, now.ino)
	}
}
