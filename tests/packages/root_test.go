package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// bareRoots are roots of Debian and nothing else: minimal is what images have, and more
// the upper over it with what a mount takes, and systemd. Nobody writes to them.
func bareRoots(t *testing.T) (minimal, more string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(testbed.ModuleDir(), "tests", "testbed", "bareroot.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bareroot.sh: %v", err)
	}
	dir := strings.TrimSpace(string(out))
	return filepath.Join(dir, "minimal"), filepath.Join(dir, "more")
}

// makeRoot is the beginning of a script of bash, in namespaces of its own and in a
// directory that is empty: root becomes a bare root of an overlay of $ROOTS, whose
// changes are kept in memory, with its own /proc, /run, /dev and /tmp. /l is of memory,
// too, for layers: they are not to be on an overlay.
const makeRoot = `
	mount -t proc proc /proc
	` + testbed.LetGo + `
	mount -t tmpfs -o mode=755 tmpfs .
	cd "$PWD" # it is on what was mounted now
	mkdir upper work root
	mount -t overlay overlay -o lowerdir=$ROOTS,upperdir=upper,workdir=work root
	mkdir root/l
	mount -t tmpfs -o mode=755 layers root/l
	mount -t proc proc root/proc
	mount -t sysfs -o ro sysfs root/sys
	mount -t tmpfs -o mode=755 run root/run
	mount -t tmpfs -o mode=755 dev root/dev
	for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
		IFS=: read -r name major minor <<<$node
		mknod -m 666 root/dev/$name c $major $minor
	done
	ln -s /proc/self/fd root/dev/fd
`

// inRoot runs a script of bash with makeRoot before it, and returns what it printed.
func inRoot(t *testing.T, script string, env ...string) (string, error) {
	t.Helper()
	minimal, more := bareRoots(t)
	cmd := exec.Command("unshare", "-m", "-p", "-n", "-u", "-f", "--kill-child", "--propagation", "private", "bash", "-euc", makeRoot+script)
	cmd.Dir = testbed.TempDir(t)
	cmd.Env = append(os.Environ(), append(env, "ROOTS="+more+":"+minimal)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
