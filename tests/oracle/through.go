package oracle

import (
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// What is done through an open file or directory, whatever its name is by now.
func init() {
	for kind, f := range map[string]func(*side, op) string{
		"fdatasync": handle(func(_ *side, h *opened, _ op) string { return result(unix.Fdatasync(h.fd), "") }),
		"syncfs":    handle(func(_ *side, h *opened, _ op) string { return result(unix.Syncfs(h.fd), "") }),
		"fchown": handle(func(_ *side, h *opened, o op) string {
			uid, gid := o.owner()
			return result(unix.Fchown(h.fd, uid, gid), "")
		}),
		"futimens": handle(func(_ *side, h *opened, o op) string {
			return result(unix.UtimesNanoAt(unix.AT_FDCWD, link(h.fd), o.times(), 0), "")
		}),
		"fgetxattr": handle(func(_ *side, h *opened, o op) string {
			b := make([]byte, 200)
			n, err := unix.Fgetxattr(h.fd, o.xattr(), b)
			return result(err, "%q", b[:max(n, 0)])
		}),
		"fremovexattr": handle(func(_ *side, h *opened, o op) string {
			return result(unix.Fremovexattr(h.fd, o.xattr()), "")
		}),
		"flink": handle(func(s *side, h *opened, o op) string {
			return result(unix.Linkat(unix.AT_FDCWD, link(h.fd), unix.AT_FDCWD, s.at(o.path2), unix.AT_SYMLINK_FOLLOW), "")
		}),
		"reopen":  handle((*side).reopen),
		"where":   handle(func(s *side, h *opened, _ op) string { return s.where(h.fd) }),
		"extents": handle(func(_ *side, h *opened, _ op) string { return extents(h.fd) }),
		"ofdlock": handle(func(_ *side, h *opened, o op) string {
			l := o.flock()
			return result(unix.FcntlFlock(uintptr(h.fd), unix.F_OFD_SETLK, &l), "")
		}),
		"store":   handle(store),
		"tmpfile": (*side).tmpfile,
		"access": func(s *side, o op) string {
			return result(unix.Faccessat2(unix.AT_FDCWD, s.at(o.path), uint32(o.data%8), unix.AT_EACCESS), "")
		},
		"statx": func(s *side, o op) string {
			var st unix.Statx_t
			err := unix.Statx(unix.AT_FDCWD, s.at(o.path), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
			return result(err, "%#x %d:%d", st.Mask&(unix.STATX_BASIC_STATS|unix.STATX_BTIME), st.Rdev_major, st.Rdev_minor)
		},

		"opendir":   (*side).openDir,
		"dirwhere":  inDir(func(s *side, d int, _ op) string { return s.where(d) }),
		"dirlist":   inDir(func(_ *side, d int, _ op) string { return list(d) }),
		"dirstat":   inDir(dirStat),
		"dirsync":   inDir(func(_ *side, d int, _ op) string { return result(unix.Fsync(d), "") }),
		"dircreate": inDir(dirCreate),
		"dirmkdir":  inDir(func(_ *side, d int, o op) string { return result(unix.Mkdirat(d, o.last(), o.mode|0o700), "") }),
		"dirunlink": inDir(func(_ *side, d int, o op) string { return result(unix.Unlinkat(d, o.last(), 0), "") }),
		"dirrmdir":  inDir(func(_ *side, d int, o op) string { return result(unix.Unlinkat(d, o.last(), unix.AT_REMOVEDIR), "") }),
		"dirchmod":  inDir(func(_ *side, d int, o op) string { return result(unix.Fchmod(d, o.mode), "") }),
		"dirsetxattr": inDir(func(_ *side, d int, o op) string {
			return result(unix.Fsetxattr(d, o.xattr(), []byte{o.data}, 0), "")
		}),
		"dirgetxattr": inDir(func(_ *side, d int, o op) string {
			b := make([]byte, 200)
			n, err := unix.Fgetxattr(d, []string{o.xattr(), o.acl()}[o.off%2], b)
			return result(err, "%q", b[:max(n, 0)])
		}),
		"dirtimes": inDir(func(_ *side, d int, o op) string {
			return result(unix.UtimesNanoAt(unix.AT_FDCWD, link(d), o.times(), 0), "")
		}),
		"dirrename": inDir(func(s *side, d int, o op) string {
			return result(unix.Renameat2(d, o.last(), unix.AT_FDCWD, s.at(o.path2), uint(o.flags)), "")
		}),
		"dirlink": inDir(func(s *side, d int, o op) string {
			return result(unix.Linkat(unix.AT_FDCWD, s.at(o.path2), d, o.last(), 0), "")
		}),
		"dirinto": inDir(func(s *side, d int, o op) string {
			return result(unix.Renameat2(unix.AT_FDCWD, s.at(o.path2), d, o.last(), uint(o.flags)), "")
		}),
	} {
		kinds[kind] = f
	}
	for kind, ends := range map[string]func(s *side, o op) (d int, path, path2 string){
		"rename":    func(s *side, o op) (int, string, string) { return unix.AT_FDCWD, s.at(o.path), s.at(o.path2) },
		"dirrename": func(s *side, o op) (int, string, string) { return s.dir(o), o.last(), s.at(o.path2) },
		"dirinto":   func(s *side, o op) (int, string, string) { return s.dir(o), o.last(), s.at(o.path2) },
	} {
		kinds["dirs of "+kind] = func(s *side, o op) (which string) {
			d, path, path2 := ends(s, o)
			for _, p := range []string{path, path2} {
				var st unix.Stat_t
				if unix.Fstatat(d, p, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
					which += " " + p
				}
			}
			return which
		}
	}
}

// link is where the kernel shows what is open.
func link(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// last is the last name of o's path.
func (o op) last() string { return o.path[strings.LastIndexByte(o.path, '/')+1:] }

// unnamed is what the kernel calls a file that was made without a name, which is up to
// the filesystem.
var unnamed = regexp.MustCompile(`/(#\d+|/) \(deleted\)$`)

// where is the path that the kernel has for what is open.
func (s *side) where(fd int) string {
	p, err := os.Readlink(link(fd))
	p = unnamed.ReplaceAllString(p, "/# (deleted)")
	if rel, ok := strings.CutPrefix(p, s.root); ok {
		return result(err, "%q", rel)
	}
	return result(err, "%q", "outside "+p)
}

// reopen opens what is open in one slot anew in another.
func (s *side) reopen(h *opened, o op) string {
	if o.slot == o.slot2 {
		return "itself"
	}
	s.drop(o.slot2)
	return s.keep(o.slot2, link(h.fd), o)
}

// tmpfile makes a file without a name.
func (s *side) tmpfile(o op) string {
	s.drop(o.slot)
	o.flags = unix.O_TMPFILE | unix.O_RDWR | o.flags&unix.O_EXCL
	return s.keep(o.slot, s.at(o.path), o)
}

// extents is where the first data and the first hole of a file are, and what is
// said beyond its end.
func extents(fd int) string {
	size, err := unix.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		return result(err, "")
	}
	first, err := unix.Seek(fd, 0, unix.SEEK_DATA)
	_, beyond := unix.Seek(fd, size, unix.SEEK_DATA)
	end, errEnd := unix.Seek(fd, 0, unix.SEEK_HOLE)
	return result(err, "%d", first) + " " + result(errEnd, "%d", end) + " " + result(beyond, "")
}

// store writes through a mapping that is kept for as long as the file is open.
func store(_ *side, h *opened, o op) (said string) {
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil || st.Size == 0 {
		return result(err, "empty")
	}
	if h.shared == nil {
		b, err := unix.Mmap(h.fd, 0, 32<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return result(err, "")
		}
		h.shared = b
	}
	n := min(st.Size, int64(len(h.shared)))
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			said = "SIGBUS"
		}
	}()
	h.shared[o.off%n] = o.data
	return result(unix.Msync(h.shared, unix.MS_SYNC), "%s", sum(h.shared[:n]))
}

// inDir runs f with a directory that is open.
func inDir(f func(s *side, d int, o op) string) func(*side, op) string {
	return func(s *side, o op) string {
		if d := s.dir(o); d > 0 {
			return f(s, d, o)
		}
		return "not open"
	}
}

func (s *side) dir(o op) int { return s.dirs[o.slot%len(s.dirs)] }

func (s *side) openDir(o op) string {
	at := &s.dirs[o.slot%len(s.dirs)]
	if *at > 0 {
		unix.Close(*at)
		*at = 0
	}
	fd, err := unix.Open(s.at(o.path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == nil {
		*at = fd
	}
	return result(err, "")
}

func list(d int) string {
	if _, err := unix.Seek(d, 0, unix.SEEK_SET); err != nil {
		return result(err, "")
	}
	var names []string
	for b := make([]byte, 8<<10); ; {
		n, err := unix.Getdents(d, b)
		if err != nil || n == 0 {
			sort.Strings(names)
			return result(err, "%q", names)
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names)
	}
}

func dirStat(_ *side, d int, _ op) string {
	var st unix.Stat_t
	err := unix.Fstat(d, &st)
	return result(err, "%s there=%v", describe(&st), st.Nlink > 0)
}

func dirCreate(s *side, d int, o op) string {
	fd, err := unix.Openat(d, o.last(), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|o.flags&unix.O_EXCL, o.mode)
	if err != nil {
		return result(err, "")
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return result(err, "%s", describe(&st))
}
