package overlay

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// openFile leaves path open in the way of flags.
func (d *driver) openFile(t *testing.T, path string, flags uint32) (fh uint64, n *node) {
	t.Helper()
	errno := d.on(path, func(h fuse.InHeader) fuse.Status {
		var out fuse.OpenOut
		st := d.fs.Open(nil, &fuse.OpenIn{InHeader: h, Flags: flags}, &out)
		if st == 0 {
			fh, n = out.Fh, d.fs.table.get(h.NodeId)
			d.open = append(d.open, fh)
		}
		return st
	})
	if errno != 0 {
		t.Fatal(path, errno)
	}
	return fh, n
}

func (d *driver) append(fh uint64, b string) unix.Errno {
	_, st := d.fs.Write(nil, &fuse.WriteIn{Fh: fh, Size: uint32(len(b)), Flags: unix.O_APPEND}, []byte(b))
	return unix.Errno(st)
}

// TestTwoHostsAppend: every record that either of two hosts appends to a lower file
// is there, and both go on in one file.
func TestTwoHostsAppend(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	const records = 200
	var all sync.WaitGroup
	for i, w := range []*world{a, b} {
		d := &driver{fs: w.fs}
		defer d.end()
		fh, _ := d.openFile(t, "low", unix.O_RDWR|unix.O_APPEND)
		all.Go(func() {
			for r := range records {
				if errno := d.append(fh, fmt.Sprintf("<%d:%d>", i, r)); errno != 0 {
					t.Errorf("host %d, record %d: %v", i, r, errno)
				}
			}
		})
	}
	all.Wait()
	got, err := os.ReadFile(a.at("upper", "low"))
	must(t, err)
	for i := range 2 {
		for r := range records {
			if n := bytes.Count(got, fmt.Appendf(nil, "<%d:%d>", i, r)); n != 1 {
				t.Errorf("record %d of host %d is there %d times", r, i, n)
			}
		}
	}
	if !bytes.HasPrefix(got, []byte("lower low<")) {
		t.Errorf("what the file began with is %q", got[:min(20, len(got))])
	}
	if _, err := os.Lstat(a.at("l1", "low")); !os.IsNotExist(err) {
		t.Error("the lower copy is left")
	}
}

// TestSyncedWriteStays: what one host has written and synced through its copy, no
// later copy of another replaces; that host's open files see it, as the same file.
func TestSyncedWriteStays(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	db := &driver{fs: b.fs}
	defer db.end()
	reads, n := db.openFile(t, "low", unix.O_RDONLY)
	writes, _ := db.openFile(t, "low", unix.O_RDWR)
	ino := n.ino

	da := &driver{fs: a.fs}
	defer da.end()
	fh, _ := da.openFile(t, "low", unix.O_RDWR)
	if _, st := a.fs.Write(nil, &fuse.WriteIn{Fh: fh, Size: 6}, []byte("SYNCED")); st != 0 {
		t.Fatal(st)
	}
	if st := a.fs.Fsync(nil, &fuse.FsyncIn{Fh: fh}); st != 0 {
		t.Fatal(st)
	}
	if got, errno := db.readHandle(reads); errno != 0 || string(got) != "SYNCEDlow" {
		t.Errorf("a descriptor on another host reads %q, %v", got, errno)
	}
	if _, st := b.fs.Write(nil, &fuse.WriteIn{Fh: writes, Offset: 6, Size: 3}, []byte("AND")); st != 0 {
		t.Fatal(st)
	}
	if got, errno := da.readHandle(fh); errno != 0 || string(got) != "SYNCEDAND" {
		t.Errorf("who synced reads %q, %v", got, errno)
	}
	m, out, errno := db.lookup(fuse.FUSE_ROOT_ID, "low")
	if errno != 0 || m != n || out.Ino != ino {
		t.Errorf("after it came up elsewhere it is another file: node %p, was %p, number %d, was %d, %v", m, n, out.Ino, ino, errno)
	}
	sameSight(t, a, b)
}

// TestClaimOfTheDead: what a host that died while it copied has left stops nobody.
func TestClaimOfTheDead(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	for _, kind := range []func(name string) error{
		func(name string) error { return os.WriteFile(name, []byte("half a co"), 0o600) },
		func(name string) error { return os.Symlink("dead", name) },
	} {
		for i, name := range []string{"low", "other"} {
			var st unix.Stat_t
			if unix.Lstat(a.at("l1", name), &st) != nil {
				continue
			}
			d := &driver{fs: a.fs}
			_, n := d.openFile(t, name, unix.O_RDONLY)
			claim := a.at("upper/.migratefs/claims", string(n.lowers[0].origin()))
			must(t, kind(claim))
			if errno := d.write(name, "ALIVE", 0); errno != 0 {
				t.Errorf("%s: %v", name, errno)
			}
			d.end()
			if got, err := os.ReadFile(a.at("upper", name)); err != nil || !strings.HasPrefix(string(got), "ALIVE") {
				t.Errorf("%s holds %q, %v", name, got, err)
			}
			if _, err := os.Lstat(claim); !os.IsNotExist(err) {
				t.Errorf("the claim is left: %v", err)
			}
			if i == 0 {
				break
			}
		}
	}
	sameSight(t, a, b)
}

// TestClaimsAreOfOneFile: claims of one file say nothing of others.
func TestClaimsAreOfOneFile(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	a.fs.turns.Stale, b.fs.turns.Stale = time.Hour, time.Hour
	s := newStepper(3)
	sys.SetHook(s.hook)
	defer sys.SetHook(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.mu.Lock()
		s.who = goid()
		s.mu.Unlock()
		act(a, &action{do: func(d *driver) unix.Errno { return d.write("low", "WR", 0) }})
	}()
	wait(t, s.stopped, "the first change")
	other := make(chan struct{})
	go func() {
		defer close(other)
		for _, do := range []func(d *driver) unix.Errno{
			func(d *driver) unix.Errno { return d.write("other", "WR", 0) },
			func(d *driver) unix.Errno { return d.unlink("other") },
			func(d *driver) unix.Errno { return d.unlink("low") }, // revokes the copy
		} {
			if errno := act(b, &action{do: do}); errno != 0 {
				t.Error(errno)
			}
		}
	}()
	wait(t, other, "another host")
	close(s.resume)
	wait(t, done, "who was stopped")
	sys.SetHook(nil)
	if _, ok := sameSight(t, a, b)["low"]; ok {
		t.Error("a file that was deleted while another host copied it is back")
	}
}

// TestDeathBesideAnother lets one daemon die before each change that its operation
// makes, while another lives all the time, sees the tree as before or after, and then
// does the same operation itself.
func TestDeathBesideAnother(t *testing.T) {
	base := worlds(t)
	for i := range actions {
		o := &actions[i]
		t.Run(o.name, func(t *testing.T) {
			nothing := &action{do: func(*driver) unix.Errno { return 0 }}
			before := inTurn(t, base, "l1", nothing, nothing)
			after := inTurn(t, base, "l1", o, nothing)
			twice := inTurn(t, base, "l1", o, o)
			for n := 1; dieBeside(t, base, o, n, before.seen, after.seen, twice.seen); n++ {
			}
		})
	}
}

func dieBeside(t *testing.T, base string, o *action, n int, before, after, twice sight) bool {
	t.Helper()
	a, b := stepWorld(t, base, "l1")
	defer a.remove()
	defer b.close()
	f := &fault{at: n, dead: true, err: errDead}
	f.set()
	act(a, o)
	sys.SetHook(nil)
	where := fmt.Sprintf("%s: death at %s", o.name, f.where())
	now, err := b.look()
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	was, is := before.allow(now).diff(now), after.allow(now).diff(now)
	if was != "" && is != "" {
		t.Errorf("%s: neither as before\n\t%s\nnor as after\n\t%s", where, was, is)
	}
	act(b, o)
	if now, err = b.look(); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	is, again := after.allow(now).diff(now), twice.allow(now).diff(now)
	if is != "" && again != "" {
		t.Errorf("%s, and then another did it: neither as done once\n\t%s\nnor as done twice\n\t%s", where, is, again)
	}
	c := &world{t: t, dir: a.dir, kind: a.kind}
	must(t, c.open())
	defer c.close()
	fresh, err := c.look()
	if d := fresh.allow(now).diff(now); err != nil || d != "" {
		t.Errorf("%s: a new daemon sees something else: %v\n\t%s", where, err, d)
	}
	return f.met()
}

// TestSweepBesideHardLinks: a host that mounts while another brings up a file with
// several names leaves what leads from the copy to its name in the index.
func TestSweepBesideHardLinks(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	must(t, os.Link(a.at("l1/sym"), a.at("l1/sym2")))
	d := &driver{fs: a.fs}
	defer d.end()
	for _, up := range []string{"hard1", "sym"} {
		id, errno := d.find(up)
		if errno != 0 {
			t.Fatal(up, errno)
		}
		var sweeping atomic.Bool
		sys.SetHook(func(sys.Change) error {
			if !sweeping.CompareAndSwap(false, true) {
				return nil
			}
			defer sweeping.Store(false)
			return b.fs.sweepIndex(t.Context())
		})
		err := a.fs.up(t.Context(), a.fs.table.get(id), whole)
		sys.SetHook(nil)
		must(t, err)
		var st, indexed unix.Stat_t
		must(t, unix.Lstat(a.at("upper", up), &st))
		name, err := os.Readlink(a.at("upper/.migratefs/index", backName(st.Ino)))
		if err == nil {
			err = unix.Lstat(a.at("upper/.migratefs/index", name), &indexed)
		}
		if err != nil || indexed.Ino != st.Ino {
			t.Errorf("from the copy of %s one comes to %q, %v", up, name, err)
		}
	}
	sameSight(t, a, b)
	// What nobody is at goes.
	must(t, os.Symlink("0123456789abcdef-77-1.2", a.at("upper/.migratefs/index/u-77")))
	must(t, b.fs.sweepIndex(t.Context()))
	if _, err := os.Lstat(a.at("upper/.migratefs/index/u-77")); err == nil {
		t.Error("a name that leads nowhere is left")
	}
}
