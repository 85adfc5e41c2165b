package conformance

import (
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	cases = append(cases,
		testcase{name: "birth-time", tree: files("f", "d/g"), beyondSFTP: true, run: birthTime},
		testcase{name: "inode-flags", tree: files("f", "g", "d/h", "d/i"), beyondSFTP: true, run: inodeFlags},
		testcase{name: "flags-kept", tree: flagged, beyondSFTP: true, run: flagsKept},
		testcase{name: "flags-rights", tree: files("f"), beyondSFTP: true, run: flagsRights},
		testcase{name: "other-ioctls", tree: files("f"), run: otherIoctls},
		testcase{name: "times", tree: files("f", "g"), beyondSFTP: true, run: times},
		testcase{name: "ctime", tree: files("f", "d/g"), beyondSFTP: true, run: ctime},
		testcase{name: "atime", tree: oldTimes, beyondSFTP: true, run: atime},
		testcase{name: "statfs", tree: files("f"), run: statfs},
		testcase{name: "access", tree: files("f", "d/g"), beyondSFTP: true, run: access},
		testcase{name: "drop-privileges", tree: setIDs, beyondSFTP: true, run: dropPrivileges},
		testcase{name: "chown-drops", tree: setIDs, beyondSFTP: true, run: chownDrops},
	)
}

func (c *at) statx(name string) (stx unix.Statx_t) {
	c.Helper()
	c.must(unix.Statx(unix.AT_FDCWD, c.path(name), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx))
	return stx
}

func birthTime(c *at) {
	for _, name := range []string{"f", "d", "d/g", "."} {
		before := c.statx(name)
		c.note(name+" has one", "%v", before.Mask&unix.STATX_BTIME != 0)
		age := time.Since(time.Unix(before.Btime.Sec, int64(before.Btime.Nsec)))
		c.note(name+" was born in this test", "%v", age > 0 && age < time.Hour)
	}
	put(c, c.path("new"), "new")
	a := c.statx("new")
	c.must(os.Chtimes(c.path("new"), time.Unix(1, 0), time.Unix(1, 0)))
	c.must(os.Rename(c.path("new"), c.path("moved")))
	c.note("stays", "%v", a.Btime == c.statx("moved").Btime)
	c.note("all else is as stat has it", "%v", func() bool {
		stx, st := c.statx("f"), c.lstat("f")
		return stx.Ino == st.Ino && stx.Size == uint64(st.Size) && uint32(stx.Mode) == st.Mode && uint64(stx.Nlink) == st.Nlink &&
			stx.Mtime.Sec == st.Mtim.Sec && int64(stx.Mtime.Nsec) == st.Mtim.Nsec && int64(stx.Blocks) == st.Blocks
	}())
}

// Flags of linux/fs.h that chattr(1) sets, and that ext4 has by itself.
const (
	flagSync      = 0x8     // S
	flagImmutable = 0x10    // i
	flagAppend    = 0x20    // a
	flagNoDump    = 0x40    // d
	flagNoAtime   = 0x80    // A
	flagDirSync   = 0x10000 // D
	flagsShown    = flagSync | flagImmutable | flagAppend | flagNoDump | flagNoAtime | flagDirSync
)

func getFlags(fd int) (int, error) {
	v, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	return int(v), err
}

func setFlags(fd, flags int) error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags) }

func (c *at) chattr(name string, set, clear int) error {
	c.Helper()
	return chattr(c, c.path(name), set, clear)
}

func chattr(t testing.TB, path string, set, clear int) error {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	flags, err := getFlags(fd)
	if err != nil {
		return err
	}
	return setFlags(fd, flags&^clear|set)
}

func (c *at) flags(name string) int {
	c.Helper()
	return flagsOf(c, c.path(name))
}

func flagsOf(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	flags, err := getFlags(fd)
	must(t, err)
	return flags & flagsShown
}

// unflag makes what a test has left removable.
func unflag(path string) {
	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW, 0); err == nil {
		if flags, err := getFlags(fd); err == nil {
			_ = setFlags(fd, flags&^(flagImmutable|flagAppend))
		}
		unix.Close(fd)
	}
}

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	xflags, extsize, nextents, projid, cowextsize uint32
	_                                             [8]byte
}

func fsx(fd int, request uintptr, x *fsxattr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(x))); errno != 0 {
		return errno
	}
	return nil
}

const (
	fsGetXattr = 0x801c581f
	fsSetXattr = 0x401c5820
)

func inodeFlags(c *at) {
	for _, name := range []string{"f", "d", "d/h"} {
		c.note(name+" at first", "%x", c.flags(name))
		c.err("chattr +dAS "+name, c.chattr(name, flagNoDump|flagNoAtime|flagSync, 0))
		c.note(name+" then", "%x", c.flags(name))
		c.err("chattr -d "+name, c.chattr(name, 0, flagNoDump))
		c.note(name+" in the end", "%x", c.flags(name))
	}
	c.note("content", "%s", c.content("f"))
	for _, name := range []string{"d/i", "d"} {
		before := c.lstat(name).Ctim
		time.Sleep(20 * time.Millisecond) // older kernels' clock for files ticks every 4
		c.err("chattr +d "+name, c.chattr(name, flagNoDump, 0))
		after := c.lstat(name).Ctim
		c.note("ctime of "+name+" is later", "%v", after.Nano() > before.Nano())
	}

	fd := c.open("g", unix.O_RDONLY)
	var x fsxattr
	c.err("FSGETXATTR", fsx(fd, fsGetXattr, &x))
	c.note("xflags", "%x %d", x.xflags, x.projid)
	x.xflags |= 0x40 | 0x80 // FS_XFLAG_NOATIME, FS_XFLAG_NODUMP
	c.err("FSSETXATTR", fsx(fd, fsSetXattr, &x))
	c.note("as flags", "%x", c.flags("g"))

	c.err("chattr +i", c.chattr("g", flagImmutable, 0))
	defer func() { c.err("chattr -i", c.chattr("g", 0, flagImmutable)) }()
	c.note("immutable", "%x", c.flags("g"))
	sealed(c, "g")
	c.err("chattr -i for a moment", c.chattr("g", 0, flagImmutable))
	c.err("write again", os.WriteFile(c.path("g"), []byte("again"), 0))
	c.err("chattr +a", c.chattr("g", flagAppend, 0))
	defer func() { c.err("chattr -a", c.chattr("g", 0, flagAppend)) }()
	onlyAppend(c, "g")
	c.note("content of g", "%s", c.content("g"))
}

// sealed tries all that must not be done to an immutable file.
func sealed(c *at, name string) {
	p := c.path(name)
	for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR | unix.O_APPEND, unix.O_RDONLY | unix.O_TRUNC} {
		c.err("open of "+name, tryOpen(p, flags))
	}
	c.err("truncate "+name, unix.Truncate(p, 0))
	c.err("chmod "+name, unix.Chmod(p, 0o600))
	c.err("chown "+name, unix.Lchown(p, 1, 1))
	c.err("utimes "+name, unix.UtimesNanoAt(unix.AT_FDCWD, p, nil, 0))
	c.err("setxattr "+name, unix.Setxattr(p, "user.x", []byte("x"), 0))
	c.err("removexattr "+name, unix.Removexattr(p, "user.x"))
	c.err("link "+name, unix.Link(p, c.path("new")))
	c.err("rename "+name, unix.Rename(p, c.path("new")))
	c.err("rename over "+name, unix.Rename(c.path("f"), p))
	c.err("unlink "+name, unix.Unlink(p))
	c.note(name+" is there", "%s", c.content(name))
}

// onlyAppend tries what an append-only file takes and what not.
func onlyAppend(c *at, name string) {
	p := c.path(name)
	c.err("open of "+name+" for writing", tryOpen(p, unix.O_WRONLY))
	c.err("O_TRUNC of "+name, tryOpen(p, unix.O_WRONLY|unix.O_APPEND|unix.O_TRUNC))
	c.err("truncate "+name, unix.Truncate(p, 0))
	c.err("chmod "+name, unix.Chmod(p, 0o600))
	c.err("setxattr "+name, unix.Setxattr(p, "user.x", []byte("x"), 0))
	c.err("link "+name, unix.Link(p, c.path("new")))
	c.err("rename "+name, unix.Rename(p, c.path("new")))
	c.err("unlink "+name, unix.Unlink(p))
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
	c.err("open of "+name+" for appending", err)
	if err == nil {
		_, err = f.WriteString("+more")
		c.err("append to "+name, err)
		f.Close()
	}
	c.note(name+" holds", "%s", c.content(name))
	c.note("flags of "+name, "%x", c.flags(name))
}

func flagged(t *testing.T, dir string) {
	files("sync", "imm", "app", "idir/f", "idir/g", "idir/full/f", "f")(t, dir)
	for name, flags := range map[string]int{"sync": flagSync | flagNoAtime, "imm": flagImmutable, "app": flagAppend, "idir": flagImmutable} {
		must(t, chattr(t, filepath.Join(dir, name), flags, 0))
		t.Cleanup(func() { unflag(filepath.Join(dir, name)) })
	}
}

// Flags that a file has come up with it, and mean what they mean.
func flagsKept(c *at) {
	f, err := os.OpenFile(c.path("sync"), os.O_WRONLY|os.O_APPEND, 0)
	c.must(err)
	_, err = f.WriteString("+")
	c.err("write", err)
	f.Close()
	c.note("sync", "%x %s", c.flags("sync"), c.content("sync"))
	sealed(c, "imm")
	c.note("imm", "%x", c.flags("imm"))
	onlyAppend(c, "app")
	c.err("create in idir", os.WriteFile(c.path("idir/new"), nil, 0o644))
	c.err("mkdir in idir", os.Mkdir(c.path("idir/new"), 0o755))
	c.err("unlink in idir", unix.Unlink(c.path("idir/g")))
	c.err("rmdir in idir", unix.Rmdir(c.path("idir/full")))
	c.must(os.Mkdir(c.path("empty"), 0o755))
	c.err("rename over a directory in idir", unix.Rename(c.path("empty"), c.path("idir/full")))
	c.err("rename in idir", unix.Rename(c.path("idir/g"), c.path("idir/new")))
	c.err("rename out of idir", unix.Rename(c.path("idir/g"), c.path("new")))
	c.err("link in idir", unix.Link(c.path("f"), c.path("idir/new")))
	c.err("rename of idir", unix.Rename(c.path("idir"), c.path("newdir")))
	c.err("chmod of idir", unix.Chmod(c.path("idir"), 0o700))
	c.err("write in idir", os.WriteFile(c.path("idir/f"), []byte("written"), 0))
	c.note("idir/f", "%s", c.content("idir/f"))
	c.note("idir", "%x", c.flags("idir"))
	c.err("create in idir after the write", os.WriteFile(c.path("idir/new"), nil, 0o644))
	for _, name := range []string{"imm", "app", "idir"} {
		c.err("chattr -ia "+name, c.chattr(name, 0, flagImmutable|flagAppend))
	}
	c.err("write to imm", os.WriteFile(c.path("imm"), []byte("written"), 0))
	c.err("write to app", os.WriteFile(c.path("app"), []byte("written"), 0))
	c.note("imm in the end", "%x %s", c.flags("imm"), c.content("imm"))
	c.note("app in the end", "%x %s", c.flags("app"), c.content("app"))
	c.err("remove idir", os.RemoveAll(c.path("idir")))
	c.err("remove imm", os.Remove(c.path("imm")))
	c.err("remove app", os.Remove(c.path("app")))
}

func flagsRights(c *at) {
	c.as(1000, func() {
		c.note("flags", "%x", c.flags("f"))
		c.err("a stranger", c.chattr("f", flagNoDump, 0))
	})
	c.must(os.Chown(c.path("f"), 1000, 1000))
	c.as(1000, func() {
		c.err("the owner", c.chattr("f", flagNoDump, 0))
		c.err("the owner, immutable", c.chattr("f", flagImmutable, 0))
	})
	c.note("in the end", "%x", c.flags("f"))
}

func otherIoctls(c *at) {
	fd := c.open("f", unix.O_RDONLY)
	dir := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	for _, fd := range []int{fd, dir} {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		c.err("TCGETS", err)
		_, err = unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		c.err("TIOCGWINSZ", err)
		c.err("no such request", fsx(fd, 0x80087a7a, &fsxattr{}))
		_, err = unix.IoctlGetInt(fd, unix.BLKROGET)
		c.err("BLKROGET", err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD
	c.note("FIONREAD", "%d %s", n, errName(err))
}

func times(c *at) {
	at := func(label, name string, a, m unix.Timespec) {
		err := unix.UtimesNanoAt(unix.AT_FDCWD, c.path(name), []unix.Timespec{a, m}, unix.AT_SYMLINK_NOFOLLOW)
		st := c.lstat(name)
		c.note(label, "%s %v %v", errName(err), st.Atim, st.Mtim)
	}
	now, omit := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT}
	at("nanoseconds", "f", unix.Timespec{Sec: 1e9, Nsec: 123456789}, unix.Timespec{Sec: 2e9, Nsec: 987654321})
	at("before 1970", "f", unix.Timespec{Sec: -1, Nsec: 1}, unix.Timespec{Sec: -1e9, Nsec: 999999999})
	at("after 2038", "f", unix.Timespec{Sec: 1 << 31, Nsec: 5}, unix.Timespec{Sec: 6e9})
	at("omit both", "f", omit, omit)
	at("omit one", "f", unix.Timespec{Sec: 77}, omit)
	at("omit the other", "f", omit, unix.Timespec{Sec: 88})
	start := time.Now().Add(-time.Second)
	c.must(unix.UtimesNanoAt(unix.AT_FDCWD, c.path("f"), []unix.Timespec{now, omit}, 0))
	st := c.lstat("f")
	c.note("atime now", "%v %v", time.Unix(st.Atim.Unix()).After(start), st.Mtim)
	c.must(unix.UtimesNanoAt(unix.AT_FDCWD, c.path("f"), []unix.Timespec{{Sec: 5}, now}, 0))
	st = c.lstat("f")
	c.note("mtime now", "%v %v", time.Unix(st.Mtim.Unix()).After(start), st.Atim)
	c.must(os.Symlink("f", c.path("x")))
	at("of a symlink", "x", unix.Timespec{Sec: 11}, unix.Timespec{Sec: 12})
	c.as(1000, func() {
		c.err("a stranger", unix.UtimesNanoAt(unix.AT_FDCWD, c.path("g"), []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0))
	})
	c.note("left alone", "%v", c.lstat("g").Mtim.Sec > 1)
}

// ctime changes with every change, and with nothing else.
func ctime(c *at) {
	changed := func(label, name string, f func() error) {
		before := c.lstat(name)
		time.Sleep(5 * time.Millisecond) // the clock of filesystems ticks every 4 ms or faster
		err := f()
		after := c.lstat(name)
		c.note(label, "%s mtime %v ctime %v", errName(err), before.Mtim != after.Mtim, before.Ctim != after.Ctim)
	}
	f := c.path("f")
	changed("chmod", "f", func() error { return unix.Chmod(f, 0o600) })
	changed("read", "f", func() error { _, err := os.ReadFile(f); return err })
	changed("chown", "f", func() error { return unix.Chown(f, 1, 1) })
	changed("setxattr", "f", func() error { return unix.Setxattr(f, "user.a", nil, 0) })
	changed("removexattr", "f", func() error { return unix.Removexattr(f, "user.a") })
	changed("utimes", "f", func() error { return os.Chtimes(f, time.Unix(1, 0), time.Unix(1, 0)) })
	changed("write", "f", func() error { return os.WriteFile(f, []byte("x"), 0) })
	changed("truncate to the same size", "f", func() error { return unix.Truncate(f, 1) })
	changed("link", "f", func() error { return unix.Link(f, c.path("new")) })
	changed("unlink of the link", "f", func() error { return unix.Unlink(c.path("new")) })
	changed("rename", "f", func() error {
		return errors2(unix.Rename(f, c.path("moved")), unix.Rename(c.path("moved"), f))
	})
	changed("create in a directory", "d", func() error { return os.WriteFile(c.path("d/x"), nil, 0o644) })
	changed("write in a directory", "d", func() error { return os.WriteFile(c.path("d/g"), []byte("more"), 0o644) })
	changed("chmod in a directory", "d", func() error { return os.Chmod(c.path("d/g"), 0o600) })
	changed("remove in a directory", "d", func() error { return os.Remove(c.path("d/x")) })
	changed("rename in a directory", "d", func() error { return os.Rename(c.path("d/g"), c.path("d/y")) })
}

func errors2(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func oldTimes(t *testing.T, dir string) {
	files("f", "mod")(t, dir)
	old := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9 + 1}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "f"), old, 0))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "mod"), old, 0))
}

// relatime: a read sets an atime that is older than mtime, or than a day.
func atime(c *at) {
	c.note("at first", "%d", c.lstat("f").Atim.Sec)
	c.content("f")
	put(c, c.path("new"), "new")
	c.must(os.Chtimes(c.path("new"), time.Unix(5, 0), time.Unix(6, 0)))
	fd := c.open("new", unix.O_RDONLY|unix.O_NOATIME)
	b := make([]byte, 3)
	_, err := unix.Read(fd, b)
	c.must(err)
	c.note("after a read with O_NOATIME", "%d", c.lstat("new").Atim.Sec)
	c.must(unix.Chmod(c.path("mod"), 0o600))
	c.note("after chmod", "%d %d", c.lstat("mod").Atim.Sec, c.lstat("mod").Mtim.Sec)
	c.as(1000, func() {
		c.err("O_NOATIME of a stranger", tryOpen(c.path("f"), unix.O_RDONLY|unix.O_NOATIME))
	})
}

func statfs(c *at) {
	var st, of unix.Statfs_t
	c.must(unix.Statfs(c.path("f"), &st))
	c.must(unix.Statfs(c.path(), &of))
	c.note("sizes", "%d %d %d %d", st.Bsize, st.Frsize, st.Namelen, st.Blocks)
	c.note("sane", "%v", st.Bfree >= st.Bavail && st.Blocks > st.Bfree && st.Files > st.Ffree && st.Ffree > 0)
	c.note("the same everywhere", "%v", st.Blocks == of.Blocks && st.Files == of.Files)
	c.note("maximum of links and names", "%d", st.Namelen)
}

func access(c *at) {
	c.must(unix.Chmod(c.path("f"), 0o640))
	c.must(unix.Chmod(c.path("d"), 0o700))
	for _, mode := range []uint32{unix.F_OK, unix.R_OK, unix.W_OK, unix.X_OK} {
		c.err("root", unix.Faccessat(unix.AT_FDCWD, c.path("f"), mode, 0))
		c.as(1000, func() {
			c.err("a stranger", unix.Faccessat2(unix.AT_FDCWD, c.path("f"), mode, unix.AT_EACCESS))
			c.err("a stranger below", unix.Faccessat2(unix.AT_FDCWD, c.path("d/g"), mode, unix.AT_EACCESS))
		})
	}
	c.must(unix.Chmod(c.path("d"), 0o711))
	c.as(1000, func() {
		c.err("opened up", unix.Faccessat2(unix.AT_FDCWD, c.path("d/g"), unix.R_OK, unix.AT_EACCESS))
		_, err := os.ReadDir(c.path("d"))
		c.err("but not listed", err)
	})
}

func setIDs(t *testing.T, dir string) {
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		put(t, filepath.Join(dir, n), "program")
		must(t, os.Chown(filepath.Join(dir, n), 0, 2001))
		v := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		must(t, unix.Setxattr(filepath.Join(dir, n), "security.capability", v, 0))
		must(t, unix.Chmod(filepath.Join(dir, n), 0o6777))
	}
	must(t, unix.Chmod(filepath.Join(dir, "e"), 0o6767)) // sgid without x: not a privilege
}

func (c *at) privileges(label, name string) {
	n, err := unix.Getxattr(c.path(name), "security.capability", nil)
	c.note(label, "%o, capabilities %d %s", c.lstat(name).Mode, n, errName(err))
}

func dropPrivileges(c *at) {
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		c.privileges("at first", n)
	}
	c.as(1000, func() {
		fd := c.open("a", unix.O_WRONLY)
		_, err := unix.Write(fd, []byte("x"))
		c.must(err)
		c.must(unix.Truncate(c.path("b"), 3))
		fd = c.open("c", unix.O_WRONLY)
		c.must(unix.Fallocate(fd, 0, 0, 100))
		c.open("d", unix.O_WRONLY|unix.O_TRUNC)
		fd = c.open("e", unix.O_WRONLY)
		_, err = unix.Write(fd, []byte("x"))
		c.must(err)
	})
	c.privileges("write", "a")
	c.privileges("truncate", "b")
	c.privileges("fallocate", "c")
	c.privileges("O_TRUNC", "d")
	c.privileges("write, sgid without x", "e")
}

func chownDrops(c *at) {
	c.must(unix.Chown(c.path("a"), 1, -1))
	c.privileges("chown", "a")
	c.must(unix.Chown(c.path("b"), -1, 5))
	c.privileges("chgrp", "b")
	c.must(unix.Chown(c.path("c"), -1, -1))
	c.privileges("chown to nobody else", "c")
	c.must(unix.Chown(c.path("e"), 1, 1))
	c.privileges("chown, sgid without x", "e")
	c.must(os.WriteFile(c.path("d"), []byte("root writes"), 0))
	c.privileges("a write of root", "d")
	c.must(os.Mkdir(c.path("newdir"), 0o755))
	c.must(unix.Chmod(c.path("newdir"), 0o7777))
	c.must(unix.Chown(c.path("newdir"), 1, 1))
	c.note("of a directory", "%o", c.lstat("newdir").Mode)
}
