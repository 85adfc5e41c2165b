package cli

import (
	"os/exec"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// Where the kernel lets not even root mount, as in a container that was not given the
// right to, the line says what to give.
func TestNoMount(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	s := newSite(t)
	cmd := exec.Command("setpriv", "--bounding-set", "-sys_admin", testbed.Build(t), "-o", "lowerdir="+s.at("lower"), s.at("mnt"))
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != exitMount {
		t.Errorf("exit code %d, %v", code, err)
	}
	if want := `migratefs: mount on "` + s.at("mnt") + `": operation not permitted: root needs CAP_SYS_ADMIN; in a container --cap-add SYS_ADMIN, and no seccomp or AppArmor profile that refuses mount(2)` + "\n"; string(out) != want {
		t.Errorf("printed %q, want %q", out, want)
	}
}
