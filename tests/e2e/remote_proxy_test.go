package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// source is a directory behind a real sshd behind a link that can break, and
// what it takes to mount it.
type source struct {
	dir  string // on the source
	link *testbed.Proxy
	sshd *testbed.SSHD

	local string // holds upper and mountpoint
}

func newSource(t *testing.T) *source {
	t.Helper()
	testbed.NeedFUSE(t)
	s := &source{dir: testbed.TempDir(t), local: testbed.TempDir(t), link: testbed.NewProxy(t, "")}
	s.sshd = testbed.StartSSHD(t, testbed.SSHDConfig{Through: s.link})
	for _, d := range []string{s.upper(), s.mnt()} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *source) upper() string { return filepath.Join(s.local, "upper") }
func (s *source) mnt() string   { return filepath.Join(s.local, "mnt") }

// mount mounts the source under an upper, with more options.
func (s *source) mount(t *testing.T, options string) *testbed.Mounted {
	t.Helper()
	return testbed.Mount(t, "lowerdir="+s.sshd.Target(s.dir)+",upperdir="+s.upper()+options, s.mnt(),
		testbed.MountConfig{Env: s.sshd.Env()})
}

// put makes a file on the source that has the given size and bytes that do not
// repeat, and an mtime that no later change can have.
func (s *source) put(t *testing.T, name string, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(size), byte(len(name))})
	_, _ = random.Read(b)
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	return b
}

// must ends the test if err is not nil.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inTime runs f and fails the test if it does not return. The limit is no
// measurement: what waits for a stalled link waits for ever.
func inTime(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s waits for the network", what)
	}
}

// readAt reads n bytes at off of the file through a descriptor of its own.
func readAt(path string, off int64, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	n, err = f.ReadAt(b, off)
	return b[:n], err
}

func TestRangesAreFetchedWhenReadAndOnce(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "read", 32<<20)
	s.put(t, "unread", 1<<20)
	before := testbed.Snapshot(t, s.dir, testbed.Usual|testbed.Mtime|testbed.Numbers)

	m := s.mount(t, "")
	if st, err := os.Stat(m.Path("unread")); err != nil || st.Size() != 1<<20 {
		t.Fatalf("stat: %v, %v", st, err)
	}
	const off, n = 8 << 20, 64 << 10
	got, err := readAt(m.Path("read"), off, n)
	if err != nil || !bytes.Equal(got, want[off:off+n]) {
		t.Fatalf("%d bytes, %v: not what the source has", len(got), err)
	}
	read := s.sshd.BytesRead()
	// The kernel reads ahead; nobody else does.
	if x := read[filepath.Join(s.dir, "read")]; x < n || x > 2<<20 {
		t.Errorf("for %d bytes %d were fetched", n, x)
	}
	if x := read[filepath.Join(s.dir, "unread")]; x != 0 {
		t.Errorf("%d bytes of a file that nobody reads were fetched", x)
	}
	m.Unmount()

	s.sshd.ForgetRequests()
	m = s.mount(t, "")
	got, err = readAt(m.Path("read"), off, n)
	if err != nil || !bytes.Equal(got, want[off:off+n]) {
		t.Fatalf("after a remount: %d bytes, %v: not what the source has", len(got), err)
	}
	m.Unmount()
	for _, r := range s.sshd.Requests() {
		if r.Op == "read" && r.Off < off+n && r.Off+r.Len > off {
			t.Errorf("fetched again after a remount: %d bytes at %d", r.Len, r.Off)
		}
	}
	testbed.Same(t, "the source", before, "the source after use",
		testbed.Snapshot(t, s.dir, testbed.Usual|testbed.Mtime|testbed.Numbers))
}

func TestWriteDoesNotWaitForTheNetwork(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "file", 4<<20)
	before := testbed.Snapshot(t, s.dir, testbed.Usual|testbed.Mtime|testbed.Numbers)
	m := s.mount(t, "")
	f, err := os.OpenFile(m.Path("file"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()

	s.link.Stall()
	defer s.link.Resume() // or Close waits for what failed below
	page := strings.Repeat("p", 4096)
	for _, w := range []struct {
		off int64
		b   string
	}{{0, "first"}, {1 << 20, page}, {2<<20 + 3, "across no boundary"}, {4<<20 - 2, "and beyond the end"}} {
		inTime(t, "a write", func() {
			if _, err := f.WriteAt([]byte(w.b), w.off); err != nil {
				t.Error(err)
			}
		})
		if end := w.off + int64(len(w.b)); end > int64(len(want)) {
			want = append(want, make([]byte, end-int64(len(want)))...)
		}
		copy(want[w.off:], w.b)
	}
	inTime(t, "fsync", func() {
		if err := f.Sync(); err != nil {
			t.Error(err)
		}
	})
	// The kernel reads by pages, and ahead unless told not to.
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
	inTime(t, "a read of what was written", func() {
		b := make([]byte, len(page))
		if _, err := f.ReadAt(b, 1<<20); err != nil || string(b) != page {
			t.Errorf("%.20q, %v", b, err)
		}
	})
	s.link.Resume()

	got, err := os.ReadFile(m.Path("file"))
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes: not the source's with what was written", len(got))
	}
	f.Close()
	m.Unmount()
	m = s.mount(t, "")
	if got, err = os.ReadFile(m.Path("file")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("after a remount: %d bytes, %v: not the source's with what was written", len(got), err)
	}
	m.Unmount()
	testbed.Same(t, "the source", before, "the source after use",
		testbed.Snapshot(t, s.dir, testbed.Usual|testbed.Mtime|testbed.Numbers))
}

// TestPendingSurvivesKill: what was fsynced is there after kill -9 of a daemon
// that had not fetched the rest.
func TestPendingSurvivesKill(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "file", 2<<20)
	m := s.mount(t, "")
	f, err := os.OpenFile(m.Path("file"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("appended")
	must(t, err)
	must(t, f.Sync())
	want = append(want, "appended"...)
	m.Kill()
	f.Close()

	m = s.mount(t, "") // over the dead mount
	got, err := os.ReadFile(m.Path("file"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v: not the source's with what was appended", len(got), err)
	}
	m.Unmount()
}

// TestBrokenLink: through a link that breaks every so often, a reader gets the
// right bytes or an error, and the right bytes once the link holds.
func TestBrokenLink(t *testing.T) {
	for name, breakIt := range map[string]func(p *testbed.Proxy, n int64){
		"cut":     (*testbed.Proxy).CutAfter,
		"corrupt": (*testbed.Proxy).CorruptAfter,
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t)
			want := s.put(t, "file", 8<<20)
			m := s.mount(t, ",timeout=20")
			for round := range 3 {
				breakIt(s.link, int64(300<<10+round*777))
				const step = 512 << 10
				for off := 0; off < len(want); off += step {
					got, err := readAt(m.Path("file"), int64(off), step)
					if !bytes.Equal(got, want[off:off+len(got)]) {
						t.Fatalf("round %d: wrong bytes at %d", round, off)
					}
					if err == nil && len(got) < step {
						t.Fatalf("round %d: %d bytes at %d and no error", round, len(got), off)
					}
				}
			}
			testbed.Until(t, "the whole file over a link that holds", func() bool {
				got, err := os.ReadFile(m.Path("file"))
				if err == nil && !bytes.Equal(got, want) {
					t.Fatal("wrong bytes")
				}
				return err == nil
			})
			m.Unmount()
		})
	}
}

// TestDeadSource: with the source gone, what is here is served, a reader of the
// rest can be interrupted, and the mount can be taken away.
func TestDeadSource(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "here", 100<<10)
	s.put(t, "there", 8<<20)
	m := s.mount(t, ",hard")
	if got, err := os.ReadFile(m.Path("here")); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	must(t, os.WriteFile(m.Path("new"), []byte("written here"), 0o644))
	there, err := os.Open(m.Path("there"))
	must(t, err)
	defer there.Close()
	_, err = os.Stat(m.Path("there"))
	must(t, err)

	s.link.Stall() // packets vanish, as when the host is switched off
	inTime(t, "a read of what is here", func() {
		if got, err := os.ReadFile(m.Path("new")); err != nil || string(got) != "written here" {
			t.Errorf("%q, %v", got, err)
		}
	})
	// What is started in the background may have SIGINT ignored, and leaves it to us.
	cmd := exec.Command("env", "--default-signal=INT", "cat")
	cmd.Stdin = there
	cat, err := testbed.Start(cmd)
	must(t, err)
	becomes(t, cat, "cat")
	if cat.WaitFor(500 * time.Millisecond) {
		t.Errorf("cat of what is not here ended: %v", cat.Wait())
	}
	cat.Signal(syscall.SIGINT)
	inTime(t, "an interrupted reader", func() {
		var exit *exec.ExitError
		if err := cat.Wait(); !errors.As(err, &exit) {
			t.Errorf("cat ended with %v", err)
		}
	})
	there.Close()
	inTime(t, "umount", m.Unmount)
}

// becomes waits until a process that execs others has come to program.
func becomes(t *testing.T, p *testbed.Process, program string) {
	t.Helper()
	testbed.Until(t, program, func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.Pid))
		return err != nil || string(b) == program+"\n"
	})
}

// TestSourceComesBack: a killed sshd is an outage, not an empty directory, and
// when it is back the mount goes on.
func TestSourceComesBack(t *testing.T) {
	s := newSource(t)
	must(t, os.Mkdir(filepath.Join(s.dir, "d"), 0o755))
	want := s.put(t, "d/file", 1<<20)
	m := s.mount(t, ",soft,timeout=3")
	s.sshd.Kill()
	s.link.Refuse(true)
	if names, err := os.ReadDir(m.Path("d")); err == nil {
		t.Errorf("a directory that cannot be read has %d names and no error", len(names))
	}
	if _, err := os.Stat(m.Path("d/file")); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("stat with the source away: %v", err)
	}
	s.link.Refuse(false)
	s.sshd.Start()
	testbed.Until(t, "the source", func() bool {
		got, err := os.ReadFile(m.Path("d/file"))
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("wrong bytes")
		}
		return err == nil
	})
	m.Unmount()
}
