package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// ownMounts is a way in which the job comes to mounts of its own, and is moved with them.
type ownMounts struct {
	name    string
	unshare []string
	script  string   // makes the mounts, and executes the job
	dump    []string // options for CRIU
	restore []string
	onward  []string // from there, since the view is known
	given   []string // for CRIU, at restore
	pid     string   // that the job has in there; "": any
	missing string   // what a restore without those options says
}

// waysToOwnMounts are those of unshare(1), and what bubblewrap, nspawn and the like do.
var waysToOwnMounts = []ownMounts{
	{
		name:    "unshare",
		unshare: []string{"-m", "--propagation", "private"},
		script: `mount -t tmpfs extra /mnt && echo kept >/mnt/note && mkdir /mnt/work &&
			mount --bind /srv/job/work /mnt/work && exec /srv/job/bin/job /mnt/work`,
	},
	{
		name:    "pid namespace",
		unshare: []string{"-p", "-f", "--mount-proc"},
		script:  `mount -t tmpfs extra /mnt && echo kept >/mnt/note && exec /srv/job/bin/job /srv/job/work`,
		pid:     "1",
	},
	{
		name:    "own root",
		unshare: []string{"-m", "-p", "-f", "--propagation", "private"},
		script: `cd /srv/own && mount --bind . . && cd . && mount -t proc proc /srv/own/proc &&
			mount -t tmpfs dev /srv/own/dev && mknod -m 666 /srv/own/dev/null c 1 3 &&
			mount -t tmpfs extra /srv/own/mnt && echo kept >/srv/own/mnt/note &&
			mount --bind /srv/job/work /srv/own/data && mount --bind /run/here /srv/own/here &&
			exec /srv/job/bin/ownroot /srv/own /bin/job /data`,
		dump:    []string{"--external", "mnt[/data]:data", "--external", "mnt[/here]:here"},
		restore: []string{"--map", "/=/srv/own", "--map", "data=/srv/job/work"},
		onward:  []string{"--map", "data=/srv/job/work"},
		given:   []string{"--", "--external", "mnt[here]:/run/here"},
		pid:     "1",
		missing: `--map /=/path`,
	},
}

// TestMoveOwnMounts moves processes that have mounts of their own: a bind mount and an
// external one show the source's files, a tmpfs has what it had.
func TestMoveOwnMounts(t *testing.T) {
	for _, way := range waysToOwnMounts {
		t.Run(way.name, func(t *testing.T) {
			m := newHosts(t)
			m.startOwnMounts(way)
			// Where /run is no tmpfs something may be mounted in it.
			m.b.Run("sh", "-c", "mkdir -p /run/netns /run/here; echo b >/run/here/name")
			if way.missing != "" {
				m.b.Run("mkdir", "/srv/own") // of another
				m.b.Run("touch", "/srv/own/here-only")
				fails := slices.Concat([]string{"restore", "--criu", m.fakeCriu("dies"), "--from", "source"}, way.restore, []string{"--upperdir", "/srv/upper", "/srv/images"})
				if out, err := m.b.Command(m.program, fails...).CombinedOutput(); err == nil || !strings.Contains(string(out), "criu ended without an answer") {
					t.Errorf("CRIU dies: %v, %q", err, out)
				}
				if left := m.b.Run("sh", "-c", "find /run/migratefs/restore-* ! -name restore-\\* ! -name criu ! -name \\*.log"); left != "" {
					t.Errorf("left of a restore that failed: %q", left)
				}
				m.b.Run("sh", "-c", "rm -r /srv/images/criu.sh /run/migratefs/restore-*")
				for images, want := range map[string]int{"/srv/images": 3, "root@source:/srv/images": 32} {
					cmd := m.b.Command(m.program, "restore", "--criu", m.criu, "--from", "source", "--upperdir", "/srv/upper", images)
					out, err := cmd.CombinedOutput()
					if code := cmd.ProcessState.ExitCode(); err == nil || code != want || !strings.Contains(string(out), way.missing) {
						t.Errorf("%s without --map: exit code %d, %q", images, code, out)
					}
				}
			}
			images := "/srv/images"
			if way.missing != "" {
				images = "root@source:/srv/images"
			}
			m.b.Run(m.program, slices.Concat([]string{"plan", "--criu", m.criu, "--from", "source"}, way.restore, []string{images}, way.given)...)
			r := m.restore(slices.Concat(way.restore, []string{"--upperdir", "/srv/upper", images}, way.given)...)
			inside := fmt.Sprintf("/proc/%d/root", r.pid)
			m.stillOwn(way, r, inside)

			// Dumped again where it is, and restored from there.
			m.dumpOn(m.b, r.pid, "/srv/onward", way.dump...)
			testbed.Until(t, "the job to end on b", func() bool { return !slices.Contains(m.jobs(), r.pid) })
			m.steps = len(m.log(m.b.Path(r.view + "/srv/job/work")))
			c := m.b.Neighbour("c")
			c.Run("sh", "-c", "mkdir -p /run/netns /run/here; echo c >/run/here/name")
			n := m.onward(c, "/srv/onward")
			onC := n.restore(slices.Concat(way.onward, []string{"--upperdir", "/srv/upper", "/srv/images"}, way.given)...)
			n.stillOwn(way, onC, fmt.Sprintf("/proc/%d/root", onC.pid))
			n.end(onC)
			m.unmount(r)
			m.sourceUntouched()
		})
	}
}

// startOwnMounts starts the job in mounts of its own on a, and dumps it.
func (m *move) startOwnMounts(way ownMounts) {
	t := m.t
	t.Helper()
	m.makeFiles()
	testbed.Run(t, "gcc", "-O1", "-static", "-o", m.a.Path(jobDir+"/bin/ownroot"), "testdata/ownroot.c")
	m.a.Run("sh", "-ec", "mkdir /run/here; cd /srv; mkdir own; cd own; mkdir bin proc dev mnt data here; cp ../job/bin/job bin/")
	args := append(slices.Clone(way.unshare), "sh", "-c", way.script)
	job, err := testbed.Start(m.a.Command("unshare", args...))
	must(t, err)
	testbed.Until(t, "the job to work", func() bool { return len(m.log(m.a.Path(workDir))) >= 20 })
	pid := job.Pid
	if way.pid != "" { // unshare has made a child for it
		pids := testbed.Descendants(job.Pid)
		pid = pids[len(pids)-1]
	}
	m.dump(pid, way.dump...)
	m.steps = len(m.log(m.a.Path(workDir)))
	m.before = testbed.Snapshot(t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers)
}

// stillOwn fails the test unless the job goes on with the mounts that it had.
func (m *move) stillOwn(way ownMounts, r restored, inside string) {
	t := m.t
	t.Helper()
	dir := inside + "/srv/job/work"
	if slices.Contains(way.dump, "--external") {
		dir = inside + "/data"
	}
	testbed.Until(t, "the job to go on", func() bool {
		l := m.log(dir)
		return len(l) >= m.steps+20 || len(l) > 0 && strings.Contains(l[len(l)-1], "WRONG")
	})
	m.checkLog(m.log(dir))
	if b, err := os.ReadFile(inside + "/mnt/note"); string(b) != "kept\n" {
		t.Errorf("on its tmpfs: %q, %v", b, err)
	}
	if way.given != nil {
		if b, err := os.ReadFile(inside + "/here/name"); string(b) != m.b.Name+"\n" {
			t.Errorf("of this host: %q, %v", b, err)
		}
		if _, err := os.Stat(inside + "/here-only"); err == nil {
			t.Error("this host's directory of that name shines through")
		}
	}
	if way.pid != "" {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid))
		must(t, err)
		if !regexp.MustCompile(`NSpid:\t\d+\t\d+\t` + way.pid + `\n`).Match(status) {
			t.Errorf("its pids: %s", status)
		}
		if self, err := os.Readlink(inside + "/proc/1/exe"); err != nil || filepath.Base(self) != "job" {
			t.Errorf("process 1 of its /proc is %q, %v", self, err)
		}
	}
}
