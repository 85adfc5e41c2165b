package traps

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/shim"
	"github.com/migratefs/migratefs/tests/testbed"
)

// shown has the directory s.X shown by a filesystem that can fail.
func shown(t *testing.T, dir *string) *shim.FS {
	t.Helper()
	point := *dir + ".shown"
	must(t, os.Mkdir(point, 0o755))
	fs := shim.Mount(t, *dir, point, shim.Lies{})
	*dir = point
	return fs
}

// fails has requests of the given kinds fail, of all kinds if there are none, and
// returns what ends that.
func fails(fs *shim.FS, errno unix.Errno, ops ...string) (mend func()) {
	set := func(errno unix.Errno) {
		fs.Set(func(l *shim.Lies) {
			l.Before = func(op, _ string) unix.Errno {
				for _, o := range ops {
					if o == op {
						return errno
					}
				}
				if len(ops) == 0 {
					return errno
				}
				return 0
			}
		})
	}
	set(errno)
	return func() { set(0) }
}

// A lower whose server is away: nothing looks as if it were not there, what the upper
// has goes on, and all is as before when it is back.
func TestLowerGoesAndComesBack(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOTCONN, unix.ESTALE, unix.EIO} {
		t.Run(errno.Error(), func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			must(t, os.Mkdir(filepath.Join(s.lower, "d"), 0o755))
			for _, name := range []string{"d/one", "d/two", "d/three"} {
				put(t, filepath.Join(s.lower, name), "content", 0o640)
			}
			put(t, filepath.Join(s.upper, "up"), "upper", 0o640)
			below := s.lower
			lower := shown(t, &s.lower)
			s.mount(t, "migrate")
			must(t, appendTo(t, s, "d/one", " and more"))
			s.moved(t, "d/one")
			mend := fails(lower, errno)
			for what, err := range map[string]error{
				"write":  func() error { _, err := os.OpenFile(s.Path("d/two"), os.O_WRONLY|os.O_TRUNC, 0); return err }(),
				"rename": os.Rename(s.Path("d/two"), s.Path("new")), "unlink": os.Remove(s.Path("d/three")),
				"stat": func() error { _, err := os.Lstat(s.Path("d/nothing")); return err }(),
				"list": func() error { _, err := os.ReadDir(s.Path("d")); return err }(),
			} {
				if err == nil || errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s while the lower is away: %v", what, err)
				}
			}
			mustBe(t, content(t, s.Path("up")), "upper")
			must(t, os.WriteFile(s.Path("up"), []byte("rewritten"), 0o640))
			mend()
			mustBe(t, content(t, s.Path("d/one")), "content and more")
			mustBe(t, content(t, s.Path("d/three")), "content")
			mustBe(t, content(t, filepath.Join(below, "d/two")), "content")
			must(t, appendTo(t, s, "d/two", " again"))
			mustBe(t, content(t, s.Path("d/two")), "content again")
			names, err := os.ReadDir(s.Path("d"))
			if err != nil || len(names) != 3 {
				t.Errorf("%v, %v", names, err)
			}
		})
	}
}

// A lower that cannot be read, and an upper that fails when the copy is synced or
// closed, as with a quota on NFS: the caller gets the error, and the lower keeps its
// file.
func TestCopyUpThatFails(t *testing.T) {
	for _, c := range []struct {
		layer, op string
		errno     unix.Errno
	}{
		{"lower", "read", unix.EIO}, {"upper", "write", unix.ENOSPC}, {"upper", "fsync", unix.EIO},
		{"upper", "flush", unix.EDQUOT}, {"upper", "flush", unix.EIO}, {"upper", "setattr", unix.EPERM},
	} {
		t.Run(c.layer+" "+c.op+" "+c.errno.Error(), func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			put(t, filepath.Join(s.lower, "file"), "content", 0o640)
			below, above := s.lower, s.upper
			dir := &s.lower
			if c.layer == "upper" {
				dir = &s.upper
			}
			fs := shown(t, dir)
			s.mount(t, "migrate")
			f := s.open(t, "file", os.O_RDWR)
			mend := fails(fs, c.errno, c.op)
			if _, err := f.WriteAt([]byte("C"), 0); !errors.Is(err, c.errno) {
				t.Errorf("%v, want %v", err, c.errno)
			}
			mustBe(t, content(t, filepath.Join(below, "file")), "content")
			if _, err := os.Lstat(filepath.Join(above, "file")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("in the upper: %v", err)
			}
			mend()
			_, err := f.WriteAt([]byte("C"), 0)
			must(t, err)
			mustBe(t, content(t, s.Path("file")), "Content")
			s.moved(t, "file")
		})
	}
}
