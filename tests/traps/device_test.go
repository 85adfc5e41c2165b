package traps

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestDeviceOfRoot opens a device that only root may, as somebody else: with
// creds=caller the kernel asks nobody.
func TestDeviceOfRoot(t *testing.T) {
	testbed.NeedRoot(t)
	for _, options := range []string{"migrate", "migrate,creds=caller", "overlay"} {
		t.Run(options, func(t *testing.T) {
			s := layers(t)
			must(t, unix.Mknod(filepath.Join(s.lower, "zero"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
			s.mount(t, options)
			if out := sh(t, user, s.Path(), "head -c 1 zero"); !strings.Contains(out, "denied") {
				t.Errorf("a stranger reads a device of root's: %q", out)
			}
		})
	}
}
