package oracle

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// side is one tree that the operations are applied to, as one process sees it.
type side struct {
	name string
	root string
	open [slots]*opened
	dirs [3]int // open directories; 0: none
}

type opened struct {
	fd       int
	ino      uint64
	old      []byte // a page mapped for reading when it was opened
	shared   []byte // mapped for writing
	readonly bool
}

func (s *side) at(path string) string { return filepath.Join(s.root, path) }

func (s *side) closeAll() {
	for i := range s.open {
		s.drop(i)
	}
	for i, d := range s.dirs {
		if d > 0 {
			unix.Close(d)
			s.dirs[i] = 0
		}
	}
}

func (s *side) drop(i int) {
	if h := s.open[i]; h != nil {
		for _, b := range [][]byte{h.old, h.shared} {
			if b != nil {
				_ = unix.Munmap(b)
			}
		}
		unix.Close(h.fd)
		s.open[i] = nil
	}
}

// apply does o and returns all that a program can see of it.
func (s *side) apply(o op) string {
	f, ok := kinds[o.kind]
	if !ok {
		panic("no operation " + o.kind)
	}
	if o.uid == 0 {
		return f(s, o)
	}
	// The filesystem uid is the thread's; so are the capabilities that go with it.
	done := make(chan string)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_ = unix.Setfsgid(o.uid)
		_ = unix.Setfsuid(o.uid)
		done <- f(s, o)
	}()
	return <-done
}

func result(err error, format string, args ...any) string {
	if err == nil {
		return fmt.Sprintf(format, args...)
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// holds says which of the open files o's path is, in a word, or nothing.
func (s *side) holds(o op) string {
	var st unix.Stat_t
	if unix.Stat(s.at(o.path), &st) != nil {
		return ""
	}
	for i, h := range s.open {
		if h != nil && h.ino == st.Ino {
			return fmt.Sprint("slot ", i)
		}
	}
	return ""
}

// handle runs f on the file open in a slot.
func handle(f func(s *side, h *opened, o op) string) func(*side, op) string {
	return func(s *side, o op) string {
		if s.open[o.slot] == nil {
			return "not open"
		}
		return f(s, s.open[o.slot], o)
	}
}

var kinds map[string]func(*side, op) string

func init() {
	kinds = map[string]func(*side, op) string{
		"open":      (*side).openFile,
		"close":     func(s *side, o op) string { s.drop(o.slot); return "" },
		"pwrite":    handle(pwrite),
		"append":    handle(appendTo),
		"pread":     handle(pread),
		"ftruncate": handle(func(_ *side, h *opened, o op) string { return result(unix.Ftruncate(h.fd, o.off), "") }),
		"fstat":     handle(fstat),
		"fchmod":    handle(func(_ *side, h *opened, o op) string { return result(unix.Fchmod(h.fd, o.mode), "") }),
		"fsync":     handle(func(_ *side, h *opened, _ op) string { return result(unix.Fsync(h.fd), "") }),
		"fsetxattr": handle(func(_ *side, h *opened, o op) string {
			return result(unix.Fsetxattr(h.fd, o.xattr(), []byte{o.data}, o.flags), "")
		}),
		"fallocate": handle(func(_ *side, h *opened, o op) string {
			return result(unix.Fallocate(h.fd, uint32(o.flags), o.off, o.n+1), "")
		}),
		"holds":     (*side).holds,
		"closeall":  func(s *side, _ op) string { s.closeAll(); return "" },
		"lock":      handle(lock),
		"getlk":     handle(getLock),
		"flock":     handle(flock),
		"mknod":     (*side).mknod,
		"mmap":      handle(mmapWrite),
		"mapold":    handle(mapOld),
		"copyrange": handle(copyRange),
		"read":      (*side).read,
		"truncate":  func(s *side, o op) string { return result(unix.Truncate(s.at(o.path), o.off), "") },
		"unlink":    func(s *side, o op) string { return result(unix.Unlink(s.at(o.path)), "") },
		"mkdir":     func(s *side, o op) string { return result(unix.Mkdir(s.at(o.path), o.mode|0o700), "") },
		"mkfifo":    func(s *side, o op) string { return result(unix.Mkfifo(s.at(o.path), o.mode), "") },
		"rmdir":     func(s *side, o op) string { return result(unix.Rmdir(s.at(o.path)), "") },
		"rename": func(s *side, o op) string {
			return result(unix.Renameat2(unix.AT_FDCWD, s.at(o.path), unix.AT_FDCWD, s.at(o.path2), uint(o.flags)), "")
		},
		"link":    func(s *side, o op) string { return result(unix.Link(s.at(o.path), s.at(o.path2)), "") },
		"symlink": func(s *side, o op) string { return result(unix.Symlink(o.path2, s.at(o.path)), "") },
		"readlink": func(s *side, o op) string {
			b := make([]byte, 200)
			n, err := unix.Readlink(s.at(o.path), b)
			return result(err, "%q", b[:max(n, 0)])
		},
		"chmod": func(s *side, o op) string { return result(unix.Chmod(s.at(o.path), o.mode), "") },
		"chown": func(s *side, o op) string {
			uid, gid := o.owner()
			return result(unix.Lchown(s.at(o.path), uid, gid), "")
		},
		"utimens": func(s *side, o op) string {
			return result(unix.UtimesNanoAt(unix.AT_FDCWD, s.at(o.path), o.times(), unix.AT_SYMLINK_NOFOLLOW), "")
		},
		"setxattr": func(s *side, o op) string {
			return result(unix.Lsetxattr(s.at(o.path), o.xattr(), []byte{o.data, 0, o.data}, o.flags), "")
		},
		"setacl": func(s *side, o op) string {
			return result(unix.Lsetxattr(s.at(o.path), o.acl(), aclOf(uint32(o.data)), 0), "")
		},
		"getxattr": func(s *side, o op) string {
			b := make([]byte, 200)
			n, err := unix.Lgetxattr(s.at(o.path), o.xattr(), b)
			return result(err, "%q", b[:max(n, 0)])
		},
		"removexattr": func(s *side, o op) string { return result(unix.Lremovexattr(s.at(o.path), o.xattr()), "") },
		"listxattr":   func(s *side, o op) string { return xattrs(s.at(o.path)) },
		"readdir":     func(s *side, o op) string { return readdir(s.at(o.path)) },
		"stat":        (*side).stat,
		"fsyncdir": func(s *side, o op) string {
			fd, err := unix.Open(s.at(o.path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
			if err != nil {
				return result(err, "")
			}
			defer unix.Close(fd)
			return result(unix.Fsync(fd), "")
		},
	}
}

func (o op) owner() (uid, gid int) {
	return int(o.off%3)*1000 - 1000*int(o.off%3/2) - int(o.off%2), int(o.n%3) * 500
}

func (o op) xattr() string {
	return []string{"user.one", "user.two", "trusted.three", "trusted.overlay.opaque", "user.overlay"}[int(o.data)%5]
}

func (o op) acl() string {
	return []string{"system.posix_acl_access", "system.posix_acl_default"}[int(o.n)%2]
}

// aclOf is u::rwx, u:1000:rw, g::r, m::rwx, o::id%8, as linux/posix_acl_xattr.h
// has it.
func aclOf(id uint32) []byte {
	b := []byte{2, 0, 0, 0}
	add := func(tag, perm uint16, id uint32) {
		b = append(b, byte(tag), byte(tag>>8), byte(perm), byte(perm>>8), byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
	}
	const none = 0xffffffff
	add(1, 7, none)
	add(2, 6, 1000)
	add(4, 4, none)
	add(16, 7, none)
	add(32, uint16(id%8), none)
	return b
}

func (s *side) openFile(o op) string {
	s.drop(o.slot)
	return s.keep(o.slot, s.at(o.path), o)
}

// keep opens a file in a slot.
func (s *side) keep(slot int, path string, o op) string {
	fd, err := unix.Open(path, o.flags|unix.O_NONBLOCK, o.mode)
	if err != nil {
		return result(err, "")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return result(err, "")
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return describe(&st)
	}
	s.open[slot] = &opened{fd: fd, ino: st.Ino, readonly: o.flags&unix.O_ACCMODE == unix.O_RDONLY}
	return describe(&st)
}

func pwrite(_ *side, h *opened, o op) string {
	n, err := unix.Pwrite(h.fd, bytes.Repeat([]byte{o.data}, int(o.n)), o.off)
	return result(err, "%d", n)
}

func appendTo(_ *side, h *opened, o op) string {
	if _, err := unix.Seek(h.fd, 0, unix.SEEK_END); err != nil {
		return result(err, "")
	}
	n, err := unix.Write(h.fd, bytes.Repeat([]byte{o.data}, int(o.n%100)))
	return result(err, "%d", n)
}

func pread(_ *side, h *opened, o op) string {
	b := make([]byte, o.n)
	n, err := unix.Pread(h.fd, b, o.off)
	return result(err, "%d %s", n, sum(b[:max(n, 0)]))
}

func sum(b []byte) string { return fmt.Sprintf("%.6x", sha256.Sum256(b)) }

func (s *side) read(o op) string {
	fd, err := unix.Open(s.at(o.path), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return result(err, "")
	}
	defer unix.Close(fd)
	b := make([]byte, 64<<10)
	n, err := unix.Read(fd, b)
	return result(err, "%d %s", n, sum(b[:max(n, 0)]))
}

// mmapWrite stores through a shared mapping.
func mmapWrite(_ *side, h *opened, o op) string {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil || st.Size == 0 {
		return result(err, "empty")
	}
	b, err := unix.Mmap(h.fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return result(err, "")
	}
	defer func() { _ = unix.Munmap(b) }()
	b[o.off%st.Size] = o.data
	return result(unix.Msync(b, unix.MS_SYNC), "%s", sum(b))
}

// mapOld maps the first page for reading and keeps it: the next time, what it
// shows by then is the result.
func mapOld(_ *side, h *opened, _ op) string {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil || st.Size == 0 {
		return result(err, "empty")
	}
	if h.old == nil {
		b, err := unix.Mmap(h.fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return result(err, "")
		}
		h.old = b
	}
	return sum(h.old[:min(st.Size, 4096)])
}

func copyRange(s *side, h *opened, o op) string {
	to := s.open[o.slot2]
	if to == nil || o.slot == o.slot2 {
		return "not open"
	}
	from, at := o.off%5000, o.off
	var done int
	for done < int(o.n) {
		n, err := unix.CopyFileRange(h.fd, &from, to.fd, &at, int(o.n)-done, 0)
		if err != nil {
			return result(err, "")
		}
		if n == 0 {
			break
		}
		done += n
	}
	return fmt.Sprint(done)
}

// lock sets or takes back a lock of the process (F_SETLK), which does not wait.
func lock(_ *side, h *opened, o op) string {
	l := o.flock()
	return result(unix.FcntlFlock(uintptr(h.fd), unix.F_SETLK, &l), "")
}

// getLock asks who is in the way. Process ids differ between the sides.
func getLock(_ *side, h *opened, o op) string {
	l := o.flock()
	if l.Type == unix.F_UNLCK {
		l.Type = unix.F_WRLCK
	}
	err := unix.FcntlFlock(uintptr(h.fd), unix.F_GETLK, &l)
	if l.Type == unix.F_UNLCK {
		return result(err, "free")
	}
	return result(err, "type=%d start=%d len=%d", l.Type, l.Start, l.Len)
}

// flock is the range o speaks of: some begin, some end, together at times.
func (o op) flock() unix.Flock_t {
	return unix.Flock_t{
		Type:  []int16{unix.F_RDLCK, unix.F_WRLCK, unix.F_WRLCK, unix.F_UNLCK}[o.data%4],
		Start: o.off / 4000 * 100, Len: o.n / 3000 * 100,
	}
}

// flock locks the open file description.
func flock(_ *side, h *opened, o op) string {
	how := []int{unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN}[o.data%3]
	return result(unix.Flock(h.fd, how|unix.LOCK_NB), "")
}

// mknod makes what is neither file nor directory; the character device 0:0, a
// whiteout to overlayfs, among it.
func (s *side) mknod(o op) string {
	mode := []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK, unix.S_IFIFO, unix.S_IFREG}[o.data%5]
	dev := unix.Mkdev(uint32(o.off%3), uint32(o.n%3))
	if mode == unix.S_IFBLK {
		dev = unix.Mkdev(240, 1)
	}
	return result(unix.Mknod(s.at(o.path), mode|o.mode, int(dev)), "")
}

func (o op) times() []unix.Timespec {
	ts := []unix.Timespec{{Sec: 1000000000 + o.off, Nsec: o.n}, {Sec: 1010000000 + o.off, Nsec: o.n}}
	switch o.data % 8 {
	case 0:
		ts[1].Nsec = unix.UTIME_OMIT
	case 1:
		ts[0].Nsec = unix.UTIME_OMIT
	case 2:
		ts[1].Nsec = unix.UTIME_NOW
	case 3:
		ts[0].Nsec, ts[1].Nsec = unix.UTIME_NOW, unix.UTIME_NOW
	case 4:
		ts[0].Nsec, ts[1].Nsec = unix.UTIME_OMIT, unix.UTIME_OMIT
	}
	return ts
}
