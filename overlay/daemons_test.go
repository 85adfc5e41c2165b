package overlay

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
)

func manyHosts(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, worlds(t), stacking{name: "many hosts", mode: Migrate, lowers: 1, hosts: Many})
	must(t, w.open())
	t.Cleanup(w.close)
	return w
}

// leave makes what a daemon of that name leaves when it dies.
func (w *world) leave(t *testing.T, name string, quiet time.Duration) string {
	t.Helper()
	dir := w.at("upper", Reserved, "daemons", name)
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.WriteFile(filepath.Join(dir, aliveName), nil, 0o600))
	must(t, os.MkdirAll(filepath.Join(dir, copyup.TempPrefix+"1", "sub"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, copyup.TempPrefix+"2"), []byte("half"), 0o600))
	then := time.Now().Add(-quiet)
	must(t, os.Chtimes(filepath.Join(dir, aliveName), then, then))
	return dir
}

func TestSweepOfDaemons(t *testing.T) {
	w := manyHosts(t)
	here, elsewhere := hostID()+"-", strings.Repeat("0", 16)+"-"
	for _, c := range []struct {
		what, name string
		quiet      time.Duration
		locked     bool
		stays      bool
	}{
		{"one of this host that died", here + "1", 0, false, false},
		{"one of this host that lives", here + "2", 0, true, true},
		{"one of this host that lives and cannot write", here + "3", 2 * lifeless, true, true},
		{"one of another host that may live", elsewhere + "1", lifeless / 2, false, true},
		{"one of another host that died", elsewhere + "2", 2 * lifeless, false, false},
		{"one of another host that hangs", elsewhere + "3", 2 * lifeless, true, true},
	} {
		dir := w.leave(t, c.name, c.quiet)
		if c.locked {
			f, err := os.Open(filepath.Join(dir, aliveName))
			must(t, err)
			must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
			defer f.Close()
		}
		w.fs.sweepDaemons(t.Context())
		if _, err := os.Stat(dir); (err == nil) != c.stays {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := os.Stat(w.at("upper", Reserved, "daemons", w.fs.self.name, aliveName)); err != nil {
		t.Errorf("its own: %v", err)
	}
}

// A daemon that is swept before it is known to live makes another directory.
func TestSweepWhileOneSettlesIn(t *testing.T) {
	w := manyHosts(t)
	swept := 0
	for at := 1; at <= 2; at++ {
		n := 0
		d := daemon{dirs: w.fs.self.dirs, work: -1, alive: -1}
		sys.SetHook(func(c sys.Change) error {
			if n++; n == at+1 && c == "create" || n == at && at == 2 {
				sys.SetHook(nil)
				w.fs.sweepDaemons(t.Context())
				swept++
			}
			return nil
		})
		err := d.settleIn()
		sys.SetHook(nil)
		must(t, err)
		if _, err := os.Stat(w.at("upper", Reserved, "daemons", d.name, aliveName)); err != nil {
			t.Error(err)
		}
		d.dirs = -1
		d.closeFDs()
	}
	if swept != 2 {
		t.Errorf("swept %d times", swept)
	}
}

func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	root, err := os.Open(dir)
	must(t, err)
	defer root.Close()
	// Whoever is first, all get the same.
	ids := make(chan string, 8)
	for range cap(ids) {
		go func() {
			id, f, err := Identify(int(root.Fd()), false)
			if err != nil {
				id = err.Error()
			} else {
				f.Close()
			}
			ids <- id
		}()
	}
	var got []string
	for range cap(ids) {
		got = append(got, <-ids)
	}
	slices.Sort(got)
	if got = slices.Compact(got); len(got) != 1 || len(got[0]) != idDigits {
		t.Errorf("ids: %q", got)
	}
	es, err := os.ReadDir(filepath.Join(dir, Reserved))
	must(t, err)
	if len(es) != 1 {
		t.Errorf("left: %v", es)
	}
	// What a crash leaves between the link and the unlink.
	must(t, os.Link(filepath.Join(dir, Reserved, idName), filepath.Join(dir, Reserved, copyup.TempPrefix+"x")))
	id, f, err := Identify(int(root.Fd()), false)
	must(t, err)
	f.Close()
	es, _ = os.ReadDir(filepath.Join(dir, Reserved))
	if id != got[0] || len(es) != 1 {
		t.Errorf("then %q and %v", id, es)
	}
}

// A layer that is another one than was mounted takes nothing any more.
func TestStrangeLayer(t *testing.T) {
	w := manyHosts(t)
	d := &driver{fs: w.fs}
	defer d.end()
	w.fs.sameLayers()
	if errno := d.write("other", "W", 0); errno != 0 {
		t.Fatal(errno)
	}
	must(t, os.WriteFile(w.at("l1", Reserved, idName), []byte(strings.Repeat("0", idDigits)), 0o600))
	w.fs.sameLayers()
	if errno := d.write("low", "W", 0); errno != unix.ESTALE {
		t.Errorf("a write: %v", errno)
	}
	if b, err := os.ReadFile(w.at("l1", "low")); string(b) != "lower low" {
		t.Errorf("the lower file: %q, %v", b, err)
	}
}

// What migrate mode notes on files is not seen, set or removed from above.
func TestOwnXattrsAreHidden(t *testing.T) {
	w := manyHosts(t)
	d := &driver{fs: w.fs}
	defer d.end()
	if errno := d.write("low", "W", 0); errno != 0 {
		t.Fatal(errno)
	}
	before := make([]byte, 100)
	n, err := unix.Getxattr(w.at("upper", "low"), copyup.XattrOrigin, before)
	must(t, err)
	id, errno := d.find("low")
	if errno != 0 {
		t.Fatal(errno)
	}
	node := w.fs.table.get(id)
	if v, err := w.fs.getXattr(t.Context(), node, copyup.XattrOrigin); err != unix.ENODATA {
		t.Errorf("get: %q, %v", v, err)
	}
	names, err := w.fs.listXattrs(t.Context(), node)
	must(t, err)
	if !slices.Equal(names, []string{"user.note"}) {
		t.Errorf("list: %q", names)
	}
	if errno := d.setxattr("low", copyup.XattrOrigin, "x"); errno != unix.EOPNOTSUPP {
		t.Errorf("set: %v", errno)
	}
	if errno := d.removexattr("low", copyup.XattrOrigin); errno != unix.ENODATA {
		t.Errorf("remove: %v", errno)
	}
	after := make([]byte, 100)
	m, err := unix.Getxattr(w.at("upper", "low"), copyup.XattrOrigin, after)
	if err != nil || n != m || string(before) != string(after) {
		t.Errorf("it was %q and is %q, %v", before[:n], after[:m], err)
	}
}

// What somebody was sweeping when it died is swept on.
func TestSweepAfterASweep(t *testing.T) {
	w := manyHosts(t)
	dir := w.leave(t, hostID()+"-1"+goneSuffix, 0)
	must(t, os.Remove(filepath.Join(dir, aliveName)))
	other := w.leave(t, hostID()+"-2"+goneSuffix, 0)
	w.fs.sweepDaemons(t.Context())
	for _, d := range []string{dir, other} {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is there", d)
		}
	}
}

// A sign of life is no change: nothing that is tested by the number of changes, or
// made to fail, sees it.
func TestBeat(t *testing.T) {
	w := manyHosts(t)
	alive := w.at("upper", Reserved, "daemons", w.fs.self.name, aliveName)
	long := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(alive, long, long))
	sys.SetHook(func(c sys.Change) error { t.Errorf("a change: %s", c); return unix.EIO })
	w.fs.beat()
	sys.SetHook(nil)
	fi, err := os.Stat(alive)
	must(t, err)
	if fi.ModTime().Equal(long) {
		t.Error("no sign of life")
	}
}

// A host that slept for so long that others swept its directory gets another one, and
// goes on.
func TestSweptAndSettlesAnew(t *testing.T) {
	w := manyHosts(t)
	w.fs.cfg.AsCaller = true // has a directory there
	must(t, w.fs.openTemps())
	d := &driver{fs: w.fs}
	defer d.end()
	was := w.fs.self.name
	w.fs.beat()
	if w.fs.self.name != was {
		t.Fatal("it settled anew for no reason")
	}
	other := daemon{dirs: w.fs.self.dirs, work: -1, alive: -1}
	must(t, other.settleIn())
	defer func() { other.dirs = -1; other.closeFDs() }()
	now := unix.NsecToTimespec(time.Now().UnixNano())
	must(t, unix.Flock(w.fs.self.alive, unix.LOCK_UN)) // as where locks do not reach others
	other.sweep(was, now)
	if _, err := os.Lstat(w.at("upper", Reserved, "daemons", was)); err == nil {
		t.Fatal("not swept")
	}
	w.fs.cfg.AsCaller = false
	if errno := d.write("dir/a", "W", 0); errno != unix.ENOENT {
		t.Errorf("a directory without a work directory: %v", errno)
	}
	w.fs.cfg.AsCaller = true
	w.fs.beat()
	w.fs.beat()
	other.sweep(w.fs.self.name, now)
	for _, is := range []struct {
		fd   int
		name string
	}{{w.fs.work, ""}, {w.fs.temps, "temps"}, {w.fs.self.alive, aliveName}} {
		var fd, name unix.Stat_t
		must(t, unix.Fstat(is.fd, &fd))
		err := unix.Lstat(w.at("upper", Reserved, "daemons", w.fs.self.name, is.name), &name)
		if err != nil || fd.Ino != name.Ino {
			t.Errorf("%q: inode %d, and we have %d open, %v", is.name, name.Ino, fd.Ino, err)
		}
	}
	w.fs.cfg.AsCaller = false
	if errno := d.write("dir/a", "W", 0); errno != 0 {
		t.Error(errno)
	}
	if b, err := os.ReadFile(w.at("upper", "dir/a")); err != nil || !strings.HasPrefix(string(b), "Wower") {
		t.Errorf("it holds %q, %v", b, err)
	}
}

// TestUnequalOptions: a mount says that others treat what leaves a lower otherwise.
func TestUnequalOptions(t *testing.T) {
	a, b := stepWorld(t, worlds(t), "l1")
	defer a.remove()
	defer b.close()
	for days, told := range map[int]bool{0: false, 3: true} {
		var log strings.Builder
		c := &world{t: t, dir: a.dir, kind: a.kind, tweak: func(cfg *Config) {
			cfg.TrashDays = days
			cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		}}
		must(t, c.open())
		c.close()
		if got := strings.Count(log.String(), "trash_days=3"); (got == 1) != told {
			t.Errorf("trash_days=%d: %s", days, &log)
		}
	}
}
