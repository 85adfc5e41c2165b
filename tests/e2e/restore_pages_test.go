package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

const memorySize = 64 << 20 // of testdata/memory.c

// newMemory starts the process of testdata/memory.c on a and dumps it. Its images are there only,
// behind the link.
func newMemory(t *testing.T) (m *move, link *testbed.Proxy) {
	t.Helper()
	m = newHosts(t, func(m *move) testbed.SSHDConfig {
		link = testbed.NewProxyOn(t, m.b, "")
		return testbed.SSHDConfig{Host: m.a, Through: link}
	})
	must(t, os.MkdirAll(m.a.Path(workDir), 0o755))
	must(t, os.MkdirAll(m.a.Path(jobDir+"/bin"), 0o755))
	testbed.Run(t, "gcc", "-O1", "-static", "-pthread", "-Wl,--build-id", "-o", m.a.Path(jobDir+"/bin/memory"), "testdata/memory.c")
	job, err := testbed.Start(m.a.Command(jobDir+"/bin/memory", workDir))
	must(t, err)
	testbed.Until(t, "the process to work", func() bool { return len(m.log(m.a.Path(workDir))) >= 20 })
	m.dump(job.Pid)
	m.steps = len(m.log(m.a.Path(workDir)))
	return m, link
}

// restoreLazily restores it on b.
func (m *move) restoreLazily(args ...string) restored {
	m.t.Helper()
	r := m.restore(append([]string{"--lazy-pages", "--upperdir", "/srv/upper"}, append(args, "root@source:/srv/images")...)...)
	must(m.t, os.WriteFile(m.b.Path(r.view+workDir+"/children"), nil, 0o644))
	return r
}

// checkMemory fails the test if the process has seen anything but what it had in its memory.
func (m *move) checkMemory(r restored) {
	m.t.Helper()
	for _, l := range m.log(m.b.Path(r.view + workDir)) {
		if !strings.HasSuffix(l, " ok") {
			m.t.Fatalf("%q", l)
		}
	}
}

// stepped waits until the process has made n more steps.
func (m *move) stepped(r restored, n int) {
	m.t.Helper()
	before := len(m.log(m.b.Path(r.view + workDir)))
	testbed.Until(m.t, fmt.Sprintf("%d steps", n), func() bool {
		m.checkMemory(r)
		return len(m.log(m.b.Path(r.view+workDir))) >= before+n
	})
}

// missingMemory is what status says is still in the images only; "" if nothing is.
func (m *move) missingMemory(r restored) string {
	out, _ := m.b.Command(m.program, "status", r.view).CombinedOutput()
	f := regexp.MustCompile(`(?m)^ *memory +(.* of .*) are still in the images only`).FindSubmatch(out)
	if f == nil {
		return ""
	}
	return string(f[1])
}

// pagesPid returns the pid of the process that gives the memory, or of the one that holds it.
func (m *move) pagesPid(holder bool) int {
	m.t.Helper()
	for _, pid := range m.jobs() {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if is := string(comm) == "held-memory\n"; holder && is || !holder && !is && bytes.Contains(args, []byte("restore-pages")) {
			return pid
		}
	}
	m.t.Fatalf("no such process (holder: %v)", holder)
	return 0
}

// TestLazyPages: a process goes on when a small part of its memory is here, gets every byte
// that it asks for, and needs the source no more when all is here.
func TestLazyPages(t *testing.T) {
	m, link := newMemory(t)
	link.SetRate(8 << 20)
	_, before := link.Bytes()
	r := m.restoreLazily()
	m.stepped(r, 1)
	_, after := link.Bytes()
	if n := after - before; n > memorySize/2 {
		t.Errorf("%d bytes of %d came before the first step", n, memorySize)
	}
	m.stepped(r, 20)
	if has := m.missingMemory(r); has == "" {
		t.Errorf("status says nothing of what is missing: %s", m.b.Run(m.program, "status", r.view))
	}
	for _, c := range []struct {
		code int
		args []string
	}{
		{1, []string{"dump", "--criu", m.criu, "-D", "/srv/again", strconv.Itoa(r.pid)}},
		{3, []string{"detach", r.view}},
		{3, []string{"wait", "--complete", "--timeout", "100ms", r.view}},
	} {
		cmd := m.b.Command(m.program, c.args...)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != c.code || c.args[0] != "wait" && !strings.Contains(string(out), "MiB are still in the images only") {
			t.Errorf("%s while memory is missing: %v, %q", c.args[0], err, out)
		}
	}
	m.stepped(r, 1)
	link.SetRate(0)
	m.stepped(r, 400) // while threads and children look at all of it
	m.b.Run(m.program, "wait", "--complete", r.view)
	if has := m.missingMemory(r); has != "" {
		t.Errorf("status says that %s are missing, and wait that it is complete", has)
	}
	testbed.Until(t, "the images to be let go of", func() bool {
		return m.b.Run("sh", "-c", "grep -c fuse.migratefs /proc/self/mountinfo") == "1\n"
	})
	must(t, os.RemoveAll(m.a.Path("/srv/images")))
	m.stepped(r, 100)

	// It is like any other process: it can be dumped, and goes on.
	m.b.Run(m.program, "dump", "--criu", m.criu, "--leave-running", "-D", "/srv/again", strconv.Itoa(r.pid))
	m.stepped(r, 10)
	m.endMemory(r)
}

// TestLazyPagesHere: images of this host are read as late. A restore that fails leaves nothing.
func TestLazyPagesHere(t *testing.T) {
	m, _ := newMemory(t)
	if out := m.refuse(1, "--lazy-pages", "--upperdir", "/srv/upper", "--criu", "/bin/false", "/srv/images"); !strings.Contains(out, "criu") {
		t.Errorf("criu ended, and restore says %q", out)
	}
	must(t, os.RemoveAll(m.b.Path("/run/migratefs")))
	log := m.a.Path(workDir + "/log")
	must(t, os.Rename(log, log+".away"))
	if out := m.refuse(1, "--lazy-pages", "--verify", "off", "--upperdir", "/srv/upper", "/srv/images"); !strings.Contains(out, "criu could not restore the process: ") || !strings.Contains(out, "log") {
		t.Errorf("a file is missing, and restore says %q", out)
	}
	must(t, os.Rename(log+".away", log))
	must(t, os.RemoveAll(m.b.Path("/run/migratefs")))
	r := m.restore("--lazy-pages", "--upperdir", "/srv/upper", "/srv/images")
	m.stepped(r, 20)
	m.b.Run(m.program, "wait", "--complete", r.view)
	must(t, os.RemoveAll(m.b.Path("/srv/images")))
	m.stepped(r, 100)
	m.endMemory(r)
}

// TestLazyPagesKilled: whoever of those that give a process its memory is killed, at whatever
// moment: it goes on with what it had or not at all.
func TestLazyPagesKilled(t *testing.T) {
	m, link := newMemory(t)
	link.SetRate(4 << 20)
	for _, steps := range []int{0, 1, 5, 20, 40} {
		r := m.restoreLazily()
		m.stepped(r, steps)
		if steps == 5 { // another holds it then
			holder := m.pagesPid(true)
			must(t, syscall.Kill(holder, syscall.SIGKILL))
			testbed.Until(t, "another holder", func() bool { return !slices.Contains(m.jobs(), holder) && m.pagesPid(true) != 0 })
			m.stepped(r, 5)
		}
		must(t, syscall.Kill(m.pagesPid(false), syscall.SIGKILL))
		m.ended(r)
		m.checkMemory(r)
		if log, err := os.ReadFile(m.b.Path(filepath.Dir(r.view) + "/criu/helper.log")); !bytes.Contains(log, []byte("was killed")) {
			t.Errorf("nothing says why it ended: %q, %v", log, err)
		}
		m.unmount(r)
		must(t, os.RemoveAll(m.b.Path("/srv/upper")))
	}
}

// TestLazyPagesBothKilled: when nobody is left who has what is missing, the process ends.
func TestLazyPagesBothKilled(t *testing.T) {
	m, link := newMemory(t)
	link.SetRate(4 << 20)
	r := m.restoreLazily()
	m.stepped(r, 5)
	helper, holder := m.pagesPid(false), m.pagesPid(true)
	state := func(pid int, is string) {
		testbed.Until(t, "process to be "+is, func() bool {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return bytes.Contains(b, []byte(") "+is+" "))
		})
	}
	must(t, syscall.Kill(r.pid, syscall.SIGSTOP))  // or it might be quicker: it ends when it sees zeros
	must(t, syscall.Kill(helper, syscall.SIGSTOP)) // or there would be another holder
	state(helper, "T")
	must(t, syscall.Kill(holder, syscall.SIGKILL))
	state(holder, "Z")
	must(t, syscall.Kill(helper, syscall.SIGKILL))
	m.ended(r)
	if log, err := os.ReadFile(m.b.Path(filepath.Dir(r.view) + "/criu/helper.log")); !bytes.Contains(log, []byte("were killed")) {
		t.Errorf("nothing says why it ended: %q, %v", log, err)
	}
	m.unmount(r)
}

// TestLazyPagesWithoutTheSource: what is missing is waited for while the link is cut, comes
// when it is back, and keeps nobody from killing who waits.
func TestLazyPagesWithoutTheSource(t *testing.T) {
	m, link := newMemory(t)
	link.SetRate(4 << 20)
	cut := func(r restored) {
		m.stepped(r, 5)
		link.Refuse(true)
		link.Cut()
		testbed.Until(t, "all that it does to wait", func() bool {
			before := len(m.log(m.b.Path(r.view + workDir)))
			time.Sleep(200 * time.Millisecond)
			return before == len(m.log(m.b.Path(r.view+workDir)))
		})
		m.checkMemory(r)
	}
	r := m.restoreLazily()
	cut(r)
	link.Refuse(false)
	m.stepped(r, 20)
	cut(r)
	m.endMemory(r)

	link.Refuse(false)
	must(t, os.RemoveAll(m.b.Path("/srv/upper")))
	r = m.restoreLazily()
	cut(r)
	must(t, syscall.Kill(m.pagesPid(false), syscall.SIGKILL))
	m.ended(r)
	m.checkMemory(r)
	m.unmount(r)
}

// endMemory kills the process, if it is still there, and its children, and ends its view.
func (m *move) endMemory(r restored) {
	m.t.Helper()
	_ = syscall.Kill(r.pid, syscall.SIGKILL)
	m.ended(r)
	for _, pid := range m.jobs() { // of what waits for its arguments, which are memory, too, there is no name
		if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.Contains(args, []byte("restore-init")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	m.checkMemory(r)
	m.unmount(r)
}

// ended waits until the process has ended.
func (m *move) ended(r restored) {
	m.t.Helper()
	testbed.Until(m.t, "the process to end", func() bool { return errors.Is(syscall.Kill(r.pid, 0), syscall.ESRCH) })
}
