package traps

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// small puts the upper and its work directory on a filesystem of their own.
func small(t *testing.T, s *stack, size string) {
	t.Helper()
	disk := filepath.Join(s.dir, "disk")
	must(t, os.Mkdir(disk, 0o755))
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0755,size="+size))
	t.Cleanup(func() { must(t, unix.Unmount(disk, 0)) })
	s.upper = filepath.Join(disk, "upper")
	must(t, os.Mkdir(s.upper, 0o755))
}

// A file that is too large for the upper cannot be written to; nothing else
// happens, and the mount goes on.
func TestCopyUpToAFullDisk(t *testing.T) {
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			small(t, s, "1m")
			big := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
			must(t, os.Mkdir(filepath.Join(s.lower, "d"), 0o755))
			put(t, filepath.Join(s.lower, "d", "big"), string(big), 0o640)
			put(t, filepath.Join(s.lower, "small"), "small", 0o640)
			put(t, filepath.Join(s.lower, "gone"), "gone", 0o640)
			const all = testbed.Usual | testbed.Mtime | testbed.Numbers
			s.mount(t, mode+",metacopy=off")
			before := testbed.Snapshot(t, s.lower, all, ".migratefs")
			changes := []struct {
				what string
				do   func() error
			}{
				{"write", func() error {
					f := s.open(t, "d/big", os.O_RDWR)
					_, err := f.WriteAt([]byte("x"), 0)
					return err
				}},
				{"append", func() error {
					f := s.open(t, "d/big", os.O_WRONLY|os.O_APPEND)
					_, err := f.Write([]byte("x"))
					return err
				}},
				{"truncate", func() error { return os.Truncate(s.Path("d/big"), 3<<20) }},
			}
			if mode == "overlay" {
				changes = append(changes, []struct {
					what string
					do   func() error
				}{
					{"chmod", func() error { return os.Chmod(s.Path("d/big"), 0o600) }},
					{"rename", func() error { return os.Rename(s.Path("d/big"), s.Path("new")) }},
					{"link", func() error { return os.Link(s.Path("d/big"), s.Path("new")) }},
				}...)
			}
			for _, c := range changes {
				if err := c.do(); !errors.Is(err, unix.ENOSPC) {
					t.Errorf("%s: %v", c.what, err)
				}
				if got := content(t, s.Path("d/big")); got != string(big) {
					t.Errorf("after %s: %d bytes, %.10q...", c.what, len(got), got)
				}
				if _, err := os.Lstat(filepath.Join(s.upper, "d", "big")); err == nil {
					t.Errorf("after %s, the upper has the file", c.what)
				}
				if left := work(t, s); len(left) > 0 {
					t.Errorf("after %s, the work directory has %q", c.what, left)
				}
			}
			testbed.Same(t, "the lower before", before, "after", testbed.Snapshot(t, s.lower, all, ".migratefs"))

			// Life goes on.
			f := s.open(t, "small", os.O_WRONLY|os.O_APPEND)
			_, err := f.Write([]byte(" and more"))
			must(t, err)
			must(t, f.Close())
			if got := content(t, filepath.Join(s.upper, "small")); got != "small and more" {
				t.Errorf("the small file is %q", got)
			}
			must(t, os.Truncate(s.Path("d/big"), 5))
			if got := content(t, s.Path("d/big")); got != "01234" {
				t.Errorf("cut to %q", got)
			}
			fillUp(t, s.upper)
			must(t, os.Remove(s.Path("gone")))
			must(t, os.Remove(s.Path("d/big")))
			if _, err := os.Lstat(s.Path("gone")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a file deleted on a full disk: %v", err)
			}
		})
	}
}

func fillUp(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

// times are what precious files have for access and modification.
var times = []unix.Timespec{{Sec: 1e9, Nsec: 123456789}, {Sec: 1e9 + 1, Nsec: 987654321}}

// precious makes a file that has everything a file can have.
func precious(t *testing.T, dir string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(dir, "d", "e"), 0o755))
	must(t, os.Chmod(filepath.Join(dir, "d"), 0o2775))
	must(t, os.Chown(filepath.Join(dir, "d"), 1000, 2000))
	p := filepath.Join(dir, "d", "e", "f")
	f, err := os.Create(p)
	must(t, err)
	defer f.Close()
	for _, off := range []int64{0, 3 << 20, 16<<20 - 5} {
		_, err := f.WriteAt([]byte("data!"), off)
		must(t, err)
	}
	must(t, f.Truncate(20<<20)) // a hole at the end
	must(t, unix.Chown(p, 1000, 1001))
	must(t, unix.Chmod(p, 0o6751))
	must(t, unix.Setxattr(p, "user.note", []byte{0, 1, 2}, 0))
	must(t, unix.Setxattr(p, "user.empty", nil, 0))
	must(t, unix.Setxattr(p, "system.posix_acl_access", acl(7, 4, 5, 7, 1), 0))
	// cap_net_raw=ep (VFS_CAP_REVISION_2)
	must(t, unix.Setxattr(p, "security.capability", []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	for _, name := range []string{"d/e/f", "d/e", "d"} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), times, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// A copy on another filesystem than its source has everything the source has,
// and the directories above it are as they were.
func TestCopyUpKeepsEverything(t *testing.T) {
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			small(t, s, "64m")
			twin := filepath.Join(s.dir, "twin")
			must(t, os.Mkdir(twin, 0o755))
			precious(t, twin)
			precious(t, s.lower)
			aspects := testbed.Usual | testbed.Holes | testbed.Mtime
			s.mount(t, mode)
			for _, root := range []string{s.Dir, twin} {
				p := filepath.Join(root, "d", "e", "f")
				// In migrate mode only a change of data moves the file: this one takes
				// suid bits and capabilities away, from the twin as well.
				var err error
				if mode == "overlay" {
					err = os.Chmod(p, os.ModeSetuid|os.ModeSetgid|0o751)
				} else {
					aspects &^= testbed.Mtime
					var f *os.File
					f, err = os.OpenFile(p, os.O_RDWR, 0)
					must(t, err)
					_, err = f.WriteAt([]byte("DATA"), 3<<20)
					must(t, f.Close())
				}
				must(t, err)
			}
			// Before anything is read, which changes access times.
			for _, name := range []string{"d", "d/e", "d/e/f"} {
				st := lstat(t, filepath.Join(s.upper, name))
				if mode == "migrate" && name == "d/e/f" {
					continue // written to
				}
				if st.Atim != times[0] || st.Mtim != times[1] {
					t.Errorf("times of %s: %v %v, were %v", name, st.Atim, st.Mtim, times)
				}
			}
			for _, c := range []struct {
				what, dir string
				aspects   testbed.Aspect
			}{{"the upper", s.upper, aspects}, {"the mount", s.Dir, aspects &^ testbed.Holes}} {
				testbed.Same(t, "the twin", testbed.Snapshot(t, filepath.Join(twin, "d"), c.aspects),
					c.what, testbed.Snapshot(t, filepath.Join(c.dir, "d"), c.aspects))
			}
			up, is := lstat(t, filepath.Join(s.upper, "d", "e", "f")), lstat(t, filepath.Join(twin, "d", "e", "f"))
			if up.Blocks > is.Blocks+16 {
				t.Errorf("%d blocks of %d: holes were filled", up.Blocks, is.Blocks)
			}
		})
	}
}
