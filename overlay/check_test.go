package overlay

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
	"github.com/migratefs/migratefs/tests/testbed"
)

// damage is one thing that can be wrong.
type damage struct {
	name   string
	kind   stacking
	first  func(d *driver) // through a mount
	do     func(w *world)
	finds  string // the kind
	where  string // "LAYER PATH", where * stands for any name
	mended bool
}

var (
	overlayOne = stackings[0]
	migrateOne = stackings[2]
	remoteOne  = stackings[4]
)

// one returns the only name that matches, below the world's directory.
func (w *world) one(pattern string) string {
	w.t.Helper()
	names, err := filepath.Glob(w.at(pattern))
	must(w.t, err)
	if len(names) != 1 {
		w.t.Fatalf("%d names match %s: %v", len(names), pattern, names)
	}
	return names[0]
}

func (w *world) put(name, content string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(filepath.Dir(w.at(name)), 0o700))
	must(w.t, os.WriteFile(w.at(name), []byte(content), 0o600))
}

func (w *world) setxattr(name, attr, value string) {
	w.t.Helper()
	must(w.t, unix.Lsetxattr(w.at(name), attr, []byte(value), 0))
}

// originOf is what the lower file l1/name is called.
func (w *world) originOf(name string) string {
	w.t.Helper()
	l, err := local.Open(w.at("l1"), local.Config{})
	must(w.t, err)
	defer l.Close()
	id, err := idOfLayer(l.Root())
	must(w.t, err)
	a, err := statAt(&checked{Layer: l}, "")
	must(w.t, err)
	if name != "" {
		a, err = l.Stat(w.t.Context(), layers.Path(name))
		must(w.t, err)
	}
	return string(copyup.OriginOf(id[:shortID], &a))
}

// copyOf makes upper/name of l1/name, as a copy-up that had no time for more.
func (w *world) copyOf(name string, withOrigin bool) {
	w.t.Helper()
	testbed.Run(w.t, "cp", "-a", w.at("l1", name), w.at("upper", name))
	if withOrigin {
		w.setxattr("upper/"+name, copyup.XattrOrigin, w.originOf(name))
	}
}

const someID = "00112233445566778899aabbccddeeff"

// anACL is u::rwx,u:1000:rwx,g::r-x,m::rwx,o::---, as linux/posix_acl_xattr.h has it.
const anACL = "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

var damages = []damage{
	// Overlay mode: the work directory.
	{"a temporary file", overlayOne, nil, func(w *world) { w.put("work/tmp-0123", "x") }, FoundTemp, "work tmp-0123", true},
	{"a temporary tree", overlayOne, nil, func(w *world) { w.put("work/tmp-0123/a/b", "x") }, FoundTemp, "work tmp-0123", true},
	{"somebody's file", overlayOne, nil, func(w *world) { w.put("work/notes", "x") }, FoundUnknown, "work notes", false},
	{"a copy without names", overlayOne, func(d *driver) { d.chmod("hard1", 0o600) }, func(w *world) {
		for _, n := range []string{"hard1", "hard2", "dir/hard3"} {
			_ = os.Remove(w.at("upper", n))
		}
		must(w.t, unix.Setxattr(w.one("work/index/*"), "trusted.overlay.nlink", []byte("U-1"), 0))
	}, FoundIndex, "work index/*", true},
	{"a back name that leads nowhere", overlayOne, nil, func(w *world) { must(w.t, os.Symlink("nowhere", w.at("work/links/u-77"))) }, FoundIndex, "work links/u-77", true},
	{"a link count that is wrong", overlayOne, func(d *driver) { d.chmod("hard1", 0o600) }, func(w *world) {
		must(w.t, unix.Setxattr(w.one("work/index/*"), "trusted.overlay.nlink", []byte("U+9"), 0))
	}, FoundLinks, "upper hard1", true},

	// Overlay mode: pending files.
	{"half of a cached object", remoteOne, nil, func(w *world) { w.put("work/objects/c0123.data", "x") }, FoundTemp, "work objects/c0123.data", true},
	{"an unfinished map", remoteOne, nil, func(w *world) { w.put("work/objects/p0123.tmp", "x") }, FoundTemp, "work objects/p0123.tmp", true},
	{"an object without a file", remoteOne, pend, func(w *world) { must(w.t, os.Remove(w.at("upper/low"))) }, FoundOrphan, "work objects/p*.data", true},
	{"an object that is damaged, without a file", remoteOne, nil, func(w *world) { w.put("work/objects/p"+someID+".data", "x") }, FoundOrphan, "work objects/p" + someID + ".data", true},
	{"a stub without file and object", remoteOne, nil, func(w *world) { w.put("work/stubs/"+someID, "") }, FoundOrphan, "work stubs/" + someID, true},
	{"a file without its stub", remoteOne, pend, func(w *world) { must(w.t, os.Remove(w.one("work/stubs/*"))) }, FoundOrphan, "upper low", true},
	{"a file whose object is gone", remoteOne, pend, func(w *world) {
		must(w.t, os.Remove(w.one("work/objects/p*.data")))
		must(w.t, os.Remove(w.one("work/objects/p*.map")))
	}, FoundLost, "upper low", false},
	{"a file whose object is damaged", remoteOne, pend, func(w *world) {
		must(w.t, os.WriteFile(w.one("work/objects/p*.map"), []byte("nonsense, and longer than a header would have to be"), 0o600))
	}, FoundDamaged, "upper low", false},
	{"two files with one object", remoteOne, pend, func(w *world) {
		w.put("upper/second", "")
		for _, x := range []string{"trusted.overlay.metacopy", "trusted.overlay.migratefs.object"} {
			v := make([]byte, 64)
			n, err := unix.Getxattr(w.at("upper/low"), x, v)
			must(w.t, err)
			w.setxattr("upper/second", x, string(v[:n]))
		}
	}, FoundDamaged, "upper *", false},
	{"a file without a work directory", remoteOne, pend, func(w *world) {
		must(w.t, os.RemoveAll(w.at("work")))
		must(w.t, os.Mkdir(w.at("work"), 0o700))
	}, FoundLost, "upper low", false},
	{"a file that names no object", remoteOne, nil, func(w *world) {
		w.put("upper/odd", "")
		w.setxattr("upper/odd", "trusted.overlay.metacopy", "")
		w.setxattr("upper/odd", "trusted.overlay.migratefs.object", "../../etc")
	}, FoundMark, "upper odd", false},

	// Overlay mode: what the upper says of the lowers.
	{"a redirect out of the lower", overlayOne, nil, func(w *world) {
		w.mkdir("upper", "moved")
		w.setxattr("upper/moved", "trusted.overlay.redirect", "/../../etc")
	}, FoundMark, "upper moved", false},
	{"a redirect to nothing", overlayOne, nil, func(w *world) {
		w.mkdir("upper", "moved")
		w.setxattr("upper/moved", "trusted.overlay.redirect", "/not/there")
	}, FoundMark, "upper moved", false},
	{"opaque, but how", overlayOne, nil, func(w *world) { w.setxattr("upper/up dir", "trusted.overlay.opaque", "maybe") }, FoundMark, "upper up dir", false},
	{"a metacopy without data", overlayOne, leaveData, func(w *world) { must(w.t, os.Remove(w.at("l1/low"))) }, FoundLost, "upper low", false},
	{"a metacopy of other data", overlayOne, leaveData, func(w *world) { w.put("l1/low", "longer than it was") }, FoundLost, "upper low", false},
	{"a mark that says nothing", overlayOne, leaveData, func(w *world) { w.setxattr("upper/low", "trusted.overlay.metacopy", "\x07nonsense") }, FoundMark, "upper low", false},
	{"an origin that is gone", overlayOne, func(d *driver) { d.write("low", "x", 0) }, func(w *world) { must(w.t, os.Remove(w.at("l1/low"))) }, FoundMark, "upper low", true},
	{"other lowers", overlayOne, nil, func(w *world) {
		must(w.t, os.Rename(w.at("l1"), w.at("l0")))
		must(w.t, os.Mkdir(w.at("l1"), 0o755))
	}, FoundMark, "upper ", false},

	// Migrate mode: the upper's own.
	{"a claim", migrateOne, nil, func(w *world) { w.put("upper/.migratefs/claims/0123456789abcdef-77-1.2", "half a file") }, FoundClaim, "upper .migratefs/claims/*", true},
	{"a lock", migrateOne, nil, func(w *world) {
		must(w.t, os.MkdirAll(w.at("upper/.migratefs/claims"), 0o700))
		must(w.t, os.Symlink("who.1", w.at("upper/.migratefs/claims/0123456789abcdef-77-1.2")))
	}, FoundClaim, "upper .migratefs/claims/*", true},
	{"a daemon that died", migrateOne, nil, func(w *world) {
		w.put("upper/.migratefs/daemons/"+hostID()+"-77/alive", "")
		w.put("upper/.migratefs/daemons/"+hostID()+"-77/tmp-1/x", "x")
	}, FoundDaemon, "upper .migratefs/daemons/*", true},
	{"a daemon that died elsewhere", migrateOne, nil, func(w *world) {
		w.put("upper/.migratefs/daemons/another-77/alive", "")
		long := time.Now().Add(-2 * lifeless)
		must(w.t, os.Chtimes(w.at("upper/.migratefs/daemons/another-77/alive"), long, long))
	}, FoundDaemon, "upper .migratefs/daemons/another-77", true},
	{"a daemon that may live elsewhere", migrateOne, nil, func(w *world) { w.put("upper/.migratefs/daemons/another-77/alive", "") }, FoundDaemon, "upper .migratefs/daemons/another-77", false},
	{"a first name of the id", migrateOne, nil, func(w *world) { w.put("upper/.migratefs/tmp-77", "") }, FoundTemp, "upper .migratefs/tmp-77", true},
	{"an id that is gone", migrateOne, nil, func(w *world) { must(w.t, os.Remove(w.at("upper/.migratefs/id"))) }, FoundDamaged, "upper .migratefs/id", false},
	{"an id that says nothing", migrateOne, nil, func(w *world) { w.put("l1/.migratefs/id", "what?") }, FoundDamaged, "lower 1 .migratefs/id", false},

	{"an id that would be waited for", migrateOne, nil, func(w *world) {
		must(w.t, os.Remove(w.at("l1/.migratefs/id")))
		must(w.t, unix.Mkfifo(w.at("l1/.migratefs/id"), 0o600))
	}, FoundUnread, "lower 1 .migratefs/id", false},

	// Migrate mode: hard links.
	{"a back name that leads elsewhere", migrateOne, func(d *driver) { d.write("hard1", "LINK", 0) }, func(w *world) {
		must(w.t, os.Symlink("nowhere", w.at("upper/.migratefs/index/u-77")))
	}, FoundIndex, "upper .migratefs/index/u-77", true},
	{"a back name that is gone", migrateOne, func(d *driver) { d.write("hard1", "LINK", 0) }, func(w *world) {
		must(w.t, os.Remove(w.one("upper/.migratefs/index/u-*")))
	}, FoundIndex, "upper .migratefs/index/*", true},
	{"a marker without an index", migrateOne, nil, func(w *world) {
		must(w.t, os.MkdirAll(w.at("l1/.migratefs/hl"), 0o700))
		must(w.t, os.Link(w.at("l1/hard1"), w.at("l1/.migratefs/hl", w.originOf("hard1"))))
	}, FoundMarker, "lower 1 .migratefs/hl/*", true},
	{"a marker that is all that is left", migrateOne, func(d *driver) { d.write("hard1", "LINK", 0) }, func(w *world) {
		must(w.t, os.Remove(w.at("l1/hard2")))
		must(w.t, os.Remove(w.at("l1/dir/hard3")))
	}, FoundMarker, "lower 1 .migratefs/hl/*", true},
	{"a marker of another file", migrateOne, nil, func(w *world) {
		must(w.t, os.MkdirAll(w.at("l1/.migratefs/hl"), 0o700))
		must(w.t, os.Link(w.at("l1/low"), w.at("l1/.migratefs/hl", w.originOf("hard1"))))
	}, FoundMarker, "lower 1 .migratefs/hl/*", false},
	{"a marker that is gone", migrateOne, func(d *driver) { d.write("hard1", "LINK", 0) }, func(w *world) {
		must(w.t, os.Remove(w.one("l1/.migratefs/hl/*")))
	}, FoundMarker, "lower 1 *hard*", true},
	{"an index without a lower file", migrateOne, func(d *driver) { d.write("hard1", "LINK", 0) }, func(w *world) {
		for _, n := range []string{"l1/.migratefs/hl/*", "l1/hard2", "l1/dir/hard3"} {
			must(w.t, os.Remove(w.one(n)))
		}
	}, FoundIndex, "upper .migratefs/index/*", true},

	// Migrate mode: the trash.
	{"a note without a file", migrateOne, nil, func(w *world) {
		must(w.t, os.MkdirAll(w.at("l1/.migratefs/trash"), 0o700))
		must(w.t, os.Symlink("low", w.at("l1/.migratefs/trash/1-2-3.4-5.6.path")))
	}, FoundTrash, "lower 1 .migratefs/trash/*.path", true},
	{"a file without a note", migrateOne, nil, func(w *world) { w.put("l1/.migratefs/trash/1-2-3.4-5.6", "x") }, FoundTrash, "lower 1 .migratefs/trash/1-2-3.4-5.6", false},
	{"a note that leads out", migrateOne, nil, func(w *world) {
		w.put("l1/.migratefs/trash/1-2-3.4-5.6", "x")
		must(w.t, os.Symlink("../../etc/passwd", w.at("l1/.migratefs/trash/1-2-3.4-5.6.path")))
	}, FoundTrash, "lower 1 .migratefs/trash/1-2-3.4-5.6", false},
	{"another file than was meant", migrateOne, nil, func(w *world) {
		w.put("l1/.migratefs/trash/1-2-3.4-5.6", "x")
		must(w.t, os.Symlink("back here", w.at("l1/.migratefs/trash/1-2-3.4-5.6.path")))
	}, FoundTrash, "lower 1 .migratefs/trash/1-2-3.4-5.6", true},
	{"a removal that failed", migrateOne, nil, func(w *world) {
		w.put("l1/.migratefs/trash/1-2-3.4-5.6~77.done", "x")
		must(w.t, os.Symlink("low", w.at("l1/.migratefs/trash/1-2-3.4-5.6~77.path")))
	}, FoundTrash, "lower 1 .migratefs/trash/*.done", true},
	{"a removal that was interrupted", migrateOne, nil, func(w *world) {
		w.copyOf("low", true)
		w.throw("low")
	}, FoundTrash, "lower 1 .migratefs/trash/*", true},
	{"the same, without an origin", migrateOne, nil, func(w *world) {
		w.copyOf("low", false)
		w.throw("low")
	}, FoundTrash, "lower 1 .migratefs/trash/*", true},
	{"a removal that began with a link", migrateOne, nil, func(w *world) {
		w.throw("low")
		must(w.t, os.Link(w.one("l1/.migratefs/trash/*[0-9a-f]"), w.at("l1/low")))
	}, FoundTrash, "lower 1 .migratefs/trash/*", true},
	{"a removal without a copy", migrateOne, nil, func(w *world) { w.throw("low") }, FoundTrash, "lower 1 .migratefs/trash/*", false},

	{"a directory of ours that another made", migrateOne, nil, func(w *world) { w.plant(1) }, FoundUnknown, "lower 1 .migratefs", false},
	{"a directory of ours that others may write to", migrateOne, nil, func(w *world) {
		w.plant(1)
		must(w.t, os.Chown(w.at("l1/.migratefs"), os.Geteuid(), -1))
		must(w.t, os.Chmod(w.at("l1/.migratefs"), 0o770))
	}, FoundUnknown, "lower 1 .migratefs", false},
	{"a symlink for a directory of ours", migrateOne, nil, func(w *world) {
		w.plant(1)
		must(w.t, os.Rename(w.at("l1/.migratefs"), w.at("l1/dir/theirs")))
		must(w.t, os.Symlink("dir/theirs", w.at("l1/.migratefs")))
	}, FoundUnknown, "lower 1 .migratefs", false},

	// Migrate mode: names in two layers.
	{"a copy whose lower is still there", migrateOne, nil, func(w *world) { w.copyOf("low", true) }, FoundUnmoved, "lower 1 low", true},
	{"a copy of a symlink", migrateOne, nil, func(w *world) { w.copyOf("sym", false) }, FoundUnmoved, "lower 1 sym", true},
	{"a copy of a fifo", migrateOne, nil, func(w *world) { w.copyOf("fifo", false) }, FoundUnmoved, "lower 1 fifo", true},
	{"the same content, of another time", migrateOne, nil, func(w *world) {
		w.copyOf("low", false)
		must(w.t, os.Chtimes(w.at("upper/low"), past, past.Add(time.Hour)))
	}, FoundUnmoved, "lower 1 low", false},
	{"a copy without an xattr", migrateOne, nil, func(w *world) {
		w.copyOf("low", false)
		must(w.t, unix.Removexattr(w.at("upper/low"), "user.note"))
	}, FoundUnmoved, "lower 1 low", false},
	{"a copy of one name of several", migrateOne, nil, func(w *world) { w.copyOf("hard1", false) }, FoundUnmoved, "lower 1 hard1", false},
	{"a copy that was changed", migrateOne, nil, func(w *world) {
		w.copyOf("low", true)
		w.put("upper/low", "changed")
	}, FoundDifferent, "lower 1 low", false},
	{"another content of the same size", migrateOne, nil, func(w *world) {
		w.copyOf("dir", false)
		w.put("upper/dir/a", "LOWER dir/a")
	}, FoundDifferent, "lower 1 dir/a", false},
	{"a file over a directory", migrateOne, nil, func(w *world) { w.put("upper/dir", "x") }, FoundTypes, "lower 1 dir", false},
	{"a directory over a file", migrateOne, nil, func(w *world) { w.mkdir("upper", "low") }, FoundTypes, "lower 1 low", false},
	{"a chmod that was interrupted", migrateOne, nil, func(w *world) { must(w.t, os.Chmod(w.at("l1/both dir"), 0o700)) }, FoundDirectory, "lower 1 both dir", true},
	{"an ACL that was interrupted", migrateOne, nil, func(w *world) {
		w.setxattr("upper/both dir", "system.posix_acl_access", anACL)
	}, FoundDirectory, "lower 1 both dir", true},
	{"a chown of the root that was interrupted", migrateOne, nil, func(w *world) { must(w.t, os.Chown(w.at("l1"), 1000, 1000)) }, FoundDirectory, "lower 1 ", true},
}

// plant makes what has a check bring n files of somebody to where he may not write, if
// it believes him.
func (w *world) plant(n int) {
	w.t.Helper()
	for i := range n {
		file := w.at("l1/.migratefs/trash", fmt.Sprintf("1-2-3.4-5.%d", i))
		w.put(fmt.Sprintf("l1/.migratefs/trash/1-2-3.4-5.%d", i), "planted")
		must(w.t, os.Symlink(fmt.Sprintf("dir/planted%d", i), file+copyup.PathSuffix))
		must(w.t, os.Chown(file, 1000, 1000))
	}
	must(w.t, os.Chown(w.at("l1/.migratefs/trash"), 1000, 1000))
	must(w.t, os.Chown(w.at("l1/.migratefs"), 1000, 1000))
}

// throw moves l1/name to the trash, as a removal does that goes no further.
func (w *world) throw(name string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(w.at("l1/.migratefs/trash"), 0o700))
	l, err := local.Open(w.at("l1"), local.Config{})
	must(w.t, err)
	defer l.Close()
	a, err := l.Stat(w.t.Context(), layers.Path(name))
	must(w.t, err)
	id := copyup.TrashName(&a)
	must(w.t, os.Symlink(name, w.at("l1/.migratefs/trash", id+copyup.PathSuffix)))
	must(w.t, os.Rename(w.at("l1", name), w.at("l1/.migratefs/trash", id)))
}

// damaged makes the world and does something to it; known is what was found before.
func (d *damage) damaged(t *testing.T, base string) (w *world, known []Finding) {
	t.Helper()
	w = newWorld(t, base, d.kind)
	must(t, w.open())
	if d.first != nil {
		by := &driver{fs: w.fs}
		d.first(by)
		by.end()
	}
	w.close()
	known = w.check(false)
	d.do(w)
	return w, known
}

func (d *damage) is(f Finding) bool {
	ok, err := filepath.Match(d.where, f.Where+" "+string(f.Path))
	return err == nil && ok && f.Kind == d.finds
}

// TestCheckFinds makes each thing that can be wrong: it is found, nothing is changed
// by looking, and it is mended exactly if that was said.
func TestCheckFinds(t *testing.T) {
	base := worlds(t)
	for _, d := range damages {
		t.Run(d.kind.name+": "+d.name, func(t *testing.T) {
			w, known := d.damaged(t, base)
			defer w.remove()
			before := w.everything()
			found := beyond(w.check(false), known)
			testbed.Same(t, "before a look", before, "after it", w.everything())
			i := slices.IndexFunc(found, d.is)
			if i < 0 {
				t.Fatalf("not found; but:\n%s", listed(found))
			}
			if mends := found[i].Mends != ""; mends != d.mended {
				t.Errorf("mends %v: %v", mends, &found[i])
			}
			for range 4 {
				w.check(true)
			}
			left := beyond(w.check(false), known)
			if slices.ContainsFunc(left, d.is) == d.mended {
				t.Errorf("mended %v, and then there is:\n%s", d.mended, listed(left))
			}
			if d.mended && len(left) > 0 {
				t.Errorf("left:\n%s", listed(left))
			}
			if !d.mended {
				return
			}
			must(t, w.open())
			if _, err := w.look(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A repair does nothing for whoever may write to the root of a lower.
func TestCheckBelievesNobodyElse(t *testing.T) {
	w := newWorld(t, worlds(t), migrateOne)
	defer w.remove()
	must(t, w.open())
	w.close()
	planted := func() int {
		names, err := filepath.Glob(w.at("l1/dir/planted*"))
		must(t, err)
		return len(names)
	}
	w.plant(2)
	before := w.everything()
	w.check(true)
	testbed.Same(t, "before a repair", before, "after it", w.everything())
	// What was ours when we looked is another's when we mend.
	for _, dir := range []string{"l1/.migratefs", "l1/.migratefs/trash"} {
		must(t, os.Chown(w.at(dir), os.Geteuid(), -1))
	}
	refused := 0
	_, err := Check(t.Context(), CheckConfig{
		Mode: Migrate, Upper: w.at("upper"), Lowers: []string{w.at("l1")}, Repair: true,
		Found: func(f Finding) {
			switch {
			case f.Kind != FoundTrash:
			case f.Done:
				must(t, os.Chown(w.at("l1/.migratefs/trash"), 1000, 1000))
			case f.Error != "":
				refused++
			}
		},
	})
	must(t, err)
	if n := planted(); n != 1 || refused != 1 {
		t.Errorf("%d files were linked, and %d refused", n, refused)
	}
}

func listed(fs []Finding) string {
	var b strings.Builder
	for i := range fs {
		fmt.Fprintln(&b, "\t", &fs[i])
	}
	return b.String()
}

// What a repair keeps: the content that shows, of every name.
func TestCheckRepairLosesNothing(t *testing.T) {
	base := worlds(t)
	for _, d := range damages {
		if d.kind.mode != Migrate || !d.mended || d.finds == FoundTrash {
			continue
		}
		w, _ := d.damaged(t, base)
		shows := func() string {
			var b strings.Builder
			for _, n := range []string{"low", "other", "both", "up", "hard1", "hard2", "dir/hard3", "dir/a", "sym"} {
				content := []byte(nil)
				for _, l := range []string{"upper", "l1"} {
					if fi, err := os.Lstat(w.at(l, n)); err == nil {
						if fi.Mode().IsRegular() {
							content, err = os.ReadFile(w.at(l, n))
							must(t, err)
						}
						break
					}
				}
				fmt.Fprintf(&b, "%s: %q\n", n, content)
			}
			return b.String()
		}
		before := shows()
		w.check(true)
		if after := shows(); after != before {
			t.Errorf("%s: before\n%safter\n%s", d.name, before, after)
		}
		w.remove()
	}
}

// TestCheckRandomDamage does anything to the layers: Check always ends, without
// --repair it changes nothing, and with it it converges.
func TestCheckRandomDamage(t *testing.T) {
	base := worlds(t)
	seed := time.Now().UnixNano()
	if v, err := strconv.ParseInt(os.Getenv("MIGRATEFS_CHECK_SEED"), 10, 64); err == nil {
		seed = v
	}
	t.Logf("MIGRATEFS_CHECK_SEED=%d", seed)
	rnd := rand.New(rand.NewSource(seed))
	for range 60 {
		k := stackings[rnd.Intn(len(stackings))]
		o := &operations[rnd.Intn(len(operations))]
		if o.only != nil && !o.only(k) {
			continue
		}
		w := o.start(t, base, k)
		_ = o.run(w)
		w.first.endIfAny()
		w.close()
		what := w.harm(rnd, 1+rnd.Intn(8))
		before := w.everything()
		w.check(false)
		testbed.Same(t, what+": before a look", before, "after it", w.everything())
		n := 0
		for slices.ContainsFunc(w.check(true), func(f Finding) bool { return f.Done }) {
			if n++; n > 8 {
				t.Errorf("%s: seed %d: there is always more to mend:\n%s", what, seed, listed(w.check(true)))
				break
			}
		}
		w.remove()
		if t.Failed() {
			return
		}
	}
}

// harm does n random things to random files of the layers.
func (w *world) harm(rnd *rand.Rand, n int) (what string) {
	for range n {
		var all []string
		must(w.t, filepath.WalkDir(w.dir, func(p string, _ os.DirEntry, err error) error {
			if rel, _ := filepath.Rel(w.dir, p); strings.Contains(rel, "/") {
				all = append(all, p)
			}
			return err
		}))
		p, q := all[rnd.Intn(len(all))], all[rnd.Intn(len(all))]
		op := rnd.Intn(8)
		what += fmt.Sprintf("%d %s %s; ", op, strings.TrimPrefix(p, w.dir), strings.TrimPrefix(q, w.dir))
		junk := make([]byte, rnd.Intn(40))
		rnd.Read(junk)
		switch op {
		case 0:
			_ = os.RemoveAll(p)
		case 1:
			_ = os.Rename(p, q)
		case 2:
			if fi, err := os.Lstat(p); err == nil && fi.Mode().IsRegular() {
				_ = os.WriteFile(p, junk, 0o600)
			}
		case 3:
			_ = os.Symlink(string(junk), filepath.Join(p, "link"))
		case 4:
			names := []string{"trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.opaque", "trusted.overlay.origin",
				"trusted.overlay.nlink", "trusted.overlay.migratefs.object", copyup.XattrOrigin}
			_ = unix.Lsetxattr(p, names[rnd.Intn(len(names))], junk, 0)
		case 5:
			_ = os.Link(p, filepath.Join(filepath.Dir(q), "linked"+fmt.Sprint(rnd.Intn(100))))
		case 6:
			_ = os.Lchown(p, rnd.Intn(3), rnd.Intn(3))
			_ = os.Chmod(p, os.FileMode(rnd.Intn(0o1000)))
		case 7:
			if fi, err := os.Lstat(p); err == nil && !fi.IsDir() {
				_ = os.Remove(p)
				_ = os.Mkdir(p, 0o700)
			}
		}
	}
	return what
}

// TestCheckNotesConflicts: a note, since nothing is damaged.
func TestCheckNotesConflicts(t *testing.T) {
	w := newWorld(t, worlds(t), remoteStack)
	defer w.remove()
	must(t, w.open())
	d := &driver{fs: w.fs}
	conflict(d)
	d.end()
	w.close()
	var notes []Finding
	_, err := Check(t.Context(), CheckConfig{
		Mode: Overlay, Upper: w.at("upper"), Work: w.at("work"), Format: whiteout.Trusted,
		Found: func(f Finding) {
			if f.Note {
				notes = append(notes, f)
			}
		},
	})
	must(t, err)
	if !slices.ContainsFunc(notes, func(f Finding) bool { return f.Path == "low" && strings.Contains(f.Means, "conflict") }) {
		t.Errorf("%+v", notes)
	}
}
