package remote

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestFIFOSwappedIn: a file that is a FIFO by the time it is opened hangs the
// server's open(2), for ever. Its reader gets an error; readers of other files get
// these.
func TestFIFOSwappedIn(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	const size = 300 << 10
	names := []string{"f0", "f1", "f2", "f3", "fifo"}
	for _, n := range names {
		b.put("d/"+n, size)
	}
	b.mount(",timeout=16")
	b.mends(func() error { return b.list("d", names...) })
	fifo := filepath.Join(b.dir, "d", "fifo")
	must(t, unix.Mkfifo(fifo+".new", 0o644))
	must(t, os.Chtimes(fifo+".new", time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)))
	must(t, os.Rename(fifo+".new", fifo))
	var wg sync.WaitGroup
	wg.Go(func() {
		b.inTime("the FIFO", func() {
			// It may be known to be a FIFO by now, which nobody here opens for writing.
			fd, err := unix.Open(b.path("d/fifo"), unix.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return
			}
			defer unix.Close(fd)
			if n, err := unix.Read(fd, make([]byte, 100)); n > 0 {
				t.Errorf("%d bytes and %v of a FIFO", n, err)
			}
		})
	})
	for _, n := range names[:4] {
		wg.Go(func() {
			if err := b.right("d/"+n, size); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Whoever hangs in there would hang until somebody opens the other end.
	w, err := unix.Open(fifo, unix.O_RDWR|unix.O_NONBLOCK, 0)
	must(t, err)
	unix.Close(w)
	b.m.Unmount()
}

// TestSwapped: what is something else by the time it is opened, or leads out of
// the tree, is an error and is not opened.
func TestSwapped(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	// The link leads there on the source only.
	must(t, os.WriteFile(filepath.Join(filepath.Dir(b.dir), "secret"), content("secret", 5000), 0o600))
	old := time.Now().Add(-time.Hour)
	swap := map[string]func(path string) error{
		"symlink":   func(p string) error { return os.Symlink("../../secret", p) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"device":    func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
		"shorter":   func(p string) error { return os.WriteFile(p, content("shorter", 4000), 0o644) },
	}
	names := []string{"device", "directory", "shorter", "symlink"}
	for _, n := range names {
		b.put("d/"+n, 5000)
		b.put(n+"/in", 5000)
	}
	b.mount(",timeout=5")
	b.mends(func() error { return b.list("d", names...) })
	for _, n := range names {
		b.mends(func() error { return b.list(n, "in") })
		for _, p := range []string{filepath.Join(b.dir, "d", n), filepath.Join(b.dir, n)} {
			must(t, os.Rename(p, p+".old"))
			must(t, swap[n](p))
			must(t, os.Chtimes(filepath.Dir(p), old, old))
		}
	}
	for _, n := range names {
		b.inTime(n, func() {
			got, err := os.ReadFile(b.path("d/" + n))
			if n == "shorter" && err == nil && string(got) == string(content("shorter", 4000)) {
				return // the new version, whole
			}
			if err == nil || len(got) > 0 {
				t.Errorf("%s: %d bytes, %v", n, len(got), err)
			}
			if got, err := os.ReadFile(b.path(n + "/in")); err == nil {
				t.Errorf("below a %s: %d bytes", n, len(got))
			}
		})
	}
	b.m.Unmount()
}

// TestShownNotTrusted: what is set-id or a device on the source shows as that, and
// has no effect; a remote lower mounts nosuid,nodev.
func TestShownNotTrusted(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.put("suid", 5000)
	must(t, os.Chmod(filepath.Join(b.dir, "suid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(t, unix.Mknod(filepath.Join(b.dir, "zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	must(t, unix.Mkfifo(filepath.Join(b.dir, "fifo"), 0o666))
	b.mount("")
	if fi, err := os.Lstat(b.path("suid")); err != nil || fi.Mode()&os.ModeSetuid == 0 {
		t.Errorf("suid: %v, %v", fi, err)
	}
	if fi, err := os.Lstat(b.path("fifo")); err != nil || fi.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("fifo: %v, %v", fi, err)
	}
	if fi, err := os.Lstat(b.path("zero")); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("zero: %v, %v", fi, err)
	}
	if fd, err := unix.Open(b.path("zero"), unix.O_RDONLY, 0); err == nil {
		unix.Close(fd)
		t.Error("a device of the source was opened")
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(b.m.Dir, &st))
	if st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mount flags %#x, want nosuid and nodev", st.Flags)
	}
	for _, r := range b.sshd.Requests() {
		if r.Op == "open" {
			t.Errorf("%s was opened on the source", r.Path)
		}
	}
	b.m.Unmount()
}

// interrupted are programs that wait for the source, and do not handle SIGINT.
var interrupted = map[string]string{
	"a read":     "exec cat file",
	"an open":    "exec cat d/unopened",
	"a name":     "exec stat never/seen",
	"a listing":  "exec ls unlisted",
	"an exec":    "exec ./program",
	"a truncate": "exec truncate -s 100 unseen",
}

// TestInterrupt: ^C ends any wait for a source that does not answer, also where
// the mount is hard and would wait for ever.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, n := range []string{"file", "d/unopened", "unlisted/file", "unseen"} {
		b.put(n, 1<<20)
	}
	b.put("program", 1<<20)
	must(t, os.Chmod(filepath.Join(b.dir, "program"), 0o755))
	b.mount(",hard")
	_, err := os.Stat(b.path("file"))
	must(t, err)
	_, err = os.Stat(b.path("program"))
	must(t, err)
	b.link.Stall()
	defer b.link.Resume()
	waiting := map[string]*testbed.Process{}
	for what, shell := range interrupted {
		// A shell in the background ignores SIGINT, and so would what it starts.
		cmd := exec.Command("env", "--default-signal=INT", "sh", "-c", "cd "+b.m.Dir+" && "+shell)
		p, err := testbed.Start(cmd)
		must(t, err)
		waiting[what] = p
	}
	time.Sleep(500 * time.Millisecond) // until they wait; earlier is as good
	// All of them first: one that may create a name has its directory locked, and
	// the kernel lets nobody who waits for that lock be interrupted.
	for _, p := range waiting {
		p.Signal(unix.SIGINT)
	}
	for what, p := range waiting {
		b.inTime("after ^C, "+what, func() {
			var exit *exec.ExitError
			if err := p.Wait(); !errors.As(err, &exit) {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	b.link.Resume()
	b.m.Unmount()
}
