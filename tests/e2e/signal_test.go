package e2e

import (
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// pestered runs f on a thread that gets a signal, which has a handler, every
// millisecond, and hands it system calls that nobody repeats after EINTR.
func pestered(t *testing.T, f func()) {
	t.Helper()
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR1)
	defer signal.Stop(c)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid, stop := unix.Gettid(), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGUSR1)
			}
		}
	})
	f()
	close(stop)
	wg.Wait()
}

// TestSignalsDoNotInterruptFiles: a program with timers gets no EINTR of a file,
// neither of the write that brings it up nor of a read that fetches.
func TestSignalsDoNotInterruptFiles(t *testing.T) {
	dir := testbed.TempDir(t)
	for _, d := range []string{"lower", "upper", "mnt"} {
		must(t, os.Mkdir(dir+"/"+d, 0o755))
	}
	must(t, os.WriteFile(dir+"/lower/file", make([]byte, 256<<20), 0o644))
	m := testbed.Mount(t, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,mode=overlay", dir+"/mnt")
	fd, err := unix.Open(m.Path("file"), unix.O_RDWR, 0)
	must(t, err)
	defer unix.Close(fd)
	pestered(t, func() {
		if n, err := unix.Pwrite(fd, []byte("x"), 1<<20); n != 1 || err != nil {
			t.Errorf("the first write, among signals: %d, %v", n, err)
		}
	})

	s := newSource(t)
	want := s.put(t, "remote", 4<<20)
	r := s.mount(t, "")
	s.link.SetRTT(40 * time.Millisecond)
	fd2, err := unix.Open(r.Path("remote"), unix.O_RDONLY, 0)
	must(t, err)
	defer unix.Close(fd2)
	b := make([]byte, 1)
	pestered(t, func() {
		for off := int64(0); off < 4<<20; off += 1 << 20 {
			if n, err := unix.Pread(fd2, b, off); n != 1 || err != nil || b[0] != want[off] {
				t.Errorf("a read at %d, among signals: %d, %v", off, n, err)
			}
		}
	})
}

// TestSignalsEndAWait: what waits for a link that answers nothing can be killed.
// (A signal with a handler does not end a wait for a page: the kernel does not
// tell us of it.)
func TestSignalsEndAWait(t *testing.T) {
	s := newSource(t)
	s.put(t, "file", 1<<20)
	m := s.mount(t, ",hard")
	f, err := os.Open(m.Path("file"))
	must(t, err)
	defer f.Close()
	s.link.Stall()
	defer s.link.Resume()
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		shell  string
	}{
		{"SIGKILL", unix.SIGKILL, "exec cat"},
		{"SIGINT", unix.SIGINT, "exec cat"},
	} {
		cmd := exec.Command("env", "--default-signal=INT", "bash", "-c", c.shell)
		cmd.Stdin = f
		p, err := testbed.Start(cmd)
		must(t, err)
		becomes(t, p, "cat")
		time.Sleep(300 * time.Millisecond) // until it waits; earlier is as good
		must(t, cmd.Process.Signal(c.signal))
		inTime(t, c.name, func() { _ = p.Wait() })
	}
}
