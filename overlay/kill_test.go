package overlay

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// dieHere tells a child of the test where to do what, and before which change to
// die: directory, stacking, operation, number.
const dieHere = "MIGRATEFS_TEST_DIE"

// TestDeathOfAProcess is TestDeathAtEveryChange with a process that is killed, for
// some of the operations: what it leaves is what the other test takes it to leave.
func TestDeathOfAProcess(t *testing.T) {
	if place := os.Getenv(dieHere); place != "" {
		die(t, place)
		return
	}
	each(t, func(t *testing.T, base string, k stacking, o *operation) {
		if k.lowers > 1 || !slices.Contains([]string{
			"write", "truncate", "write to a hard link", "unlink both", "rename low to both", "exchange low and up",
			"rename dir to new", "mkdir wh", "rmdir whdir", "rename up to low that is pending",
			"fill of a pending file", "fill of a pending file with two names",
		}, o.name) {
			return
		}
		before, after, _ := o.expect(t, base, k)
		for n := 1; ; n++ {
			w := newWorld(t, base, k)
			lowers := w.lowers()
			cmd := exec.Command(os.Args[0], "-test.run=^TestDeathOfAProcess$")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%q %q %q %d", dieHere, w.dir, k.name, o.name, n))
			out, err := cmd.CombinedOutput()
			killed := cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == -1
			if !killed && err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			must(t, w.open())
			where := fmt.Sprintf("killed at change %d", n)
			errno := unix.Errno(0)
			if killed {
				errno = unix.EIO
			}
			w.judge(where, errno, before, after)
			w.lowersUnchanged(where, lowers)
			if left := w.leftovers(); left != "" {
				t.Errorf("%s, left over:\n\t%s", where, left)
			}
			w.remove()
			if !killed {
				return
			}
		}
	})
}

// die does in the child what the place says.
func die(t *testing.T, place string) {
	var dir, kind, op string
	var at int
	_, err := fmt.Sscanf(place, "%q %q %q %d", &dir, &kind, &op, &at)
	must(t, err)
	k := stackings[slices.IndexFunc(stackings, func(k stacking) bool { return k.name == kind })]
	o := operations[slices.IndexFunc(operations, func(o operation) bool { return o.name == op })]
	w := &world{t: t, dir: dir, kind: k}
	must(t, w.open())
	if o.first != nil {
		o.first(&driver{fs: w.fs})
	}
	if _, err := w.look(); err != nil {
		t.Fatal(err)
	}
	n := 0
	sys.SetHook(func(sys.Change) error {
		if n++; n == at {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
		return nil
	})
	if errno := o.run(w); errno != 0 && errno != unix.EXDEV {
		t.Fatal(errno)
	}
	os.Exit(0) // what was not asked for, a clean end, does not happen either
}
