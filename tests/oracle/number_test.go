package oracle

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestNumbersStay: st_ino is the same before and after a file comes up, moves and
// is mounted again, and no two files share one, whatever filesystems the lowers
// are on. Of a lower that has no file handles, overlayfs here, hard links stay
// linked nevertheless; its files have other numbers after a remount.
func TestNumbersStay(t *testing.T) {
	testbed.NeedFUSE(t)
	for _, c := range []struct {
		name    string
		lower   func(t *testing.T, dir string) // mounts at dir what is the second lower
		handles bool
	}{
		{"on the upper's filesystem", func(*testing.T, string) {}, true},
		{"on another filesystem", func(t *testing.T, dir string) {
			must(t, unix.Mount("lower", dir, "tmpfs", 0, ""))
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		}, true},
		{"on one without handles", func(t *testing.T, dir string) {
			below := testbed.TempDir(t)
			for _, d := range []string{"l", "u", "w"} {
				must(t, os.Mkdir(filepath.Join(below, d), 0o755))
			}
			must(t, mountOverlay(dir, "lowerdir="+below+"/l,upperdir="+below+"/u,workdir="+below+"/w,nfs_export=off"))
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newInterop(t, interop{layers: []string{"write top 1\nmkdir d\nwrite d/a 1", ""}})
			c.lower(t, x.path("l1"))
			perform(t, x.path("l1"), "mkdir d/e\nwrite d/b 1\nwrite d/e/f 1\nwrite g 1\nln g d/h\nln g i\nsymlink x d/s")
			numbers := func(script string) map[string]uint64 {
				m := testbed.Mount(t, "mode=overlay,"+x.options(), x.path("ours"))
				defer m.Unmount()
				perform(t, m.Dir, script)
				is := map[string]uint64{}
				must(t, filepath.WalkDir(m.Dir, func(path string, _ os.DirEntry, err error) error {
					var st unix.Stat_t
					if err == nil {
						err = unix.Lstat(path, &st)
					}
					rel, _ := filepath.Rel(m.Dir, path)
					is[rel] = st.Ino
					return err
				}))
				return is
			}
			before := numbers("")
			same := func(now map[string]uint64, names map[string]string) {
				t.Helper()
				seen := map[uint64]string{}
				for was, is := range names {
					if now[is] != before[was] {
						t.Errorf("%s had number %d, and has %d as %s", was, before[was], now[is], is)
					}
				}
				for name, ino := range now {
					linked := func(n string) bool { return n == "g" || n == "d/h" || n == "i" || n == "d/j" }
					if other := seen[ino]; other != "" && !(linked(name) && linked(other)) {
						t.Errorf("%s and %s share number %d", name, other, ino)
					}
					seen[ino] = name
				}
			}
			moved := map[string]string{"top": "d/top", "d": "d", "d/e": "e", "d/e/f": "e/f", "d/b": "b", "g": "g", "d/h": "d/j", "i": "i", "d/s": "e/s"}
			script := "append top 2\nappend d/e/f 2\nappend d/b 2\nappend g 2\nmv d/e e\nmv d/b b\nmv top d/top\nmv d/h d/j\nmv d/s e/s\nwrite new 1"
			now := numbers(script)
			same(now, moved)
			if now["g"] != now["i"] || now["g"] != now["d/j"] {
				t.Error("hard links came apart")
			}
			again := numbers("")
			if again["g"] != again["i"] || again["g"] != again["d/j"] {
				t.Error("hard links came apart after a remount")
			}
			if c.handles {
				same(again, moved)
			}
			own, err := os.ReadDir(x.path("work/links"))
			must(t, err)
			if (len(own) == 0) != c.handles {
				t.Errorf("%d entries in the index of our own", len(own))
			}
		})
	}
}
