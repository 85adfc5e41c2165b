package shim

import (
	"bufio"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// Start is Mount by a process of its own, as one of the kinds there are: nfs,
// lustre or honest.
func Start(tb testing.TB, kind, dir, point string) {
	tb.Helper()
	cmd := exec.Command(testbed.BuildProgram(tb, "./tests/shim/shimfs"), kind, dir, point)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			tb.Errorf("unmount of the shim on %s: %v", point, err)
			_ = unix.Unmount(point, unix.MNT_DETACH)
		}
		if err := cmd.Wait(); err != nil {
			tb.Errorf("shim on %s: %v", point, err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		tb.Fatalf("shim on %s says %q, %v", point, line, err)
	}
}
