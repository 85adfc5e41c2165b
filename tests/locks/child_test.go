package locks

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

const childEnv = "MIGRATEFS_TEST_LOCKER"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		serve()
		return
	}
	os.Exit(m.Run())
}

// serve does what the lines of standard input say, each in a thread of its own,
// and prints "NUMBER ANSWER" for each.
func serve() {
	fds := map[string]int{}
	var mu sync.Mutex
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		f := strings.Fields(in.Text())
		do := func() {
			answer := perform(&mu, fds, f[1:])
			fmt.Printf("%s %s\n", f[0], answer)
		}
		if f[len(f)-1] == "wait" {
			go do()
			continue
		}
		do()
	}
}

// perform: "open a PATH r|w", "dup a b", "close a", "lock a px|ofd|fl r|w|u START
// LEN [wait]", "get a px|ofd r|w START LEN", "write a TEXT".
func perform(mu *sync.Mutex, fds map[string]int, f []string) string {
	fd := -1
	if len(f) > 1 {
		mu.Lock()
		if open, ok := fds[f[1]]; ok {
			fd = open
		}
		mu.Unlock()
	}
	set := func(name string, fd int, err error) string {
		if err == nil {
			mu.Lock()
			fds[name] = fd
			mu.Unlock()
		}
		return errName(err)
	}
	switch f[0] {
	case "forget": // all descriptors
		mu.Lock()
		defer mu.Unlock()
		for name, fd := range fds {
			_ = unix.Close(fd)
			delete(fds, name)
		}
		return "OK"
	case "open":
		flags := unix.O_RDONLY
		if f[3] == "w" {
			flags = unix.O_RDWR
		}
		fd, err := unix.Open(f[2], flags|unix.O_CLOEXEC, 0)
		return set(f[1], fd, err)
	case "dup":
		fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return set(f[2], fd, err)
	case "close":
		mu.Lock()
		delete(fds, f[1])
		mu.Unlock()
		return errName(unix.Close(fd))
	case "count":
		return count(fd, f[2], f[3])
	case "write":
		_, err := unix.Pwrite(fd, []byte(f[2]), 0)
		return errName(err)
	case "lock":
		wait := f[len(f)-1] == "wait"
		if f[2] == "fl" {
			how := map[string]int{"r": unix.LOCK_SH, "w": unix.LOCK_EX, "u": unix.LOCK_UN}[f[3]]
			if !wait {
				how |= unix.LOCK_NB
			}
			return errName(unix.Flock(fd, how))
		}
		cmd := map[string]int{"px": unix.F_SETLK, "ofd": unix.F_OFD_SETLK}[f[2]]
		if wait {
			cmd++ // F_SETLKW, F_OFD_SETLKW
		}
		l := lockOf(f[3:])
		return errName(unix.FcntlFlock(uintptr(fd), cmd, &l))
	case "get":
		cmd := map[string]int{"px": unix.F_GETLK, "ofd": unix.F_OFD_GETLK}[f[2]]
		l := lockOf(f[3:])
		if err := unix.FcntlFlock(uintptr(fd), cmd, &l); err != nil {
			return errName(err)
		}
		if l.Type == unix.F_UNLCK {
			return "free"
		}
		return fmt.Sprintf("%s %d %d pid %d", map[int16]string{unix.F_RDLCK: "r", unix.F_WRLCK: "w"}[l.Type], l.Start, l.Len, l.Pid)
	}
	return "what?"
}

// count adds one to the number in the file, under a lock of its own each time.
func count(fd int, flavour, times string) string {
	n, _ := strconv.Atoi(times)
	for range n {
		err := errors.Join(setLock(fd, flavour, unix.F_WRLCK), addOne(fd), setLock(fd, flavour, unix.F_UNLCK))
		if err != nil {
			return err.Error()
		}
	}
	return "OK"
}

func setLock(fd int, flavour string, typ int16) error {
	if flavour == "fl" {
		return unix.Flock(fd, map[int16]int{unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[typ])
	}
	return unix.FcntlFlock(uintptr(fd), unix.F_SETLKW, &unix.Flock_t{Type: typ})
}

func addOne(fd int) error {
	b := make([]byte, 8)
	if _, err := unix.Pread(fd, b, 0); err != nil {
		return err
	}
	i, err := strconv.Atoi(string(b))
	if err != nil {
		return err
	}
	_, err = unix.Pwrite(fd, fmt.Appendf(nil, "%08d", i+1), 0)
	return err
}

func lockOf(f []string) unix.Flock_t {
	start, _ := strconv.ParseInt(f[1], 10, 64)
	length, _ := strconv.ParseInt(f[2], 10, 64)
	return unix.Flock_t{Type: map[string]int16{"r": unix.F_RDLCK, "w": unix.F_WRLCK, "u": unix.F_UNLCK}[f[0]], Start: start, Len: length}
}

func errName(err error) string {
	if err == nil {
		return "OK"
	}
	var errno syscall.Errno
	errors.As(err, &errno)
	return unix.ErrnoName(errno)
}

// child is a process of a script.
type child struct {
	*testbed.Process
	t     *testing.T
	in    *os.File
	mu    sync.Mutex
	news  *sync.Cond // something was heard, or the child has ended
	heard map[int]string
	ended bool
	said  int
}

func startChild(t *testing.T) *child {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	out, err := os.Executable()
	must(t, err)
	cmd := exec.Command(out)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdin = r
	answers, toUs, err := os.Pipe()
	must(t, err)
	cmd.Stdout = toUs
	cmd.Stderr = os.Stderr
	p, err := testbed.Start(cmd)
	must(t, err)
	r.Close()
	toUs.Close()
	c := &child{Process: p, t: t, in: w, heard: map[int]string{}}
	c.news = sync.NewCond(&c.mu)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(answers); s.Scan(); {
			n, answer, _ := strings.Cut(s.Text(), " ")
			i, _ := strconv.Atoi(n)
			c.mu.Lock()
			c.heard[i] = answer
			c.news.Broadcast()
			c.mu.Unlock()
		}
		c.mu.Lock()
		c.ended = true
		c.news.Broadcast()
		c.mu.Unlock()
	}()
	t.Cleanup(func() {
		c.KillTree()
		w.Close()
		<-done
		answers.Close()
	})
	return c
}

// say has the child do something and returns its number.
func (c *child) say(what string) int {
	c.t.Helper()
	c.said++
	_, err := fmt.Fprintf(c.in, "%d %s\n", c.said, what)
	must(c.t, err)
	return c.said
}

func (c *child) answered(n int) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.heard[n]
	return a, ok
}

func (c *child) answer(n int) string {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for patience := time.AfterFunc(time.Minute, c.KillTree); ; c.news.Wait() {
		if a, ok := c.heard[n]; ok {
			patience.Stop()
			return a
		}
		if c.ended {
			return "no answer"
		}
	}
}

// asleep reports whether a thread of the child is in fcntl(2) or flock(2).
func (c *child) asleep() bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", c.Pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		nr, _, _ := strings.Cut(string(b), " ")
		if nr == strconv.Itoa(unix.SYS_FCNTL) || nr == strconv.Itoa(unix.SYS_FLOCK) {
			return true
		}
	}
	return false
}

// waits fails the test unless step n waits. A step that should wait and does not
// may pass unseen on a busy machine; one that does is never taken for one that
// does not.
func (c *child) waits(n int) {
	c.t.Helper()
	testbed.Until(c.t, "a thread that waits", func() bool { _, ok := c.answered(n); return ok || c.asleep() })
	time.Sleep(20 * time.Millisecond)
	if a, ok := c.answered(n); ok {
		c.t.Errorf("does not wait: %s", a)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
