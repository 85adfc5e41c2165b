package remote

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// hangs is how long anything may take before it is said to hang.
const hangs = 60 * time.Second

// bed is a directory behind a real sshd behind a link that can break, and
// what it takes to mount it.
type bed struct {
	t    *testing.T
	dir  string // on the source
	link *testbed.Proxy
	sshd *testbed.SSHD

	local string // holds upper and mountpoint
	m     *testbed.Mounted
}

func newBed(t *testing.T, cfg ...testbed.SSHDConfig) *bed {
	t.Helper()
	testbed.NeedFUSE(t)
	b := &bed{t: t, dir: filepath.Join(testbed.TempDir(t), "src"), local: testbed.TempDir(t), link: testbed.NewProxy(t, "")}
	c := testbed.SSHDConfig{}
	if len(cfg) > 0 {
		c = cfg[0]
	}
	c.Through = b.link
	b.sshd = testbed.StartSSHD(t, c)
	for _, d := range []string{b.dir, b.upper(), b.mnt()} {
		must(t, os.Mkdir(d, 0o755))
	}
	return b
}

func (b *bed) upper() string { return filepath.Join(b.local, "upper") }
func (b *bed) mnt() string   { return filepath.Join(b.local, "mnt") }

// options are those of a mount of the source, and more.
func (b *bed) options(more string) string {
	return "lowerdir=" + b.sshd.Target(b.dir) + ",upperdir=" + b.upper() + more
}

// mount mounts the source, with more options.
func (b *bed) mount(more string) *testbed.Mounted {
	b.t.Helper()
	b.m = testbed.Mount(b.t, b.options(more), b.mnt(), testbed.MountConfig{Env: b.sshd.Env()})
	return b.m
}

func (b *bed) path(name string) string { return b.m.Path(name) }

// content is what the file of this name holds on the source: bytes that do not
// repeat, and that no other name has.
func content(name string, size int) []byte {
	p := make([]byte, size)
	random := rand.NewChaCha8(sha256.Sum256([]byte(name)))
	_, _ = random.Read(p)
	return p
}

// put makes a file on the source, with an mtime that no later change can have.
func (b *bed) put(name string, size int) []byte {
	b.t.Helper()
	p := content(name, size)
	path := filepath.Join(b.dir, name)
	must(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(b.t, os.WriteFile(path, p, 0o644))
	old := time.Now().Add(-time.Hour)
	must(b.t, os.Chtimes(path, old, old))
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inTime runs f and fails the test, with the stacks of the daemon, if it does
// not return.
func (b *bed) inTime(what string, f func()) {
	b.t.Helper()
	b.inTimeOf(hangs, what, f)
}

func (b *bed) inTimeOf(limit time.Duration, what string, f func()) {
	b.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		b.m.Process().Signal(syscall.SIGQUIT)
		b.m.Process().WaitFor(5 * time.Second)
		b.t.Fatalf("%s hangs\n%s", what, b.m.Log())
	}
}

// right reads a whole file of the mount that is as put made it. What it returns
// is the error of the read; wrong bytes fail the test, and so does an end that
// comes too early.
func (b *bed) right(name string, size int) (err error) {
	b.t.Helper()
	return b.same(name, content(name, size))
}

func (b *bed) same(name string, want []byte) (err error) {
	b.t.Helper()
	b.inTime("reading "+name, func() {
		f, oerr := os.Open(b.path(name))
		if err = oerr; err != nil {
			return
		}
		defer f.Close()
		got, rerr := io.ReadAll(f)
		err = rerr
		switch n := min(len(got), len(want)); {
		case !bytes.Equal(got[:n], want[:n]), len(got) > len(want):
			b.t.Errorf("%s: wrong bytes within %d of %d", name, len(got), len(want))
		case err == nil && len(got) < len(want):
			b.t.Errorf("%s: ends after %d bytes of %d, without an error", name, len(got), len(want))
		}
	})
	b.honest("reading "+name, err)
	return err
}

// honest fails the test if err says that something is not there, or that it is
// another version: of a source that did not change neither is true.
func (b *bed) honest(what string, err error) {
	b.t.Helper()
	for _, lie := range []error{fs.ErrNotExist, unix.ENOTDIR, unix.ESTALE} {
		if errors.Is(err, lie) {
			b.t.Errorf("%s: %v", what, err)
		}
	}
}

// list lists a directory of the mount that has these names. A listing that is
// neither complete nor an error fails the test.
func (b *bed) list(dir string, names ...string) (err error) {
	b.t.Helper()
	b.inTime("listing "+dir, func() {
		var list []fs.DirEntry
		if list, err = os.ReadDir(b.path(dir)); err != nil {
			return
		}
		var got []string
		for _, e := range list {
			got = append(got, e.Name())
			if _, ierr := e.Info(); ierr != nil && err == nil {
				err = ierr
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(names) {
			b.t.Errorf("%s has %q and no error, want %q", dir, got, names)
		}
	})
	b.honest("listing "+dir, err)
	return err
}

// mends waits until ask gets its answer: the source is back.
func (b *bed) mends(ask func() error) {
	b.t.Helper()
	for end := time.Now().Add(hangs); ; time.Sleep(20 * time.Millisecond) {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("the source does not come back: %v\n%s", err, b.m.Log())
		}
	}
}

// here is what lies on this side of the link: a file of the upper, one that was
// read whole, and one that was written to.
type here struct {
	b       *bed
	written []byte
	pending *os.File

	// replaced says that the source is not the one that was mounted: what was seen of its
	// names and attributes is not believed for longer than usual then, as it is of a source
	// that is away, and without them a file of the lower is EIO.
	replaced bool
}

const (
	cachedSize  = 300 << 10
	pendingSize = 4 << 20
	writtenAt   = 1<<20 + 17
)

// localContent makes it. The bed is mounted, and its source can be reached.
func (b *bed) localContent() *here {
	b.t.Helper()
	h := &here{b: b, written: content("written here", 70_000)}
	// A busy machine may take longer than a short timeout=.
	var f *os.File
	for _, do := range []func() error{
		func() error { return os.WriteFile(b.path("own"), content("own", 10_000), 0o644) },
		func() error { return os.Mkdir(b.path("mine"), 0o755) }, // of the names in it the source has none
		func() error { return b.right("cached", cachedSize) },
		func() (err error) { f, err = os.OpenFile(b.path("pending"), os.O_RDWR, 0); return err },
	} {
		b.mends(do)
	}
	b.t.Cleanup(func() { f.Close() })
	_, err := f.WriteAt(h.written, writtenAt)
	must(b.t, err)
	must(b.t, f.Sync())
	// The kernel reads whole pages, and ahead unless told not to.
	must(b.t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
	h.pending = f
	return h
}

// putLocal makes what localContent wants on the source.
func (b *bed) putLocal() {
	b.put("cached", cachedSize)
	b.put("pending", pendingSize)
}

// check reads it, and writes more of it, without any help of the source.
func (h *here) check(when string) {
	b := h.b
	b.t.Helper()
	for _, c := range []struct {
		name string
		size int
	}{{"own", 10_000}, {"cached", cachedSize}} {
		forget(b.path(c.name))
		if err := b.right(c.name, c.size); err != nil && !(h.replaced && c.name == "cached" && errors.Is(err, unix.EIO)) {
			b.t.Errorf("%s: %v", when, err)
		}
	}
	b.inTime(when+": what was written to a pending file", func() {
		first := (writtenAt + 4095) &^ 4095 // whole pages
		got := make([]byte, (writtenAt+len(h.written))&^4095-first)
		_ = unix.Fadvise(int(h.pending.Fd()), 0, 0, unix.FADV_DONTNEED)
		if _, err := h.pending.ReadAt(got, int64(first)); err != nil || !bytes.Equal(got, h.written[first-writtenAt:][:len(got)]) {
			b.t.Errorf("%s: what was written to a pending file: %v, or other bytes", when, err)
		}
	})
	b.inTime(when+": a write", func() {
		if _, err := h.pending.WriteAt(h.written, writtenAt); err != nil {
			b.t.Errorf("%s: write to a pending file: %v", when, err)
		}
		if err := h.pending.Sync(); err != nil {
			b.t.Errorf("%s: fsync of a pending file: %v", when, err)
		}
		if err := os.WriteFile(b.path("mine/new"), []byte(when), 0o644); err != nil {
			b.t.Errorf("%s: a new file: %v", when, err)
		}
		if err := os.Rename(b.path("mine/new"), b.path("mine/newer")); err != nil {
			b.t.Errorf("%s: a rename: %v", when, err)
		}
	})
}

// whole sees that the pending file is what it should be, once the source is back.
func (h *here) whole() {
	h.b.t.Helper()
	want := content("pending", pendingSize)
	copy(want[writtenAt:], h.written)
	h.b.mends(func() error { return h.b.same("pending", want) })
	h.pending.Close()
}

// forget has the kernel drop what it has of the file's bytes.
func forget(path string) {
	if f, err := os.Open(path); err == nil {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		f.Close()
	}
}

// named returns those of the processes whose command is comm.
func named(pids []int, comm string) (found []int) {
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if strings.TrimSpace(string(b)) == comm {
			found = append(found, pid)
		}
	}
	return found
}

// servers are the sftp-servers that run on the source, clients the ssh's of the
// mount.
func (b *bed) servers() []int { return named(b.sshd.Sessions(), "sftp-server") }
func (b *bed) clients() []int { return named(testbed.Descendants(b.m.Pid()), "ssh") }

func signal(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig)
	}
}
