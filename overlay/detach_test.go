package overlay

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/whiteout"
)

func aDeparture() *Departure {
	a := layers.Attr{Known: layers.KnownOwner | layers.KnownSize | layers.KnownTimes, Mode: unix.S_IFREG | 0o4755, UID: 7, GID: 8, Size: 1 << 40}
	a.Mtime = layers.Time{Sec: -5, Nsec: 123}
	a.Atime = a.Mtime
	dir := layers.Attr{Mode: unix.S_IFDIR | 0o755}
	return &Departure{
		When: time.Unix(1_700_000_000, 0).UTC(), Scope: "what \"lies\"\nat /",
		sources: []*departed{
			{id: "host:/\nend of it", dirs: map[layers.Path]*departedDir{
				"":    {attr: dir, left: map[string]layers.Attr{"a\nend b": a, "unknown": {Mode: unix.S_IFLNK}}},
				"d/e": {attr: dir, left: map[string]layers.Attr{}},
			}},
			{id: "other", dirs: map[layers.Path]*departedDir{}},
		},
	}
}

func TestDepartureComesBack(t *testing.T) {
	want := aDeparture()
	for _, want.Settling = range []bool{false, true} {
		b := want.encode()
		got, err := parseDeparture(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v\n%+v is not\n%+v\n%s", err, got, want, b)
		}
		for n := range b {
			if _, err := parseDeparture(b[:n]); err == nil {
				t.Fatalf("its first %d bytes of %d are taken for all of it", n, len(b))
			}
			flipped := bytes.Clone(b)
			flipped[n] ^= 1
			if _, err := parseDeparture(flipped); err == nil {
				t.Fatalf("with byte %d flipped it is taken for what was written", n)
			}
		}
	}
}

func FuzzDeparture(f *testing.F) {
	f.Add(aDeparture().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDeparture(b)
		if err != nil {
			return
		}
		again, err := parseDeparture(d.encode())
		if err != nil || !reflect.DeepEqual(again.sources, d.sources) {
			t.Fatalf("%v: what was read is not what is read again", err)
		}
	})
}

// newSourceWorld is a world with a few files of a source, some of them changed here.
func newSourceWorld(t *testing.T, base string) *world {
	t.Helper()
	w := newWorld(t, base, stacking{name: "remote", mode: Overlay, lowers: 1, remote: true})
	for _, name := range []string{"both", "hard1", "hard2", "other", "wh", "hid", "whdir", "both dir", "target", "dir/a", "dir/hard3", "fifo"} {
		must(t, os.RemoveAll(w.at("l1", name)))
		must(t, os.RemoveAll(w.at("upper", name)))
	}
	must(t, w.open())
	d := &driver{fs: w.fs}
	for name, errno := range map[string]unix.Errno{
		"write":  d.write("low", "P", 0),
		"unlink": d.unlink("dir/b"),
		"create": d.create("dir/new", "made here"),
		"mkdir":  d.mkdir("here"),
	} {
		if errno != 0 {
			t.Fatalf("%s: %v", name, errno)
		}
	}
	d.end()
	return w
}

// endMigration drains the source and lets go of it, as far as it gets.
func (w *world) endMigration() error {
	for _, op := range []string{opDrain, opDetach} {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		err := w.fs.runJob(ctx, &job{op: op}, w.fs.ending.usual(), false)
		stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// TestDetachDeath has the daemon die before each change of a drain and a detach: what
// is seen is the same before and after, and the next one ends it.
func TestDetachDeath(t *testing.T) {
	base := worlds(t)
	w := newSourceWorld(t, base)
	want, err := w.look()
	must(t, err)
	must(t, w.endMigration())
	must(t, os.Rename(w.at("l1"), w.at("l1 is gone")))
	must(t, os.Mkdir(w.at("l1"), 0o755))
	check := func(where string) {
		t.Helper()
		now, err := w.look()
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		if d := want.allow(now).diff(now); d != "" {
			t.Fatalf("%s:\n\t%s", where, d)
		}
	}
	check("detached, with the source gone")
	w.close()
	must(t, w.open())
	if !w.fs.Detached() {
		t.Fatal("not detached after a remount")
	}
	check("remounted, with the source gone")
	w.remove()
	for n := 1; ; n++ {
		w := newSourceWorld(t, base)
		f := &fault{at: n, dead: true, err: errDead}
		f.set()
		ended := w.endMigration()
		w.close()
		sys.SetHook(nil)
		where := f.where()
		must(t, w.open())
		now, err := w.look()
		if err != nil {
			t.Fatalf("death at %s: %v", where, err)
		}
		if d := want.allow(now).diff(now); d != "" {
			t.Fatalf("death at %s:\n\t%s", where, d)
		}
		if ended == nil && !w.fs.Detached() {
			t.Fatalf("death at %s: it was detached, and is not", where)
		}
		if !w.fs.Detached() {
			must(t, w.endMigration())
		}
		w.close()
		w.remove()
		if !f.met() {
			return
		}
	}
}

// TestSettleDeath has a settle die before each change: what it leaves can be mounted,
// and shows what the plain directories will have, and the next settle ends it.
func TestSettleDeath(t *testing.T) {
	base := worlds(t)
	begin := func() *world {
		w := newSourceWorld(t, base)
		d := &driver{fs: w.fs}
		if errno := d.rename("dir", "moved", 0); errno != 0 && errno != unix.EXDEV {
			t.Fatal(errno)
		}
		d.end()
		must(t, w.endMigration())
		return w
	}
	settle := func(w *world) error {
		upper, err := os.Open(w.at("upper"))
		must(t, err)
		defer upper.Close()
		work, err := os.Open(w.at("work"))
		must(t, err)
		defer work.Close()
		s := Settle{Upper: int(upper.Fd()), Work: int(work.Fd()), Format: whiteout.Trusted}
		_, err = s.Run(context.Background())
		return err
	}
	w := begin()
	want, err := w.look()
	must(t, err)
	w.close()
	plain := func(w *world, where string) {
		t.Helper()
		left, err := os.ReadDir(w.at("work"))
		must(t, err)
		if len(left) > 0 {
			t.Errorf("%s: %v is left in the work directory", where, left)
		}
		must(t, filepath.WalkDir(w.at("upper"), func(p string, _ os.DirEntry, err error) error {
			must(t, err)
			rel, _ := filepath.Rel(w.at("upper"), p)
			var st unix.Stat_t
			must(t, unix.Lstat(p, &st))
			names, err := sys.Listxattr(unix.AT_FDCWD, p)
			must(t, err)
			if i := slices.IndexFunc(names, func(s string) bool { return len(s) > 8 && s[:8] == "trusted." }); i >= 0 {
				t.Errorf("%s: %s has %s", where, rel, names[i])
			}
			is, seen := want[rel]
			switch {
			case rel == ".":
			case !seen:
				t.Errorf("%s: %s was not seen in the mount", where, rel)
			case is.typ != st.Mode&unix.S_IFMT || is.mode != st.Mode&0o7777 || is.uid != st.Uid:
				t.Errorf("%s: %s is %o of %d, and was %v", where, rel, st.Mode, st.Uid, is)
			case is.typ == unix.S_IFREG:
				b, err := os.ReadFile(p)
				must(t, err)
				if string(b) != is.content || st.Nlink != 1 {
					t.Errorf("%s: %s holds %q, with %d names, and was %v", where, rel, b, st.Nlink, is)
				}
			}
			return nil
		}))
		for name := range want {
			if _, err := os.Lstat(w.at("upper", name)); err != nil {
				t.Errorf("%s: %v", where, err)
			}
		}
	}
	must(t, settle(w))
	plain(w, "settled")
	must(t, settle(w))
	plain(w, "settled again")
	w.remove()
	for n := 1; ; n++ {
		w := begin()
		w.close()
		f := &fault{at: n, dead: true, err: errDead}
		f.set()
		err := settle(w)
		sys.SetHook(nil)
		where := "death at " + f.where()
		if f.met() && err == nil {
			t.Errorf("%s: it is said to have succeeded", where)
		}
		if d, err := os.ReadFile(w.at("work", detachedFile)); err == nil {
			if _, err := parseDeparture(d); err != nil {
				t.Errorf("%s: %v", where, err)
			}
			must(t, w.open())
			now, err := w.look()
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			if d := want.allow(now).diff(now); d != "" {
				t.Errorf("%s, mounted:\n\t%s", where, d)
			}
			w.close()
		}
		if err := settle(w); err != nil {
			t.Errorf("%s, and again: %v", where, err)
		}
		plain(w, where)
		w.remove()
		if !f.met() {
			return
		}
	}
}

// TestSettleRefuses what is not whole, and what was not detached.
func TestSettleRefuses(t *testing.T) {
	w := newSourceWorld(t, worlds(t))
	defer w.remove()
	w.close()
	upper, err := os.Open(w.at("upper"))
	must(t, err)
	defer upper.Close()
	work, err := os.Open(w.at("work"))
	must(t, err)
	defer work.Close()
	before := w.upperModes(t)
	var said []layers.Path
	s := Settle{Upper: int(upper.Fd()), Work: int(work.Fd()), Format: whiteout.Trusted, Failed: func(p layers.Path, _ error) { said = append(said, p) }}
	if _, err := s.Run(context.Background()); !errors.Is(err, ErrUnwhole) || !slices.Contains(said, "low") {
		t.Errorf("with a stub: %v, about %q", err, said)
	}
	// Asked for in the other format, it is not seen to be one: its content is here still.
	d := Departure{sources: []*departed{{id: "a source"}}}
	must(t, d.write(s.Work))
	s.Format = whiteout.User
	if _, err := s.Run(context.Background()); !errors.Is(err, errHidden) {
		t.Errorf("with a stub that is not seen: %v", err)
	}
	must(t, os.Remove(w.at("work", detachedFile)))
	s.Format = whiteout.Trusted
	must(t, os.Remove(w.at("upper", "low")))
	if _, err := s.Run(context.Background()); !errors.Is(err, ErrAttached) {
		t.Errorf("not detached: %v", err)
	}
	after := w.upperModes(t)
	delete(before, "low")
	if !reflect.DeepEqual(before, after) {
		t.Errorf("it changed something:\n%v\n%v", before, after)
	}
}

// upperModes is the names in the upper, with their modes.
func (w *world) upperModes(t *testing.T) map[string]uint32 {
	all := map[string]uint32{}
	must(t, filepath.WalkDir(w.at("upper"), func(p string, _ os.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		rel, _ := filepath.Rel(w.at("upper"), p)
		all[rel] = st.Mode
		return nil
	}))
	return all
}

// TestDepartureOfDeepDirectory: a path of any length comes back, as directories may be as
// deep as any.
func TestDepartureOfDeepDirectory(t *testing.T) {
	want := aDeparture()
	deep := layers.Path(strings.Repeat("a directory/", 10_000) + "the last")
	want.sources[0].dirs[deep] = &departedDir{attr: layers.Attr{Mode: unix.S_IFDIR | 0o755}, left: map[string]layers.Attr{}}
	got, err := parseDeparture(want.encode())
	if err != nil || got.sources[0].dirs[deep] == nil {
		t.Fatalf("%v, with a directory %d bytes deep", err, len(deep))
	}
}

// TestDetachIsDurable: all that came is on the disk before anything says that it need not
// come again.
func TestDetachIsDurable(t *testing.T) {
	w := newSourceWorld(t, worlds(t))
	defer w.remove()
	defer w.close()
	detach := func(op string) {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		defer stop()
		must(t, w.fs.runJob(ctx, &job{op: op}, w.fs.ending.usual(), false))
	}
	detach(opDrain)
	f := &fault{}
	f.set()
	defer sys.SetHook(nil)
	detach(opDetach)
	if got, want := strings.Join(f.names, " "), "syncfs fsync unlink create write fsync rename fsync"; got != want {
		t.Errorf("a detach does\n\t%s, want\n\t%s", got, want)
	}
}

// TestTouchedAfterTornLine: a crash, or a full disk, may end WORK/touched within a line.
// What comes after that is not lost.
func TestTouchedAfterTornLine(t *testing.T) {
	work, err := os.Open(t.TempDir())
	must(t, err)
	defer work.Close()
	open := func() *FS {
		fs := &FS{work: int(work.Fd()), log: slog.New(slog.DiscardHandler)}
		fs.ending.seeded = true
		must(t, fs.openTouched())
		t.Cleanup(func() { unix.Close(fs.ending.touched.fd) })
		return fs
	}
	use := func(fs *FS, path layers.Path) {
		fs.touch(&lowerRef{layer: &layer{leave: &leaving{}}, path: path})
	}
	must(t, os.WriteFile(filepath.Join(work.Name(), touchedFile), []byte("\"first\"\n\"to"), 0o600))
	fs := open()
	use(fs, "second")
	sys.SetHook(func(sys.Change) error { return unix.ENOSPC })
	use(fs, "third")
	sys.SetHook(nil)
	use(fs, "fourth")
	got := slices.Sorted(maps.Keys(open().ending.touched.names))
	if want := []layers.Path{"first", "fourth", "second"}; !slices.Equal(got, want) {
		t.Errorf("used were %q, want %q", got, want)
	}
}
