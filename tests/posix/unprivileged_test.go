package posix

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// insideEnv tells the test binary that it is the suite's process in the user
// namespace, and which directory the mount is below.
const insideEnv = "MIGRATEFS_POSIX_INSIDE"

// TestPosixUnprivileged runs the suite as root of a user namespace, which is a plain
// user outside, who has mounted in there. The test binary runs itself for that.
func TestPosixUnprivileged(t *testing.T) {
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			testbed.NeedFUSE(t)
			dir := testbed.TempDir(t)
			must(t, unix.Mknod(filepath.Join(dir, "fuse"), unix.S_IFCHR, int(unix.Mkdev(10, 229))))
			must(t, os.Chmod(filepath.Join(dir, "fuse"), 0o666))
			home := filepath.Join(dir, "home")
			must(t, os.Mkdir(home, 0o755))
			must(t, os.Chown(home, 1000, 1001))
			for name, from := range map[string]string{"migratefs": testbed.BuildRace(t), "suite": self(t)} {
				program, err := os.ReadFile(from)
				must(t, err)
				must(t, os.WriteFile(filepath.Join(dir, name), program, 0o755))
			}
			cmd := exec.Command("unshare", "-m", "sh", "-c", testbed.LetGo+`mount --bind ../fuse /dev/fuse || exit
				exec setpriv --reuid 1000 --regid 1001 --clear-groups unshare -Urm sh -ec '
					mkdir u w m; for n in $NAMES; do mkdir -p l/in/$n; done
					../migratefs -o mode=`+mode+`,lowerdir=l,upperdir=u$(test `+mode+` = migrate || echo ,workdir=w) m
					../suite -test.run "TestInside$" -test.v || echo it has failed
					../migratefs umount m'`)
			cmd.Dir = home
			names := slices.DeleteFunc(slices.Sorted(maps.Keys(posixtest.All)), func(n string) bool { return leftOut[n] != "" })
			cmd.Env = append(os.Environ(), insideEnv+"="+filepath.Join(home, "m", "in"), "NAMES="+strings.Join(names, " "), "TMPDIR="+home)
			out, err := cmd.CombinedOutput()
			ran := strings.Count(string(out), "--- PASS: TestInside/")
			if err != nil || ran != len(names) || strings.Contains(string(out), "it has failed") {
				t.Errorf("%v: %d of %d have passed:\n%s", err, ran, len(names), out)
			}
		})
	}
}

// TestInside is what runs there; where it is run otherwise, it checks that it would
// run something.
func TestInside(t *testing.T) {
	dir := os.Getenv(insideEnv)
	if dir == "" {
		if len(posixtest.All) < 30 {
			t.Errorf("a suite of %d tests", len(posixtest.All))
		}
		return
	}
	if !strings.Contains(read(t, "/proc/self/mountinfo"), " - fuse.migratefs ") {
		t.Fatal("nothing is mounted")
	}
	if strings.Fields(read(t, "/proc/self/uid_map"))[1] != "1000" {
		t.Fatal("this is not a plain user's namespace")
	}
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		if leftOut[name] == "" {
			t.Run(name, func(t *testing.T) { posixtest.All[name](t, filepath.Join(dir, name)) })
		}
	}
}

func self(t *testing.T) string {
	path, err := os.Executable()
	must(t, err)
	return path
}

func read(t *testing.T, path string) string {
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}
