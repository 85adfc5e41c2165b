package e2e

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// pendingCase is something that programs do to a file. It is done to a file of a
// source that is away from its data, and to a copy of it on a disk.
type pendingCase struct {
	name  string
	fetch int64 // bytes of the file that may be fetched for it
	do    func(t *testing.T, dir, path string)
}

func withFile(flags int, f func(t *testing.T, f *os.File)) func(*testing.T, string, string) {
	return func(t *testing.T, _, path string) {
		t.Helper()
		file, err := os.OpenFile(path, os.O_RDWR|flags, 0)
		must(t, err)
		defer file.Close()
		f(t, file)
	}
}

func fallocate(mode uint32, off, n int64) func(*testing.T, string, string) {
	return withFile(0, func(t *testing.T, f *os.File) {
		must(t, unix.Fallocate(int(f.Fd()), mode, off, n))
	})
}

func cutTo(size int64) func(*testing.T, string, string) {
	return func(t *testing.T, _, path string) { must(t, os.Truncate(path, size)) }
}

// pendingSize is no multiple of a page.
const pendingSize = 3<<20 + 1234

var pendingCases = []pendingCase{
	{name: "write in the middle", do: withFile(0, func(t *testing.T, f *os.File) {
		_, err := f.WriteAt([]byte("written"), 1<<20-3)
		must(t, err)
		must(t, f.Sync())
	})},
	{name: "write beyond the end", do: withFile(0, func(t *testing.T, f *os.File) {
		_, err := f.WriteAt([]byte("written"), pendingSize+5000)
		must(t, err)
	})},
	{name: "append", do: withFile(os.O_APPEND, func(t *testing.T, f *os.File) {
		for range 3 {
			_, err := f.WriteString("appended")
			must(t, err)
		}
	})},
	{name: "truncate", do: cutTo(1 << 20)},
	{name: "truncate to nothing", do: cutTo(0)},
	{name: "truncate to more", do: cutTo(2 * pendingSize)},
	{name: "truncate to less and then to more", do: func(t *testing.T, dir, path string) {
		cutTo(5000)(t, dir, path)
		cutTo(pendingSize)(t, dir, path)
	}},
	{name: "open with O_TRUNC", do: withFile(os.O_TRUNC, func(t *testing.T, f *os.File) {
		_, err := f.WriteString("new")
		must(t, err)
	})},
	{name: "fallocate", do: fallocate(0, pendingSize-10, 100000)},
	{name: "fallocate and keep the size", do: fallocate(unix.FALLOC_FL_KEEP_SIZE, pendingSize, 100000)},
	{name: "punch a hole", do: fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20-100, 1<<20)},
	{name: "zero a range", do: fallocate(unix.FALLOC_FL_ZERO_RANGE, 12345, 1<<20)},
	{name: "write with O_DIRECT", do: withFile(unix.O_DIRECT, func(t *testing.T, f *os.File) {
		b := pageOf('d')
		_, err := f.WriteAt(b, 1<<20)
		must(t, err)
		got := pageOf(0)
		if _, err := f.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, b) {
			t.Errorf("what was written with O_DIRECT is %.10q, %v", got, err)
		}
	})},
	{name: "store into a shared mapping", fetch: 1 << 20, do: func(t *testing.T, _, path string) {
		// In a process of its own: one that waits in a fault cannot be the link, too.
		cmd := exec.Command(os.Args[0], "-test.run=^TestStoreIntoMapping$")
		cmd.Env = append(os.Environ(), storeHere+"="+path)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}},
	{name: "chmod", do: func(t *testing.T, _, path string) { must(t, os.Chmod(path, 0o4711)) }},
	{name: "chown", do: func(t *testing.T, _, path string) { must(t, os.Chown(path, 1000, 1001)) }},
	{name: "set times", do: func(t *testing.T, _, path string) {
		when := unix.NsecToTimespec(1_234_567_890_123_456_789)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{when, when}, 0))
	}},
	{name: "set and remove xattrs", do: func(t *testing.T, _, path string) {
		must(t, unix.Setxattr(path, "user.a", []byte("1"), 0))
		must(t, unix.Setxattr(path, "user.b", []byte("2"), unix.XATTR_CREATE))
		must(t, unix.Removexattr(path, "user.a"))
	}},
	{name: "set an ACL", do: func(t *testing.T, _, path string) {
		must(t, unix.Setxattr(path, "system.posix_acl_access", anACL(), 0))
	}},
	{name: "rename", do: func(t *testing.T, dir, path string) {
		must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
		must(t, os.Rename(path, filepath.Join(dir, "d", "moved")))
	}},
	{name: "rename over another", do: func(t *testing.T, dir, path string) {
		must(t, os.WriteFile(filepath.Join(dir, "other"), []byte("other"), 0o600))
		must(t, os.Rename(path, filepath.Join(dir, "other")))
	}},
	{name: "link and unlink", do: func(t *testing.T, dir, path string) {
		must(t, os.Link(path, filepath.Join(dir, "second")))
		must(t, os.Link(path, filepath.Join(dir, "third")))
		must(t, os.Remove(path))
		f, err := os.OpenFile(filepath.Join(dir, "second"), os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString("by its second name")
		must(t, err)
		must(t, f.Close())
	}},
	{name: "unlink", do: func(t *testing.T, _, path string) {
		must(t, os.Chmod(path, 0o600))
		must(t, os.Remove(path))
	}},
	{name: "lock", do: withFile(0, func(t *testing.T, f *os.File) {
		_, err := f.WriteAt([]byte("x"), 7)
		must(t, err)
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		other, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
		must(t, err)
		defer other.Close()
		if err := unix.Flock(int(other.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != unix.EWOULDBLOCK {
			t.Errorf("flock by another: %v", err)
		}
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10}
		must(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk))
		if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &lk); err != unix.EAGAIN {
			t.Errorf("lock of a range by another: %v", err)
		}
	})},
	{name: "copy within it", fetch: 512 << 10, do: withFile(0, func(t *testing.T, f *os.File) {
		from, to := int64(1<<20), int64(2<<20)
		n, err := unix.CopyFileRange(int(f.Fd()), &from, int(f.Fd()), &to, 100_000, 0)
		if n != 100_000 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})},
	{name: "look for holes", do: withFile(0, func(t *testing.T, f *os.File) {
		must(t, f.Truncate(pendingSize+1<<20))
		// What is missing is data, for all we know; what was added is a hole.
		if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); off != 0 || err != nil {
			t.Errorf("data at %d, %v", off, err)
		}
		if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); off < pendingSize || off > pendingSize+4096 || err != nil {
			t.Errorf("a hole at %d, %v", off, err)
		}
	})},
}

// storeHere names the file that a child of the tests stores into.
const storeHere = "MIGRATEFS_TEST_STORE"

// TestStoreIntoMapping is what that child does. It does nothing else.
func TestStoreIntoMapping(t *testing.T) {
	path := os.Getenv(storeHere)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 1<<20, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(m[4000:], "stored across two pages that are not here yet")
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
}

// pageOf returns a page, aligned as O_DIRECT wants it, full of c.
func pageOf(c byte) []byte {
	b := make([]byte, 3*4096)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	b = b[off : off+4096]
	for i := range b {
		b[i] = c
	}
	return b
}

// anACL is user::rw-,user:1000:r--,group::r--,mask::r--,other::---, as
// linux/posix_acl_xattr.h has it.
func anACL() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, 0xffffffff}, {2, 4, 1000}, {4, 4, 0xffffffff}, {16, 4, 0xffffffff}, {32, 0, 0xffffffff}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// TestPendingIsAnyFile does to files of a source what programs do, on a mount that
// fetches nothing by itself: it moves no data that need not be moved, and what comes
// of it is what comes of it on a disk, while they are pending and when they are
// ordinary files.
func TestPendingIsAnyFile(t *testing.T) {
	s := newSource(t)
	disk := testbed.TempDir(t)
	content := s.put(t, "content", pendingSize)
	for _, c := range pendingCases {
		for _, dir := range []string{filepath.Join(s.dir, c.name), filepath.Join(disk, c.name)} {
			must(t, os.Mkdir(dir, 0o755))
			must(t, os.WriteFile(filepath.Join(dir, "file"), content, 0o644))
			old := unix.NsecToTimespec(1_000_000_000_000_000_000)
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "file"), []unix.Timespec{old, old}, 0))
		}
	}
	m := s.mount(t, ",fill=off,prefetch=off")
	for _, c := range pendingCases {
		t.Run(c.name, func(t *testing.T) {
			for _, root := range []string{disk, m.Path("")} {
				dir := filepath.Join(root, c.name)
				c.do(t, dir, filepath.Join(dir, "file"))
			}
			if x := s.sshd.BytesRead()[filepath.Join(s.dir, c.name, "file")]; x > c.fetch {
				t.Errorf("%d bytes were fetched, of which %d need be", x, c.fetch)
			}
		})
	}
	same := func(when string, cases []pendingCase) {
		t.Helper()
		for _, c := range cases {
			what := testbed.Usual
			testbed.Same(t, c.name+": on a disk", testbed.Snapshot(t, filepath.Join(disk, c.name), what),
				c.name+": "+when, testbed.Snapshot(t, m.Path(c.name), what))
		}
	}
	// Of half of them the rest comes when it is read, of the others by itself.
	same("with what is missing fetched as it is read", pendingCases[:len(pendingCases)/2])
	m.Unmount()
	m = s.mount(t, "")
	must(t, os.RemoveAll(m.Path("content")))
	testbed.Until(t, "all files to be ordinary ones", func() bool {
		left, err := os.ReadDir(filepath.Join(s.work(), "stubs"))
		must(t, err)
		return len(left) == 0
	})
	same("when all is here", pendingCases)
	for _, c := range pendingCases {
		// The kernel's overlayfs could take it: it is a plain file.
		names, err := filepath.Glob(filepath.Join(s.upper(), c.name, "*"))
		must(t, err)
		for _, name := range names {
			if _, err := unix.Lgetxattr(name, "trusted.overlay.metacopy", nil); err == nil {
				t.Errorf("%s is a stub still", name)
			}
		}
	}
	m.Unmount()
}

// TestPendingProgramRuns: a program that was changed before it came over is executed.
func TestPendingProgramRuns(t *testing.T) {
	s := newSource(t)
	must(t, os.WriteFile(filepath.Join(s.dir, "script"), []byte("#!/bin/sh\necho it runs\n"), 0o644))
	old := unix.NsecToTimespec(1_000_000_000_000_000_000)
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(s.dir, "script"), []unix.Timespec{old, old}, 0))
	m := s.mount(t, ",fill=off")
	must(t, os.Chmod(m.Path("script"), 0o755))
	f, err := os.OpenFile(m.Path("script"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("echo with what was added\n")
	must(t, err)
	// Executed by env: a Go program that executes it itself stands still until it is
	// read, and with it the link that it is read over, which runs in this process.
	if out, err := exec.Command("env", m.Path("script")).CombinedOutput(); err == nil || !strings.Contains(string(out), "Text file busy") {
		t.Errorf("while it is open for writing: %q, %v", out, err)
	}
	must(t, f.Close())
	if out, err := exec.Command("env", m.Path("script")).CombinedOutput(); err != nil || string(out) != "it runs\nwith what was added\n" {
		t.Errorf("%q, %v", out, err)
	}
	m.Unmount()
}
