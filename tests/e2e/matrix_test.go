package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// kind is one way in which a process refers to a file: a function of
// testdata/matrix, of that name.
type kind struct {
	name string
	dump []string // options of CRIU's

	// Words of why stock CRIU cannot even restore it where its files are: from
	// its log, or what the program finds wrong afterwards. "": it can.
	stock string
	// The same of a restore where the files are not; only what stock CRIU can do
	// counts against us.
	moved string

	alone bool // it would fail the dump or the restore of others
}

var (
	fileLocks = []string{"--file-locks"}
	irmap     = []string{"--force-irmap", "--irmap-scan-path", jobDir}
	linkRemap = []string{"--link-remap"}
)

var kinds = []kind{
	{name: "read"},
	{name: "write"},
	{name: "append"},
	{name: "read-write"},
	{name: "shared-offset"},
	{name: "deleted"},
	{name: "deleted-anew"},
	{name: "nameless"},
	{name: "link-remap", dump: linkRemap, moved: "same(fd, other)"}, // SFTP does not tell which names are one file
	{name: "two-names", moved: "same(a, b)"},
	{name: "renamed-dir"},
	{name: "strange-name"},
	{name: "empty"},
	{name: "sparse"},
	{name: "memfd"},

	{name: "map-shared"},
	{name: "map-twice"},
	{name: "map-private"},
	{name: "map-read"},
	{name: "map-deleted"},
	{name: "map-code"},
	{name: "executable"},

	{name: "dir"},
	{name: "dir-position", moved: "seen[i] == 1"}, // none is missing, some come twice
	{name: "dir-end"},
	{name: "cwd"},
	{name: "cwd-deleted"},
	{name: "root"},
	{name: "bind-mount"},

	{name: "fifo"},
	{name: "device"},
	{name: "path"},
	{name: "path-symlink"},
	{name: "tty"},

	{name: "socket-listening"},
	{name: "socket-connected"},
	{name: "socket-datagrams"},

	{name: "flock", dump: fileLocks},
	{name: "lock", dump: fileLocks},
	{name: "lock-read", dump: fileLocks},
	{name: "lock-ofd", dump: fileLocks},
	{name: "lock-mapped", dump: fileLocks, stock: "in_child(try_first) == EAGAIN", moved: "in_child(try_first) == EAGAIN"},
	{name: "lease", dump: fileLocks},

	{name: "inotify-dir", dump: irmap},
	{name: "inotify-file", dump: irmap},
	{name: "fanotify", dump: irmap},
	{name: "fanotify-mount", dump: irmap},

	{name: "threads"},
	{name: "sessions"},
	{name: "zombie"},
	{name: "other-user"},
	{name: "mount-namespace", alone: true, stock: "Can't create link remap for /srv/job/kinds/mount-namespace/t/f"}, // it looks in its own
}

// everything is asked for by hand: it takes minutes.
func everything() bool { return os.Getenv("MIGRATEFS_TEST_LONG") != "" }

const matrixDir = jobDir + "/kinds"

// TestMatrix moves a tree of processes with every kind of reference that can be
// moved, all in one checkpoint, and restores the same checkpoint where it was
// made: each process finds everything as it was.
func TestMatrix(t *testing.T) {
	var together []kind
	for _, k := range kinds {
		if !k.alone {
			together = append(together, k)
		}
	}
	testKinds(t, 0, together, false)
}

// TestMatrixAlone moves a kind by itself, each behind a link with and without
// latency: what fails then is told from what the others do, and so is what
// fails as a whole. Two kinds that fail stand for them all unless everything is
// asked for.
func TestMatrixAlone(t *testing.T) {
	for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
		for _, k := range kinds {
			if !everything() && (!k.alone || rtt > 0) {
				continue
			}
			t.Run(fmt.Sprintf("%s %v", k.name, rtt), func(t *testing.T) { testKinds(t, rtt, []kind{k}, false) })
		}
	}
}

// TestMatrixAgain moves them on from where they have been moved to.
func TestMatrixAgain(t *testing.T) {
	var together []kind
	for _, k := range kinds {
		if !k.alone {
			together = append(together, k)
		}
	}
	testKinds(t, 0, together, true)
}

// buildMatrix returns the program of the kinds.
var buildMatrix = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "migratefs-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	sources, err := filepath.Glob("testdata/matrix/*.c")
	if err != nil {
		return nil, err
	}
	program := filepath.Join(dir, "matrix")
	args := append([]string{"-O1", "-static", "-pthread", "-Wall", "-Werror", "-Wl,--build-id", "-o", program}, sources...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("gcc: %w\n%s", err, out)
	}
	return os.ReadFile(program)
})

// newHostsAt is newHosts with a link of that round trip time.
func newHostsAt(t *testing.T, rtt time.Duration) *move {
	t.Helper()
	return newHosts(t, func(m *move) testbed.SSHDConfig {
		cfg := testbed.SSHDConfig{Host: m.a}
		if rtt > 0 {
			cfg.Through = testbed.NewProxyOn(t, m.b, "")
			cfg.Through.SetRTT(rtt)
		}
		return cfg
	})
}

// testKinds moves a tree of one process for each kind.
func testKinds(t *testing.T, rtt time.Duration, ks []kind, again bool) {
	m := newHostsAt(t, rtt)
	must(t, os.MkdirAll(m.a.Path(jobDir+"/bin"), 0o755))
	must(t, os.Mkdir(m.a.Path(matrixDir), 0o755))
	program, err := buildMatrix()
	must(t, err)
	must(t, os.WriteFile(m.a.Path(jobDir+"/bin/matrix"), program, 0o755))

	args := []string{matrixDir}
	var options []string
	for _, k := range ks {
		args = append(args, k.name)
		for i := 0; i < len(k.dump); i++ {
			if !slices.Contains(options, k.dump[i]) {
				options = append(options, k.dump[i])
			}
		}
	}
	job, err := testbed.Start(m.a.Command(jobDir+"/bin/matrix", args...))
	must(t, err)
	ready := m.a.Path(matrixDir + "/ready")
	testbed.Until(t, "every kind to be set up", func() bool { _, err := os.Stat(ready); return err == nil || job.WaitFor(0) })
	if b, err := os.ReadFile(ready); err != nil || len(b) > 0 {
		t.Fatalf("not set up: %v\n%s", err, b)
	}
	if out := m.tryDump(job.Pid, options...); out != "" {
		if len(ks) != 1 || ks[0].stock == "" || !strings.Contains(out, ks[0].stock) {
			t.Fatalf("criu dump %s: %s", options, out)
		}
		return
	}
	m.before = testbed.Snapshot(t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers)

	var locks []string
	if slices.Contains(options, "--file-locks") {
		locks = fileLocks
	}
	if again {
		m.moveAgain(ks, options)
		return
	}
	moved := m.moveKinds(locks)
	m.sourceUntouched()
	stayed := m.stay(job.Pid, locks)
	for _, k := range ks {
		judge(t, "stock CRIU, where the files are", k.name, k.stock, stayed)
		if want := k.moved; k.stock == "" || want != "" {
			judge(t, "moved", k.name, want, moved)
		}
	}
}

// judge compares what became of a kind, or of the whole restore, with what was
// to be expected.
func judge(t *testing.T, where, name, want, out string) {
	t.Helper()
	said := regexp.MustCompile(`(?m)^` + name + `( ok$|: .*)`).FindString(out)
	if said == "" {
		said = out // nothing was restored
	}
	if want == "" && said != name+" ok" || want != "" && !strings.Contains(said, want) {
		t.Errorf("%s: %q, want %q", where, said, want)
	}
}

// moveKinds restores the checkpoint on b, and returns what the kinds say, or why
// there are none.
func (m *move) moveKinds(options []string) string {
	m.t.Helper()
	args := append([]string{"restore", "--criu", m.criu, "--from", "source", "--upperdir", "/srv/upper", "/srv/images", "--"}, options...)
	out, err := m.b.Command(m.program, args...).CombinedOutput()
	if err != nil {
		log, _ := filepath.Glob(m.b.Path("/run/migratefs/restore-*/criu/restore.log"))
		for _, l := range log {
			b, _ := os.ReadFile(l)
			m.t.Logf("CRIU's log:\n%s", tail(b))
		}
		m.nothingLeft()
		return string(out)
	}
	f := restoredLine.FindStringSubmatch(string(out))
	if f == nil {
		m.t.Fatalf("restore printed %q", out)
	}
	pid, err := strconv.Atoi(f[2])
	must(m.t, err)
	r := restored{pid: pid, view: f[3]}
	must(m.t, syscall.Kill(pid, syscall.SIGUSR1))
	result := m.b.Path(r.view + matrixDir + "/result")
	testbed.Until(m.t, "the kinds to check themselves", func() bool { _, err := os.Stat(result); return err == nil })
	b, err := os.ReadFile(result)
	must(m.t, err)
	m.endTree(r)
	return string(b)
}

// endTree ends a restored tree of processes, and its view.
func (m *move) endTree(r restored) {
	m.t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", r.pid)) // none if it has ended
	if here, _ := os.Readlink("/proc/self/ns/pid"); err != nil || ns == here {
		m.unmount(r)
		return
	}
	testbed.Until(m.t, "the tree to end", func() bool {
		left := inPidNamespace(ns)
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return len(left) == 0
	})
	m.unmount(r)
}

// inPidNamespace returns the processes of a pid namespace, but for our helper.
func inPidNamespace(ns string) (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, l := range links {
		if its, err := os.Readlink(l); err != nil || its != ns {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(l, "/")[2])
		if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); !bytes.Contains(args, []byte("restore-init")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// moveAgain moves what was dumped on a to b, and from there to c.
func (m *move) moveAgain(ks []kind, options []string) {
	m.t.Helper()
	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	// --file-locks comes by itself.
	options = slices.DeleteFunc(slices.Clone(options), func(o string) bool { return o == fileLocks[0] })
	m.dumpOn(m.b, r.pid, "/srv/onward", options...)
	n := m.onward(m.b.Neighbour("c"), "/srv/onward")
	moved := n.moveKinds(nil)
	m.unmount(r)
	for _, k := range ks {
		judge(m.t, "moved twice", k.name, k.moved, moved)
	}
}

// stayScript restores with CRIU alone, in a pid namespace where the pids are
// free, and lets the kinds check themselves.
const stayScript = `
criu=$1 pid=$2 dir=$3; shift 3
"$criu" restore -d -S -D /srv/images -o baseline.log "$@" >/srv/images/baseline.out 2>&1 || { grep -a Error /srv/images/baseline.log; exit 0; }
kill -USR1 "$pid" || exit 1
until [ -e "$dir/result" ]; do
	kill -0 "$pid" || exit 1
	sleep 0.02
done
cat "$dir/result"
`

// stay restores the checkpoint on a, with stock CRIU and nothing of ours, and
// returns what moveKinds does.
func (m *move) stay(pid int, options []string) string {
	m.t.Helper()
	return m.a.Run("timeout", append([]string{
		"120", "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", stayScript, "sh", m.criu, strconv.Itoa(pid), matrixDir,
	}, options...)...)
}

// tryDump is dump for what may not be dumpable: it returns CRIU's errors, or "".
func (m *move) tryDump(pid int, options ...string) string {
	m.t.Helper()
	m.a.Run("mkdir", "/srv/images")
	args := append([]string{"dump", "-t", strconv.Itoa(pid), "-D", "/srv/images", "-o", "dump.log"}, options...)
	if err := m.a.Command(m.criu, args...).Run(); err != nil {
		return m.a.Run("sh", "-c", "grep -a Error /srv/images/dump.log || tail /srv/images/dump.log")
	}
	must(m.t, os.CopyFS(m.b.Path("/srv/images"), os.DirFS(m.a.Path("/srv/images"))))
	m.sshd.ForgetRequests()
	return ""
}

// tail is the end of a log.
func tail(b []byte) []byte { return b[max(0, len(b)-3000):] }
