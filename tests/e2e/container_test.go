package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// bundle is where containers have their config.json and their rootfs, on every
// host.
const bundle = "/srv/bundle"

// containerID is of the only container that a test has. Its cgroups are made on
// this machine, for both hosts.
var containerID = fmt.Sprintf("migratefs-test-%d", os.Getpid())

// makeBundle makes the files of a container on a host: the job of
// testdata/job.c, and its work.
func (m *move) makeBundle(h *testbed.Host) {
	m.t.Helper()
	m.makeFiles()
	h.Run("mkdir", "-p", bundle+"/rootfs/proc", bundle+"/rootfs/dev", bundle+"/rootfs/tmp")
	h.Run("mv", jobDir, bundle+"/rootfs/job")
	// As engines make them of images. CRIU compares the mode.
	h.Run("chmod", "1555", bundle+"/rootfs")
	h.Run("chown", "1234:567", bundle+"/rootfs")
	m.makeConfig(h)
}

// makeConfig writes a config.json for runc: what this machine cannot do, rlimits
// among it, is left out.
func (m *move) makeConfig(h *testbed.Host) {
	m.t.Helper()
	type object = map[string]any
	all := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETUID", "CAP_SETGID",
	}
	config := object{
		"ociVersion": "1.0.2",
		"root":       object{"path": "rootfs"},
		"hostname":   "job",
		"process": object{
			"args": []string{"/job/bin/job", "/job/work"}, "cwd": "/", "env": []string{"PATH=/bin"},
			"user":         object{"uid": 0, "gid": 0},
			"capabilities": object{"bounding": all, "effective": all, "permitted": all},
		},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=64k"}},
			{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": []string{"size=1m"}},
		},
		"linux": object{
			"namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}},
		},
	}
	b, err := json.MarshalIndent(config, "", "  ")
	must(m.t, err)
	must(m.t, os.MkdirAll(h.Path(bundle), 0o755))
	must(m.t, os.WriteFile(h.Path(bundle+"/config.json"), b, 0o644))
}

// container does what runc run and runc restore do; whatever becomes of the test,
// nothing of it is left.
func (m *move) container(h *testbed.Host, args ...string) {
	m.t.Helper()
	m.t.Cleanup(func() {
		_ = h.Command(testbed.Program(m.t, "runc"), "delete", "--force", containerID).Run()
	})
	m.runc(h, args...)
}

// runc runs runc on a host, with the CRIU that works and nothing of ours open.
func (m *move) runc(h *testbed.Host, args ...string) {
	m.t.Helper()
	script := `for fd in {3..20}; do eval "exec $fd>&-"; done; exec "$0" "$@" </dev/null >/srv/runc.out 2>&1`
	runtime := m.runtime
	if runtime == "" {
		runtime = testbed.Program(m.t, "runc")
	}
	args = append([]string{"-c", script, runtime, "--criu", m.criu}, args...)
	if err := h.Command("bash", args...).Run(); err != nil {
		out, _ := os.ReadFile(h.Path("/srv/runc.out"))
		logs, _ := filepath.Glob(h.Path("/srv/log/*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			out = append(out, tail(b)...)
		}
		m.t.Fatalf("host %s: runc %s: %v\n%s", h.Name, strings.Join(args[3:], " "), err, out)
	}
}

// checkpoint ends the container of the host, into /srv/images.
func (m *move) checkpoint(h *testbed.Host) {
	m.t.Helper()
	m.runc(h, "checkpoint", "--image-path", "/srv/images", "--work-path", "/srv/log", containerID)
}

// goesOn fails the test unless the container's job makes steps at the rootfs,
// and has made every step so far.
func (m *move) goesOn(rootfs string) {
	m.t.Helper()
	dir := filepath.Join(rootfs, "job/work")
	had := len(m.log(dir))
	testbed.Until(m.t, "the job to go on", func() bool {
		l := m.log(dir)
		return len(l) >= had+30 || len(l) > 0 && strings.Contains(l[len(l)-1], "WRONG")
	})
	m.checkLog(m.log(dir))
}

// endContainer kills the container and takes it away.
func (m *move) endContainer(h *testbed.Host) {
	m.t.Helper()
	m.runc(h, "delete", "--force", containerID)
}

// startContainer makes a container on a and checkpoints it at work.
func (m *move) startContainer() (before *testbed.Tree) {
	m.t.Helper()
	m.makeBundle(m.a)
	m.container(m.a, "run", "--detach", "--bundle", bundle, containerID)
	work := m.a.Path(bundle + "/rootfs/job/work")
	testbed.Until(m.t, "the job to work", func() bool { return len(m.log(work)) >= 20 })
	m.checkpoint(m.a)
	m.steps = len(m.log(work))
	return m.rootfsOfA()
}

func (m *move) rootfsOfA() *testbed.Tree {
	return testbed.Snapshot(m.t, m.a.Path(bundle+"/rootfs"), testbed.Usual|testbed.Mtime|testbed.Numbers)
}

// bring copies the images to a host and mounts there, as the rootfs of a bundle,
// what the last host has as its rootfs. Options are more of the mount's.
func (m *move) bring(to *testbed.Host, options string) {
	m.t.Helper()
	to.Run("rm", "-rf", "/srv/images")
	to.Run("scp", "-q", "-r", "source:/srv/images", "/srv/images")
	m.makeConfig(to)
	to.Run("mkdir", bundle+"/rootfs", "/srv/upper")
	to.Run(m.program, "-o", "criu=/srv/images,lowerdir=source:"+bundle+"/rootfs,upperdir=/srv/upper,hard"+options, bundle+"/rootfs")
}

// comeUp restores the container of the images, which must go on.
func (m *move) comeUp(h *testbed.Host) {
	m.t.Helper()
	m.container(h, "restore", "--detach", "--image-path", "/srv/images", "--work-path", "/srv/log", "--bundle", bundle, containerID)
	m.goesOn(h.Path(bundle + "/rootfs"))
	if got := h.Run("stat", "-c", "%a %u:%g", bundle+"/rootfs"); got != "1555 1234:567\n" {
		m.t.Errorf("host %s: the root directory is %s", h.Name, got)
	}
}

// umount ends the rootfs of a host whose container has ended.
func (m *move) umount(h *testbed.Host) {
	m.t.Helper()
	testbed.Until(m.t, "the mount to end", func() bool { return h.Command(m.program, "umount", bundle+"/rootfs").Run() == nil })
}

// TestContainer: runc checkpoints a container on a and restores it on b, on a
// rootfs that is a's.
func TestContainer(t *testing.T) {
	m := newHosts(t)
	before := m.startContainer()
	m.bring(m.b, "")
	m.sshd.ForgetRequests()
	m.comeUp(m.b)
	if n := m.sshd.BytesRead()[bundle+"/rootfs/job/work/never-read"]; n != 0 {
		t.Errorf("%d bytes were fetched of a file that the job never reads", n)
	}
	m.endContainer(m.b)
	m.umount(m.b)
	testbed.Same(t, "a when the container was dumped", before, "a now", m.rootfsOfA())
}

// TestContainerOnward: from a to b to c, while b has not fetched everything; c
// reads through b.
func TestContainerOnward(t *testing.T) {
	if !everything() {
		return // the pieces are TestContainer's
	}
	m := newHosts(t)
	before := m.startContainer()
	m.bring(m.b, ",fill=off")
	m.comeUp(m.b)
	m.b.Run("rm", bundle+"/rootfs/job/work/never-opened")
	m.b.Run("sh", "-c", "echo of b >"+bundle+"/rootfs/job/work/new")
	m.checkpoint(m.b)
	if n := m.sshd.BytesRead()[bundle+"/rootfs/job/work/never-read"]; n >= 30<<20 {
		t.Fatalf("b has fetched everything already, so this test shows nothing: %d bytes", n)
	}

	c := m.b.Neighbour("c")
	c.Knows(testbed.StartSSHD(t, testbed.SSHDConfig{Host: m.b}))
	m.bring(c, "")
	m.comeUp(c)
	m.asLeft(c, c.Path(bundle+"/rootfs"))
	m.endContainer(c)
	m.umount(c)
	m.umount(m.b)
	testbed.Same(t, "a when the container was dumped", before, "a now", m.rootfsOfA())
}

// asLeft fails the test unless the root directory on the host has what b did to the
// files, and what neither has fetched yet.
func (m *move) asLeft(h *testbed.Host, rootfs string) {
	m.t.Helper()
	work := rootfs + "/job/work/"
	if _, err := os.Stat(work + "never-opened"); !os.IsNotExist(err) {
		m.t.Errorf("what was deleted on b is here: %v", err)
	}
	if b, err := os.ReadFile(work + "new"); string(b) != "of b\n" {
		m.t.Errorf("what was made on b: %q, %v", b, err)
	}
	if b, err := os.ReadFile(work + "never-read"); !bytes.Equal(b, bytes.Repeat([]byte("big"), 10<<20)) {
		m.t.Errorf("what nobody had fetched: %d bytes, %v", len(b), err)
	}
}

// TestContainerBack: from a to b, and back while b has not fetched everything.
// a's own files are as they were; what b did lies in an upper on a.
func TestContainerBack(t *testing.T) {
	if !everything() {
		return
	}
	m := newHosts(t)
	before := m.startContainer()
	m.bring(m.b, ",fill=off")
	m.comeUp(m.b)
	m.b.Run("rm", bundle+"/rootfs/job/work/never-opened")
	m.b.Run("sh", "-c", "echo of b >"+bundle+"/rootfs/job/work/new")
	m.checkpoint(m.b)

	m.a.Knows(testbed.StartSSHD(t, testbed.SSHDConfig{Host: m.b}))
	m.a.Run("mkdir", "/srv/back")
	m.a.Run("sh", "-c", "mv /srv/images /srv/images.1; mv "+bundle+"/config.json /srv/back")
	m.a.Run("scp", "-q", "-r", "source:/srv/images", "/srv/images")
	m.a.Run("mkdir", "/srv/back/rootfs", "/srv/upper")
	m.a.Run(m.program, "-o", "criu=/srv/images,lowerdir=source:"+bundle+"/rootfs,upperdir=/srv/upper,hard", "/srv/back/rootfs")
	m.container(m.a, "restore", "--detach", "--image-path", "/srv/images", "--work-path", "/srv/log", "--bundle", "/srv/back", containerID)
	m.goesOn(m.a.Path("/srv/back/rootfs"))
	m.endContainer(m.a)
	testbed.Until(t, "the mount to end", func() bool { return m.a.Command(m.program, "umount", "/srv/back/rootfs").Run() == nil })
	m.umount(m.b)
	testbed.Same(t, "a when the container was dumped", before, "a now", m.rootfsOfA())
}

// TestContainerRuntime: an engine that knows nothing of us but the name of a
// runtime restores, runs and deletes a container.
func TestContainerRuntime(t *testing.T) {
	if !everything() {
		return
	}
	m := newHosts(t)
	before := m.startContainer()
	m.b.Run("mount", "-t", "tmpfs", "var", "/var/lib") // not this machine's
	m.b.Run("scp", "-q", "-r", "source:/srv/images", "/srv/images")
	m.makeConfig(m.b)
	m.b.Run("mkdir", "-p", bundle+"/rootfs", "/run/migratefs/containers", "/srv/bin")
	m.b.Run("ln", "-s", m.program, "/srv/bin/migratefs-runc")
	must(t, os.WriteFile(m.b.Path("/run/migratefs/containers/"+containerID+".options"), []byte("lowerdir=source:"+bundle+"/rootfs\n"), 0o644))
	m.runtime = "/srv/bin/migratefs-runc"
	m.comeUp(m.b)
	m.runc(m.b, "list")
	m.endContainer(m.b)
	if s := m.b.Run("sh", "-c", "grep fuse.migratefs /proc/self/mountinfo || true"); s != "" {
		t.Errorf("still mounted: %s", s)
	}
	if s := m.b.Run("ls", "/run/migratefs/containers"); s != containerID+".options\n" {
		t.Errorf("left: %q", s)
	}
	if n := len(lines(m.b.Path("/var/lib/migratefs/" + containerID + "/upper/job/work/log"))); n <= m.steps {
		t.Errorf("the upper has %d lines of the log, of %d when it was moved", n, m.steps)
	}

	// What cannot be mounted or restored leaves nothing.
	bad := m.b.Command(m.runtime, "--criu", m.criu, "restore", "--detach", "--image-path", "/srv", "--bundle", bundle, containerID)
	if out, err := bad.CombinedOutput(); err == nil || !strings.Contains(string(out), "inventory.img") {
		t.Errorf("restore without images: %v, %s", err, out)
	}
	must(t, os.Remove(m.b.Path("/srv/images/pstree.img")))
	bad = m.b.Command(m.runtime, "--criu", m.criu, "restore", "--detach", "--image-path", "/srv/images", "--bundle", bundle, containerID)
	if out, err := bad.CombinedOutput(); err == nil {
		t.Errorf("restore without pstree.img works: %s", out)
	}
	if s := m.b.Run("sh", "-c", "grep fuse.migratefs /proc/self/mountinfo || true"); s != "" {
		t.Errorf("still mounted: %s", s)
	}
	testbed.Same(t, "a when the container was dumped", before, "a now", m.rootfsOfA())
}

// TestContainerLayers: the merged root of a container that podman or docker has
// checkpointed is not mounted any more; mounted again of its layers, to be read
// only, it serves as well, with what the container had deleted and replaced.
func TestContainerLayers(t *testing.T) {
	if !everything() {
		return
	}
	m := newHosts(t)
	m.makeBundle(m.a)
	m.a.Run("sh", "-ec", `
mkdir -p /srv/l/up /srv/l/work /srv/l/middle/job/work /srv/l/low
mv `+bundle+`/rootfs/* /srv/l/low
chmod 1555 /srv/l/up
chown 1234:567 /srv/l/up
echo middle >/srv/l/middle/job/work/both
echo low >/srv/l/low/job/work/both
mkdir -m 700 /srv/l/low/replaced && echo low >/srv/l/low/replaced/low
mount -t overlay -o lowerdir=/srv/l/middle:/srv/l/low,upperdir=/srv/l/up,workdir=/srv/l/work overlay `+bundle+`/rootfs
rm -r `+bundle+`/rootfs/job/work/never-opened `+bundle+`/rootfs/replaced
mkdir `+bundle+`/rootfs/replaced`)
	m.container(m.a, "run", "--detach", "--bundle", bundle, containerID)
	work := m.a.Path(bundle + "/rootfs/job/work")
	testbed.Until(t, "the job to work", func() bool { return len(m.log(work)) >= 20 })
	m.checkpoint(m.a)
	m.steps = len(m.log(work))
	want := m.a.Run("sh", "-c", "cd "+bundle+"/rootfs && find . | sort")
	m.a.Run("umount", bundle+"/rootfs")
	m.a.Run("mount", "-t", "overlay", "-o", "ro,lowerdir=/srv/l/up:/srv/l/middle:/srv/l/low", "overlay", bundle+"/rootfs")

	m.bring(m.b, "")
	m.comeUp(m.b)
	if got := m.b.Run("sh", "-c", "cd "+bundle+"/rootfs && find . | sort"); got != want {
		t.Errorf("b has\n%swant\n%s", got, want)
	}
	if b, err := os.ReadFile(m.b.Path(bundle + "/rootfs/job/work/both")); string(b) != "middle\n" {
		t.Errorf("a file of two layers is %q, %v", b, err)
	}
	m.endContainer(m.b)
	m.umount(m.b)
}
