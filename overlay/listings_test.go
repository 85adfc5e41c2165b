package overlay

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// unopenedWorld is one whose kernel reads directories without opens, with n names in
// "many".
func unopenedWorld(t *testing.T, names int) (*world, *node) {
	t.Helper()
	w := newWorld(t, worlds(t), stackings[0])
	t.Cleanup(w.remove)
	w.mkdir("l1", "many")
	for i := range names {
		w.file("l1", fmt.Sprintf("many/f%05d", i), "")
	}
	must(t, w.open())
	w.fs.unopened = true
	d := &driver{fs: w.fs}
	t.Cleanup(d.end)
	return w, nodeAt(t, d, "many")
}

func nodeAt(t *testing.T, d *driver, path string) *node {
	t.Helper()
	id, errno := d.find(path)
	if errno != 0 {
		t.Fatalf("%s: %v", path, errno)
	}
	return d.fs.table.get(id)
}

// readSome is one READDIR from off on; it returns the names, and the offset behind them.
func readSome(t *testing.T, fs *FS, dir *node, off uint64, bytes int) (names []string, next uint64) {
	t.Helper()
	b := make([]byte, bytes)
	out := fuse.NewDirEntryList(b, off)
	if st := fs.ReadDir(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: dir.id}, Offset: off}, out); !st.Ok() {
		t.Fatal(st)
	}
	for at := 0; at+24 < len(b); { // struct fuse_dirent
		length := int(binary.NativeEndian.Uint32(b[at+16:]))
		if length == 0 {
			break
		}
		names = append(names, string(b[at+24:at+24+length]))
		at += (24 + length + 7) &^ 7
	}
	return names, out.Offset
}

// readOn reads from off to the end.
func readOn(t *testing.T, fs *FS, dir *node, off uint64) (names []string) {
	t.Helper()
	for {
		some, next := readSome(t, fs, dir, off, 1024)
		if len(some) == 0 {
			return names
		}
		names, off = append(names, some...), next
	}
}

// Who goes on in a directory goes on with what somebody has read who began later: the
// kernel keeps what it is told of a directory as being of the later beginning.
func TestListingIsNotOlderThanItsBeginning(t *testing.T) {
	w, dir := unopenedWorld(t, 300)
	if st := w.fs.OpenDir(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: dir.id}}, &fuse.OpenOut{}); st != fuse.ENOSYS {
		t.Fatalf("opendir: %v", st)
	}
	first, off := readSome(t, w.fs, dir, 0, 1024)
	var made []string
	d := &driver{fs: w.fs}
	defer d.end()
	for i := range 100 {
		name := fmt.Sprintf("new%05d", i)
		if errno := d.create("many/"+name, ""); errno != 0 {
			t.Fatal(errno)
		}
		if nameOffset(name) > off {
			made = append(made, name)
		}
	}
	if len(made) == 0 {
		t.Fatal("no name is behind where the first reader is")
	}
	again, _ := readSome(t, w.fs, dir, 0, 1024)
	if len(first) == 0 || len(again) == 0 {
		t.Fatal("nothing was listed")
	}
	rest := readOn(t, w.fs, dir, off)
	for _, name := range made {
		if !slices.Contains(rest, name) {
			t.Fatalf("%s is missing from %d names of one who goes on, and was there when another began", name, len(rest))
		}
	}
}

// A directory is read from its layers once for each who reads it to the end, however
// many parts it comes in, and kept no longer.
func TestListingIsSharedAndDropped(t *testing.T) {
	w, dir := unopenedWorld(t, 300)
	_, off := readSome(t, w.fs, dir, 0, 1024)
	h := w.fs.listings.m[dir]
	if h == nil {
		t.Fatal("nothing is kept for who goes on")
	}
	all := &h.list.entries[0]
	for range 3 {
		_, off = readSome(t, w.fs, dir, off, 1024)
	}
	if w.fs.listings.m[dir] != h || &h.list.entries[0] != all {
		t.Error("who goes on has the directory read again")
	}
	if got := len(readOn(t, w.fs, dir, 0)); got != 302 {
		t.Errorf("%d names, not 302", got)
	}
	if len(w.fs.listings.m) != 0 || len(w.fs.listings.idle) != 0 {
		t.Errorf("%d listings are kept when all is read", len(w.fs.listings.m))
	}
	// From the middle, as a client of an NFS server begins after a restart of it.
	if got := len(readOn(t, w.fs, dir, off)); got == 0 || got >= 302 {
		t.Errorf("%d names from the middle on", got)
	}
}

// What nobody goes on with is dropped: at once what is more than a few, all after a while.
func TestAbandonedListings(t *testing.T) {
	w, dir := unopenedWorld(t, 100)
	d := &driver{fs: w.fs}
	defer d.end()
	for i := range maxListings + 10 {
		name := fmt.Sprintf("d%d", i)
		if errno := d.mkdir(name); errno != 0 {
			t.Fatal(errno)
		}
		readSome(t, w.fs, nodeAt(t, d, name), 0, 1024)
	}
	_, off := readSome(t, w.fs, dir, 0, 1024)
	if n := len(w.fs.listings.m); n != maxListings {
		t.Errorf("%d listings are kept, not %d", n, maxListings)
	}
	w.fs.listings.dropIdle()
	if n := len(w.fs.listings.m); n != 0 {
		t.Errorf("%d listings are kept for good", n)
	}
	if len(readOn(t, w.fs, dir, off)) == 0 {
		t.Error("nothing is listed for who goes on later")
	}
}
