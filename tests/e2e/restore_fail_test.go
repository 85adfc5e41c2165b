package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestRestoreFailsClean fails a restore in each way of the table in
// cmd/migratefs/restore_make.go: it says why, on one line, and leaves nothing.
func TestRestoreFailsClean(t *testing.T) {
	m := newMove(t)
	small := func(path, options string) {
		t.Helper()
		m.b.Run("mkdir", "-p", path)
		m.b.Run("mount", "-t", "tmpfs", "-o", options, "small", path)
	}
	says := func(t *testing.T, out string, all ...string) {
		t.Helper()
		for _, want := range all {
			if !strings.Contains(out, want) {
				t.Errorf("%q does not say %q", out, want)
			}
		}
	}
	t.Run("disk full: /run", func(t *testing.T) {
		small("/run/migratefs", "nr_inodes=2")
		out := m.refuse(1, "--upperdir", "/srv/upper", "/srv/images")
		m.b.Run("umount", "/run/migratefs")
		says(t, out, "/run/migratefs/restore-", "no space left")
	})
	t.Run("disk full: upper", func(t *testing.T) {
		small("/run/full", "nr_inodes=2")
		out := m.refuse(32, "--upperdir", "/run/full/upper", "/srv/images")
		says(t, out, "/run/full", "no space left")
		if left := m.b.Run("ls", "-A", "/run/full"); left != "" {
			t.Errorf("left on the full disk: %q", left)
		}
		m.b.Run("umount", "/run/full")
	})
	t.Run("disk full: in criu", func(t *testing.T) {
		out := m.refuse(1, "--criu", m.fakeCriu("says Can'\\''t write ghost file /srv/job/work/gone: No space left on device"), "--upperdir", "/srv/upper", "/srv/images")
		says(t, out, "No space left on device", "make room", "/srv/job/work/gone")
	})
	t.Run("missing binary: ssh", func(t *testing.T) {
		says(t, m.refuse(32, "-o", "ssh_command=/no/ssh", "--upperdir", "/srv/upper", "/srv/images"), "/no/ssh")
	})
	t.Run("missing binary: a criu that is none", func(t *testing.T) {
		says(t, m.refuse(1, "--criu", m.criuScript("exit 7\n"), "--upperdir", "/srv/upper", "/srv/images"), "criu.sh", "without an answer")
	})
	t.Run("wrong kernel", func(t *testing.T) {
		out := m.refuse(1, "--criu", m.fakeCriu("says Kernel does not support memfd_create"), "--upperdir", "/srv/upper", "/srv/images")
		says(t, out, "memfd_create", "this host", "kernel", "whole log: /run/migratefs/")
	})
	t.Run("pid taken", func(t *testing.T) {
		pid := regexp.MustCompile(`core-(\d+)\.img`).FindStringSubmatch(m.b.Run("ls", "/srv/images"))[1]
		script := fmt.Sprintf("echo $((%s - 1)) >/proc/sys/kernel/ns_last_pid\n/bin/sleep 1000 &\nexec '%s' \"$@\"\n", pid, m.criu)
		says(t, m.refuse(1, "--criu", m.criuScript(script), "--upperdir", "/srv/upper", "/srv/images"), "process id", "taken")
	})
	t.Run("pid file is there", func(t *testing.T) {
		says(t, m.refuse(1, "--pidfile", "/srv/images/inventory.img", "--upperdir", "/srv/upper", "/srv/images"), "inventory.img")
	})
	t.Run("criu killed", func(t *testing.T) {
		says(t, m.refuse(1, "--criu", m.fakeCriu("dies"), "--upperdir", "/srv/upper", "/srv/images"), "criu ended without an answer")
	})
	t.Run("daemon killed", func(t *testing.T) {
		p, done := m.startRestore(m.fakeCriu("loses /srv/job/work/log"))
		must(t, syscall.Kill(m.find(p, "view=root"), syscall.SIGKILL))
		says(t, done(), "/srv/job/work/log", "exit status 1")
	})
	t.Run("helper killed", func(t *testing.T) {
		p, done := m.startRestore(m.fakeCriu("hangs"))
		must(t, syscall.Kill(m.find(p, "restore-init"), syscall.SIGKILL))
		says(t, done(), "helper", "exit status 1")
	})
	t.Run("command killed", func(t *testing.T) {
		p, _ := m.startRestore(m.fakeCriu("hangs"))
		must(t, syscall.Kill(p.Pid, syscall.SIGKILL))
		testbed.Until(t, "everything to end by itself", func() bool {
			return len(m.jobs()) == 0 && m.b.Run("sh", "-c", "grep fuse.migratefs /proc/self/mountinfo || true") == ""
		})
		// An upper that it made is all that stays.
		m.b.Run("rm", "-r", "/srv/upper", "/srv/.upper.migratefs")
		m.nothingLeft()
	})
	m.sourceUntouched()
	m.b.Run("rm", "-r", "/srv/images/criu.sh", "/run/migratefs") // logs
	m.end(m.restore("--upperdir", "/srv/upper", "/srv/images"))
}

// startRestore starts a restore with the given criu, and returns when that is asked to
// restore. Done waits for its end, and returns what it printed, and how it ended;
// nothing may be left of it then.
func (m *move) startRestore(criu string, args ...string) (p *testbed.Process, done func() string) {
	m.t.Helper()
	cmd := m.b.Command(m.program, append([]string{"restore", "--criu", criu, "--from", "source", "--upperdir", "/srv/upper", "/srv/images"}, args...)...)
	out := new(testbed.Output)
	cmd.Stdout, cmd.Stderr = out, out
	p, err := testbed.Start(cmd)
	must(m.t, err)
	testbed.Until(m.t, "criu to be asked to restore", func() bool {
		_, err := os.Stat(m.b.Path("/run/fake-restores"))
		return err == nil
	})
	return p, func() string {
		err := p.Wait()
		m.nothingLeft()
		return fmt.Sprintf("%s%v", out.String(), err)
	}
}

// find returns the descendant of p that has what in its arguments.
func (m *move) find(p *testbed.Process, what string) int {
	m.t.Helper()
	for _, pid := range testbed.Descendants(p.Pid) {
		if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(args), what) {
			return pid
		}
	}
	m.t.Fatalf("no process with %q", what)
	return 0
}

// TestRestoreWhileTheLinkIsCut: a restore waits for a source that is away, as hard
// has it: until that is back, or until it is interrupted.
func TestRestoreWhileTheLinkIsCut(t *testing.T) {
	var link *testbed.Proxy
	m := newHosts(t, func(m *move) testbed.SSHDConfig {
		link = testbed.NewProxyOn(t, m.b, "")
		return testbed.SSHDConfig{Host: m.a, Through: link}
	})
	m.startJob()
	// CRIU begins when it is told.
	const script = "/usr/bin/touch /run/begun\nwhile [ ! -e /run/go ]; do /bin/sleep 0.01; done\nexec '%s' \"$@\"\n"
	begin := func() (*testbed.Process, *testbed.Output) {
		m.b.Run("rm", "-f", "/run/begun", "/run/go")
		cmd := m.b.Command(m.program, "restore", "--criu", m.criuScript(fmt.Sprintf(script, m.criu)), "--from", "source", "--upperdir", "/srv/upper", "/srv/images")
		out := new(testbed.Output)
		cmd.Stdout, cmd.Stderr = out, out
		p, err := testbed.Start(cmd)
		must(t, err)
		testbed.Until(t, "criu to begin", func() bool {
			select {
			case <-p.Done():
				t.Fatalf("restore ended: %s", out)
			default:
			}
			_, err := os.Stat(m.b.Path("/run/begun"))
			return err == nil
		})
		link.Refuse(true)
		link.Cut()
		m.b.Run("touch", "/run/go")
		testbed.Until(t, "criu to restore", func() bool {
			logs, _ := filepath.Glob(m.b.Path("/run/migratefs/restore-*/criu/restore.log"))
			return len(logs) > 0
		})
		return p, out
	}
	p, out := begin()
	p.Signal(syscall.SIGTERM)
	if err := p.Wait(); err == nil || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("interrupted while the link was cut: %v, %q", err, out)
	}
	m.nothingLeft()
	link.Refuse(false)
	m.b.Run("rm", "-rf", "/run/migratefs")

	p, out = begin()
	link.Refuse(false)
	if err := p.Wait(); err != nil {
		t.Fatalf("the link was back: %v, %s", err, out)
	}
	f := restoredLine.FindStringSubmatch(out.String())
	if f == nil {
		t.Fatalf("restore printed %q", out)
	}
	work := m.b.Path(f[3] + workDir)
	testbed.Until(t, "the job to go on", func() bool { return len(m.log(work)) >= m.steps+5 })
	m.checkLog(m.log(work))
	m.sourceUntouched()
}

// TestRestoreTells: --wait, --pidfile and --status-fd.
func TestRestoreTells(t *testing.T) {
	m := newMove(t)
	r, w, err := os.Pipe()
	must(t, err)
	cmd := m.b.Command(m.program, "restore", "--criu", m.criu, "--from", "source", "--upperdir", "/srv/upper",
		"--wait", "--pidfile", "/srv/job.pid", "--status-fd", "3", "/srv/images")
	cmd.ExtraFiles = []*os.File{w}
	out := new(testbed.Output)
	cmd.Stdout, cmd.Stderr = out, out
	p, err := testbed.Start(cmd)
	must(t, err)
	w.Close()
	status := make([]byte, 2)
	if n, err := r.Read(status); n != 1 || status[0] != 0 {
		t.Fatalf("the status descriptor said %q, %v; restore %s", status[:n], err, out)
	}
	// Nobody else has it: its end comes with the byte.
	if n, err := r.Read(status); n != 0 || err == nil {
		t.Errorf("after that it said %q, %v", status[:n], err)
	}
	testbed.Until(t, "restore to say all", func() bool { return restoredLine.MatchString(out.String()) })
	f := restoredLine.FindStringSubmatch(out.String())
	if pid, err := os.ReadFile(m.b.Path("/srv/job.pid")); err != nil || string(pid) != f[2] {
		t.Errorf("the pid file says %q, %v, restore %q", pid, err, f[2])
	}
	select {
	case <-p.Done():
		t.Fatalf("it did not wait: %s", out)
	default:
	}
	p.Signal(syscall.SIGTERM) // which is the job's
	err = p.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 128+int(syscall.SIGTERM) {
		t.Errorf("restore --wait of a job that SIGTERM ended: %v, %s", err, out)
	}
	testbed.Until(t, "the view to end", func() bool { return m.b.Command(m.program, "umount", f[3]).Run() == nil })
	m.sourceUntouched()
}

// TestRestoreInTheWay: what would make CRIU fail is said, each thing on its line, before
// anything is touched, and is no guess: CRIU fails for it, and works without it.
func TestRestoreInTheWay(t *testing.T) {
	m := newHosts(t)
	m.a.Run("sh", "-c", "mkdir -p /srv/job /run/three; cp /bin/sleep /srv/job/sleep; echo one >/run/one; echo two >/run/two")
	job, err := testbed.Start(m.a.Command("bash", "-c",
		"for fd in {3..20}; do eval \"exec $fd>&-\"; done; cd /run/three; exec </dev/null >/dev/null 2>&1 8</run/one 9>>/run/two; exec setsid /srv/job/sleep 1000"))
	must(t, err)
	testbed.Until(t, "the job to run", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", job.Pid))
		return strings.HasPrefix(string(b), "/srv/job/sleep")
	})
	m.dump(job.Pid)

	run := func(code int, args ...string) string {
		t.Helper()
		cmd := m.b.Command(m.program, append([]string{"restore", "--criu", m.criu, "--from", "source", "--upperdir", "/srv/upper"}, args...)...)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("restore %q: exit code %d, want %d: %s", args, got, code, out)
		}
		m.nothingLeft()
		return string(out)
	}
	for _, images := range []string{"/srv/images", "root@source:/srv/images"} {
		out := run(3, images)
		for _, want := range []string{
			`migratefs: file "/run/one" of process `, `migratefs: file "/run/two" of process `, "copy it here from the source",
			`migratefs: directory "/run/three" of process `, "make it\n",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("%q does not say %q", out, want)
			}
		}
		if n := strings.Count(out, "\n"); n != 3 {
			t.Errorf("%d lines, want 3: %q", n, out)
		}
	}
	m.b.Run("sh", "-c", "echo one >/run/one; mkdir /run/three")
	if out := run(3, "/srv/images"); strings.Count(out, "\n") != 1 || !strings.Contains(out, "/run/two") {
		t.Errorf("with one of them left: %q", out)
	}
	// --force has CRIU find out, which it does.
	if out := run(1, "--force", "/srv/images"); !strings.Contains(out, `file "/run/two" of process`) || !strings.Contains(out, "criu could not restore") {
		t.Errorf("--force: %q", out)
	}
	m.b.Run("sh", "-c", "rm -r /run/migratefs; echo of any size, since it is only appended to >/run/two")
	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", r.pid)); cwd != "/run/three" {
		t.Errorf("restored in %q, %v", cwd, err)
	}
	m.end(r)
}
