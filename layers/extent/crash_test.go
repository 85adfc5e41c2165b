package extent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// An operation is made on a pending object of eight pages: page 0 fetched, part
// of page 1 written, synced; page 2 fetched and page 3 written after that.
var operations = []struct {
	name   string
	do     func(s *Store, o *Object) error
	after  func(b []byte) []byte
	always bool // what it does may be seen even if it returns an error
	torn   bool // a death may leave some of it
}{
	{"write into a missing range", func(_ *Store, o *Object) error {
		_, err := o.WriteAt([]byte("new"), 5*page)
		return err
	}, func(b []byte) []byte { copy(b[5*page:], "new"); return b }, true, false},
	{"write into a fetched range", func(_ *Store, o *Object) error {
		_, err := o.WriteAt([]byte("new"), 10)
		return err
	}, func(b []byte) []byte { copy(b[10:], "new"); return b }, true, false},
	{"write across the limit", func(_ *Store, o *Object) error {
		_, err := o.WriteAt([]byte("new new new"), 8*page-5)
		return err
	}, func(b []byte) []byte { return append(b[:8*page-5], "new new new"...) }, true, true},
	{"append", func(_ *Store, o *Object) error {
		_, err := o.WriteAt([]byte("new"), 8*page)
		return err
	}, func(b []byte) []byte { return append(b, "new"...) }, true, false},
	{"punch", func(_ *Store, o *Object) error { return o.Punch(page, 3*page) },
		func(b []byte) []byte { clear(b[page : 4*page]); return b }, true, true},
	{"cut", func(_ *Store, o *Object) error { return o.Truncate(page + 50) },
		func(b []byte) []byte { return b[:page+50] }, true, false},
	{"grow", func(_ *Store, o *Object) error { return o.Truncate(9 * page) },
		func(b []byte) []byte { return append(b, make([]byte, page)...) }, true, false},
	{"sync", func(_ *Store, o *Object) error { return o.Sync(false) }, same, false, false},
	{"sync of the store", func(s *Store, _ *Object) error { return s.Sync() }, same, false, false},
	{"compaction", func(_ *Store, o *Object) error {
		o.syncMu.Lock()
		defer o.syncMu.Unlock()
		o.wmu.Lock()
		defer o.wmu.Unlock()
		return o.compact()
	}, same, false, false},
}

func same(b []byte) []byte { return b }

// prepare makes the object that operations work on.
func prepare(t *testing.T, dir string, src *source) (*Store, *Object, ID, []byte) {
	t.Helper()
	s := openStore(t, dir, bootA)
	o, id, err := s.NewPending(sourceOf(src.content))
	must(t, err)
	model := bytes.Clone(src.content)
	write := func(text string, off int64) {
		_, err := o.WriteAt([]byte(text), off)
		must(t, err)
		copy(model[off:], text)
	}
	must(t, o.Fill(ctx, src, 0, page))
	write("synced", page+3)
	must(t, o.Sync(true))
	must(t, o.Fill(ctx, src, 2*page, page))
	write("not synced", 3*page+3)
	return s, o, id, model
}

// everyFault calls f once for each change that an operation makes: with that
// change failing, and with all from it on failing, which is what a death just
// before it leaves. f returns whether the fault was met.
func everyFault(t *testing.T, f func(t *testing.T, which func(n int) bool, dead bool) (met bool)) {
	for _, dead := range []bool{false, true} {
		for n := 1; ; n++ {
			met := false
			t.Run(fmt.Sprintf("change=%d,dead=%v", n, dead), func(t *testing.T) {
				met = f(t, func(i int) bool { return i == n || dead && i > n }, dead)
			})
			if !met {
				if n == 1 {
					t.Fatal("no change was made")
				}
				break
			}
			if n > 50 {
				t.Fatal("there is no end to it")
			}
		}
	}
}

func TestEveryChangeFails(t *testing.T) {
	src := &source{content: noise(8*page, 1)}
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			everyFault(t, func(t *testing.T, which func(int) bool, dead bool) bool {
				dir := t.TempDir()
				s, o, id, before := prepare(t, dir, src)
				after := op.after(bytes.Clone(before))
				fault := failing(t, which, unix.ENOSPC)
				err := op.do(s, o)
				fault.off()
				if fault.hits == 0 {
					must(t, err)
				}
				old := func(b []byte) bool { return err != nil && bytes.Equal(b, before) }
				done := func(b []byte) bool { return (err == nil || op.always) && bytes.Equal(b, after) }
				if !dead {
					// Life goes on: what is seen now is what is there later.
					got := contentOf(t, o, unsettled{src})
					if !old(got) && !done(got) && !(err != nil && op.torn && begun(got, before, after)) {
						t.Fatalf("half of it is seen (err %v)", err)
					}
					_, werr := o.WriteAt([]byte("life goes on"), 20)
					must(t, werr)
					if got = bytes.Clone(got); len(got) < 32 {
						t.Fatal("short")
					}
					copy(got[20:], "life goes on")
					kill(s, o)
					s = openStore(t, dir, bootA)
					o, err := s.Pending(id)
					must(t, err)
					want(t, "after life went on", contentOf(t, o, unsettled{src}), got)
					kill(s, o)
					return fault.hits > 0
				}
				kill(s, o)
				s = openStore(t, dir, bootA)
				o, e := s.Pending(id)
				must(t, e)
				got := contentOf(t, o, unsettled{src})
				if !old(got) && !done(got) && !(err != nil && op.torn && (mixed(got, before, after) || begun(got, before, after))) {
					t.Fatalf("something else is seen (err %v)", err)
				}
				kill(s, o)
				return fault.hits > 0
			})
		})
	}
}

// mixed reports whether each byte is one of before or after, as when a kernel
// that is interrupted has written some pages of a range and not others.
func mixed(got, before, after []byte) bool {
	for i := range got {
		if i >= len(before) || i >= len(after) || got[i] != before[i] && got[i] != after[i] {
			return false
		}
	}
	return len(got) == len(before)
}

// begun reports whether got is before with the beginning of what makes it after.
func begun(got, before, after []byte) bool {
	for n := range after {
		if bytes.Equal(got, append(bytes.Clone(after[:n]), before[min(n, len(before)):]...)) {
			return true
		}
	}
	return false
}

func TestEveryChangeOfACreationFails(t *testing.T) {
	src := &source{content: noise(2*page, 1)}
	everyFault(t, func(t *testing.T, which func(int) bool, dead bool) bool {
		dir := t.TempDir()
		s := openStore(t, dir, bootA)
		fault := failing(t, which, unix.ENOSPC)
		o, err := s.Cached(sourceOf(src.content))
		fault.off()
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if err == nil {
			kill(s, o)
		} else {
			kill(s)
		}
		s = openStore(t, dir, bootA)
		o, err = s.Cached(sourceOf(src.content))
		must(t, err)
		want(t, "cached", contentOf(t, o, src), src.content)
		must(t, o.Close())
		must(t, s.Close())
		return fault.hits > 0
	})
	everyFault(t, func(t *testing.T, which func(int) bool, dead bool) bool {
		dir := t.TempDir()
		s := openStore(t, dir, bootA)
		fault := failing(t, which, unix.ENOSPC)
		o, id, err := s.NewPending(sourceOf(src.content))
		fault.off()
		if err == nil {
			kill(s, o)
		} else {
			kill(s)
		}
		s = openStore(t, dir, bootB)
		defer s.Close()
		ids, e := s.Pendings()
		must(t, e)
		if err == nil {
			o, err = s.Pending(id)
			must(t, err)
			want(t, "pending", contentOf(t, o, src), src.content)
			must(t, o.Close())
		}
		for _, id := range ids {
			must(t, s.Remove(id))
		}
		empty(t, dir)
		return fault.hits > 0
	})
}

// empty checks that no object is left in dir.
func empty(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		if e.Name() != epochsName {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func TestEveryChangeOfAnAdoptionFails(t *testing.T) {
	src := &source{content: noise(4*page, 1)}
	everyFault(t, func(t *testing.T, which func(int) bool, dead bool) bool {
		dir := t.TempDir()
		s := openStore(t, dir, bootA)
		o, err := s.Cached(sourceOf(src.content))
		must(t, err)
		must(t, o.Fill(ctx, src, 0, page))
		fault := failing(t, which, unix.EIO)
		id, err := s.Adopt(o)
		fault.off()
		want(t, "who has it open", contentOf(t, o, unsettled{src}), src.content)
		if err != nil {
			if _, err := o.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EROFS) {
				t.Errorf("write without an adoption: %v", err)
			}
		}
		if !dead && err != nil {
			// It can be tried again, with this object or with a new one.
			must(t, o.Close())
			if o, err = s.Cached(sourceOf(src.content)); err != nil {
				t.Fatal(err)
			}
			id, err = s.Adopt(o)
			must(t, err)
		}
		kill(s, o)
		s = openStore(t, dir, bootA)
		defer s.Close()
		if err == nil {
			o, err := s.Pending(id)
			must(t, err)
			want(t, "adopted", contentOf(t, o, src), src.content)
			must(t, o.Close())
		}
		o, e := s.Cached(sourceOf(src.content))
		must(t, e)
		want(t, "cached again", contentOf(t, o, src), src.content)
		must(t, o.Close())
		return fault.hits > 0
	})
}

func TestEveryChangeOfARemovalFails(t *testing.T) {
	src := &source{content: noise(8*page, 1)}
	everyFault(t, func(t *testing.T, which func(int) bool, dead bool) bool {
		dir := t.TempDir()
		s, o, id, model := prepare(t, dir, src)
		fault := failing(t, which, unix.EIO)
		err := s.Remove(id)
		fault.off()
		want(t, "removed and open", contentOf(t, o, src), model)
		kill(s, o)
		s = openStore(t, dir, bootA)
		defer s.Close()
		ids, e := s.Pendings()
		must(t, e)
		if (err == nil) != (len(ids) == 0) {
			t.Fatalf("removal: %v, left %v", err, ids)
		}
		for _, id := range ids {
			must(t, s.Remove(id))
		}
		empty(t, dir)
		return fault.hits > 0
	})
}

// The orders that the crash table relies on.
func TestOrderOfChanges(t *testing.T) {
	src := &source{content: noise(8*page, 1)}
	for name, wanted := range map[string]string{
		"write into a missing range": "write write",
		"write across the limit":     "write write write",
		"write into a fetched range": "write fdatasync write write",
		"punch":                      "write fdatasync fallocate write", // it is the first into a piece
		"cut":                        "write fdatasync truncate write",
		"grow":                       "truncate",
		"sync":                       "fsync write fdatasync",
		"sync of the store":          "syncfs create write fdatasync rename fsync",
		"compaction":                 "fdatasync create write fdatasync rename fsync",
	} {
		for _, op := range operations {
			if op.name != name {
				continue
			}
			s, o, _, _ := prepare(t, t.TempDir(), src)
			var got []string
			sys.SetHook(func(c sys.Change) error {
				got = append(got, string(c))
				return nil
			})
			err := op.do(s, o)
			sys.SetHook(nil)
			must(t, err)
			if strings.Join(got, " ") != wanted {
				t.Errorf("%s: %v, want %s", name, got, wanted)
			}
			must(t, o.Close())
			must(t, s.Close())
		}
	}
}

// A barrier vouches for nothing that was written while the data was synced.
func TestBarrierCoversWhatWasSynced(t *testing.T) {
	dir := t.TempDir()
	src := &source{content: noise(8*page, 1)}
	s, o, id, model := prepare(t, dir, src)
	during := false
	sys.SetHook(func(c sys.Change) error {
		if c == "fdatasync" && !during {
			during = true
			// A write that this sync need not have caught.
			_, err := o.WriteAt([]byte("during"), 6*page)
			return err
		}
		return nil
	})
	err := o.Sync(true)
	sys.SetHook(nil)
	must(t, err)
	kill(s, o)
	// Its data never reached the disk.
	path := filepath.Join(dir, id.name()+dataSuffix)
	data, err := os.ReadFile(path)
	must(t, err)
	clear(data[6*page : 7*page])
	must(t, os.WriteFile(path, data, 0o600))
	s = openStore(t, dir, bootB)
	defer s.Close()
	o, err = s.Pending(id)
	must(t, err)
	defer o.Close()
	want(t, "after a power loss", contentOf(t, o, src), model)
}

// A sync that failed once does not succeed later: the kernel has forgotten.
func TestFailedSyncStaysFailed(t *testing.T) {
	src := &source{content: noise(8*page, 1)}
	s, o, _, _ := prepare(t, t.TempDir(), src)
	defer s.Close()
	defer o.Close()
	fault := failing(t, func(int) bool { return true }, unix.EIO)
	if err := o.Sync(true); !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	fault.off()
	if err := o.Sync(true); !errors.Is(err, unix.EIO) {
		t.Fatalf("the second: %v", err)
	}
}

func TestSweepSparesPending(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"c00.data", "c01.map", "p00.tmp", "epochs.tmp", "pff.data", "other"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	s := openStore(t, dir, bootA)
	defer s.Close()
	names, err := s.names()
	must(t, err)
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "other pff.data" {
		t.Fatalf("left: %s", got)
	}
}
