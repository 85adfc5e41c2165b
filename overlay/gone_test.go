package overlay

import (
	"os"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// What somebody has open, or is in, is there for him after its name has gone, whoever took
// that away.

// TestRemovedDirectory asks of a directory that was removed what a program may that is in
// it, or has it open.
func TestRemovedDirectory(t *testing.T) {
	for _, k := range stackings {
		for _, name := range []string{"empty", "up dir"} {
			w := newWorld(t, worlds(t), k)
			must(t, os.Remove(w.at("upper/up dir/u")))
			must(t, w.open())
			d := &driver{fs: w.fs}
			id, errno := d.find(name)
			if errno != 0 {
				t.Fatal(errno)
			}
			in := fuse.InHeader{NodeId: id}
			if errno := d.rmdir(name); errno != 0 {
				t.Fatalf("%s: rmdir %s: %v", k.name, name, errno)
			}
			if st := w.fs.FsyncDir(nil, &fuse.FsyncIn{InHeader: in}); st != 0 {
				t.Errorf("%s: fsync of %s: %v", k.name, name, st)
			}
			if _, st := w.fs.GetXAttr(nil, &in, "system.posix_acl_access", make([]byte, 100)); st != fuse.ENODATA {
				t.Errorf("%s: ACL of %s: %v", k.name, name, st)
			}
			if _, st := w.fs.ListXAttr(nil, &in, make([]byte, 100)); st != 0 {
				t.Errorf("%s: xattrs of %s: %v", k.name, name, st)
			}
			var out fuse.AttrOut
			if st := w.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: in}, &out); st != 0 || out.Nlink != 0 {
				t.Errorf("%s: attributes of %s: %v, %d links", k.name, name, st, out.Nlink)
			}
			d.end()
			w.remove()
		}
	}
}

// TestNamesNobodyKnows: a file has lost the name that we knew, and has another.
func TestNamesNobodyKnows(t *testing.T) {
	for _, k := range stackings {
		w := newWorld(t, worlds(t), k)
		must(t, os.Link(w.at("l1/sym"), w.at("l1/sym2")))
		must(t, w.open())
		d := &driver{fs: w.fs}
		file, errno := d.find("hard1")
		if errno != 0 {
			t.Fatal(errno)
		}
		link, errno := d.find("sym")
		if errno != 0 {
			t.Fatal(errno)
		}
		if errno := d.unlink("hard1"); errno != 0 {
			t.Fatal(errno)
		}
		if errno := d.unlink("sym"); errno != 0 {
			t.Fatal(errno)
		}
		if _, st := w.fs.ListXAttr(nil, &fuse.InHeader{NodeId: file}, make([]byte, 100)); st != 0 {
			t.Errorf("%s: xattrs: %v", k.name, st)
		}
		if to, st := w.fs.Readlink(nil, &fuse.InHeader{NodeId: link}); st != 0 || string(to) != "low" {
			t.Errorf("%s: symlink to %q: %v", k.name, to, st)
		}
		d.end()
		w.remove()
	}
}

// TestNameTakenByAnotherHost: fstat(2), without which there is no read either, is about
// the file that is open.
func TestNameTakenByAnotherHost(t *testing.T) {
	for _, unlink := range []bool{false, true} {
		a, b := stepWorld(t, worlds(t), "l1")
		here, there := &driver{fs: a.fs}, &driver{fs: b.fs}
		fh, errno := here.keep("low")
		if errno != 0 {
			t.Fatal(errno)
		}
		id, _ := here.find("low")
		want := uint32(1)
		if unlink {
			want, errno = 0, there.unlink("low")
		} else {
			errno = there.rename("low", "moved", 0)
		}
		if errno != 0 {
			t.Fatal(errno)
		}
		var out fuse.AttrOut
		st := a.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: id}}, &out)
		if st != 0 || out.Nlink != want || out.Size != uint64(len("lower low")) {
			t.Errorf("unlinked %v: %v, %d links, %d bytes", unlink, st, out.Nlink, out.Size)
		}
		if b, errno := here.readHandle(fh); errno != 0 || string(b) != "lower low" {
			t.Errorf("unlinked %v: reads %q, %v", unlink, b, errno)
		}
		here.end()
		there.end()
		b.close()
		a.remove()
	}
}

// TestSyncWhereDirectoryMoved: another host has renamed the directory of a file that came
// up here: fsync(2) makes its name durable wherever that is.
func TestSyncWhereDirectoryMoved(t *testing.T) {
	w := newWorld(t, worlds(t), stacking{name: "many hosts", mode: Migrate, lowers: 1, hosts: Many})
	defer w.remove()
	w.tweak = waits
	must(t, w.open())
	d := &driver{fs: w.fs}
	defer d.end()
	if errno := d.write("dir/a", "WRITTEN", 0); errno != 0 {
		t.Fatal(errno)
	}
	fh, errno := d.keep("dir/a")
	if errno != 0 {
		t.Fatal(errno)
	}
	dir, errno := d.find("dir")
	if errno != 0 {
		t.Fatal(errno)
	}
	must(t, os.Rename(w.at("upper/dir"), w.at("upper/moved")))
	w.fs.dirs.drop(w.fs.table.get(dir)) // others were used since
	var did []string
	sys.SetHook(func(c sys.Change) error { did = append(did, string(c)); return nil })
	st := w.fs.Fsync(nil, &fuse.FsyncIn{Fh: fh})
	sys.SetHook(nil)
	if st != 0 || !slices.Contains(did, "syncfs") {
		t.Errorf("%v, after %q", st, did)
	}
}

// TestRemovedOfManyNames: of a file that has other names on its source nothing is left
// when the one that was opened has gone, and is closed.
func TestRemovedOfManyNames(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[4])
	defer w.remove()
	must(t, w.open())
	d := &driver{fs: w.fs}
	id, errno := d.find("hard1")
	if errno != 0 {
		t.Fatal(errno)
	}
	in := fuse.InHeader{NodeId: id}
	var out fuse.OpenOut
	if st := w.fs.Open(nil, &fuse.OpenIn{InHeader: in, Flags: unix.O_RDWR}, &out); st != 0 {
		t.Fatal(st)
	}
	if errno := d.unlink("hard1"); errno != 0 {
		t.Fatal(errno)
	}
	if _, st := w.fs.Write(nil, &fuse.WriteIn{InHeader: in, Fh: out.Fh, Size: 2}, []byte("XY")); st != 0 {
		t.Fatal(st)
	}
	if b, errno := d.readHandle(out.Fh); errno != 0 || string(b) != "XYnked" {
		t.Errorf("reads %q, %v", b, errno)
	}
	if b, errno := func() ([]byte, unix.Errno) {
		other, errno := d.find("hard2")
		if errno != 0 {
			return nil, errno
		}
		return d.readNode(other)
	}(); errno != 0 || string(b) != "linked" {
		t.Errorf("its other name reads %q, %v", b, errno)
	}
	w.fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
	d.end()
	if left := w.leftovers(); left != "" || w.fs.fill.count() > 0 {
		t.Errorf("%d files are pending, and left over:\n\t%s", w.fs.fill.count(), left)
	}
}

// TestRenameOverFails: what was deleted in an empty directory does not come back when a
// rename over that fails.
func TestRenameOverFails(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[0])
	defer w.remove()
	must(t, w.open())
	d := &driver{fs: w.fs}
	defer d.end()
	id, errno := d.find("whdir")
	if errno != 0 {
		t.Fatal(errno)
	}
	if errno := d.chmod("empty", 0o700); errno != 0 { // it is in the upper: one rename is left
		t.Fatal(errno)
	}
	sys.SetHook(func(c sys.Change) error {
		if c == "rename" {
			return unix.ENOSPC // for a whiteout
		}
		return nil
	})
	errno = d.rename("empty", "whdir", 0)
	sys.SetHook(nil)
	if errno != unix.ENOSPC {
		t.Fatalf("renamed: %v", errno)
	}
	if n, _, _ := d.lookup(id, "x"); n != nil {
		t.Error("what was deleted is back")
	}
	if errno := d.rmdir("whdir"); errno != 0 {
		t.Errorf("it is not empty: %v", errno)
	}
}
