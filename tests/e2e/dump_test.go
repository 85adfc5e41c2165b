package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// dumpOn runs `migratefs dump` on h, which must work, and returns what it printed.
func (m *move) dumpOn(h *testbed.Host, pid int, dir string, options ...string) string {
	m.t.Helper()
	args := append([]string{"dump", "--criu", m.criu, "-D", dir, strconv.Itoa(pid), "--"}, options...)
	out, err := h.Command(m.program, args...).CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(h.Path(dir + "/dump.log"))
		m.t.Fatalf("dump: %v, %s\nCRIU's log:\n%s", err, out, tail(log))
	}
	return string(out)
}

// onward is the move from b to c, by the name of "source" there. The images that
// were made on b in dir are on c in /srv/images.
func (m *move) onward(c *testbed.Host, dir string) *move {
	m.t.Helper()
	n := *m
	n.a, n.b = m.b, c
	n.sshd = testbed.StartSSHD(m.t, testbed.SSHDConfig{Host: m.b})
	c.Knows(n.sshd)
	must(m.t, os.CopyFS(c.Path("/srv/images"), os.DirFS(m.b.Path(dir))))
	return &n
}

// sums returns the sha256 of each regular file in dir.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		must(t, err)
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatalf("%s: %v", e.Name(), err)
		}
		f.Close()
		all[e.Name()] = fmt.Sprintf("%x", h.Sum(nil))
	}
	return all
}

// goOn waits for the job to do more steps.
func (m *move) goOn(r restored, steps int) {
	m.t.Helper()
	work := m.b.Path(r.view + workDir)
	testbed.Until(m.t, "the job to go on", func() bool {
		l := m.log(work)
		return len(l) >= steps || len(l) > 0 && strings.Contains(l[len(l)-1], "WRONG")
	})
	m.checkLog(m.log(work))
}

// twice is a job that was moved from a to b, and dumped there while b has not fetched
// everything. On b a file was made and one was deleted.
func twice(t *testing.T) (m *move, onB restored) {
	t.Helper()
	m = newHosts(t)
	m.makeFiles()
	job, err := testbed.Start(m.a.Command(jobDir+"/bin/job", workDir))
	must(t, err)
	testbed.Until(t, "the job to work", func() bool { return len(m.log(m.a.Path(workDir))) >= 20 })
	// A process that runs where its files are is dumped as any.
	out := m.dumpOn(m.a, job.Pid, "/srv/images")
	if want := fmt.Sprintf("process %d (\"job\") is dumped, its images are in /srv/images\n", job.Pid); out != want {
		t.Errorf("dump printed %q, want %q", out, want)
	}
	if err := job.Wait(); err == nil {
		t.Error("what was dumped ended by itself")
	}
	m.steps = len(m.log(m.a.Path(workDir)))
	m.before = testbed.Snapshot(t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers)
	must(t, os.CopyFS(m.b.Path("/srv/images"), os.DirFS(m.a.Path("/srv/images"))))
	m.sshd.ForgetRequests()

	onB = m.restore("-o", "fill=off", "--upperdir", "/srv/upper", "/srv/images")
	m.goOn(onB, m.steps+20)
	work := onB.view + workDir
	m.b.Run("rm", work+"/never-opened")
	m.b.Run("sh", "-c", "echo of b >"+work+"/new")

	out = m.dumpOn(m.b, onB.pid, "/srv/onward")
	for _, want := range []string{fmt.Sprintf("process %d (\"job\") is dumped", onB.pid), "/srv/onward\n", onB.view} {
		if !strings.Contains(out, want) {
			t.Errorf("dump printed %q, not %q", out, want)
		}
	}
	testbed.Until(t, "the job to end on b", func() bool { return !slices.Contains(m.jobs(), onB.pid) })
	m.steps = len(m.log(m.b.Path(work)))
	m.checkLog(m.log(m.b.Path(work)))
	if s := m.b.Run("sh", "-c", "ls -d /run/migratefs/dump-* 2>/dev/null || true"); s != "" {
		t.Errorf("left of the dump: %s", s)
	}
	if n := m.sshd.BytesRead()[workDir+"/never-read"]; n >= 30<<20 {
		t.Fatalf("b has fetched everything already, so this test shows nothing: %d bytes", n)
	}
	return m, onB
}

// asOnB fails the test unless dir has what the job, b and nobody has made of a's files.
func (m *move) asOnB(dir string) {
	m.t.Helper()
	there, here := sums(m.t, m.a.Path(workDir)), sums(m.t, dir)
	for _, name := range []string{"read-only", "never-read", "private"} { // which nobody changes
		if here[name] != there[name] {
			m.t.Errorf("%q has the sum %s, on a %s", name, here[name], there[name])
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "never-opened")); !os.IsNotExist(err) {
		m.t.Errorf("what was deleted on b is there: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "new")); string(b) != "of b\n" {
		m.t.Errorf("what was made on b: %q, %v", b, err)
	}
}

// TestDumpOnward: from a to b to c. What b has not fetched c reads through b, whose
// mount it finds by itself; until that is gone, which is an error.
func TestDumpOnward(t *testing.T) {
	m, onB := twice(t)
	c := m.b.Neighbour("c")
	n := m.onward(c, "/srv/onward")
	if out, err := c.Command(m.program, "plan", "--criu", m.criu, "--from", "source", "/srv/images").CombinedOutput(); err != nil {
		t.Errorf("plan: %v, %s", err, out)
	}
	onC := n.restore("--upperdir", "/srv/upper", "/srv/images")
	n.goOn(onC, m.steps+20)
	m.asOnB(c.Path(onC.view + workDir))

	// When c has all of it, b's mount can go.
	c.Run(m.program, "drain", onC.view)
	c.Run(m.program, "detach", onC.view)
	m.unmount(onB)
	n.goOn(onC, len(n.log(c.Path(onC.view+workDir)))+10)
	m.asOnB(c.Path(onC.view + workDir))

	// On c it is a restored process as on b.
	out := n.dumpOn(c, onC.pid, "/srv/onward")
	if !strings.Contains(out, onC.view) {
		t.Errorf("dump printed %q, not %q", out, onC.view)
	}
	n.unmount(onC)
	testbed.Same(t, "a when the job was dumped", m.before,
		"a now", testbed.Snapshot(t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers))

	c.Run("rm", "-r", "/srv/upper", "/srv/.upper.migratefs", "/srv/onward")
	said := n.refuse(32, "--upperdir", "/srv/upper", "/srv/images")
	for _, want := range []string{onB.view, `host "b"`} {
		if !strings.Contains(said, want) {
			t.Errorf("without b's mount: %q does not say %q", said, want)
		}
	}
}

// TestDumpBack: from a to b, and back, with the images on b.
func TestDumpBack(t *testing.T) {
	m, onB := twice(t)
	sshd := testbed.StartSSHD(t, testbed.SSHDConfig{Host: m.b})
	m.a.Knows(sshd)
	m.a.Run("mount", "-t", "tmpfs", "var", "/var/lib")
	back := *m
	back.a, back.b, back.sshd = m.b, m.a, sshd
	out := m.a.Run(m.program, "restore", "--criu", m.criu, "--upperdir", "/var/lib/upper", "root@source:/srv/onward")
	f := restoredLine.FindStringSubmatch(out)
	if f == nil {
		t.Fatalf("restore printed %q", out)
	}
	pid, err := strconv.Atoi(f[2])
	must(t, err)
	onA := restored{pid: pid, view: f[3]}
	back.goOn(onA, m.steps+20)
	m.asOnB(m.a.Path(onA.view + workDir))
	back.end(onA)
	m.unmount(onB)
	// a's own files are as they were when the job left.
	testbed.Same(t, "a when the job was dumped", m.before,
		"a now", testbed.Snapshot(t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers))
}

// TestDumpRefused: what cannot be dumped goes on, and why is said on one line.
func TestDumpRefused(t *testing.T) {
	m := newMove(t)
	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	pid := strconv.Itoa(r.pid)
	refuse := func(code int, args ...string) string {
		t.Helper()
		cmd := m.b.Command(m.program, append([]string{"dump", "--criu", m.criu}, args...)...)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != code {
			t.Errorf("dump %q: %v, want exit code %d\n%s", args, err, code, out)
		}
		if n := bytes.Count(out, []byte("\n")); n != 1 || !bytes.HasPrefix(out, []byte("migratefs: ")) {
			t.Errorf("dump %q printed %d lines, want one: %q", args, n, out)
		}
		return string(out)
	}
	says := func(out string, all ...string) {
		t.Helper()
		for _, want := range all {
			if !strings.Contains(out, want) {
				t.Errorf("%q does not say %q", out, want)
			}
		}
	}
	says(refuse(2, pid), "-D")
	says(refuse(2, "-D", "/srv/dump", "job"), `"job"`)
	says(refuse(2, "-D", "/srv/dump", pid, "--", "--images-dir", "/srv"), "images-dir")
	says(refuse(1, "-D", "/srv/images", pid), "/srv/images", "not empty", "name another")
	says(refuse(1, "-D", "/srv/no/dump", pid), "/srv/no/dump")
	says(refuse(1, "-D", "/srv/dump", "999999999"), "999999999")
	says(refuse(1, "-D", "/srv/dump", "--criu", "/no/criu", pid), "/no/criu")
	says(refuse(1, "-D", "/srv/dump", "--criu", m.criuScript("echo out of order; exit 7\n"), pid), "without an answer", "out of order")
	m.b.Run("rm", "/srv/images/criu.sh")
	helper := strings.TrimSpace(m.b.Run("sh", "-c", "ps -o ppid= -p "+pid))
	says(refuse(1, "-D", "/srv/dump", helper), "dump that", pid)
	other, err := testbed.Start(m.b.Command("unshare", "--mount", "sh", "-ec", `mkdir -p /run/box/usr; mount --bind /usr /run/box/usr
		for d in /lib*; do ln -s "usr$d" "/run/box$d"; done; exec chroot /run/box /usr/bin/sleep 1000`))
	must(t, err)
	testbed.Until(t, "a root of its own", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", other.Pid))
		return string(b) == "sleep\n"
	})
	says(refuse(1, "-D", "/srv/dump", strconv.Itoa(other.Pid)), "container", "runtime")
	other.KillTree()
	if s := m.b.Run("ls", "-A", "/srv"); s != ".upper.migratefs\nimages\nupper\n" {
		t.Errorf("left in /srv: %q", s)
	}

	// CRIU itself refuses: here a disk that is full.
	m.b.Run("mkdir", "/srv/full")
	m.b.Run("mount", "-t", "tmpfs", "-o", "size=64k", "small", "/srv/full")
	says(refuse(1, "-D", "/srv/full", pid), "goes on as it was", "No space left", "make room", "/srv/full/dump.log")
	if s := m.b.Run("ls", "-A", "/srv/full"); s != "dump.log\n" {
		t.Errorf("left of a dump that failed: %q", s)
	}
	m.b.Run("umount", "/srv/full")

	m.goOn(r, len(m.log(m.b.Path(r.view+workDir)))+10)
	out := m.dumpOn(m.b, r.pid, "/srv/dump", "--tcp-established")
	testbed.Until(t, "the job to end", func() bool { return !slices.Contains(m.jobs(), r.pid) })
	says(out, "is dumped")
	m.unmount(r)
	m.sourceUntouched()
}

// TestDumpLeaveRunning: there are two of it then, and that is said.
func TestDumpLeaveRunning(t *testing.T) {
	m := newMove(t)
	r := m.restore("--view", "paths", "--upperdir", "/srv/upper", "/srv/images")
	m.goOn(r, m.steps+10)
	out := m.b.Run(m.program, "dump", "--criu", m.criu, "--leave-running", "-D", "/srv/dump", strconv.Itoa(r.pid))
	if !strings.Contains(out, "end one of them") {
		t.Errorf("no warning: %q", out)
	}
	if b, err := os.ReadFile(m.b.Path("/srv/dump/migratefs.json")); err != nil || !strings.Contains(string(b), r.view) {
		t.Errorf("the images do not say where the files are: %s, %v", b, err)
	}
	m.goOn(r, len(m.log(m.b.Path(r.view+workDir)))+10)
	// And once more, to its end.
	m.dumpOn(m.b, r.pid, "/srv/again")
	testbed.Until(t, "the job to end", func() bool { return !slices.Contains(m.jobs(), r.pid) })
	m.unmount(r)
	m.sourceUntouched()
}

// TestDumpHelperKilled: who asks CRIU for the dump is killed when the images are whole.
// They stay, whether the process goes on or not; where it does not, they are restored.
func TestDumpHelperKilled(t *testing.T) {
	m := newHosts(t)
	m.makeFiles()
	self, err := os.Executable()
	must(t, err)
	job, err := testbed.Start(m.a.Command(jobDir+"/bin/job", workDir))
	must(t, err)
	steps := func() int { return len(m.log(m.a.Path(workDir))) }
	testbed.Until(t, "the job to work", func() bool { return steps() >= 20 })
	for _, when := range []string{"written", "done"} {
		script := fmt.Sprintf("#!/bin/sh\n%s='%s for %s' exec '%s' \"$@\"\n", fakeEnv, when, m.criu, self)
		must(t, os.WriteFile(m.a.Path("/srv/criu.sh"), []byte(script), 0o755))
		dir := "/srv/" + when
		cmd := m.a.Command(m.program, "dump", "--criu", "/srv/criu.sh", "-D", dir, strconv.Itoa(job.Pid))
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 || bytes.Count(out, []byte("\n")) != 1 {
			t.Fatalf("%s: dump: %v, want exit code 1 and one line\n%s", when, err, out)
		}
		for _, want := range []string{dir, "whole", "they stay", "if the process is gone", "killed"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %q does not say %q", when, out, want)
			}
		}
		if when == "written" {
			had := steps()
			testbed.Until(t, "the job to go on where it is", func() bool { return steps() >= had+20 })
		}
	}
	if err := job.Wait(); err == nil {
		t.Error("what was dumped ended by itself")
	}
	m.steps = steps()
	m.before = testbed.Snapshot(t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers)
	must(t, os.CopyFS(m.b.Path("/srv/images"), os.DirFS(m.a.Path("/srv/done"))))
	m.sshd.ForgetRequests()
	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	m.goOn(r, m.steps+20)
	m.end(r)
	m.sourceUntouched()
}
