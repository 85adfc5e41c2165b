package overlay

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// TestNamelessIsNew: a nameless file is never taken for one whose inode number it
// has, also where the filesystem knows no births.
func TestNamelessIsNew(t *testing.T) {
	var fs FS
	fs.table.init()
	fs.table.next = 3
	fs.table.setRoot(&node{id: 1})
	k := identity{fileKey: fileKey{dev: 1, ino: 10}}
	f := &found{attr: layers.Attr{Mode: unix.S_IFREG}, upper: true, keys: []identity{k}}
	old := fs.table.adopt(&fs, f, nil, "")
	n := fs.table.nameless(&fs, f, -1)
	if n == old || n.ino == old.ino {
		t.Fatal("the file that had the inode number is taken for the new one")
	}
	fs.Forget(old.id, 1)
	if got := fs.table.adopt(&fs, f, nil, ""); got != n {
		t.Error("by its inode number another node is found than the new file's")
	}
	fs.Forget(n.id, 2)
	if len(fs.table.byID) != 1 || len(fs.table.byKey) != 0 || len(fs.table.byIno) != 0 {
		t.Errorf("left are %d nodes, %d keys, %d numbers", len(fs.table.byID)-1, len(fs.table.byKey), len(fs.table.byIno))
	}
}

// TestNameless: what the kernel does not see to, or sees to itself as well.
func TestNameless(t *testing.T) {
	base := worlds(t)
	for _, k := range stackings {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t, base, k)
			defer w.remove()
			must(t, w.open())
			d := &driver{fs: w.fs}
			dir, errno := d.find("dir/sub")
			if errno != 0 {
				t.Fatal(errno)
			}
			sys.SetHook(func(c sys.Change) error {
				if c == "tmpfile" {
					return unix.EOPNOTSUPP
				}
				return nil
			})
			var out fuse.CreateOut
			in := &fuse.CreateIn{InHeader: fuse.InHeader{NodeId: dir}, Flags: unix.O_TMPFILE | unix.O_RDWR, Mode: 0o600}
			st := w.fs.Tmpfile(nil, in, &out)
			sys.SetHook(nil)
			if st != fuse.Status(unix.EOPNOTSUPP) {
				t.Errorf("where the upper has none: %v", st)
			}
			for _, excl := range []uint32{unix.O_EXCL, 0} {
				in.Flags = unix.O_TMPFILE | unix.O_RDWR | excl
				if st := w.fs.Tmpfile(nil, in, &out); st != 0 {
					t.Fatal(st)
				}
				n := w.fs.table.get(out.NodeId)
				if out.Nlink != 0 || n.kept < 0 {
					t.Errorf("new: %d links, descriptor %d", out.Nlink, n.kept)
				}
				w.fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
				var e fuse.EntryOut
				st := w.fs.Link(nil, &fuse.LinkIn{InHeader: in.InHeader, Oldnodeid: out.NodeId}, "new", &e)
				switch {
				case excl != 0 && st != fuse.ENOENT:
					t.Errorf("link of what was opened with O_EXCL: %v", st)
				case excl == 0 && (st != 0 || e.NodeId != out.NodeId || e.Nlink != 1 || n.kept >= 0):
					t.Errorf("link: %v, node %d, now %d of %d links, descriptor %d", st, out.NodeId, e.NodeId, e.Nlink, n.kept)
				case excl == 0:
					w.fs.Forget(e.NodeId, 1)
				}
				w.fs.Forget(out.NodeId, 1)
			}
			d.end()
			w.close()
			if left := w.leftovers(); left != "" {
				t.Errorf("left over: %s", left)
			}
		})
	}
}
