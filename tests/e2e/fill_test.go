package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// isPending reports whether the file at path in the upper is a stub.
func (s *source) isPending(t *testing.T, name string) bool {
	t.Helper()
	_, err := unix.Lgetxattr(filepath.Join(s.upper(), name), "trusted.overlay.metacopy", nil)
	if err != nil && !errors.Is(err, unix.ENODATA) {
		t.Fatal(err)
	}
	return err == nil
}

// work is the work directory of s's mounts.
func (s *source) work() string { return filepath.Join(s.local, ".upper.migratefs") }

// filled waits until the file in the upper is an ordinary one.
func (s *source) filled(t *testing.T, name string) {
	t.Helper()
	testbed.Until(t, name+" to be an ordinary file", func() bool { return !s.isPending(t, name) })
}

// TestFill: what was changed comes over in the background, whole, and is an ordinary
// file of the upper then, with the metadata it had. What is only read does not.
func TestFill(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "written", 5<<20+123)
	owned := s.put(t, "owned", 300<<10)
	m := s.mount(t, "")
	old, err := os.Open(m.Path("written"))
	must(t, err)
	defer old.Close()
	f, err := os.OpenFile(m.Path("written"), os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("in the middle"), 3<<20)
	must(t, err)
	copy(want[3<<20:], "in the middle")
	must(t, os.Chown(m.Path("owned"), 1000, 1001))
	must(t, os.Chmod(m.Path("owned"), 0o4751))
	must(t, unix.Setxattr(m.Path("owned"), "user.note", []byte("kept"), 0))
	must(t, unix.Setxattr(m.Path("owned"), "trusted.note", []byte("kept too"), 0))
	when := unix.NsecToTimespec(1_234_567_890_123_456_789)
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, m.Path("owned"), []unix.Timespec{when, when}, 0))
	must(t, os.Link(m.Path("owned"), m.Path("another name")))
	mapped, err := unix.Mmap(int(f.Fd()), 2<<20, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	// A fault that waits for the link would wait for this process, which is the link.
	_, err = f.ReadAt(make([]byte, 4096), 2<<20)
	must(t, err)
	copy(mapped, "stored before")
	must(t, unix.Msync(mapped, unix.MS_SYNC))
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))

	before := testbed.Snapshot(t, m.Path(""), testbed.Usual|testbed.Mtime|testbed.Numbers)
	s.filled(t, "written")
	s.filled(t, "owned")
	testbed.Same(t, "the mount", before, "the mount when all is here",
		testbed.Snapshot(t, m.Path(""), testbed.Usual|testbed.Mtime|testbed.Numbers))

	// The descriptors are of the file that is there now.
	_, err = f.WriteAt([]byte("afterwards"), 1<<20)
	must(t, err)
	copy(want[1<<20:], "afterwards")
	copy(mapped[100:], "stored afterwards")
	must(t, unix.Msync(mapped, unix.MS_SYNC))
	must(t, unix.Munmap(mapped))
	copy(want[2<<20:], "stored before")
	copy(want[2<<20+100:], "stored afterwards")
	for _, dir := range []string{m.Path(""), s.upper()} {
		other, err := os.Open(filepath.Join(dir, "written"))
		must(t, err)
		if err := unix.Flock(int(other.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			t.Errorf("flock by another, in %s: %v", dir, err)
		}
		other.Close()
	}
	b := make([]byte, len(want)+1)
	if n, _ := old.ReadAt(b, 0); !bytes.Equal(b[:n], want) {
		t.Errorf("the old descriptor reads %d bytes that are not what was written", n)
	}
	must(t, f.Sync())
	f.Close()
	old.Close()
	s.sshd.Kill()
	s.link.Refuse(true)
	for name, want := range map[string][]byte{"written": want, "owned": owned, "another name": owned} {
		for _, dir := range []string{m.Path(""), s.upper()} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s in %s, with the source gone: %d bytes, %v", name, dir, len(got), err)
			}
		}
	}
	m.Unmount()
	for _, dir := range []string{"stubs", "objects"} {
		left, err := filepath.Glob(filepath.Join(s.work(), dir, "*"))
		must(t, err)
		for _, name := range left {
			if base := filepath.Base(name); dir == "stubs" || base[0] == 'p' {
				t.Errorf("%s is left in the work directory", base)
			}
		}
	}
}

// TestFillLeavesWhatIsOnlyRead: that is the source's.
func TestFillLeavesWhatIsOnlyRead(t *testing.T) {
	s := newSource(t)
	s.put(t, "read", 8<<20)
	s.put(t, "written", 1<<20)
	m := s.mount(t, "")
	_, err := readAt(m.Path("read"), 4<<20, 4096)
	must(t, err)
	must(t, os.Chmod(m.Path("written"), 0o600))
	s.filled(t, "written")
	if x := s.sshd.BytesRead()[filepath.Join(s.dir, "read")]; x > 2<<20 {
		t.Errorf("%d bytes of a file were fetched of which 4096 were read", x)
	}
	m.Unmount()
}

// TestFillGoesOn: what is missing comes over through outages, deaths of the daemon and
// remounts, and what was synced meanwhile is in it.
func TestFillGoesOn(t *testing.T) {
	s := newSource(t)
	want := s.put(t, "file", 24<<20)
	m := s.mount(t, ",fill_rate=8M")
	for round := range 4 {
		f, err := os.OpenFile(m.Path("file"), os.O_RDWR, 0)
		must(t, err)
		at := int64(round*5<<20 + 77)
		_, err = f.WriteAt([]byte("written and synced"), at)
		must(t, err)
		must(t, f.Sync())
		copy(want[at:], "written and synced")
		read := s.sshd.BytesRead()[filepath.Join(s.dir, "file")]
		testbed.Until(t, "more of it", func() bool {
			return s.sshd.BytesRead()[filepath.Join(s.dir, "file")] > read+1<<20 || !s.isPending(t, "file")
		})
		switch round {
		case 0:
			s.link.Refuse(true)
			s.link.Cut()
			if got, err := readAt(m.Path("file"), at, 18); string(got) != "written and synced" {
				t.Errorf("with the source away: %q, %v", got, err)
			}
			s.link.Refuse(false)
			f.Close()
		case 1:
			m.Kill()
			f.Close()
			m = s.mount(t, ",fill_rate=8M")
		default:
			f.Close()
			m.Unmount()
			m = s.mount(t, ",fill_rate=8M")
		}
	}
	s.filled(t, "file")
	for _, dir := range []string{m.Path(""), s.upper()} {
		if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v: not the source's with what was written", dir, len(got), err)
		}
	}
	m.Unmount()
	read := s.sshd.BytesRead()[filepath.Join(s.dir, "file")]
	if most := int64(len(want)) * 3 / 2; read > most {
		t.Errorf("%d bytes were fetched for a file of %d", read, len(want))
	}
}
