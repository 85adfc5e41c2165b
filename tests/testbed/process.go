package testbed

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds waits for something that is certain to come on a machine of
// any speed. It is no measurement.
const patience = 2 * time.Minute

// NeedRoot skips the test unless it runs as root.
func NeedRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root")
	}
}

// NeedFUSE skips the test unless this process can mount FUSE filesystems.
func NeedFUSE(tb testing.TB) {
	tb.Helper()
	NeedRoot(tb)
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		tb.Skipf("needs /dev/fuse: %v", err)
	}
	f.Close()
}

// Program returns the path of a program that the testbed needs, looked for in
// PATH and in the directories of root.
func Program(tb testing.TB, name string) string {
	tb.Helper()
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	tb.Fatalf("%s is not installed: run make deps", name)
	return ""
}

// Process is a child process that does not outlive the test process.
type Process struct {
	Pid int

	done chan struct{}
	err  error // of Wait; valid once done is closed
}

// Start starts cmd. If the test process dies, the child gets SIGKILL.
func Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	p := &Process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The signal comes when the thread that forked ends, so it stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	p.Pid = cmd.Process.Pid
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the process ended, as exec.Cmd.Wait does.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// WaitFor waits up to d for the end of the process and reports whether it came.
func (p *Process) WaitFor(d time.Duration) bool {
	select {
	case <-p.done:
		return true
	default: // with nothing to wait for, select may choose either below
	}
	select {
	case <-p.done:
		return true
	case <-time.After(d):
		return false
	}
}

// Signal sends sig to the process, if it still runs.
func (p *Process) Signal(sig syscall.Signal) {
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(p.Pid, sig)
	}
}

// KillTree kills the process and everything descended from it.
func (p *Process) KillTree() {
	select {
	case <-p.done:
		return
	default:
	}
	// Stopped first, so that it cannot have a child we do not see.
	_ = syscall.Kill(p.Pid, syscall.SIGSTOP)
	children := Descendants(p.Pid)
	_ = syscall.Kill(p.Pid, syscall.SIGKILL)
	for _, pid := range children {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.done
}

// Descendants returns the pids of all processes descended from pid.
func Descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// pid (comm) state ppid ...: comm may hold anything, ')' included.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(f) < 2 {
			continue
		}
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		parent, _ := strconv.Atoi(f[1])
		children[parent] = append(children[parent], child)
	}
	var all []int
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		all = append(all, children[queue[0]]...)
		queue = append(queue, children[queue[0]]...)
	}
	return all
}

// Until calls ok until it returns true, and fails the test if that does not
// come. What says what was waited for.
func Until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("waited in vain for %s", what)
		}
	}
}

// Run runs a command to its end and returns what it printed, both streams. It
// fails the test if the command does.
func Run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Output collects what a process prints; safe for concurrent use.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write is what exec.Cmd calls.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String returns what was printed until now.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// quote quotes s for sh.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
