package traps

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// limited puts the upper of s on a btrfs of which it may use some megabytes.
func limited(t *testing.T, s *stack, limit string) {
	t.Helper()
	image, disk := filepath.Join(s.dir, "image"), filepath.Join(s.dir, "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 600<<20))
	must(t, os.Mkdir(disk, 0o755))
	testbed.Run(t, "mkfs.btrfs", "-q", image)
	testbed.Run(t, "mount", "-o", "loop", image, disk)
	t.Cleanup(func() { must(t, unix.Unmount(disk, 0)) })
	testbed.Run(t, "btrfs", "quota", "enable", disk)
	sub := filepath.Join(disk, "sub")
	testbed.Run(t, "btrfs", "subvolume", "create", sub)
	testbed.Run(t, "btrfs", "qgroup", "limit", limit, sub)
	s.upper = filepath.Join(sub, "upper")
	must(t, os.Mkdir(s.upper, 0o777))
	must(t, os.Chmod(s.upper, 0o777))
}

// Over quota, what would need more fails with EDQUOT, for root too, and loses
// nothing; removing what one has made works, and then everything does.
func TestOverQuota(t *testing.T) {
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			limited(t, s, "8M")
			must(t, os.Chmod(s.lower, 0o777))
			mustBe(t, sh(t, user, s.lower, `head -c 2M /dev/zero | tr '\0' a >big; for n in 1 2 3; do echo $n >$n; done`), "")
			s.mount(t, mode)
			mustBe(t, sh(t, user, s.Path(), `rm 1 2; ls; dd if=/dev/urandom of=fill bs=1M count=16 conv=fsync 2>&1 | grep -o quota`), "3\nbig\nquota\n")
			mustBe(t, sh(t, user, s.Path(), `dd if=/dev/zero of=fill2 bs=1M count=16 conv=fsync 2>&1 | grep -o quota
				echo more | tee -a big 2>&1 >/dev/null | grep -o quota; mkdir dir 2>&1 | grep -o quota; tail -c 2 big; wc -c <big`), "quota\nquota\nquota\naa2097152\n")
			if err := os.WriteFile(s.Path("root"), []byte("x"), 0o600); !errors.Is(err, unix.EDQUOT) {
				t.Errorf("root: %v", err)
			}
			if st := lstat(t, filepath.Join(s.lower, "big")); st.Size != 2<<20 {
				t.Errorf("the lower file has %d bytes", st.Size)
			}
			mustBe(t, sh(t, user, s.Path(), `rm -f fill fill2`), "")
			testbed.Run(t, "btrfs", "filesystem", "sync", s.upper)
			mustBe(t, sh(t, user, s.Path(), `echo more >>big; tail -c 5 big; mkdir dir; rm 3 big; ls`), "more\ndir\n")
			if mode == "overlay" {
				// One whiteout of root's: deleting is at nobody's expense.
				one, two := lstat(t, filepath.Join(s.upper, "1")), lstat(t, filepath.Join(s.upper, "big"))
				if one.Ino != two.Ino || one.Uid != 0 || one.Nlink < 4 {
					t.Errorf("whiteouts %d and %d of %d, %d links", one.Ino, two.Ino, one.Uid, one.Nlink)
				}
			}
		})
	}
}
