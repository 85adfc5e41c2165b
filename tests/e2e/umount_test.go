package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// umountScript runs script with our program as helper of mount(8) and umount(8),
// in a mount namespace of its own: d is a directory there with a tmpfs on
// d/layers, and mounted is a function that mounts on d/m what lies in it.
func umountScript(t *testing.T, script string) (string, error) {
	t.Helper()
	testbed.NeedFUSE(t)
	dir := testbed.TempDir(t)
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-ec", testbed.LetGo+`
		mkdir sbin work m m2 layers
		mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir=$PWD/sbin,workdir=$PWD/work /usr/sbin
		ln -s "$0" /usr/sbin/mount.fuse.migratefs
		ln -s "$0" /usr/sbin/umount.fuse.migratefs
		mount -t tmpfs run /run
		d=$PWD
		layers() { mount -t tmpfs layers layers; mkdir layers/lower layers/upper; echo lower >layers/lower/f; }
		mounted() { "$@" mount -t fuse.migratefs migratefs -o lowerdir=$d/layers/lower,upperdir=$d/layers/upper $d/m 2>/dev/null; }
		`+script, testbed.Build(t))
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return strings.ReplaceAll(string(out), dir, "DIR"), err
}

// When umount(8) returns, the filesystem of the layers can be unmounted: it called
// our helper, which waits for the daemon, however the mount was made and named.
func TestUmountLetsGoOfTheLayers(t *testing.T) {
	out, err := umountScript(t, `
		direct() { "$migratefs" -o lowerdir=$d/layers/lower,upperdir=$d/layers/upper $d/m 2>/dev/null; }
		migratefs=$0
		for i in 1 2 3 4 5 6 7 8; do
			layers
			case $i in [1-4]) mounted;; *) direct;; esac
			echo more >>m/f
			case $i in 2) point=m;; *) point=$d/m;; esac
			case $i in 3) umount -v -f $point;; 4) umount -v -n $point;; *) umount -v $point;; esac
			echo "$i: $(cat layers/upper/f | xargs)"
			umount layers
		done
		layers; mounted
		umount m; umount layers; echo quiet`)
	var want strings.Builder
	for _, i := range "12345678" {
		want.WriteString("migratefs: DIR/m is unmounted, and its daemon has ended\n" + string(i) + ": lower more\n")
	}
	if want.WriteString("quiet\n"); err != nil || out != want.String() {
		t.Errorf("%v, and\n%s\nwant\n%s", err, out, want.String())
	}
}

// mount(8) gives its helpers no PATH, and a source needs ssh all the same.
func TestMountWithoutPath(t *testing.T) {
	sshd, dir := testbed.StartSSHD(t), testbed.TempDir(t)
	lower, point := filepath.Join(dir, "lower"), filepath.Join(dir, "mnt")
	must(t, os.Mkdir(lower, 0o755))
	must(t, os.Mkdir(point, 0o755))
	must(t, os.WriteFile(filepath.Join(lower, "f"), []byte("of the source"), 0o644))
	env := slices.DeleteFunc(sshd.Env(), func(v string) bool { return strings.HasPrefix(v, "PATH=") })
	m := testbed.Mount(t, "lowerdir="+sshd.Target(lower)+",ssh_config="+sshd.SSHConfig(), point, testbed.MountConfig{Env: env})
	if b, err := os.ReadFile(m.Path("f")); string(b) != "of the source" {
		t.Errorf("%q, %v", b, err)
	}
}

// The rest of what umount(8) asks of a helper.
func TestUmountHelper(t *testing.T) {
	out, err := umountScript(t, `
		layers; mounted
		exec 9<m/f
		umount $d/m 2>&1 || echo "ends with $?"
		umount -r $d/m; touch m/g 2>&1 || :
		exec 9<&-
		mount -o remount,rw $d/m >/dev/null; touch m/g; ls m
		mount --bind m m2; umount -v m2; umount $d/m
		mounted; exec 9<m/f; umount -l $d/m; ls m; cat <&9; exec 9<&-
		umount.fuse.migratefs $d/m 2>&1 || echo "ends with $?"

		# In a mount namespace that has it, from one that has not.
		mkfifo there here
		unshare -m --propagation private sh -ec '
			"$0" -o lowerdir=$1/layers/lower,upperdir=$1/layers/upper $1/m 2>/dev/null
			echo >$1/there; read x <$1/here; ls $1/m; umount $1/layers' "$0" $d &
		read x <there
		ls m
		umount -v -N /proc/$!/ns/mnt $d/m
		umount.fuse.migratefs $d/m -v -N $! 2>&1 || echo "ends with $?"
		umount -v -l -N /proc/$!/ns/mnt $d/m 2>&1 | grep -o "not mounted"
		echo >here; wait $!; echo done`)
	const want = `migratefs: "DIR/m" is in use: end what uses it (fuser -vm "DIR/m" lists that), or give --lazy
ends with 32
touch: cannot touch 'm/g': Read-only file system
f
g
migratefs: DIR/m2 is unmounted here; it is mounted on "DIR/m", as /proc/self/mountinfo shows, too, and served there
lower
migratefs: "DIR/m" is not mounted
ends with 32
migratefs: DIR/m is unmounted, and its daemon has ended
migratefs: "DIR/m" is not mounted
ends with 32
not mounted
done
`
	if err != nil || out != want {
		t.Errorf("%v, and\n%s\nwant\n%s", err, out, want)
	}
}

// The helper waits as long as the daemon takes, and not for one that serves
// another view of the same.
func TestUmountHelperWaits(t *testing.T) {
	testbed.NeedRoot(t)
	dir := testbed.TempDir(t)
	lower, upper, point, other := filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "mnt"), filepath.Join(dir, "other")
	for _, d := range []string{lower, upper, point, other} {
		must(t, os.Mkdir(d, 0o755))
	}
	helper := filepath.Join(dir, "umount.fuse.migratefs")
	must(t, os.Symlink(testbed.Build(t), helper))
	m := testbed.Mount(t, "lowerdir="+lower+",upperdir="+upper, point)

	testbed.Run(t, "mount", "--bind", point, other)
	if out := testbed.Run(t, helper, other, "-v"); !strings.Contains(out, point) || !strings.Contains(out, "served there") {
		t.Errorf("umount of one view of two: %q", out)
	}

	m.Process().Signal(syscall.SIGSTOP)
	cmd := exec.Command(helper, point, "-n")
	cmd.Stderr = os.Stderr
	p, err := testbed.Start(cmd)
	must(t, err)
	testbed.Until(t, "the umount", func() bool { return !mounted(t, point) })
	if p.WaitFor(300 * time.Millisecond) {
		t.Error("the helper has ended before the daemon")
	}
	m.Process().Signal(syscall.SIGCONT)
	must(t, p.Wait())
	if exe, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(m.Pid()), "exe")); err == nil {
		t.Errorf("the helper has ended, and the daemon runs on: %s", exe)
	}
	m.Unmounted()
}

// A daemon that is told to end as soon as it has mounted unmounts first.
func TestSignalAtOnce(t *testing.T) {
	testbed.NeedFUSE(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		dir := testbed.TempDir(t)
		lower, upper, point := filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "mnt")
		for _, d := range []string{lower, upper, point} {
			must(t, os.Mkdir(d, 0o755))
		}
		var log testbed.Output
		cmd := exec.Command(testbed.BuildRace(t), "-f", "-o", "lowerdir="+lower+",upperdir="+upper, point)
		cmd.Stdout, cmd.Stderr = &log, &log
		daemon, err := testbed.Start(cmd)
		must(t, err)
		for end := time.Now().Add(time.Minute); !mounted(t, point); {
			if daemon.WaitFor(0) || time.Now().After(end) {
				t.Fatalf("not mounted: %s", log.String())
			}
		}
		daemon.Signal(sig)
		if err := daemon.Wait(); err != nil || mounted(t, point) {
			t.Errorf("%v: the daemon ends with %v; mounted is %v\n%s", sig, err, mounted(t, point), log.String())
		}
	}
}
