package traps

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// Where many hosts may have the layers, rename(2) of a directory that lies in both says EXDEV, and
// mv(1) moves it all the same; once its lower part is drained, rename(2) does.
func TestMvOfADirectoryInBothLayers(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	for _, d := range []string{"d/sub", "e/sub"} {
		must(t, os.MkdirAll(filepath.Join(s.lower, d), 0o750))
		put(t, filepath.Join(s.lower, d, "low"), "lower "+d, 0o640)
		must(t, os.Chown(filepath.Join(s.lower, d, "low"), 1000, 1001))
		must(t, unix.Setxattr(filepath.Join(s.lower, d, "low"), "user.note", []byte("kept"), 0))
		must(t, os.MkdirAll(filepath.Join(s.upper, d), 0o750))
		put(t, filepath.Join(s.upper, d, "up"), "upper "+d, 0o600)
	}
	s.mount(t, "migrate")
	was := testbed.Snapshot(t, s.Path("d"), testbed.Usual|testbed.Mtime)
	for _, flags := range []uint{0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE} {
		to := s.Path("e")
		if flags != unix.RENAME_EXCHANGE {
			to = s.Path("new")
		}
		if err := unix.Renameat2(unix.AT_FDCWD, s.Path("d"), unix.AT_FDCWD, to, flags); err != unix.EXDEV {
			t.Errorf("rename of d, flags %d: %v, want EXDEV", flags, err)
		}
	}
	testbed.Same(t, "before", was, "after what was refused", testbed.Snapshot(t, s.Path("d"), testbed.Usual|testbed.Mtime))

	testbed.Run(t, "mv", s.Path("d"), s.Path("new"))
	testbed.Same(t, "d", was, "what mv made of it", testbed.Snapshot(t, s.Path("new"), testbed.Usual|testbed.Mtime))
	for _, p := range []string{s.Path("d"), filepath.Join(s.lower, "d"), filepath.Join(s.upper, "d")} {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("%s after mv: %v", p, err)
		}
	}

	was = testbed.Snapshot(t, s.Path("e"), testbed.Usual|testbed.Mtime)
	if out, err := exec.Command(testbed.Build(t), "drain", s.Path("e")).CombinedOutput(); err != nil {
		t.Fatalf("drain: %v\n%s", err, out)
	}
	must(t, os.Rename(s.Path("e"), s.Path("drained")))
	testbed.Same(t, "e", was, "what a rename made of it, drained", testbed.Snapshot(t, s.Path("drained"), testbed.Usual|testbed.Mtime))
}
