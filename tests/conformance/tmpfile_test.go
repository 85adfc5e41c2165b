package conformance

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	cases = append(cases,
		testcase{name: "tmpfile", tree: files("d/f", "d/e/g", "gone", "there"), run: tmpfile},
		testcase{name: "tmpfile-link", tree: files("d/f", "d/e/g", "gone", "there"), run: tmpfileLink},
		testcase{name: "tmpfile-inherits", run: tmpfileInherits},
		testcase{name: "tmpfile-left", tree: files("d/f"), run: tmpfileLeft},
		testcase{name: "tmpfile-race", run: tmpfileRace},
	)
}

// nameless opens a file without a name in dir.
func (c *at) nameless(dir string, flags int) int {
	c.Helper()
	fd, err := unix.Open(c.path(dir), unix.O_TMPFILE|unix.O_CLOEXEC|flags, 0o640)
	if err != nil {
		c.Fatalf("O_TMPFILE in %s: %v", dir, err)
	}
	c.Cleanup(func() { unix.Close(fd) })
	return fd
}

func proc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// link gives fd a name as open(2) recommends, or by AT_EMPTY_PATH.
func (c *at) link(fd int, name string) error {
	return unix.Linkat(unix.AT_FDCWD, proc(fd), unix.AT_FDCWD, c.path(name), unix.AT_SYMLINK_FOLLOW)
}

func (c *at) linkEmpty(fd int, name string) error {
	return unix.Linkat(fd, "", unix.AT_FDCWD, c.path(name), unix.AT_EMPTY_PATH)
}

// stat notes what fstat(2) says that does not depend on when and where.
func (c *at) stat(label string, fd int) unix.Stat_t {
	c.Helper()
	var st unix.Stat_t
	c.must(unix.Fstat(fd, &st))
	c.note(label, "%o %d links %d.%d %d bytes", st.Mode, st.Nlink, st.Uid, st.Gid, st.Size)
	return st
}

func (c *at) all(fd int) string {
	b := make([]byte, 1<<16)
	n, err := unix.Pread(fd, b, 0)
	c.must(err)
	return string(b[:n])
}

func tmpfile(c *at) {
	c.err("read-only", tryOpen(c.path("d"), unix.O_TMPFILE|unix.O_RDONLY))
	c.err("in a file", tryOpen(c.path("there"), unix.O_TMPFILE|unix.O_RDWR))
	c.err("in nothing", tryOpen(c.path("nothing"), unix.O_TMPFILE|unix.O_RDWR))
	c.as(7001, func() { c.err("of a stranger", tryOpen(c.path("d"), unix.O_TMPFILE|unix.O_RDWR)) })

	fd := c.nameless("d", unix.O_RDWR)
	first := c.stat("new", fd)
	n, err := unix.Write(fd, []byte("hello, world"))
	c.note("write", "%d %s", n, errName(err))
	c.stat("written", fd)
	c.note("content", "%q", c.all(fd))
	c.err("chmod", unix.Fchmod(fd, 0o4711))
	c.err("chown", unix.Fchown(fd, 7001, 7002))
	c.stat("changed", fd)
	c.err("chmod of nobody's", unix.Fchmod(fd, 0o604))
	c.err("setxattr", unix.Fsetxattr(fd, "user.a", []byte("value"), 0))
	b := make([]byte, 100)
	n, err = unix.Fgetxattr(fd, "user.a", b)
	c.note("getxattr", "%q %s", b[:max(n, 0)], errName(err))
	n, err = unix.Flistxattr(fd, b)
	c.note("listxattr", "%q %s", b[:max(n, 0)], errName(err))
	c.err("removexattr", unix.Fremovexattr(fd, "user.a"))
	c.err("fallocate", unix.Fallocate(fd, 0, 0, 100000))
	c.err("punch", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192))
	c.err("truncate", unix.Ftruncate(fd, 20000))
	c.err("utimes", unix.UtimesNanoAt(unix.AT_FDCWD, proc(fd), []unix.Timespec{{Sec: 5}, {Sec: 7, Nsec: 9}}, 0))
	st := c.stat("stretched", fd)
	c.note("times", "%d %d.%d", st.Atim.Sec, st.Mtim.Sec, st.Mtim.Nsec)
	c.note("one inode", "%v", st.Ino == first.Ino)
	c.err("fsync", unix.Fsync(fd))
	c.err("fdatasync", unix.Fdatasync(fd))

	again, err := unix.Open(proc(fd), unix.O_RDWR|unix.O_CLOEXEC, 0)
	c.must(err)
	defer unix.Close(again)
	c.note("through another descriptor", "%q", c.all(again)[:12])
	lock := &unix.Flock_t{Type: unix.F_WRLCK}
	c.err("lock", unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, lock))
	c.err("lock of another descriptor", unix.FcntlFlock(uintptr(again), unix.F_OFD_SETLK, lock))
	c.err("flock", unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB))
	c.err("flock of another descriptor", unix.Flock(again, unix.LOCK_EX|unix.LOCK_NB))

	m, err := unix.Mmap(again, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	c.must(err)
	copy(m, "HELLO")
	c.err("msync", unix.Msync(m, unix.MS_SYNC))
	c.note("stored", "%q", c.all(fd)[:12])
	unix.Close(again)
	unix.Close(fd)
	c.note("mapped, and closed", "%q", m[:12])
	c.must(unix.Munmap(m))

	fd = c.nameless("d", unix.O_WRONLY|unix.O_APPEND)
	for range 2 {
		_, err = unix.Pwrite(fd, []byte("ab"), 0)
		c.err("append", err)
	}
	again, err = unix.Open(proc(fd), unix.O_RDONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	c.err("reopened to truncate", err)
	c.stat("truncated", again)
	unix.Close(again)
	c.note("list", "%v %v", c.list("."), c.list("d"))
}

func tmpfileLink(c *at) {
	fd := c.nameless("d", unix.O_RDWR)
	_, err := unix.Write(fd, []byte("linked"))
	c.must(err)
	c.must(unix.Fchmod(fd, 0o604))
	c.must(unix.Fchown(fd, 7001, 7002))
	c.must(unix.Fsetxattr(fd, "user.a", []byte("value"), 0))
	before := c.stat("before", fd)
	c.err("onto a file", c.link(fd, "there"))
	c.err("into nothing", c.link(fd, "nothing/new"))
	c.err("into another directory", c.link(fd, "d/e/new"))
	c.stat("linked", fd)
	st := c.lstat("d/e/new")
	c.note("by name", "%o %d links %d.%d %d bytes, the same %v", st.Mode, st.Nlink, st.Uid, st.Gid, st.Size, st.Ino == before.Ino)
	c.note("content", "%q", c.content("d/e/new"))
	b := make([]byte, 100)
	n, err := unix.Getxattr(c.path("d/e/new"), "user.a", b)
	c.note("xattr", "%q %s", b[:max(n, 0)], errName(err))
	_, err = unix.Write(fd, []byte(" and written"))
	c.err("write", err)
	c.note("content", "%q", c.content("d/e/new"))
	c.err("once more", c.link(fd, "new"))
	c.stat("linked twice", fd)
	c.err("rename", unix.Rename(c.path("d/e/new"), c.path("moved")))
	c.err("unlink", unix.Unlink(c.path("new")))
	c.stat("one name", fd)
	c.note("content", "%q", c.content("moved"))
	c.err("the last unlink", unix.Unlink(c.path("moved")))
	c.stat("no name again", fd)
	c.err("after that", c.link(fd, "new"))
	c.note("content", "%q", c.all(fd))

	fd = c.nameless(".", unix.O_RDWR|unix.O_EXCL)
	c.stat("O_EXCL", fd)
	c.err("link of O_EXCL", c.link(fd, "x"))
	c.err("link of O_EXCL by its descriptor", c.linkEmpty(fd, "x"))

	c.err("delete", unix.Unlink(c.path("gone")))
	fd = c.nameless("d", unix.O_WRONLY)
	_, err = unix.Write(fd, []byte("in its place"))
	c.must(err)
	c.err("over what was deleted", c.linkEmpty(fd, "gone"))
	c.note("content", "%q", c.content("gone"))

	fd = c.nameless("d", unix.O_RDWR)
	_, err = unix.Write(fd, []byte("kept"))
	c.must(err)
	path, err := unix.Open(proc(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	c.must(err)
	c.must(unix.Close(fd))
	c.stat("closed but for O_PATH", path)
	again, err := unix.Open(proc(path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	c.err("opened anew", err)
	c.note("content", "%q", c.all(again))
	c.must(unix.Close(again))
	c.err("link by O_PATH", c.linkEmpty(path, "y"))
	c.must(unix.Close(path))
	c.note("content", "%q", c.content("y"))

	c.must(os.Mkdir(c.path("newdir"), 0o755))
	dir := c.open("newdir", unix.O_RDONLY|unix.O_DIRECTORY)
	fd = c.nameless("newdir", unix.O_RDWR)
	c.err("rmdir", unix.Rmdir(c.path("newdir")))
	c.err("link into what is gone", unix.Linkat(unix.AT_FDCWD, proc(fd), dir, "new", unix.AT_SYMLINK_FOLLOW))
	_, err = unix.Write(fd, []byte("still"))
	c.err("write after its directory", err)
	c.err("link elsewhere", c.link(fd, "to"))
	c.note("content", "%q", c.content("to"))

	c.must(os.Mkdir(c.path("x"), 0o777))
	c.must(os.Chmod(c.path("x"), 0o777))
	c.as(7001, func() {
		fd := c.nameless("x", unix.O_RDWR)
		c.stat("of another user", fd)
		c.err("link where it may not", c.link(fd, "d/new"))
		c.err("link where it may", c.link(fd, "x/new"))
	})
	c.note("list", "%v %v %v", c.list("."), c.list("d"), c.list("x"))
}

// tmpfileInherits looks what a nameless file has of its directory.
func tmpfileInherits(c *at) {
	for _, d := range []string{"new", "new2", "new3"} {
		c.must(os.Mkdir(c.path(d), 0o777))
		c.must(os.Chmod(c.path(d), 0o777))
	}
	c.must(os.Chown(c.path("new2"), 0, 7002))
	c.must(os.Chmod(c.path("new2"), 0o777|os.ModeSetgid))
	c.must(setDefaultACL(c.path("new3")))
	for _, d := range []string{"new", "new2", "new3"} {
		for _, mode := range []uint32{0o666, 0o777, 0, 0o6755} {
			c.as(7001, func() {
				fd, err := unix.Open(c.path(d), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
				c.must(err)
				defer unix.Close(fd)
				label := fmt.Sprintf("%s %o", d, mode)
				c.stat(label, fd)
				b := make([]byte, 100)
				n, err := unix.Fgetxattr(fd, "system.posix_acl_access", b)
				c.note(label+" ACL", "%x %s", b[:max(n, 0)], errName(err))
				_, err = unix.Write(fd, []byte("x"))
				c.err(label+" write", err)
				name := fmt.Sprintf("%s/%o", d, mode)
				c.err(label+" link", c.link(fd, name))
				st := c.lstat(name)
				c.note(label+" linked", "%o %d.%d", st.Mode, st.Uid, st.Gid)
			})
		}
	}
}

// setDefaultACL has files made in dir get rwxrw-rw-, for user 7003 r--.
func setDefaultACL(dir string) error {
	acl := []byte{2, 0, 0, 0}
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, 4, 7003}, {4, 6, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 6, ^uint32(0)}} {
		acl = append(acl, byte(e.tag), byte(e.tag>>8), byte(e.perm), 0,
			byte(e.id), byte(e.id>>8), byte(e.id>>16), byte(e.id>>24))
	}
	return unix.Setxattr(dir, "system.posix_acl_default", acl, 0)
}

// tmpfileLeft looks whether files that never got a name, or lost it, are gone
// when they are closed.
func tmpfileLeft(c *at) {
	free := func() uint64 {
		var st unix.Statfs_t
		c.must(unix.Statfs(c.dir, &st))
		return st.Ffree
	}
	unix.Close(c.nameless("d", unix.O_RDWR)) // the directory is up
	const count = 100                        // half of them count: what was closed before goes at any time
	before := free()
	for _, named := range []bool{false, true} {
		var fds []int
		for i := range count {
			fd := c.nameless("d", unix.O_RDWR)
			_, err := unix.Write(fd, []byte("data"))
			c.must(err)
			if named {
				c.must(c.link(fd, fmt.Sprintf("d/%d", i)))
				c.must(unix.Unlink(c.path("d", fmt.Sprint(i))))
			}
			fds = append(fds, fd)
		}
		c.note("while they are open", "%v", before-free() > count/2)
		for _, fd := range fds {
			c.must(unix.Close(fd))
		}
		gone := false
		for range 6000 { // what is closed is released after close(2)
			if gone = free()+count/2 > before; gone {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		c.note("after they are closed", "%v", gone)
	}
	c.note("list", "%v", c.list("d"))
}

// tmpfileRace links into a directory while it is removed.
func tmpfileRace(c *at) {
	for range 100 {
		c.must(os.Mkdir(c.path("newdir"), 0o755))
		fd := c.nameless("newdir", unix.O_RDWR)
		var linked, removed error
		var wg sync.WaitGroup
		wg.Go(func() { linked = c.link(fd, "newdir/new") })
		wg.Go(func() { removed = unix.Rmdir(c.path("newdir")) })
		wg.Wait()
		switch {
		case linked == nil && removed == unix.ENOTEMPTY:
			c.must(unix.Unlink(c.path("newdir/new")))
			c.must(unix.Rmdir(c.path("newdir")))
		case linked == unix.ENOENT && removed == nil:
		default:
			c.Errorf("link: %v, rmdir: %v", linked, removed)
		}
		c.must(unix.Close(fd))
	}
	c.note("list", "%v", c.list("."))
}
