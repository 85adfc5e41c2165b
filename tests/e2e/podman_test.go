package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// podmanSetup gives a host what podman wants: $1 CRIU, $2 migratefs, $3 the name of the
// runtime that it calls runc. The limits are what a machine without CAP_SYS_RESOURCE
// allows.
const podmanSetup = `
mkdir -p /srv/bin
ln -s "$1" /srv/bin/criu
ln -s "$2" /srv/bin/migratefs-runc
cat >/srv/containers.conf <<E
[containers]
default_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]
log_driver = "k8s-file"
netns = "none"
seccomp_profile = "unconfined"
[engine]
cgroup_manager = "cgroupfs"
conmon_env_vars = ["PATH=/srv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
events_logger = "file"
runtime = "runc"
[engine.runtimes]
runc = ["$(PATH=/srv/bin:$PATH command -v "$3")"]
E
`

// onPodman runs a script on a host, where podman is known, with nothing of ours open, and
// returns what it printed.
func (m *move) onPodman(h *testbed.Host, script string, args ...string) string {
	m.t.Helper()
	// conmon stays, and would keep a pipe open.
	wrap := `for fd in {3..20}; do eval "exec $fd>&-"; done
		export PATH=/srv/bin:$PATH CONTAINERS_CONF=/srv/containers.conf
		bash -euc "$0" bash "$@" </dev/null >/srv/podman.out 2>/srv/podman.err`
	err := h.Command("bash", append([]string{"-c", wrap, script}, args...)...).Run()
	out, _ := os.ReadFile(h.Path("/srv/podman.out"))
	if err != nil {
		more, _ := os.ReadFile(h.Path("/srv/podman.err"))
		logs, _ := filepath.Glob(h.Path("/var/lib/containers/storage/overlay-containers/*/userdata/*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			more = append(more, tail(b)...)
		}
		m.t.Fatalf("host %s: %s\n%v\n%s%s", h.Name, script, err, out, more)
	}
	return strings.TrimSpace(string(out))
}

// usePodman makes podman ready on a host, whose containers end with the test.
func (m *move) usePodman(h *testbed.Host, runtime string) {
	m.t.Helper()
	testbed.Program(m.t, "podman")
	h.Run("bash", "-euc", podmanSetup, "bash", m.criu, m.program, runtime)
	m.t.Cleanup(func() {
		_ = h.Command("bash", "-c", "PATH=/srv/bin:$PATH CONTAINERS_CONF=/srv/containers.conf podman rm -f -t 0 -a </dev/null >/srv/podman.out 2>&1").Run()
	})
}

// takeOver has podman restore, on a host that has no image but an empty one, the
// container of an archive of its source, whose files are in the directory lower there. It
// returns the container's root directory.
func (m *move) takeOver(h *testbed.Host, id, lower string) (root string) {
	m.t.Helper()
	m.usePodman(h, "migratefs-runc")
	m.onPodman(h, `
		scp -q source:/srv/job.tar.gz /srv/theirs
		mkdir -p /srv/empty /srv/archive /run/migratefs/containers
		tar -C /srv/empty -c . | podman import -q - localhost/job:1
		tar -C /srv/archive -xf /srv/theirs
		sed -i "s/\"rootfsImageID\": *\"[0-9a-f]*\"/\"rootfsImageID\":\"$(podman image inspect -f '{{.Id}}' localhost/job:1)\"/" /srv/archive/config.dump
		tar -C /srv/archive -cf /srv/ours.tar .
		echo "lowerdir=source:$2,fill=off" >/run/migratefs/containers/$1.options
		podman container restore --import /srv/ours.tar --ignore-rootfs`, id, lower)
	root = h.Path(m.onPodman(h, `cat /run/migratefs/containers/$1.mount`, id))
	m.goesOn(root)
	return root
}

// TestPodman: podman checkpoints a container on a, and b's restores it, on files that are
// a's; it goes on to c while b has not fetched everything.
func TestPodman(t *testing.T) {
	m := newHosts(t)
	m.makeFiles()
	m.usePodman(m.a, "runc")
	id := m.onPodman(m.a, `
		mkdir -p -m 555 /srv/image
		mkdir -p /srv/image/dev /srv/image/proc /srv/image/sys /srv/image/tmp /srv/image/run /srv/image/etc
		mv `+jobDir+` /srv/image/job
		tar -C /srv/image -c . | podman import -q - localhost/job:1 >/srv/image.id
		podman run -d --name job localhost/job:1 /job/bin/job /job/work`)
	root := m.onPodman(m.a, `podman mount job`)
	work := m.a.Path(root + "/job/work")
	testbed.Until(t, "the job to work", func() bool { return len(m.log(work)) >= 20 })
	// The mount counts its users, and would outlive the container.
	m.onPodman(m.a, `podman umount job >/srv/umount; podman container checkpoint --compress gzip --export /srv/job.tar.gz --ignore-rootfs job`)
	if _, err := os.Stat(m.a.Path(root + "/job")); !os.IsNotExist(err) {
		t.Errorf("the root directory of a container that has ended: %v", err)
	}
	root = m.onPodman(m.a, `podman mount job`)
	m.steps = len(m.log(work))
	before := testbed.Snapshot(t, m.a.Path(root), testbed.Usual|testbed.Mtime|testbed.Numbers)
	plan := m.a.Run(m.program, "plan", "--criu", m.criu, "/srv/job.tar.gz")
	if !strings.Contains(plan, `"job" of podman, image "localhost/job:1"`) || strings.Contains(plan, "two copies") || strings.Contains(plan, "shared memory") {
		t.Errorf("plan says\n%s", plan)
	}

	rootB := m.takeOver(m.b, id, root)
	must(t, os.Remove(rootB+"/job/work/never-opened"))
	must(t, os.WriteFile(rootB+"/job/work/new", []byte("of b\n"), 0o644))
	m.onPodman(m.b, `podman container checkpoint --compress gzip --export /srv/job.tar.gz --ignore-rootfs job`)
	if s := m.b.Run("sh", "-c", "grep fuse.migratefs /proc/self/mountinfo || true"); s != "" {
		t.Errorf("still mounted: %s", s)
	}
	if n := m.sshd.BytesRead()[root+"/job/work/never-read"]; n >= 30<<20 {
		t.Fatalf("b has fetched everything already, so this test shows nothing: %d bytes", n)
	}
	m.b.Run("sh", "-euc", `mkdir /srv/job
		"$1" -o "hard,upperdir=/var/lib/migratefs/$2/upper,$(cat /run/migratefs/containers/$2.options)" /srv/job`, "sh", m.program, id)

	c := m.b.Neighbour("c")
	c.Knows(testbed.StartSSHD(t, testbed.SSHDConfig{Host: m.b}))
	rootC := m.takeOver(c, id, "/srv/job")
	m.asLeft(c, rootC)
	m.onPodman(c, `podman rm -f -t 0 job`)
	if s := c.Run("sh", "-c", "grep fuse.migratefs /proc/self/mountinfo || true"); s != "" {
		t.Errorf("still mounted: %s", s)
	}
	if n := len(lines(c.Path("/var/lib/migratefs/" + id + "/upper/job/work/log"))); n <= m.steps {
		t.Errorf("the upper has %d lines of the log, of %d when it was moved", n, m.steps)
	}
	testbed.Until(t, "the mount to end", func() bool { return m.b.Command(m.program, "umount", "/srv/job").Run() == nil })
	testbed.Same(t, "a when the container was dumped", before, "a now",
		testbed.Snapshot(t, m.a.Path(root), testbed.Usual|testbed.Mtime|testbed.Numbers))
}
