package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestMountAgainWhileTheDaemonEnds mounts again what umount(8) has taken away,
// while the daemon has not yet seen it.
func TestMountAgainWhileTheDaemonEnds(t *testing.T) {
	testbed.NeedRoot(t)
	dir := testbed.TempDir(t)
	lower, upper, point, other := filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "mnt"), filepath.Join(dir, "other")
	for _, d := range []string{lower, upper, point, other} {
		must(t, os.Mkdir(d, 0o755))
	}
	options := "hosts=single,lowerdir=" + lower + ",upperdir=" + upper
	first := testbed.Mount(t, options, point)
	must(t, os.WriteFile(first.Path("file"), []byte("from the first"), 0o644))
	first.Process().Signal(syscall.SIGSTOP)
	var unmounting sync.WaitGroup
	unmounting.Go(first.Unmount)
	t.Cleanup(unmounting.Wait)
	for mounted(t, point) {
		time.Sleep(time.Millisecond)
	}
	time.AfterFunc(time.Second, func() { first.Process().Signal(syscall.SIGCONT) })

	second := testbed.Mount(t, options, point)
	if got, err := os.ReadFile(second.Path("file")); string(got) != "from the first" {
		t.Errorf("the second mount shows %q, %v", got, err)
	}
	if m, err := testbed.TryMount(t, options, other); err == nil || !strings.Contains(m.Log(), "in use by another mount") {
		t.Errorf("a third mount, of the same upper: %v\n%s", err, m.Log())
	}
}

// mounted reports whether a FUSE filesystem is mounted on dir. It does not ask
// its daemon.
func mounted(t *testing.T, dir string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return strings.Contains(string(b), " "+dir+" ")
}
