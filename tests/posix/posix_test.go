// Package posix runs go-fuse's POSIX suite on mounts of the real binary.
package posix

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// leftOut are tests of the suite that are not run, and why. TestLeftOut asserts
// that it is still so.
var leftOut = map[string]string{
	"FcntlFlockLocksFile": "expects two descriptors of one process to conflict under F_SETLK: POSIX locks do not, nor does ext4",
	"XAttrLarge":          "the storage decides: ext4 holds 4 KiB of extended attributes",
}

// worn are names that the suite's tests make. Where they were in the lower and
// have been removed, every one of them is made over what removing left.
var worn = []string{"file", "file.txt", "link", "dir", "ttt", "hardlink", "file1", "file2", "src", "dest", "test", "hello", "content"}

// TestPosix runs every test of the suite in a directory that was made in the
// mount, in one that lies deep in a lower, and in one of a lower from which the
// names it makes have just been removed.
func TestPosix(t *testing.T) {
	for _, mode := range []string{"overlay", "migrate", "migrate,creds=caller"} {
		t.Run(mode, func(t *testing.T) {
			dir := testbed.TempDir(t)
			names := slices.Sorted(maps.Keys(posixtest.All))
			for _, d := range []string{"upper", "mnt"} {
				must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
			}
			for _, name := range names {
				must(t, os.MkdirAll(filepath.Join(dir, "lower", "deep", "in", name), 0o755))
				must(t, os.MkdirAll(filepath.Join(dir, "lower", "worn", name), 0o755))
				for i, w := range worn {
					path := filepath.Join(dir, "lower", "worn", name, w)
					if i%2 == 0 {
						must(t, os.WriteFile(path, []byte("old"), 0o644))
						continue
					}
					must(t, os.Mkdir(path, 0o755))
					must(t, os.WriteFile(filepath.Join(path, "old"), nil, 0o644))
				}
			}
			m := testbed.Mount(t, "mode="+mode+",lowerdir="+filepath.Join(dir, "lower")+",upperdir="+filepath.Join(dir, "upper"),
				filepath.Join(dir, "mnt"))
			must(t, os.Mkdir(m.Path("made"), 0o755))
			for _, name := range names {
				must(t, os.Mkdir(m.Path("made", name), 0o755))
				for _, w := range worn {
					must(t, os.RemoveAll(m.Path("worn", name, w)))
				}
			}
			for _, where := range []string{"made", "deep/in", "worn"} {
				t.Run(filepath.Base(where), func(t *testing.T) {
					for _, name := range names {
						if leftOut[name] != "" {
							continue
						}
						t.Run(name, func(t *testing.T) { posixtest.All[name](t, m.Path(where, name)) })
					}
				})
			}
		})
	}
}

// TestLeftOut does what the tests that are left out do, as far as it goes.
func TestLeftOut(t *testing.T) {
	dir := testbed.TempDir(t)
	for _, d := range []string{"lower", "upper", "mnt", "plain"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	m := testbed.Mount(t, "mode=overlay,lowerdir="+filepath.Join(dir, "lower")+",upperdir="+filepath.Join(dir, "upper"),
		filepath.Join(dir, "mnt"))
	locks := func(dir string) error {
		f1, err := os.Create(filepath.Join(dir, "locked"))
		must(t, err)
		defer f1.Close()
		f2, err := os.OpenFile(filepath.Join(dir, "locked"), os.O_RDWR, 0)
		must(t, err)
		defer f2.Close()
		must(t, unix.FcntlFlock(f1.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
		return unix.FcntlFlock(f2.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK})
	}
	large := func(dir string) error {
		path := filepath.Join(dir, "large")
		must(t, os.WriteFile(path, nil, 0o600))
		return unix.Setxattr(path, "user.large", make([]byte, 8<<10), 0)
	}
	for what, f := range map[string]func(string) error{"locks": locks, "large xattr": large} {
		if plain, ours := f(filepath.Join(dir, "plain")), f(m.Dir); plain != ours {
			t.Errorf("%s: %v on the plain directory, %v on the mount", what, plain, ours)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
