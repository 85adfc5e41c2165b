package traps

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// The bugs of the migratefs before this one, each seen by running it.

// moved waits until the lower copy of name is gone.
func (s *stack) moved(t *testing.T, name string) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(filepath.Join(s.lower, name)); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("the lower copy of %s stays", name)
		}
	}
}

func appendTo(t *testing.T, s *stack, name, more string) error {
	t.Helper()
	f := s.open(t, name, os.O_WRONLY|os.O_APPEND)
	defer f.Close()
	_, err := f.WriteString(more)
	return err
}

// There, a temporary file that could not be made removed the lower copy and ended
// the daemon.
func TestOriginalNoTemporaryFile(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	small(t, s, "8m,nr_inodes=64")
	put(t, filepath.Join(s.lower, "file"), "content", 0o640)
	s.mount(t, "migrate")
	var err error
	var filler []string
	for i := 0; err == nil; i++ {
		filler = append(filler, filepath.Join(s.upper, fmt.Sprint("filler", i)))
		err = os.WriteFile(filler[i], nil, 0o600)
	}
	if err := appendTo(t, s, "file", " and more"); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("without an inode: %v", err)
	}
	if a, b := content(t, s.Path("file")), content(t, filepath.Join(s.lower, "file")); a != "content" || b != "content" {
		t.Errorf("it is %q, and below %q", a, b)
	}
	for _, name := range filler[:len(filler)-1] {
		must(t, os.Remove(name))
	}
	must(t, appendTo(t, s, "file", " and more"))
	mustBe(t, content(t, s.Path("file")), "content and more")
}

// There, a short write was repeated for ever.
func TestOriginalShortWrite(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	small(t, s, "3m")
	big := bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16)
	must(t, os.WriteFile(filepath.Join(s.lower, "big"), big, 0o640))
	s.mount(t, "migrate")
	within(t, "a write for which there is no room", func() {
		if err := appendTo(t, s, "big", "x"); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("no room: %v", err)
		}
	})
	if !bytes.Equal([]byte(content(t, s.Path("big"))), big) || !bytes.Equal([]byte(content(t, filepath.Join(s.lower, "big"))), big) {
		t.Error("it has changed")
	}
}

// There, a host that was slower put its copy over what another had written and
// synced.
func TestOriginalTwoHostsBringUpOneFile(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	const files, size = 20, 64 << 10
	for i := range files {
		must(t, os.WriteFile(filepath.Join(s.lower, fmt.Sprint(i)), bytes.Repeat([]byte("."), size), 0o640))
	}
	s.mount(t, "migrate")
	other := filepath.Join(s.dir, "other")
	must(t, os.Mkdir(other, 0o755))
	o := &stack{dir: s.dir, lower: s.lower, upper: s.upper}
	o.Mounted = testbed.Mount(t, "mode=migrate,lowerdir="+s.lower+",upperdir="+s.upper, other)
	for i := range files {
		name, done := fmt.Sprint(i), make(chan error, 2)
		for off, host := range []*stack{s, o} {
			f := host.open(t, name, os.O_RDWR)
			go func() {
				_, err := f.WriteAt([]byte("W"), int64(off*size/2))
				if err == nil {
					err = f.Sync()
				}
				done <- err
			}()
		}
		for range 2 {
			must(t, <-done)
		}
		got := content(t, filepath.Join(s.upper, name))
		if len(got) != size || got[0] != 'W' || got[size/2] != 'W' || strings.Count(got, ".") != size-2 {
			t.Fatalf("file %d: %d bytes, %q and %q were written", i, len(got), got[0], got[size/2])
		}
	}
}

// There, touch -m set the access time to a day in 2004.
func TestOriginalTouch(t *testing.T) {
	for _, where := range []string{"lower", "upper"} {
		testbed.NeedRoot(t)
		s := layers(t)
		put(t, filepath.Join(s.dir, where, "file"), "content", 0o640)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(s.dir, where, "file"), times, 0))
		s.mount(t, "migrate")
		touch := func(atime, mtime unix.Timespec) unix.Stat_t {
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, s.Path("file"), []unix.Timespec{atime, mtime}, 0))
			for _, p := range []string{s.Path("file"), filepath.Join(s.dir, where, "file")} {
				if a, b := lstat(t, p), lstat(t, s.Path("file")); a.Atim != b.Atim || a.Mtim != b.Mtim {
					t.Errorf("%s: %v %v, and in the layer %v %v", where, b.Atim, b.Mtim, a.Atim, a.Mtim)
				}
			}
			return lstat(t, s.Path("file"))
		}
		omit, then := unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Sec: 1234567890, Nsec: 111222333}
		if st := touch(omit, then); st.Atim != times[0] || st.Mtim != then {
			t.Errorf("%s: touch -m: %v %v", where, st.Atim, st.Mtim)
		}
		if st := touch(times[1], omit); st.Atim != times[1] || st.Mtim != then {
			t.Errorf("%s: touch -a: %v %v", where, st.Atim, st.Mtim)
		}
		if _, err := os.Lstat(filepath.Join(s.upper, "file")); where == "lower" && err == nil {
			t.Error("touch has brought it up")
		}
		s.Unmount()
	}
}

// There, hard links, suid bits, capabilities and holes were lost. An exclusive lock
// brings a file up, and changes nothing of it.
func TestOriginalWhatACopyLost(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	small(t, s, "64m")
	precious(t, s.lower)
	must(t, os.Link(filepath.Join(s.lower, "d/e/f"), filepath.Join(s.lower, "d/second")))
	const aspects = testbed.Usual | testbed.Mtime
	before := testbed.Snapshot(t, filepath.Join(s.lower, "d"), aspects)
	was := lstat(t, filepath.Join(s.lower, "d/e/f"))
	s.mount(t, "migrate")
	f := s.open(t, "d/e/f", os.O_RDWR)
	must(t, unix.Flock(fd(f), unix.LOCK_EX))
	must(t, f.Close())
	testbed.Same(t, "the lower before", before, "the mount", testbed.Snapshot(t, s.Path("d"), aspects))
	if a, b := lstat(t, s.Path("d/e/f")), lstat(t, s.Path("d/second")); a.Ino != b.Ino || a.Nlink != 2 || b.Nlink != 2 {
		t.Errorf("inodes %d and %d, with %d and %d links", a.Ino, b.Ino, a.Nlink, b.Nlink)
	}
	if st := lstat(t, filepath.Join(s.upper, "d/e/f")); st.Blocks > was.Blocks+16 || st.Mode != was.Mode || st.Mode&0o6000 == 0 {
		t.Errorf("in the upper: %d blocks of %d, mode %o of %o", st.Blocks, was.Blocks, st.Mode, was.Mode)
	}
	s.moved(t, "d/e/f")
	must(t, appendTo(t, s, "d/second", "one file"))
	if got := content(t, s.Path("d/e/f")); !strings.HasSuffix(got, "one file") {
		t.Error("what is written to one name is not in the other")
	}
}

// There, the lower copy was removed before the upper one was on the disk: when the
// power went, both were gone.
func TestOriginalRemovedBeforeDurable(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	image, disk := filepath.Join(s.dir, "image"), filepath.Join(s.dir, "disk")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	must(t, os.Mkdir(disk, 0o755))
	testbed.Run(t, "mkfs.ext4", "-q", "-F", image)
	testbed.Run(t, "mount", "-o", "loop,commit=300", image, disk)
	t.Cleanup(func() { must(t, unix.Unmount(disk, 0)) })
	s.upper = filepath.Join(disk, "upper")
	must(t, os.Mkdir(s.upper, 0o755))
	must(t, os.Mkdir(filepath.Join(s.lower, "d"), 0o755))
	was := strings.Repeat("precious", 10000)
	put(t, filepath.Join(s.lower, "d", "file"), was, 0o640)
	s.mount(t, "migrate")
	f := s.open(t, "d/file", os.O_RDWR)
	_, err := f.WriteAt([]byte("P"), 0) // and no fsync
	must(t, err)
	s.moved(t, "d/file")
	// What the disk holds at this moment.
	copied, after := filepath.Join(s.dir, "copied"), filepath.Join(s.dir, "after")
	testbed.Run(t, "cp", "--sparse=always", image, copied)
	must(t, os.Mkdir(after, 0o755))
	testbed.Run(t, "mount", "-o", "loop", copied, after)
	defer func() { must(t, unix.Unmount(after, 0)) }()
	if got := content(t, filepath.Join(after, "upper", "d", "file")); len(got) != len(was) || got[1:] != was[1:] {
		t.Errorf("the lower copy is gone, and the upper one has %d bytes on the disk", len(got))
	}
}

// There was no read-only mode.
func TestOriginalReadOnly(t *testing.T) {
	testbed.NeedRoot(t)
	for _, options := range []string{"mode=migrate,ro,lowerdir=%s,upperdir=%s", "lowerdir=%s"} {
		s := layers(t)
		must(t, os.Mkdir(filepath.Join(s.lower, "d"), 0o755))
		put(t, filepath.Join(s.lower, "d", "file"), "content", 0o640)
		before := testbed.Snapshot(t, s.lower, testbed.Usual|testbed.Mtime|testbed.Numbers, ".migratefs")
		args := []any{s.lower, s.upper}
		s.Mounted = testbed.Mount(t, fmt.Sprintf(options, args[:strings.Count(options, "%s")]...), filepath.Join(s.dir, "mnt"))
		for what, err := range map[string]error{
			"unlink": os.Remove(s.Path("d/file")), "rename": os.Rename(s.Path("d/file"), s.Path("new")), "mkdir": os.Mkdir(s.Path("new"), 0o755),
			"create": os.WriteFile(s.Path("new"), nil, 0o644), "write": os.WriteFile(s.Path("d/file"), nil, 0o644), "truncate": os.Truncate(s.Path("d/file"), 1),
			"chmod": os.Chmod(s.Path("d"), 0o700), "link": os.Link(s.Path("d/file"), s.Path("new")), "utimes": os.Chtimes(s.Path("d"), past, past),
		} {
			if !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: %v", what, err)
			}
		}
		mustBe(t, content(t, s.Path("d/file")), "content")
		s.Unmount()
		testbed.Same(t, "the lower before", before, "after", testbed.Snapshot(t, s.lower, testbed.Usual|testbed.Mtime|testbed.Numbers, ".migratefs"))
	}
}

// There, the umask was applied although the directory has a default ACL.
func TestOriginalUmaskAndDefaultACL(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	must(t, os.Mkdir(filepath.Join(s.lower, "d"), 0o777))
	must(t, os.Chmod(filepath.Join(s.lower, "d"), 0o777))
	must(t, unix.Setxattr(filepath.Join(s.lower, "d"), "system.posix_acl_default", acl(7, 6, 7, 7, 5), 0))
	s.mount(t, "migrate")
	mustBe(t, sh(t, user, s.Path("d"), `umask 077; : >file; mkdir dir; stat -c %a file dir`), "664\n775\n")
	mustBe(t, sh(t, user, filepath.Join(s.upper, "d"), `stat -c %a file dir`), "664\n775\n")
}

// There, readlink(2) brought a symlink up.
func TestOriginalReadlink(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	must(t, os.Symlink("where/to", filepath.Join(s.lower, "link")))
	s.mount(t, "migrate")
	target, err := os.Readlink(s.Path("link"))
	must(t, err)
	mustBe(t, target, "where/to")
	lstat(t, filepath.Join(s.lower, "link"))
	if _, err := os.Lstat(filepath.Join(s.upper, "link")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in the upper: %v", err)
	}
}

// There, truncate(2) cut the lower file itself.
func TestOriginalTruncate(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	put(t, filepath.Join(s.lower, "file"), "content", 0o640)
	held, err := os.Open(filepath.Join(s.lower, "file"))
	must(t, err)
	defer held.Close()
	s.mount(t, "migrate")
	must(t, os.Truncate(s.Path("file"), 3))
	mustBe(t, content(t, filepath.Join(s.upper, "file")), "con")
	b := make([]byte, 20)
	n, _ := held.ReadAt(b, 0)
	mustBe(t, string(b[:n]), "content")
	s.moved(t, "file")
}

// There, an empty directory could be renamed over one that has files below, and an
// open with O_TRUNC that was refused had cut the file by then.
func TestOriginalDataLost(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	must(t, os.Mkdir(filepath.Join(s.lower, "full"), 0o755))
	put(t, filepath.Join(s.lower, "full", "file"), "content", 0o644)
	must(t, os.Mkdir(filepath.Join(s.upper, "full"), 0o755))
	s.mount(t, "migrate")
	must(t, os.Mkdir(s.Path("empty"), 0o755))
	if err := os.Rename(s.Path("empty"), s.Path("full")); !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		// os.Rename reports a directory as EEXIST.
		t.Errorf("renamed over a directory with files: %v", err)
	}
	if out := sh(t, user, s.Path("full"), `: >file`); !strings.Contains(out, "denied") {
		t.Errorf("truncated by a stranger: %q", out)
	}
	mustBe(t, content(t, s.Path("full/file")), "content")
	names, err := os.ReadDir(s.Path("full"))
	if err != nil || !slices.ContainsFunc(names, func(e os.DirEntry) bool { return e.Name() == "file" }) {
		t.Errorf("%v, %v", names, err)
	}
}
