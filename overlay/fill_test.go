package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/whiteout"
)

var remoteStack = stackings[slices.IndexFunc(stackings, isRemote)]

// TestFillBesideUse has programs write to pending files, read, cut, rename, link and
// chmod them while these become ordinary files: what they see is what they did.
func TestFillBesideUse(t *testing.T) {
	t.Run("asked for", func(t *testing.T) { fillBesideUse(t, FillConfig{}) })
	t.Run("in the background", func(t *testing.T) { fillBesideUse(t, FillConfig{Finish: true, Fetch: true}) })
}

func fillBesideUse(t *testing.T, cfg FillConfig) {
	w := newWorld(t, worlds(t), remoteStack)
	w.tweak = func(c *Config) { c.Fill = cfg }
	const files, size = 80, 30_000
	names := make([]string, files)
	content := make([][]byte, files)
	random := rand.New(rand.NewChaCha8([32]byte{1}))
	for i := range names {
		names[i] = fmt.Sprintf("f%d", i)
		content[i] = make([]byte, size+i)
		for j := range content[i] {
			content[i][j] = byte(1 + random.IntN(255))
		}
		must(t, os.WriteFile(w.at("l1", names[i]), content[i], 0o644))
		must(t, os.Chtimes(w.at("l1", names[i]), past, past))
	}
	must(t, w.open())
	defer w.remove()
	ctx, stop := context.WithCancel(t.Context())
	var filler, users sync.WaitGroup
	filler.Go(func() {
		for ctx.Err() == nil && !cfg.Fetch {
			_ = w.fs.Fill(ctx) // what is renamed just then is found the next time
		}
	})
	for i, name := range names {
		users.Go(func() {
			u := &user{t: t, d: &driver{fs: w.fs}, name: name, want: content[i], random: rand.New(rand.NewPCG(uint64(i), 7))}
			u.run()
		})
	}
	users.Wait()
	t.Logf("%d files became ordinary ones meanwhile", w.fs.fill.finished.Load())
	stop()
	filler.Wait()
	if t.Failed() {
		return
	}
	var p Progress
	for range 6000 { // what is at work at it is not asked for
		if p, _ = w.fs.Progress(t.Context()); p.Files == 0 {
			break
		}
		_ = w.fs.Fill(t.Context())
		time.Sleep(10 * time.Millisecond)
	}
	if p.Files != 0 || p.Missing != 0 || p.Finished < files {
		t.Errorf("at the end: %+v", p)
	}
	w.close()
	must(t, w.open())
	if left := w.leftovers(); left != "" {
		t.Errorf("left over:\n\t%s", left)
	}
}

// user is a program that has one file for itself.
type user struct {
	t      *testing.T
	d      *driver
	name   string
	want   []byte
	mode   uint32
	links  int
	random *rand.Rand
}

func (u *user) run() {
	defer u.d.end()
	for step := range 20 {
		var errno unix.Errno
		what := ""
		switch k := u.random.IntN(9); k {
		case 0, 1, 2:
			what = "write"
			b := []byte(fmt.Sprintf("%s at step %d", u.name, step))
			off := u.random.IntN(len(u.want) + 1)
			errno = u.d.write(u.name, string(b), uint64(off))
			u.want = append(u.want[:off:off], append(b, u.want[min(off+len(b), len(u.want)):]...)...)
		case 3:
			what = "truncate"
			n := u.random.IntN(len(u.want) + 1000)
			errno = u.d.truncate(u.name, uint64(n))
			if n <= len(u.want) {
				u.want = u.want[:n:n]
			} else {
				u.want = append(u.want[:len(u.want):len(u.want)], make([]byte, n-len(u.want))...)
			}
		case 4:
			what = "chmod"
			u.mode = 0o600 | uint32(u.random.IntN(8))
			errno = u.d.chmod(u.name, u.mode)
		case 5:
			what = "rename"
			name := fmt.Sprintf("%s-%d", u.name, step)
			errno = u.d.rename(u.name, name, 0)
			u.name = name
		case 6:
			if u.links++; u.links > 2 {
				continue
			}
			what = "link"
			name := fmt.Sprintf("%s+%d", u.name, step)
			if errno = u.d.link(u.name, name); errno == 0 && u.links == 2 {
				errno = u.d.unlink(u.name)
				u.name = name
			}
		case 7:
			what = "keep it open"
			if len(u.d.open) < 4 {
				_, errno = u.d.keep(u.name)
			}
		case 8:
			what = "wait"
			time.Sleep(time.Duration(u.random.IntN(3)) * time.Millisecond)
		}
		if errno != 0 {
			u.t.Errorf("%s: step %d: %s: %v", u.name, step, what, errno)
			return
		}
		if !u.look(fmt.Sprintf("step %d: after %s", step, what)) {
			return
		}
	}
}

// look compares what there is of the file, by name, by attributes and by open
// descriptors, with what there must be.
func (u *user) look(when string) bool {
	_, out, errno := u.d.lookup(fuse.FUSE_ROOT_ID, u.name)
	if errno != 0 {
		u.t.Errorf("%s: %s: %v", u.name, when, errno)
		return false
	}
	var attr fuse.AttrOut
	if st := u.d.fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: out.NodeId}}, &attr); st != 0 {
		u.t.Errorf("%s: %s: stat: %v", u.name, when, st)
		return false
	}
	for _, a := range []*fuse.Attr{&out.Attr, &attr.Attr} {
		if a.Size != uint64(len(u.want)) || u.mode != 0 && a.Mode&0o7777 != u.mode {
			u.t.Errorf("%s: %s: %d bytes, mode %o: not %d and %o", u.name, when, a.Size, a.Mode, len(u.want), u.mode)
			return false
		}
	}
	got, errno := u.d.readNode(out.NodeId)
	if errno != 0 || !bytes.Equal(got, u.want) {
		u.t.Errorf("%s: %s: %d bytes read, %v, not the %d that were written", u.name, when, len(got), errno, len(u.want))
		return false
	}
	for _, fh := range u.d.open {
		if got, errno := u.d.readHandle(fh); errno != 0 || !bytes.Equal(got, u.want) {
			u.t.Errorf("%s: %s: %d bytes read through an old descriptor, %v, not the %d that were written", u.name, when, len(got), errno, len(u.want))
			return false
		}
	}
	return true
}

// TestFillOfManySmallFiles: they come many in one exchange, and those that changed on
// the source are in conflict, alone.
func TestFillOfManySmallFiles(t *testing.T) {
	w := newWorld(t, worlds(t), remoteStack)
	far := &faraway{}
	const files = 200
	for i := range files {
		far.put(layers.Path(fmt.Sprintf("d/f%d", i)), bytes.Repeat([]byte{byte(i)}, 1000+i))
	}
	far.put("big", bytes.Repeat([]byte("big"), 1<<20))
	w.tweak = func(c *Config) { c.Lowers = []Lower{{Layer: far}} }
	must(t, w.open())
	d := &driver{fs: w.fs}
	for i := range files {
		if errno := d.chmod(fmt.Sprintf("d/f%d", i), 0o600); errno != 0 {
			t.Fatal(errno)
		}
	}
	if errno := d.chmod("big", 0o600); errno != 0 {
		t.Fatal(errno)
	}
	d.end()
	far.put("d/f7", []byte("another"))
	far.count(func() { far.files["d/f7"].mtime++ })
	w.close()

	w.tweak = func(c *Config) {
		c.Lowers = []Lower{{Layer: far}}
		c.Fill = FillConfig{Finish: true, Fetch: true}
	}
	must(t, w.open())
	defer w.remove()
	var p Progress
	for range 6000 {
		if p, _ = w.fs.Progress(t.Context()); p.Files == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if p.Files != 1 || p.Conflicts != 1 || p.Finished != files {
		t.Errorf("%+v", p)
	}
	far.count(func() {
		if most := 2 * (files/fillMany + fillFiles); far.burst > most || far.opens > 12 {
			t.Errorf("%d exchanges for many, %d opens", far.burst, far.opens)
		}
	})
	all, err := w.fs.Conflicts(t.Context())
	if err != nil || len(all) != 1 || all[0].Path != "d/f7" || all[0].Missing != 1007 {
		t.Errorf("conflicts: %+v, %v", all, err)
	}
	for i := range files {
		b, err := os.ReadFile(w.at("upper", fmt.Sprintf("d/f%d", i)))
		if i != 7 && (err != nil || !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, 1000+i))) {
			t.Fatalf("file %d: %d bytes, %v", i, len(b), err)
		}
	}
	if b, err := os.ReadFile(w.at("upper/big")); err != nil || !bytes.Equal(b, bytes.Repeat([]byte("big"), 1<<20)) {
		t.Errorf("big: %d bytes, %v", len(b), err)
	}
}

// TestConflictThatIsMoot: who cuts a file to nothing and writes it anew has ended its
// conflict: it has nothing of the source's.
func TestConflictThatIsMoot(t *testing.T) {
	w := newWorld(t, worlds(t), remoteStack)
	far := &faraway{}
	far.put("f", bytes.Repeat([]byte("f"), 100_000))
	w.tweak = func(c *Config) { c.Lowers = []Lower{{Layer: far}} }
	must(t, w.open())
	d := &driver{fs: w.fs}
	if errno := d.chmod("f", 0o600); errno != 0 {
		t.Fatal(errno)
	}
	d.end()
	far.put("f", []byte("another"))
	w.close()
	w.tweak = func(c *Config) {
		c.Lowers = []Lower{{Layer: far}}
		c.Fill = FillConfig{Finish: true, Fetch: true}
	}
	must(t, w.open())
	defer w.remove()
	until := func(what string, is func(p *Progress) bool) {
		t.Helper()
		var p Progress
		for range 6000 {
			if p, _ = w.fs.Progress(t.Context()); is(&p) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("no %s: %+v", what, p)
	}
	until("conflict", func(p *Progress) bool { return p.Conflicts == 1 && p.Files == 1 })
	d = &driver{fs: w.fs}
	defer d.end()
	if errno := d.write("f", "x", 50_000); errno != 0 {
		t.Fatal(errno)
	}
	until("conflict that stays", func(p *Progress) bool { return p.Conflicts == 1 && p.Files == 1 })
	if errno := d.truncate("f", 0); errno != 0 {
		t.Fatal(errno)
	}
	until("end of the conflict", func(p *Progress) bool { return p.Conflicts == 0 && p.Files == 0 })
	if errno := d.write("f", "anew", 0); errno != 0 {
		t.Fatal(errno)
	}
	if b, err := os.ReadFile(w.at("upper/f")); err != nil || string(b) != "anew" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestFillWithoutRoot fills as a mount without root does: with notes in user.overlay.*,
// and modes that keep the daemon itself from opening what it has not open.
func TestFillWithoutRoot(t *testing.T) {
	if dir := os.Getenv(fillHere); dir != "" {
		fillAsUser(t, dir)
		return
	}
	base := worlds(t)
	must(t, os.Chmod(filepath.Dir(base), 0o755))
	w := newWorld(t, base, remoteStack)
	defer w.remove()
	for _, dir := range []string{"upper", "work"} {
		must(t, os.RemoveAll(w.at(dir)))
		must(t, os.Mkdir(w.at(dir), 0o755))
		must(t, os.Chown(w.at(dir), 1000, 1001))
	}
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(w.at("test"), exe, 0o755))
	cmd := exec.Command(w.at("test"), "-test.run=^TestFillWithoutRoot$")
	cmd.Env = append(os.Environ(), fillHere+"="+w.dir)
	cmd.Dir = w.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1001}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// fillHere tells a child of the test where a world is.
const fillHere = "MIGRATEFS_TEST_FILL"

func fillAsUser(t *testing.T, dir string) {
	far := &faraway{}
	far.put("f", bytes.Repeat([]byte("f"), 100_000))
	far.put("g", bytes.Repeat([]byte("g"), 100_000))
	w := &world{t: t, dir: dir, kind: remoteStack}
	w.tweak = func(c *Config) { c.Lowers, c.Format = []Lower{{Layer: far}}, whiteout.User }
	must(t, w.open())
	d := &driver{fs: w.fs}
	fh, errno := d.keep("f")
	for i, f := range []func() unix.Errno{
		func() unix.Errno { return errno },
		func() unix.Errno { return d.write("f", "written", 0) },
		func() unix.Errno { return d.chmod("f", 0o400) },
		func() unix.Errno { return d.chmod("g", 0o640) },
		func() unix.Errno { return d.link("g", "second") },
	} {
		if errno := f(); errno != 0 {
			t.Fatalf("step %d: %v", i, errno)
		}
	}
	must(t, w.fs.Fill(t.Context()))
	if b, errno := d.readHandle(fh); errno != 0 || len(b) != 100_000 || string(b[:8]) != "writtenf" {
		t.Errorf("%d bytes, %v", len(b), errno)
	}
	if b, err := os.ReadFile(w.at("upper/second")); err != nil || len(b) != 100_000 || b[99_999] != 'g' {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	d.end()
	w.close()
	must(t, w.open())
	if left := w.leftovers(); left != "" {
		t.Errorf("left over:\n\t%s", left)
	}
	w.close()
}

// TestFillLeavesWhatItMustNotTouch: what is immutable, and what has capabilities that a
// crash could lose, stays pending, whole and usable, until it is neither.
func TestFillLeavesWhatItMustNotTouch(t *testing.T) {
	const immutable = 0x10
	for _, c := range []struct {
		name       string
		make, mend func(d *driver) unix.Errno
		why        error
	}{
		{
			name: "immutable", why: errSealed,
			make: func(d *driver) unix.Errno { return d.chattr("low", immutable) },
			mend: func(d *driver) unix.Errno { return d.chattr("low", 0) },
		},
		{
			name: "capabilities and two names", why: errCapable,
			make: func(d *driver) unix.Errno {
				if errno := d.link("low", "second"); errno != 0 {
					return errno
				}
				return d.setxattr("low", "security.capability", aCapability)
			},
			mend: func(d *driver) unix.Errno { return d.unlink("second") },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, worlds(t), remoteStack)
			defer w.remove()
			must(t, w.open())
			d := &driver{fs: w.fs}
			pend(d)
			if errno := c.make(d); errno != 0 {
				t.Fatal(errno)
			}
			if err := w.fs.Fill(t.Context()); !errors.Is(err, c.why) {
				t.Errorf("filled: %v", err)
			}
			before, err := w.look()
			must(t, err)
			if before["low"].content != "Power low" {
				t.Errorf("it reads %q", before["low"].content)
			}
			if errno := c.mend(d); errno != 0 {
				t.Fatal(errno)
			}
			must(t, w.fs.Fill(t.Context()))
			after, err := w.look()
			must(t, err)
			delete(before, "second")
			if diff := before.diff(after); diff != "" {
				t.Error(diff)
			}
			if b, err := os.ReadFile(w.at("upper/low")); err != nil || string(b) != "Power low" {
				t.Errorf("in the upper: %q, %v", b, err)
			}
			d.end()
		})
	}
}

// TestFillForgetsWhatIsDone: to pick the next of many files takes no look at those that
// are done.
func TestFillForgetsWhatIsDone(t *testing.T) {
	fs := &FS{}
	fs.table.init()
	for _, running := range []bool{true, false} {
		q := &fill{fs: fs, files: map[extent.ID]*filling{}, away: map[string]time.Time{}, woken: make(chan struct{}, 1)}
		if running {
			q.stop = func() {}
		}
		const files, stay = 1000, 7
		for i := range files {
			q.add(extent.ID{byte(i), byte(i >> 8), 1}, &node{fs: fs})
		}
		picked := map[*filling]bool{}
		for range files {
			f, _ := q.pick(time.Now())
			if f == nil || f.gone || picked[f] {
				t.Fatalf("running %v: after %d of %d files %v is picked", running, len(picked), files, f)
			}
			picked[f] = true
			if len(picked)%(files/stay) == 1 {
				continue // it is worked at
			}
			q.drop(f.id)
			if front, order := len(q.front), len(q.order); running && front > len(q.files)+1 || order > 2*len(q.files)+64 {
				t.Fatalf("running %v: with %d files, %d are looked at, or %d", running, len(q.files), front, order)
			}
		}
		if f, _ := q.pick(time.Now()); f != nil {
			t.Errorf("running %v: %v is picked twice", running, f)
		}
		for f := range picked {
			f.busy = false
		}
		for want := len(q.files); want > 0; want-- {
			f, _ := q.pick(time.Now())
			if f == nil || f.gone {
				t.Fatalf("running %v: %d files are lost", running, want)
			}
		}
		if len(q.front) > len(q.files) || len(q.order) != len(q.files) {
			t.Errorf("running %v: of %d files %d and %d are kept", running, len(q.files), len(q.front), len(q.order))
		}
	}
}
