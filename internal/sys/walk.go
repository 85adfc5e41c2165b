package sys

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Before Linux 5.6 there is no openat2(2), and some containers' filters refuse it.
// What it does in the kernel is done here step by step then: each directory is
// opened by its name in the one before, no step follows a symlink, and ".." goes
// back to a descriptor that is still open. So what is renamed meanwhile leads
// nowhere else. It costs a call for each component.

// hasOpenat2 reports whether the kernel has the call, and lets us make it.
var hasOpenat2 = sync.OnceValue(func() bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err == nil {
		unix.Close(fd)
	}
	return err != unix.ENOSYS && err != unix.EPERM
})

// HasOpenat2 reports whether paths are resolved by the kernel in one call.
func HasOpenat2() bool { return hasOpenat2() }

// walkBeneath is OpenBeneath.
func walkBeneath(rootfd int, path string, flags int, mode uint32) (int, error) {
	if strings.HasPrefix(path, "/") {
		return -1, unix.EXDEV
	}
	dir := rootfd
	close := func() {
		if dir != rootfd {
			unix.Close(dir)
		}
	}
	for {
		name, rest, more := strings.Cut(path, "/")
		path = strings.TrimLeft(rest, "/")
		if more && path == "" {
			flags |= unix.O_DIRECTORY // it ends with a slash
		}
		if name == ".." {
			close()
			return -1, unix.EXDEV
		}
		if path == "" {
			fd, err := openStep(dir, name, flags, mode)
			close()
			return fd, err
		}
		next, err := openStep(dir, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		close()
		if err != nil {
			return -1, err
		}
		dir = next
	}
}

// openStep opens name in dir; a symlink is ELOOP, but for O_PATH with O_NOFOLLOW.
func openStep(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = Retry(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		return err
	})
	switch {
	case err == unix.ENOTDIR && isSymlink(dir, name):
		return -1, unix.ELOOP
	case err == nil && flags&unix.O_PATH != 0 && flags&unix.O_NOFOLLOW == 0 && isSymlink(fd, ""):
		unix.Close(fd)
		return -1, unix.ELOOP
	}
	return fd, err
}

func isSymlink(dir int, name string) bool {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Stat_t
	return unix.Fstatat(dir, name, &st, flags) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// mostLinks is how many symlinks one path may lead over, as in the kernel.
const mostLinks = 40

// following is the state of walkFollowing: the open directories from the root down
// to where the walk is, and the components that are left.
type following struct {
	dirs     []int // the first is the root, which is the caller's
	rest     []string
	links    int
	confined bool
}

func (w *following) here() int { return w.dirs[len(w.dirs)-1] }

// back closes all directories but the first n.
func (w *following) back(n int) {
	for _, fd := range w.dirs[n:] {
		unix.Close(fd)
	}
	w.dirs = w.dirs[:n]
}

// walkFollowing is OpenFollowing. The text of a symlink is walked like the path, so
// a magic link leads where its text says, below the root, and no further.
func walkFollowing(rootfd int, path string, flags int, mode uint32, confined bool) (int, error) {
	w := &following{dirs: []int{rootfd}, confined: confined}
	defer w.back(1)
	if err := w.push(path); err != nil {
		return -1, err
	}
	for {
		name := w.rest[0]
		last := len(w.rest) == 1
		w.rest = w.rest[1:]
		if name == ".." {
			if len(w.dirs) == 1 && confined {
				return -1, unix.EXDEV
			}
			w.back(max(len(w.dirs)-1, 1))
			name = "."
		}
		how, m := unix.O_PATH|unix.O_DIRECTORY, uint32(0)
		if last {
			how, m = flags, mode
		}
		fd, err := openStep(w.here(), name, how, m)
		switch {
		case err == unix.ELOOP && !(last && flags&unix.O_NOFOLLOW != 0):
			target, err := Readlink(w.here(), name)
			if err != nil {
				return -1, err
			}
			if w.links++; w.links > mostLinks {
				return -1, unix.ELOOP
			}
			if err := w.push(target); err != nil {
				return -1, err
			}
		case err != nil:
			return -1, err
		case last:
			return fd, nil
		case name == ".":
			unix.Close(fd)
		default:
			w.dirs = append(w.dirs, fd)
		}
	}
}

// push puts a path before the components that are left.
func (w *following) push(path string) error {
	if strings.HasPrefix(path, "/") {
		if w.confined {
			return unix.EXDEV
		}
		w.back(1)
	}
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	if len(parts) == 0 || strings.HasSuffix(path, "/") {
		parts = append(parts, ".")
	}
	w.rest = append(parts, w.rest...)
	return nil
}
