package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestMoveImagesThere: the images stay on the source, too, and are read over the
// connection that there is.
func TestMoveImagesThere(t *testing.T) {
	m := newMove(t)
	const there = "root@source:/srv/images"
	logins := func() int { return strings.Count(m.sshd.ServerLog(), "Accepted publickey") }

	t.Run("none", func(t *testing.T) {
		if out := m.refuse(32, "--upperdir", "/srv/upper", "root@source:/srv/none"); !strings.Contains(out, "/srv/none") {
			t.Errorf("%q does not name the directory", out)
		}
		if out := m.refuse(32, "--upperdir", "/srv/upper", "root@source:/srv/job"); !strings.Contains(out, "inventory.img") {
			t.Errorf("%q does not say what is missing", out)
		}
		m.refuse(2, "--upperdir", "/srv/upper", "root@source:srv/images")
	})
	t.Run("damaged", func(t *testing.T) {
		for name, code := range map[string]int{"inventory.img": 32, "files.img": 32, "pages-1.img": 1} {
			bad := m.a.Path("/srv/bad")
			must(t, os.CopyFS(bad, os.DirFS(m.a.Path("/srv/images"))))
			must(t, os.Truncate(filepath.Join(bad, name), 13))
			if out := m.refuse(code, "--upperdir", "/srv/upper", "root@source:/srv/bad"); !strings.Contains(out, name) || !strings.Contains(out, "damaged") {
				t.Errorf("%q does not say that %s is damaged", out, name)
			}
			must(t, os.RemoveAll(bad))
		}
	})
	t.Run("changed since", func(t *testing.T) {
		file := m.a.Path(workDir + "/read-only")
		st, err := os.Stat(file)
		must(t, err)
		must(t, os.Chtimes(file, time.Time{}, time.Now().Add(time.Hour)))
		if out := m.refuse(32, "--upperdir", "/srv/upper", there); !strings.Contains(out, `"/srv/job/work/read-only": modified at`) {
			t.Errorf("%q does not say what changed", out)
		}
		must(t, os.Chtimes(file, st.ModTime(), st.ModTime()))
	})

	must(t, os.RemoveAll(m.b.Srv+"/images"))
	m.sshd.ForgetRequests()
	before := logins()
	out := m.b.Run(m.program, "restore", "--criu", m.criu, "--upperdir", "/srv/upper", there)
	f := restoredLine.FindStringSubmatch(out)
	if f == nil {
		t.Fatalf("restore printed %q", out)
	}
	work := m.b.Path(f[3] + workDir)
	testbed.Until(t, "the job to go on", func() bool { return len(m.log(work)) >= m.steps+20 })
	m.checkLog(m.log(work))
	// One for who waits, one for the background, one for what is small: of one daemon.
	if n := logins() - before; n > 3 {
		t.Errorf("%d logins", n)
	}
	for path, n := range m.sshd.BytesRead() {
		if st, err := os.Stat(m.a.Path(path)); err != nil || filepath.Dir(path) == "/srv/images" && n > st.Size() {
			t.Errorf("%d bytes were fetched of %q, %v", n, path, err)
		}
	}
	if s := m.b.Run("sh", "-c", "grep -c fuse.migratefs /proc/self/mountinfo"); s != "1\n" {
		t.Errorf("mounts of ours: %s: the images are of no use any more", s)
	}
	m.sourceUntouched()
	for _, pid := range m.jobs() {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(b) == "job\n" {
			must(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	m.unmount(restored{view: f[3]})
}

// TestVerifyModes: what changed on the source is refused, or named and served, and a
// process that was left running there is told of.
func TestVerifyModes(t *testing.T) {
	m := newHosts(t)
	m.makeFiles()
	job, err := testbed.Start(m.a.Command(jobDir+"/bin/job", workDir))
	must(t, err)
	testbed.Until(t, "the job to work", func() bool { return len(m.log(m.a.Path(workDir))) >= 3 })
	m.dump(job.Pid, "--leave-running")
	testbed.Until(t, "the job to go on", func() bool { return len(m.log(m.a.Path(workDir))) >= 10 })
	must(t, os.Chmod(m.a.Path(workDir+"/private"), 0o400))

	cmd := m.b.Command(m.program, "restore", "--criu", m.criu, "--from", "source", "--verify", "warn", "--upperdir", "/srv/upper", "/srv/images")
	out, err := cmd.CombinedOutput() // CRIU refuses what it finds itself
	if err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("--verify=warn: %v", err)
	}
	for _, want := range []string{
		`"/srv/job/work/private" changed on the source since the dump, and is served as it is now: mode 0400, was 0444`,
		`("/srv/job/bin/job") still runs on the source`,
		"criu could not restore", "private",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("--verify=warn does not say %q: %s", want, out)
		}
	}
	m.nothingLeft()
	m.refuse(2, "--verify", "maybe", "/srv/images")
}

// TestMoveViewPaths: the process keeps b's root, and what it had on a covers as little
// of it as can be, for it alone.
func TestMoveViewPaths(t *testing.T) {
	m := newMove(t)
	r := m.restore("--view", "paths", "--upperdir", "/srv/upper", "/srv/images")
	work := m.b.Path(r.view + workDir)
	testbed.Until(t, "the job to go on", func() bool { return len(m.log(work)) >= m.steps+20 })
	m.checkLog(m.log(work))
	var ours []string
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", r.pid))
	must(t, err)
	for line := range strings.Lines(string(info)) {
		if strings.Contains(line, " fuse.migratefs ") {
			ours = append(ours, strings.Fields(line)[4])
		}
	}
	// b has no /srv/job; and /srv is the nearest that it has.
	if len(ours) != 1 || ours[0] != "/srv" {
		t.Errorf("the job has mounts of ours on %q", ours)
	}
	root := fmt.Sprintf("/proc/%d/root", r.pid)
	here, err1 := os.Stat(m.b.Path("/etc"))
	there, err2 := os.Stat(root + "/etc")
	if err1 != nil || err2 != nil || !os.SameFile(here, there) {
		t.Errorf("its /etc is not b's: %v, %v", err1, err2)
	}
	if _, err := os.Stat(root + "/srv/images/inventory.img"); err != nil {
		t.Errorf("what b has in /srv is hidden: %v", err)
	}
	if _, err := os.Stat(m.b.Path(jobDir)); err == nil {
		t.Error("everybody on b sees the job's directory")
	}
	m.sourceUntouched()
	m.end(r)
}
