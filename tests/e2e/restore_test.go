package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
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

// move is two hosts, and a job on the first that was dumped: its files are
// there, its images on both.
type move struct {
	t       *testing.T
	a, b    *testbed.Host
	sshd    *testbed.SSHD
	criu    string
	program string        // migratefs
	runtime string        // instead of runc
	before  *testbed.Tree // the job's directory on a, when it was dumped
	steps   int           // that it had done by then
}

const (
	jobDir  = "/srv/job" // on a only: program in bin, files in work
	workDir = jobDir + "/work"
)

// newMove starts the job of testdata/job.c on a and dumps it with the stock
// CRIU.
func newMove(t *testing.T) *move {
	t.Helper()
	m := newHosts(t)
	m.startJob()
	return m
}

// startJob is the rest of newMove.
func (m *move) startJob() {
	t := m.t
	t.Helper()
	m.makeFiles()
	job, err := testbed.Start(m.a.Command(jobDir+"/bin/job", workDir))
	must(t, err)
	testbed.Until(t, "the job to work", func() bool { return len(m.log(m.a.Path(workDir))) >= 20 })
	m.dump(job.Pid)
	m.steps = len(m.log(m.a.Path(workDir)))
	m.before = testbed.Snapshot(t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers)
}

// newHosts makes the two hosts; b can log in to a, by the name of "source". Server may
// say how.
func newHosts(t *testing.T, server ...func(m *move) testbed.SSHDConfig) *move {
	t.Helper()
	testbed.NeedFUSE(t)
	out, err := exec.Command(filepath.Join(testbed.ModuleDir(), "tests/testbed/criu.sh")).Output()
	if err != nil {
		t.Fatalf("no working criu: %v", err)
	}
	m := &move{t: t, criu: strings.TrimSpace(string(out)), program: testbed.Build(t)}
	m.a, m.b = testbed.NewHosts(t)
	cfg := testbed.SSHDConfig{Host: m.a}
	if len(server) > 0 {
		cfg = server[0](m)
	}
	m.sshd = testbed.StartSSHD(t, cfg)
	m.b.Knows(m.sshd)
	for _, h := range []*testbed.Host{m.a, m.b} {
		// A host began as a copy of this one, with what other tests have mounted.
		h.Run("sh", "-c", `while read -r _ _ _ _ point _ opts; do
			case $opts in *"- fuse.migratefs "*) umount -l "$point" ;; esac
		done </proc/self/mountinfo`)
	}
	return m
}

// dump dumps a process of a, which ends it, and copies the images to b.
func (m *move) dump(pid int, options ...string) {
	m.t.Helper()
	m.a.Run("mkdir", "/srv/images")
	dump := m.a.Command(m.criu, append([]string{"dump", "-t", strconv.Itoa(pid), "-D", "/srv/images", "-o", "dump.log"}, options...)...)
	if err := dump.Run(); err != nil {
		log, _ := os.ReadFile(m.a.Path("/srv/images/dump.log"))
		m.t.Fatalf("criu dump: %v\n%s", err, log)
	}
	must(m.t, os.CopyFS(m.b.Path("/srv/images"), os.DirFS(m.a.Path("/srv/images"))))
	m.sshd.ForgetRequests()
}

// makeFiles makes the job's files on a, all of them old.
func (m *move) makeFiles() {
	m.t.Helper()
	work := m.a.Path(workDir)
	must(m.t, os.MkdirAll(work, 0o755))
	must(m.t, os.MkdirAll(m.a.Path(jobDir+"/bin"), 0o755))
	testbed.Run(m.t, "gcc", "-O1", "-static", "-Wl,--build-id", "-o", m.a.Path(jobDir+"/bin/job"), "testdata/job.c")

	numbers := make([]byte, 8*100000) // for half an hour
	for i := range 100000 {
		binary.LittleEndian.PutUint64(numbers[8*i:], uint64(i+1))
	}
	pages := make([]byte, 65536) // the job's mark in each of four pages but the first, and at the end
	for _, at := range []int{4096, 2 * 4096, 3 * 4096, 65536 - 8} {
		binary.LittleEndian.PutUint64(pages[at:], 4242)
	}
	for _, f := range []struct {
		name string
		mode os.FileMode
		data []byte
	}{
		{"read-only", 0o440, numbers},
		{"never-read", 0o644, bytes.Repeat([]byte("big"), 10<<20)},
		{"never-opened", 0o600, []byte("nobody's business")},
		{"log", 0o644, nil},
		{"read-write", 0o660, pages},
		{"shared", 0o666, pages[:4*4096]},
		{"private", 0o444, pages[:4*4096]},
	} {
		path := filepath.Join(work, f.name)
		must(m.t, os.WriteFile(path, f.data, f.mode))
		must(m.t, os.Chmod(path, f.mode))
		must(m.t, os.Chown(path, 1234, 567))
		old := time.Now().Add(-time.Hour)
		must(m.t, os.Chtimes(path, old, old))
	}
}

// log returns the lines of the job's log in the work directory dir.
func (m *move) log(dir string) []string {
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		return nil
	}
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// checkLog fails the test unless the log has one good line for each step from
// the first on.
func (m *move) checkLog(lines []string) {
	m.t.Helper()
	for i, l := range lines {
		if l != fmt.Sprintf("%d ok", i+1) {
			m.t.Fatalf("line %d of %d of the job's log is %q; it was moved after %d", i+1, len(lines), l, m.steps)
		}
	}
}

// sourceUntouched fails the test unless all of the job's files on a are as they
// were when it was dumped.
func (m *move) sourceUntouched() {
	m.t.Helper()
	testbed.Same(m.t, "a when the job was dumped", m.before,
		"a now", testbed.Snapshot(m.t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers))
	harmless := []string{"open", "close", "read", "lstat", "stat", "fstat", "opendir", "readdir", "readlink", "closedir", "realpath", "statvfs", "limits", "fsync", "init"}
	for _, r := range m.sshd.Requests() {
		if !slices.Contains(harmless, r.Op) {
			m.t.Errorf("a was asked to %s %q", r.Op, r.Path)
		}
	}
}

// restored is what `migratefs restore` printed of its success.
type restored struct {
	pid  int    // here
	view string // on b
}

var restoredLine = regexp.MustCompile(`(?s)process (\d+) \("[^"]*"\) runs, outside as (\d+)\n.*migratefs umount (/\S+)\n`)

// restore runs `migratefs restore` on b, which must work.
func (m *move) restore(args ...string) restored {
	m.t.Helper()
	out := m.b.Run(m.program, append([]string{"restore", "--criu", m.criu, "--from", "source"}, args...)...)
	f := restoredLine.FindStringSubmatch(out)
	if f == nil {
		m.t.Fatalf("restore printed %q", out)
	}
	pid, err := strconv.Atoi(f[2])
	must(m.t, err)
	return restored{pid: pid, view: f[3]}
}

// refuse runs `migratefs restore` on b, which must fail with the code, and
// returns what it printed. Nothing may be left of it.
func (m *move) refuse(code int, args ...string) string {
	m.t.Helper()
	cmd := m.b.Command(m.program, append([]string{"restore", "--criu", m.criu, "--from", "source"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != code {
		m.t.Fatalf("restore: %v, want exit code %d\n%s", err, code, out)
	}
	if n := strings.Count(string(out), "\n"); n != 1 || !strings.HasPrefix(string(out), "migratefs: ") {
		m.t.Errorf("restore printed %d lines, want one: %q", n, out)
	}
	m.nothingLeft()
	return string(out)
}

// nothingLeft fails the test if host b shows traces of a restore, but for logs.
func (m *move) nothingLeft() {
	m.t.Helper()
	if s := m.b.Run("sh", "-c", "grep fuse.migratefs /proc/self/mountinfo || true"); s != "" {
		m.t.Errorf("still mounted on b: %s", s)
	}
	if s := m.b.Run("sh", "-c", "ls -A /srv"); s != "images\n" {
		m.t.Errorf("on b, /srv holds %q", s)
	}
	if s := m.b.Run("sh", "-c", "find /run/migratefs -mindepth 1 ! -path /run/migratefs/mounts ! -path /run/migratefs/control ! -path /run/migratefs/control/\\* ! -name restore-\\* ! -name criu ! -name \\*.log 2>/dev/null || true"); s != "" {
		m.t.Errorf("left on b: %s", s)
	}
	if pids := m.jobs(); len(pids) != 0 {
		m.t.Errorf("left on b: processes %v", pids)
	}
}

// jobs returns the pids of jobs, helpers, daemons and CRIUs on b.
func (m *move) jobs() (pids []int) {
	m.t.Helper()
	there, err := os.Readlink("/proc/" + m.keeper() + "/ns/net")
	must(m.t, err)
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	must(m.t, err)
	for _, link := range links {
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		must(m.t, err)
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if here, err := os.Readlink(link); err != nil || here != there || bytes.HasPrefix(args, []byte("sshd")) {
			continue
		}
		for _, name := range []string{"/srv/job", "migratefs", "criu", "held-memory"} {
			if bytes.Contains(args, []byte(name)) {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// keeper is the pid of a process that is on b for as long as the test runs.
func (m *move) keeper() string { return strings.Split(m.b.Path("/"), "/")[2] }

// end kills the restored process and ends its view.
func (m *move) end(r restored) {
	m.t.Helper()
	must(m.t, syscall.Kill(r.pid, syscall.SIGKILL))
	testbed.Until(m.t, "the job to end", func() bool { return !slices.Contains(m.jobs(), r.pid) })
	m.unmount(r)
}

// unmount ends the view of a process that has ended; its helper may take a
// moment longer.
func (m *move) unmount(r restored) {
	m.t.Helper()
	testbed.Until(m.t, "the view to end", func() bool {
		return m.b.Command(m.program, "umount", r.view).Run() == nil
	})
	if s := m.b.Run("find", "/run/migratefs", "-mindepth", "1", "!", "-path", "/run/migratefs/mounts", "!", "-path", "/run/migratefs/control", "!", "-path", "/run/migratefs/control/.lock"); s != "" {
		m.t.Errorf("left in /run/migratefs: %s", s)
	}
	testbed.Until(m.t, "every process to end", func() bool { return len(m.jobs()) == 0 })
}

// TestMove is what the project is for: a process goes on, on another host, with
// files that are not there.
func TestMove(t *testing.T) {
	m := newMove(t)
	if _, err := os.Stat(m.b.Path(jobDir)); err == nil {
		t.Fatal("host b has the job's files already")
	}
	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	work := m.b.Path(r.view + workDir)
	testbed.Until(t, "the job to go on", func() bool {
		l := m.log(work)
		return len(l) >= m.steps+50 || len(l) > 0 && strings.Contains(l[len(l)-1], "WRONG")
	})
	m.checkLog(m.log(work))
	if n := m.sshd.BytesRead()[workDir+"/never-read"]; n != 0 {
		t.Errorf("%d bytes were fetched of a file that the job never reads", n)
	}
	if n := m.sshd.BytesRead()[workDir+"/read-only"]; n == 0 || n > 700000 {
		t.Errorf("%d of 800000 bytes were fetched of a file of which the job read %d", n, 8*(m.steps+50))
	}

	// What CRIU executes is migratefs, which must not read the source's file of its name.
	for _, r := range m.sshd.Requests() {
		if r.Path == m.program {
			t.Errorf("a was asked for this host's program: %+v", r)
		}
	}

	// It lives in namespaces of its own, on the view and on this host's /dev
	// and /run, under the pid it had.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid))
	must(t, err)
	if !regexp.MustCompile(`NSpid:\t\d+\t\d+\n`).Match(status) {
		t.Errorf("the job's pids: %s", status)
	}
	inside := fmt.Sprintf("/proc/%d/root", r.pid)
	if _, err := os.Stat(inside + "/run/sshd"); err != nil {
		t.Errorf("the job does not see b's /run: %v", err)
	}

	// The mount is not taken away under a process that runs.
	out, err := m.b.Command(m.program, "umount", r.view).CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("kill %d", r.pid)) {
		t.Errorf("umount under the job: %v, %q", err, out)
	}
	m.sourceUntouched()

	// A new file of the job's directory is b's alone.
	must(t, os.WriteFile(filepath.Join(work, "new"), []byte("here"), 0o644))
	must(t, syscall.Kill(r.pid, syscall.SIGKILL))
	testbed.Until(t, "the job to end", func() bool { return !slices.Contains(m.jobs(), r.pid) })
	last := m.log(work) // the view outlives the job
	m.checkLog(last)
	m.unmount(r)
	m.sourceUntouched()

	// What the job wrote is in b's upper, and there to be mounted again.
	for _, name := range []string{"log", "read-write", "shared", "new"} {
		if _, err := os.Lstat(m.b.Path("/srv/upper" + workDir + "/" + name)); err != nil {
			t.Errorf("not in the upper: %v", err)
		}
	}
	for _, name := range []string{"read-only", "never-read", "private", "never-opened"} {
		if _, err := os.Lstat(m.b.Path("/srv/upper" + workDir + "/" + name)); err == nil {
			t.Errorf("%q is in the upper, though nobody wrote to it", name)
		}
	}
	must(t, os.Mkdir(m.b.Path("/srv/mnt"), 0o755))
	again := testbed.Mount(t, "lowerdir=source:/,upperdir=/srv/upper", "/srv/mnt", testbed.MountConfig{Host: m.b})
	if got := m.log(again.Path(workDir)); !slices.Equal(got, last) {
		t.Errorf("mounted again, the log has %d lines, had %d", len(got), len(last))
	}
	m.sourceUntouched()
}

// TestMoveDefaults: without --upperdir, what is changed is kept under /var/lib,
// and --all ends the view.
func TestMoveDefaults(t *testing.T) {
	m := newMove(t)
	m.b.Run("mount", "-t", "tmpfs", "var", "/var/lib") // not this machine's
	r := m.restore("/srv/images")
	work := m.b.Path(r.view + workDir)
	testbed.Until(t, "the job to go on", func() bool { return len(m.log(work)) >= m.steps+10 })
	must(t, syscall.Kill(r.pid, syscall.SIGKILL))
	testbed.Until(t, "the job to end", func() bool { return !slices.Contains(m.jobs(), r.pid) })
	m.checkLog(m.log(work))
	testbed.Until(t, "the view to end", func() bool { return m.b.Command(m.program, "umount", "--all").Run() == nil })
	if s := m.b.Run("sh", "-c", "ls -d /var/lib/migratefs/*/upper"+workDir+"/log"); strings.Count(s, "\n") != 1 {
		t.Errorf("the default upper: %q", s)
	}
	if s := m.b.Run("find", "/run/migratefs", "-mindepth", "1", "!", "-path", "/run/migratefs/mounts", "!", "-path", "/run/migratefs/control", "!", "-path", "/run/migratefs/control/.lock"); s != "" {
		t.Errorf("left in /run/migratefs: %s", s)
	}
	m.sourceUntouched()
}

// TestRestoreRefused: what cannot work says so on one line, and leaves nothing.
func TestRestoreRefused(t *testing.T) {
	m := newMove(t)
	work := m.a.Path(workDir)

	t.Run("not root's file any more", func(t *testing.T) {
		must(t, os.Chmod(filepath.Join(work, "read-only"), 0o640))
		must(t, os.Truncate(filepath.Join(work, "private"), 5))
		out := m.refuse(32, "--upperdir", "/srv/upper", "/srv/images")
		for _, want := range []string{`"/srv/job/work/read-only": mode 0640, was 0440`, `"/srv/job/work/private": size 5, was 16384`} {
			if !strings.Contains(out, want) {
				t.Errorf("%q does not say %q", out, want)
			}
		}
	})
	t.Run("no such host", func(t *testing.T) {
		if out := m.refuse(32, "--upperdir", "/srv/upper", "--from", "nowhere.invalid", "/srv/images"); !strings.Contains(out, "nowhere.invalid") {
			t.Errorf("%q does not name the host", out)
		}
	})
	t.Run("no upper", func(t *testing.T) {
		if out := m.refuse(1, "--upperdir", "/srv/no/upper", "/srv/images"); !strings.Contains(out, "/srv/no/upper") {
			t.Errorf("%q does not name the upper", out)
		}
	})
	t.Run("no images", func(t *testing.T) {
		if out := m.refuse(1, "--upperdir", "/srv/upper", "/etc"); !strings.Contains(out, "inventory.img") {
			t.Errorf("%q does not say what is missing", out)
		}
	})
	t.Run("no host", func(t *testing.T) {
		m.refuse(2, "--from", "", "/srv/images")
	})
	t.Run("no criu", func(t *testing.T) {
		if out := m.refuse(1, "--criu", "/no/criu", "/srv/images"); !strings.Contains(out, "/no/criu") {
			t.Errorf("%q does not name the criu", out)
		}
	})
	t.Run("option of ours", func(t *testing.T) {
		m.refuse(2, "/srv/images", "--", "--images-dir", "/tmp")
	})
}

// TestRestoreFails: CRIU's own reason is told, its log stays, all else goes.
func TestRestoreFails(t *testing.T) {
	m := newMove(t)
	job := m.a.Path(jobDir + "/bin/job")
	good, err := os.ReadFile(job)
	must(t, err)
	st, err := os.Stat(job)
	must(t, err)
	// Another build of the same size: nothing but its build-id tells.
	f, err := elf.NewFile(bytes.NewReader(good))
	must(t, err)
	bad := bytes.Clone(good)
	bad[f.Section(".note.gnu.build-id").Offset+20]++
	must(t, os.WriteFile(job, bad, 0))
	if out := m.refuse(32, "--upperdir", "/srv/upper", "/srv/images"); !strings.Contains(out, `"/srv/job/bin/job": build-id `) {
		t.Errorf("%q does not say which file has another build-id", out)
	}
	out := m.refuse(1, "--verify", "off", "--upperdir", "/srv/upper", "/srv/images")
	log := regexp.MustCompile(`\(whole log: (/run/migratefs/\S+)\)`).FindStringSubmatch(out)
	if log == nil || !strings.Contains(out, "it says ") {
		t.Fatalf("%q tells neither what CRIU says nor where its log is", out)
	}
	if !strings.Contains(out, "srv/job/bin/job") || !strings.Contains(out, "dump again") {
		t.Errorf("%q does not say which file it is, and what to do", out)
	}
	b, err := os.ReadFile(m.b.Path(log[1]))
	if err != nil || !bytes.Contains(b, []byte("Error")) {
		t.Errorf("CRIU's log: %v, %q", err, b)
	}

	// It works once the file is back, and nothing of the first try is in the way.
	must(t, os.WriteFile(job, good, 0))
	must(t, os.Chtimes(job, st.ModTime(), st.ModTime()))
	m.sourceUntouched()
	m.b.Run("rm", "-r", "/run/migratefs")
	m.end(m.restore("--upperdir", "/srv/upper", "/srv/images"))
}

// TestRestoreInterrupted: a signal undoes what was begun.
func TestRestoreInterrupted(t *testing.T) {
	m := newMove(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		// A criu that does not answer: the restore waits for it.
		slow := filepath.Join(m.b.Srv, "images", "slow-criu")
		must(t, os.WriteFile(slow, []byte("#!/bin/sh\nexec /bin/sleep 1000\n"), 0o755))
		p, err := testbed.Start(m.b.Command(m.program, "restore", "--criu", "/srv/images/slow-criu", "--from", "source", "--upperdir", "/srv/upper", "/srv/images"))
		must(t, err)
		testbed.Until(t, "criu to start", func() bool {
			for _, pid := range testbed.Descendants(p.Pid) {
				if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.HasPrefix(b, []byte("/bin/sleep\x001000")) {
					return true
				}
			}
			return false
		})
		p.Signal(sig)
		if err := p.Wait(); err == nil {
			t.Errorf("%v: restore says it worked", sig)
		}
		m.nothingLeft()
	}
	m.sourceUntouched()
}

// TestCriuIsOurs: nothing that the source has is executed or loaded by CRIU,
// which runs as root.
func TestCriuIsOurs(t *testing.T) {
	m := newMove(t)
	dir := testbed.TempDir(t)
	src := filepath.Join(dir, "evil.c")
	must(t, os.WriteFile(src, []byte(`
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void mark(void)
{
	char who[1000];
	int in = open("/proc/self/cmdline", O_RDONLY), out = open("/run/marked", O_CREAT | O_WRONLY | O_APPEND, 0600);

	write(out, who, read(in, who, sizeof(who)));
}
`), 0o644))
	testbed.Run(t, "gcc", "-shared", "-fPIC", "-o", filepath.Join(dir, "evil.so"), src)
	// On a, CRIU has a plugin, and every library is somebody else's.
	m.a.Run("sh", "-c", `set -e
mkdir /run/evil
mount -t tmpfs evil /run/evil
mkdir -p /run/evil/up/criu /run/evil/work /run/evil/etc /run/evil/etcwork
cp "$1" /run/evil/up/criu/evil.so
mount -t overlay -o lowerdir=/usr/lib,upperdir=/run/evil/up,workdir=/run/evil/work overlay /usr/lib
cp "$1" /run/evil/etc/evil.so
echo /etc/evil.so >/run/evil/etc/ld.so.preload
mount -t overlay -o lowerdir=/etc,upperdir=/run/evil/etc,workdir=/run/evil/etcwork overlay /etc`, "sh", filepath.Join(dir, "evil.so"))
	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	if _, err := os.Stat(m.b.Path(r.view + "/usr/lib/criu/evil.so")); err != nil {
		t.Errorf("the view does not have the source's plugin, so this test shows nothing: %v", err)
	}
	if who, err := os.ReadFile(m.b.Path("/run/marked")); err == nil {
		t.Errorf("what the source has was executed here, by %q", who)
	}
	m.end(r)
}

// TestLazyfs: LazyFS's command line serves its names.
func TestLazyfs(t *testing.T) {
	m := newMove(t)
	m.b.Run("mkdir", "/srv/lazyfs")
	m.b.Run("mount", "-t", "tmpfs", "var", "/var/lib")
	lazyfs := filepath.Join(testbed.TempDir(t), "lazyfs")
	must(t, os.Symlink(m.program, lazyfs))
	m.b.Run(lazyfs, "/srv/lazyfs", "/srv/images", "root@source")
	want, err := os.ReadFile(m.a.Path(workDir + "/read-only"))
	must(t, err)
	flat := m.b.Path("/srv/lazyfs/srv.job.work.read-only")
	if n := m.sshd.BytesRead()[workDir+"/read-only"]; n != 0 {
		t.Errorf("%d bytes were fetched before anybody read", n)
	}
	got, err := os.ReadFile(flat)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v, want the source's %d", len(got), err, len(want))
	}
	st, err := os.Stat(flat)
	must(t, err)
	if sys := st.Sys().(*syscall.Stat_t); st.Mode().Perm() != 0o440 || sys.Uid != 1234 || sys.Gid != 567 {
		t.Errorf("mode %v, owner %d:%d", st.Mode(), sys.Uid, sys.Gid)
	}
	names := strings.Fields(m.b.Run("ls", "/srv/lazyfs"))
	for _, n := range []string{"srv.job.bin.job", "srv.job.work.log", "srv.job.work.never-read"} {
		if !slices.Contains(names, n) {
			t.Errorf("%q is missing among %q", n, names)
		}
	}
	if slices.Contains(names, "srv.job.work.never-opened") || slices.Contains(names, "srv") {
		t.Errorf("more than the checkpoint's files: %q", names)
	}
	m.b.Run("sh", "-c", "echo more >>/srv/lazyfs/srv.job.work.log && truncate -s 100 /srv/lazyfs/srv.job.work.read-write")
	m.b.Run(m.program, "umount", "/srv/lazyfs")
	m.b.Run(m.program, "lazyfs", "/srv/lazyfs", "/srv/images", "root@source")
	log, err := os.ReadFile(m.b.Path("/srv/lazyfs/srv.job.work.log"))
	if err != nil || string(log) != strings.Join(m.log(m.a.Path(workDir)), "\n")+"\nmore\n" {
		t.Errorf("the log, mounted again: %v, %q", err, log)
	}
	rw, err := os.ReadFile(m.b.Path("/srv/lazyfs/srv.job.work.read-write"))
	whole, _ := os.ReadFile(m.a.Path(workDir + "/read-write"))
	if err != nil || !bytes.Equal(rw, whole[:100]) {
		t.Errorf("a truncated file, mounted again: %v, %d bytes", err, len(rw))
	}
	m.b.Run(m.program, "umount", "/srv/lazyfs")
	m.sourceUntouched()
}

// TestMoveEverything moves the process behind the golden images of package criu:
// a parent and a child with one of everything, a name with strange bytes, a
// deleted file, a socket, a FIFO and a watch among it.
func TestMoveEverything(t *testing.T) {
	m := newHosts(t)
	m.a.Run("mkdir", "-p", "/srv/bin", jobDir)
	testbed.Run(t, "gcc", "-O1", "-static", "-o", m.a.Path("/srv/bin/all"), filepath.Join(testbed.ModuleDir(), "criu/testdata/job.c"))
	// Standard streams of host a, and no others.
	job, err := testbed.Start(m.a.Command("bash", "-c",
		"for fd in {3..20}; do eval \"exec $fd>&-\"; done; exec </dev/null >/dev/null 2>&1; exec setsid /srv/bin/all "+jobDir))
	must(t, err)
	testbed.Until(t, "the job to be ready", func() bool {
		if _, err := os.Stat(m.a.Path(jobDir + "/ready")); err != nil {
			return false
		}
		// That is a file it has made, and may not have closed yet.
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", job.Pid))
		must(t, err)
		return !slices.ContainsFunc(fds, func(fd string) bool { what, _ := os.Readlink(fd); return filepath.Base(what) == "ready" })
	})
	before := descriptors(t, job.Pid)
	m.dump(job.Pid, "--force-irmap", "--irmap-scan-path", jobDir)

	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	after := descriptors(t, r.pid)
	if len(after) != len(before) {
		t.Errorf("%d descriptors, had %d", len(after), len(before))
	}
	for fd, what := range before {
		if after[fd] != what {
			t.Errorf("descriptor %s is %q, was %q", fd, after[fd], what)
		}
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", r.pid, r.pid))
	if err != nil || len(strings.Fields(string(children))) != 1 {
		t.Errorf("children of the restored process: %q, %v", children, err)
	}
	if cwd, err := os.Readlink("/proc/" + strings.TrimSpace(string(children)) + "/cwd"); err != nil || cwd != jobDir+"/child-cwd" {
		t.Errorf("the child's directory: %q, %v", cwd, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fd/%s", r.pid, findDescriptor(t, after, "/deleted (deleted)")))
	if err != nil || string(b) != "aaaaaa" {
		t.Errorf("the deleted file holds %q, %v", b, err)
	}

	// The view is in use until the last of the processes has ended.
	child, err := strconv.Atoi(strings.TrimSpace(string(children)))
	must(t, err)
	must(t, syscall.Kill(r.pid, syscall.SIGKILL))
	testbed.Until(t, "the parent to end", func() bool { return !slices.Contains(m.jobs(), r.pid) })
	out, err := m.b.Command(m.program, "umount", r.view).CombinedOutput()
	if want := fmt.Sprintf("(kill %d)", child); err == nil || !strings.Contains(string(out), want) {
		t.Errorf("umount under the child: %v, %q, want %q", err, out, want)
	}
	must(t, syscall.Kill(child, syscall.SIGKILL))
	m.unmount(r)
}

// descriptors returns what every descriptor of a process is, without the numbers
// that differ from kernel to kernel.
func descriptors(t *testing.T, pid int) map[string]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	must(t, err)
	fds := make(map[string]string)
	for _, e := range entries {
		what, err := os.Readlink(filepath.Join(dir, e.Name()))
		must(t, err)
		if kind, _, ok := strings.Cut(what, ":["); ok {
			what = kind
		}
		info, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "fdinfo", e.Name()))
		must(t, err)
		pos, _, _ := strings.Cut(string(info), "mnt_id")
		fds[e.Name()] = what + " " + pos
	}
	return fds
}

func findDescriptor(t *testing.T, fds map[string]string, suffix string) string {
	t.Helper()
	for fd, what := range fds {
		if name, _, _ := strings.Cut(what, " pos:"); strings.HasSuffix(name, suffix) {
			return fd
		}
	}
	t.Fatalf("no descriptor of %q among %q", suffix, fds)
	return ""
}

// TestSeedWithoutSource: the golden images serve what they say when there is no
// source: names, types, sizes, and an error for content.
func TestSeedWithoutSource(t *testing.T) {
	testbed.NeedFUSE(t)
	for _, c := range []struct {
		images, names, path string
	}{
		{"plain", "tree", "tmp/migratefs-golden/job/read-only"},
		{"plain", "flat", "tmp.migratefs-golden.job.read-only"},
		{"old", "tree", "tmp/migratefs-golden/job/read-only"},
		{"container", "flat", "srv.job.read-only"},
	} {
		t.Run(c.images+" "+c.names, func(t *testing.T) {
			images := filepath.Join(testbed.ModuleDir(), "criu/testdata", c.images)
			point := testbed.TempDir(t)
			m := testbed.Mount(t, "criu="+images+",names="+c.names, point)
			st, err := os.Stat(m.Path(c.path))
			must(t, err)
			if st.Size() != 10000 || st.Mode() != 0o440 {
				t.Errorf("%q has %d bytes, mode %v, want 10000 and 0440", c.path, st.Size(), st.Mode())
			}
			entries, err := os.ReadDir(filepath.Dir(m.Path(c.path)))
			if err != nil || len(entries) < 5 {
				t.Errorf("its directory lists %d names, %v", len(entries), err)
			}
			b, err := os.ReadFile(m.Path(c.path))
			if err == nil || len(b) != 0 {
				t.Errorf("read %d bytes of what is nowhere, %v", len(b), err)
			}
			if _, err := os.Stat(m.Path("no/such")); !os.IsNotExist(err) {
				t.Errorf("another name: %v", err)
			}
		})
	}
}
