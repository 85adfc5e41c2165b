package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

var oneHost = stacking{name: "migrate", mode: Migrate, lowers: 1}

// dyingAt makes the n-th rename, and all changes after it, fail until the hook is taken
// away.
func dyingAt(n int) {
	var mu sync.Mutex
	sys.SetHook(func(c sys.Change) error {
		mu.Lock()
		defer mu.Unlock()
		if c == "rename" {
			n--
		}
		if n <= 0 {
			return unix.EIO
		}
		return nil
	})
}

func (w *world) has(path string) bool {
	_, err := os.Lstat(w.at(path))
	return err == nil
}

// TestRenameInPartsOfWhatIsInUse: what is open, known or waits to be removed below a
// directory goes with it.
func TestRenameInPartsOfWhatIsInUse(t *testing.T) {
	for _, keep := range []bool{false, true} {
		w := newWorld(t, worlds(t), oneHost)
		w.tweak = func(c *Config) { c.gather, c.KeepLower = time.Hour, keep }
		must(t, w.open())
		d := &driver{fs: w.fs}
		w.file("l1", "both dir/read", "lower both dir/read")
		fh, errno := d.keep("both dir/read")
		if errno != 0 {
			t.Fatal(errno)
		}
		id, errno := d.find("both dir/read")
		if errno != 0 {
			t.Fatal(errno)
		}
		// Its lower copy waits.
		if errno := d.write("both dir/l", "WRITTEN", 0); errno != 0 {
			t.Fatal(errno)
		}
		if errno := d.rename("both dir", "empty/moved", 0); errno != 0 {
			t.Fatal(errno)
		}
		if b, errno := d.readHandle(fh); errno != 0 || string(b) != "lower both dir/read" {
			t.Errorf("what is open reads %q, %v", b, errno)
		}
		var out fuse.AttrOut
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: id}, Valid: fuse.FATTR_SIZE, Size: 5}}
		if st := w.fs.SetAttr(nil, &in, &out); st != 0 {
			t.Errorf("truncate of what is known: %v", st)
		}
		if b, errno := d.readHandle(fh); errno != 0 || string(b) != "lower" {
			t.Errorf("what is open reads %q, %v", b, errno)
		}
		w.fs.finishRemovals()
		for path, want := range map[string]bool{
			"upper/empty/moved/l": true, "upper/empty/moved/read": true, "upper/empty/moved/v": true, "l1/empty/moved": true,
			"l1/empty/moved/l": keep, "l1/empty/moved/read": keep,
			"upper/both dir": false, "l1/both dir": false, "upper/.migratefs/rename": false,
		} {
			if w.has(path) != want {
				t.Errorf("keep_lower=%v: %s is there: %v", keep, path, !want)
			}
		}
		d.end()
		if left := w.leftovers(); left != "" {
			t.Errorf("left over:\n\t%s", left)
		}
		w.remove()
	}
}

// TestRenameInPartsMakes: what a directory moves into is made in the lower as it is above,
// and nothing that stands there is touched.
func TestRenameInPartsMakes(t *testing.T) {
	w := newWorld(t, worlds(t), oneHost)
	defer w.remove()
	must(t, w.open())
	d := &driver{fs: w.fs}
	for _, err := range []unix.Errno{
		d.mkdir("made"), d.mkdir("made/deep"), d.chown("made/deep", 1002), d.chmod("made/deep", 0o2710),
		d.setxattr("made/deep", "user.note", "kept"), d.rename("both dir", "made/deep/moved", 0),
	} {
		if err != 0 {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"made", "made/deep"} {
		var up, low unix.Stat_t
		must(t, unix.Lstat(w.at("upper/"+p), &up))
		must(t, unix.Lstat(w.at("l1/"+p), &low))
		if up.Mode != low.Mode || up.Uid != low.Uid || up.Gid != low.Gid {
			t.Errorf("%s has %o of %d:%d above, and %o of %d:%d below", p, up.Mode, up.Uid, up.Gid, low.Mode, low.Uid, low.Gid)
		}
	}
	value := make([]byte, 10)
	if n, err := unix.Lgetxattr(w.at("l1/made/deep"), "user.note", value); err != nil || string(value[:n]) != "kept" {
		t.Errorf("user.note is %q below, %v", value[:max(n, 0)], err)
	}
	if !w.has("l1/made/deep/moved/l") || !w.has("upper/made/deep/moved/v") {
		t.Error("it has not moved in each layer")
	}
	// A file that somebody has put there hides nothing, and stays.
	if err := d.mkdir("other dir"); err != 0 {
		t.Fatal(err)
	}
	w.file("l1", "other dir", "in the way")
	if err := d.rename("dir", "other dir/moved", 0); err != unix.EXDEV {
		t.Errorf("into what cannot be made below: %v", err)
	}
	if b, err := os.ReadFile(w.at("l1/other dir")); err != nil || string(b) != "in the way" {
		t.Errorf("there was a file: %q, %v", b, err)
	}
	d.end()
	must(t, os.Remove(w.at("l1/other dir")))
	if left := w.leftovers(); left != "" {
		t.Errorf("left over:\n\t%s", left)
	}
}

// TestRenameInPartsBeside stops the rename before each of its changes, while others use
// what is in the directory: they wait where they have to, and find it.
func TestRenameInPartsBeside(t *testing.T) {
	t.Run("rename", func(t *testing.T) { inPartsBeside(t, "new", 0) })
	t.Run("exchange", func(t *testing.T) { inPartsBeside(t, "up dir", unix.RENAME_EXCHANGE) })
}

func inPartsBeside(t *testing.T, name string, flags uint32) {
	base := worlds(t)
	for n := 1; ; n++ {
		w := newWorld(t, base, oneHost)
		must(t, w.open())
		d, other := &driver{fs: w.fs}, &driver{fs: w.fs}
		var ids []uint64
		for _, p := range []string{"both dir/l", "both dir/v", "both dir"} {
			id, errno := other.find(p)
			if errno != 0 {
				t.Fatal(p, errno)
			}
			ids = append(ids, id)
		}
		w.fs.dirs.closeAll() // what is looked for is looked for by its path
		s := newStepper(n)
		s.who = goid()
		used := make(chan struct{})
		go func() {
			defer close(used)
			<-s.stopped
			resume := time.AfterFunc(5*time.Millisecond, func() { close(s.resume) })
			for _, id := range ids[:2] {
				if b, errno := other.readNode(id); errno != 0 || !strings.HasSuffix(string(b), "dir/l") && !strings.HasSuffix(string(b), "dir/v") {
					t.Errorf("read, before change %d of %q: %q, %v", n, s.names, b, errno)
				}
				in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: fuse.InHeader{NodeId: id}, Valid: fuse.FATTR_SIZE, Size: 20}}
				var out fuse.AttrOut
				if st := w.fs.SetAttr(nil, &in, &out); st != 0 {
					t.Errorf("truncate, before change %d of %q: %v", n, s.names, st)
				}
			}
			if _, _, errno := other.lookup(ids[2], "l"); errno != 0 {
				t.Errorf("lookup, before change %d of %q: %v", n, s.names, errno)
			}
			if resume.Stop() {
				close(s.resume)
			}
		}()
		sys.SetHook(s.hook)
		errno := d.rename("both dir", name, flags)
		sys.SetHook(nil)
		met := s.n >= n
		if !met {
			close(s.stopped)
		}
		<-used
		if errno != 0 {
			t.Errorf("rename, with others before change %d of %q: %v", n, s.names, errno)
		}
		v, err := w.look()
		must(t, err)
		l, u := v[name+"/l"], v[name+"/v"]
		if l.size != 20 || u.size != 20 || len(v["both dir"].content)+len(v["both dir/l"].content) > 0 {
			t.Errorf("used before change %d of %q: %v and %v", n, s.names, l, u)
		}
		if has := v["both dir/u"].content != ""; has != (flags != 0) {
			t.Errorf("used before change %d of %q: what it changed places with is there: %v", n, s.names, has)
		}
		d.end()
		other.end()
		w.remove()
		if !met {
			return
		}
	}
}

// TestSplitRename: a rename that can be neither done nor taken back is ended by the next
// one, by the next mount or by a repair, and no other directory is taken for the one
// that moved.
func TestSplitRename(t *testing.T) {
	// split leaves both dir at new in the lower, and where it was in the upper.
	split := func(t *testing.T) *world {
		w := newWorld(t, worlds(t), oneHost)
		must(t, w.open())
		d := &driver{fs: w.fs}
		dyingAt(3) // after the intent's own, and the lower's
		errno := d.rename("both dir", "new", 0)
		sys.SetHook(nil)
		if errno != unix.EIO || !w.has("l1/new/l") || !w.has("upper/both dir/v") || !w.has("upper/.migratefs/rename") {
			t.Fatalf("not split: %v", errno)
		}
		d.end()
		return w
	}
	whole := func(t *testing.T, w *world, name string) {
		t.Helper()
		v, err := w.look()
		must(t, err)
		if v[name+"/l"].content != "lower both dir/l" || v[name+"/v"].content != "upper both dir/v" || w.has("upper/.migratefs/rename") {
			t.Errorf("%s is not whole: %v", name, v)
		}
	}
	t.Run("next rename", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		d := &driver{fs: w.fs}
		if errno := d.rename("dir", "empty/dir", 0); errno != 0 {
			t.Error(errno)
		}
		d.end()
		whole(t, w, "new")
	})
	t.Run("next mount", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		must(t, w.open())
		whole(t, w, "new")
	})
	t.Run("next mount of many", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		w.kind.hosts = Many
		must(t, w.open())
		whole(t, w, "new")
	})
	t.Run("repair", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		all := w.check(true)
		if len(all) == 0 || all[0].Kind != FoundIntent || !all[0].Done {
			t.Errorf("found %v", all)
		}
		if !w.has("upper/new/v") || !w.has("l1/new/l") {
			t.Error("not repaired")
		}
		must(t, w.open())
		whole(t, w, "new")
	})
	t.Run("taken back", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		w.file("upper", "new", "in the way")
		must(t, w.open())
		if !w.has("l1/both dir/l") || !w.has("upper/both dir/v") || w.has("upper/.migratefs/rename") {
			t.Error("it should lie where it was")
		}
	})
	t.Run("in the way at both ends", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		w.file("upper", "new", "in the way")
		w.mkdir("l1", "both dir")
		if err := w.open(); !errors.Is(err, errSplit) || !strings.Contains(err.Error(), `"both dir"`) {
			t.Errorf("mounted: %v", err)
		}
		if all := w.check(true); len(all) == 0 || all[0].Kind != FoundIntent || all[0].Done || all[0].Error == "" {
			t.Errorf("found %v", all)
		}
		must(t, os.Remove(w.at("upper/new")))
		must(t, w.open())
		if !w.has("l1/new/l") || !w.has("upper/new/v") || !w.has("l1/both dir") {
			t.Error("not completed, or not that directory alone")
		}
	})
	t.Run("another lower", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		must(t, os.Rename(w.at("l1"), w.at("away")))
		must(t, os.Mkdir(w.at("l1"), 0o755))
		if err := w.open(); err == nil || !strings.Contains(err.Error(), "not among these") {
			t.Errorf("mounted: %v", err)
		}
		if all := w.check(true); len(all) == 0 || all[0].Kind != FoundIntent || all[0].Mends != "" {
			t.Errorf("found %v", all)
		}
		if !w.has("upper/.migratefs/rename") {
			t.Error("the intent is gone")
		}
	})
}

// TestSplitExchange is the same for an exchange: of a directory in two layers and a file in
// the upper.
func TestSplitExchange(t *testing.T) {
	split := func(t *testing.T) *world {
		w := newWorld(t, worlds(t), oneHost)
		must(t, w.open())
		d := &driver{fs: w.fs}
		dyingAt(3) // after the intent's own, and the lower's
		errno := d.rename("both dir", "up", unix.RENAME_EXCHANGE)
		sys.SetHook(nil)
		if errno != unix.EIO || !w.has("l1/up/l") || !w.has("upper/both dir/v") || !w.has("upper/.migratefs/rename") {
			t.Fatalf("not split: %v", errno)
		}
		d.end()
		return w
	}
	whole := func(t *testing.T, w *world, dir, file string) {
		t.Helper()
		v, err := w.look()
		must(t, err)
		if v[dir+"/l"].content != "lower both dir/l" || v[dir+"/v"].content != "upper both dir/v" || v[file].content != "upper up" || w.has("upper/.migratefs/rename") {
			t.Errorf("%s and %s are not whole: %v", dir, file, v)
		}
	}
	t.Run("next rename", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		d := &driver{fs: w.fs}
		if errno := d.rename("dir", "empty/dir", 0); errno != 0 {
			t.Error(errno)
		}
		d.end()
		whole(t, w, "up", "both dir")
	})
	t.Run("next mount", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		must(t, w.open())
		whole(t, w, "up", "both dir")
	})
	t.Run("repair", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		if all := w.check(true); len(all) == 0 || all[0].Kind != FoundIntent || !all[0].Done {
			t.Errorf("found %v", all)
		}
		must(t, w.open())
		whole(t, w, "up", "both dir")
	})
	t.Run("taken back", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		must(t, os.Rename(w.at("upper/up"), w.at("aside")))
		w.file("upper", "up", "in the way")
		must(t, w.open())
		if !w.has("l1/both dir/l") || !w.has("upper/both dir/v") || w.has("upper/.migratefs/rename") {
			t.Error("it should lie where it was")
		}
	})
	t.Run("what moves back is gone", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		w.close()
		must(t, os.Remove(w.at("upper/up")))
		must(t, w.open())
		v, err := w.look()
		must(t, err)
		if v["up/l"].content != "lower both dir/l" || v["up/v"].content != "upper both dir/v" || w.has("upper/.migratefs/rename") {
			t.Errorf("the directory is not whole: %v", v)
		}
	})
}

// asCaller is oneHost with creds=caller, where all belongs to a user but the directory
// "dir" of the lower, which nobody but root may change.
func asCaller(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, worlds(t), oneHost)
	w.tweak = func(c *Config) { c.AsCaller = true }
	must(t, os.Chmod(w.dir, 0o755))
	w.mkdir("upper", "dir")
	for _, l := range []string{"l1", "upper"} {
		must(t, filepath.WalkDir(w.at(l), func(p string, _ os.DirEntry, err error) error {
			must(t, err)
			return os.Lchown(p, 1000, 1000)
		}))
	}
	must(t, os.Chown(w.at("l1/dir"), 0, 0))
	must(t, os.Chmod(w.at("l1/dir"), 0o755))
	must(t, w.open())
	return w
}

// renameAs is d.rename by a user.
func renameAs(d *driver, uid uint32, old, name string, flags uint32) unix.Errno {
	to, base, errno := d.parent(name)
	if errno != 0 {
		return errno
	}
	return d.in(old, func(h fuse.InHeader, oldBase string) fuse.Status {
		h.Caller = fuse.Caller{Owner: fuse.Owner{Uid: uid, Gid: uid}}
		return d.fs.Raw().Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: to.NodeId, Flags: flags}, oldBase, base)
	})
}

// TestRenameInPartsAsCaller: with creds=caller the caller's rights decide in each layer,
// also for who ends what a crash interrupted.
func TestRenameInPartsAsCaller(t *testing.T) {
	stands := func(t *testing.T, w *world, want map[string]bool) {
		t.Helper()
		for path, has := range want {
			if w.has(path) != has {
				t.Errorf("%s is there: %v", path, !has)
			}
		}
	}
	t.Run("rights", func(t *testing.T) {
		w := asCaller(t)
		defer w.remove()
		d := &driver{fs: w.fs}
		for _, c := range []struct {
			old, name string
			flags     uint32
			want      unix.Errno
		}{
			{"both dir", "empty/moved", 0, 0},
			{"empty/moved", "up dir", unix.RENAME_EXCHANGE, 0},
			{"up dir", "dir/moved", 0, unix.EACCES},                  // dir is root's in the lower
			{"up dir", "dir/sub", unix.RENAME_EXCHANGE, unix.EACCES}, // which is found when it has moved above
		} {
			if errno := renameAs(d, 1000, c.old, c.name, c.flags); errno != c.want {
				t.Errorf("%s to %s: %v, want %v", c.old, c.name, errno, c.want)
			}
		}
		if errno := renameAs(d, 1002, "up dir", "mine", 0); errno != unix.EACCES {
			t.Errorf("by a stranger: %v", errno)
		}
		d.end()
		stands(t, w, map[string]bool{
			"upper/up dir/v": true, "l1/up dir/l": true, "upper/empty/moved/u": true, "l1/empty/moved": false, "upper/both dir": false, "l1/both dir": false,
			"l1/dir/sub/c": true, "upper/dir/moved": false, "upper/.migratefs/rename": false,
		})
	})
	split := func(t *testing.T) *world {
		w := asCaller(t)
		d := &driver{fs: w.fs}
		dyingAt(3)
		errno := renameAs(d, 1000, "both dir", "new", 0)
		sys.SetHook(nil)
		d.end()
		if errno != unix.EIO || !w.has("l1/new/l") || !w.has("upper/both dir/v") {
			t.Fatalf("not split: %v", errno)
		}
		b, err := os.ReadFile(w.at("upper/.migratefs/rename"))
		if err != nil || !strings.Contains(string(b), "\nas 1000 1000\n") {
			t.Errorf("it is not said whose rename it is: %q, %v", b, err)
		}
		w.close()
		return w
	}
	t.Run("next mount", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		must(t, w.open())
		stands(t, w, map[string]bool{"upper/new/v": true, "l1/new/l": true, "upper/both dir": false, "upper/.migratefs/rename": false})
	})
	t.Run("by who has no right any more", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		must(t, os.Chown(w.at("upper"), 0, 0))
		must(t, os.Chmod(w.at("upper"), 0o755))
		must(t, w.open())
		stands(t, w, map[string]bool{"upper/both dir/v": true, "l1/both dir/l": true, "upper/new": false, "l1/new": false, "upper/.migratefs/rename": false})
	})
	t.Run("by who has no right in either", func(t *testing.T) {
		w := split(t)
		defer w.remove()
		must(t, os.Chown(w.at("upper"), 0, 0))
		must(t, os.Chmod(w.at("upper"), 0o755))
		must(t, os.Chown(w.at("l1"), 0, 0))
		must(t, os.Chmod(w.at("l1"), 0o755))
		must(t, w.open()) // the daemon does it: what is in two places cannot stay so
		stands(t, w, map[string]bool{"upper/new/v": true, "l1/new/l": true, "upper/both dir": false, "upper/.migratefs/rename": false})
	})
}

func TestIntentIsRead(t *testing.T) {
	id := func(layer, rest string) copyup.Origin { return copyup.Origin(strings.Repeat(layer, shortID) + rest) }
	in := &intent{
		from: "a/b\nc\xff\"", to: layers.Path(strings.Repeat("d", 255)),
		parts: []copyup.Origin{id("1", "-2a-5.1"), id("f", "-7-0.0")}, over: id("f", "-8-1.1"),
	}
	out, err := parseIntent(in.encode())
	must(t, err)
	if out.from != in.from || out.to != in.to || len(out.parts) != 2 || out.parts[1] != in.parts[1] || out.over != in.over {
		t.Errorf("%q was read as %+v", in.encode(), out)
	}
	good := string(in.encode())
	exchange := &intent{
		from: "a", to: "b", parts: in.parts, back: []copyup.Origin{id("f", "-9-1.1"), id("2", "-a-1.1")}, file: "to",
		as: &sys.Cred{UID: 1000, GID: 4294967295, Groups: []uint32{4, 20}},
	}
	out, err = parseIntent(exchange.encode())
	must(t, err)
	if !reflect.DeepEqual(out, exchange) {
		t.Errorf("%q was read as %+v", exchange.encode(), out)
	}
	if legs := out.route(); len(legs) != 3 || legs[1].part != exchange.parts[1] || legs[1].back != exchange.back[0] || legs[2].part != "" || legs[2].back != exchange.back[1] {
		t.Errorf("the legs are %+v", legs)
	}
	for _, whole := range []string{good, string(exchange.encode())} {
		for n := range whole {
			if _, err := parseIntent([]byte(whole[:n])); !errors.Is(err, layers.ErrCorrupt) {
				t.Errorf("cut after %d bytes: %v", n, err)
			}
		}
	}
	for _, x := range [][2]string{
		{"file to", "file too"}, {"file to", "file to\nfile from"}, {"as 1000", "as -1"}, {"as 1000", "as x"}, {"as 1000 4294967295 4 20", "as 1000"}, {"back", "beck"},
		{" 20\n", "\n20\n"}, {"end", "over " + string(in.over) + "\nend"}, {"end", "part " + string(in.over) + "\nend"}, {"file to", "over " + string(in.over)},
	} {
		b := strings.Replace(string(exchange.encode()), x[0], x[1], 1)
		if _, err := parseIntent([]byte(b)); !errors.Is(err, layers.ErrCorrupt) {
			t.Errorf("%q in place of %q: %v", x[1], x[0], err)
		}
	}
	for _, x := range [][2]string{
		{"rename 1", "rename 2"}, {"part 1", "pert 1"}, {"part 1", "part 1-"}, {"to \"d", "to \"/d"}, {"to \"d", "to \"../d"},
		{"to \"d", "to \".migratefs/d"}, {"from", "form"}, {"over", "part"}, {"end", "over " + string(in.over) + "\nend"},
	} {
		b := strings.Replace(good, x[0], x[1], 1)
		if _, err := parseIntent([]byte(b)); x[0] != "over" && !errors.Is(err, layers.ErrCorrupt) {
			t.Errorf("%s in place of %s: %v", x[1], x[0], err)
		}
	}
	w := newWorld(t, worlds(t), oneHost)
	defer w.remove()
	must(t, w.open())
	w.close()
	must(t, os.WriteFile(w.at("upper/.migratefs/rename"), []byte(good[:50]), 0o600))
	if err := w.open(); !errors.Is(err, layers.ErrCorrupt) {
		t.Errorf("mounted with half an intent: %v", err)
	}
	if all := w.check(true); len(all) == 0 || all[0].Kind != FoundIntent || all[0].Mends != "" || !w.has("upper/.migratefs/rename") {
		t.Errorf("found %v", all)
	}
}

// TestExchangeWhileLowerCopyGoes has a file come up, whose lower copy is about to be
// removed, when it is to change places with a directory.
func TestExchangeWhileLowerCopyGoes(t *testing.T) {
	w := newWorld(t, worlds(t), oneHost)
	must(t, w.open())
	d := &driver{fs: w.fs}
	for _, errno := range []unix.Errno{d.mkdir("made"), d.mkdir("made/d")} {
		if errno != 0 {
			t.Fatal(errno)
		}
	}
	renamed, wrote := make(chan unix.Errno, 1), make(chan unix.Errno, 1)
	locked := make(chan struct{}) // the file is, by who brings it up
	var writer atomic.Uint64
	linked, begun := false, false
	sys.SetHook(func(c sys.Change) error {
		switch goid() {
		case writer.Load():
			linked = linked || c == "link"
			if !linked || c != "fsync" || begun {
				return nil
			}
			begun = true
			close(locked)
			// Until the other has FS.removing, or waits for the file before that.
			for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end) && w.fs.removing.TryRLock(); time.Sleep(time.Millisecond) {
				w.fs.removing.RUnlock()
			}
		default:
			if c == "mkdir" { // of made, in the lower: it has looked at both ends
				go func() {
					d := &driver{fs: w.fs}
					defer d.end()
					writer.Store(goid())
					wrote <- d.write("low", "WRITTEN", 0)
				}()
				<-locked
			}
		}
		return nil
	})
	defer sys.SetHook(nil)
	go func() {
		d := &driver{fs: w.fs}
		defer d.end()
		renamed <- d.rename("low", "made/d", unix.RENAME_EXCHANGE)
	}()
	for _, c := range []chan unix.Errno{renamed, wrote} {
		select {
		case errno := <-c:
			if errno != 0 {
				t.Error(errno)
			}
		case <-time.After(time.Minute):
			t.Fatal("the rename and the copy-up wait for each other")
		}
	}
	sys.SetHook(nil)
	v, err := w.look()
	must(t, err)
	if v["made/d"].content != "WRITTENow" || v["low"].typ != unix.S_IFDIR {
		t.Errorf("made/d is %v, low is %v", v["made/d"], v["low"])
	}
	d.end()
	w.remove()
}
