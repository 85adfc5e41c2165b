package sys

import (
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenBeneath opens path, of any number of components, below the directory
// rootfd. No symlink or magic link is followed and nothing outside rootfd can be
// reached (openat2(2), Linux 5.6; before, component by component). An empty path
// opens rootfd itself. O_CLOEXEC is added.
func OpenBeneath(rootfd int, path string, flags int, mode uint32) (fd int, err error) {
	look()
	if path == "" {
		path = "."
	}
	if len(path) > pathPiece {
		return openPieces(rootfd, path, flags, mode)
	}
	if !hasOpenat2() {
		return walkBeneath(rootfd, path, flags, mode)
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err = unix.Openat2(rootfd, path, &how)
		// EAGAIN: a rename raced with RESOLVE_BENEATH's check.
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// pathPiece is how much of a path one call gets: the kernel takes PATH_MAX
// (4096) bytes with the NUL, and a path in a layer may be as long as any.
const pathPiece = 3000

// openPieces opens a path that is too long for one call, directory by directory.
func openPieces(rootfd int, path string, flags int, mode uint32) (int, error) {
	dir := rootfd
	for len(path) > pathPiece {
		i := strings.LastIndexByte(path[:pathPiece], '/')
		if i <= 0 {
			return -1, unix.ENAMETOOLONG
		}
		next, err := OpenBeneath(dir, path[:i], unix.O_PATH|unix.O_DIRECTORY, 0)
		if dir != rootfd {
			unix.Close(dir)
		}
		if err != nil {
			return -1, err
		}
		dir, path = next, path[i+1:]
	}
	fd, err := OpenBeneath(dir, path, flags, mode)
	if dir != rootfd {
		unix.Close(dir)
	}
	return fd, err
}

// MkdirOpen opens the directory name in dirfd, which is made with mode 0700 if
// it is not there.
func MkdirOpen(dirfd int, name string) (fd int, err error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	fd, err = OpenAt(dirfd, name, flags)
	if err != unix.ENOENT {
		return fd, err
	}
	if err := Mkdir(dirfd, name, 0o700); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return OpenAt(dirfd, name, flags)
}

// OpenParent opens the directory that holds path (O_PATH) and returns the last
// component. Path must not be the root.
func OpenParent(rootfd int, path string) (fd int, name string, err error) {
	dir := ""
	name = path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	fd, err = OpenBeneath(rootfd, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return fd, name, err
}

// OpenAt opens name in dirfd; O_CLOEXEC and O_NOFOLLOW are added.
func OpenAt(dirfd int, name string, flags int) (fd int, err error) {
	look()
	err = Retry(func() error {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		return err
	})
	return fd, err
}

// Reopen opens the file behind fd, which may be O_PATH, anew with flags.
func Reopen(fd int, flags int) (nfd int, err error) {
	err = Retry(func() error {
		nfd, err = unix.Open(procFd(fd), flags|unix.O_CLOEXEC, 0)
		return err
	})
	return nfd, err
}

// statxMask is all that the project looks at; mount ids need Linux 5.8.
const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// Statx returns what the kernel knows of name in dirfd itself, or of dirfd if
// name is empty.
func Statx(dirfd int, name string, stx *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	} else {
		look()
	}
	return Retry(func() error { return unix.Statx(dirfd, name, flags, statxMask, stx) })
}

// StatxNow is Statx that asks the server where the filesystem has one: what this
// host remembers does not tell whether another is at work.
func StatxNow(dirfd int, name string, stx *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_FORCE_SYNC
	return Retry(func() error { return unix.Statx(dirfd, name, flags, statxMask, stx) })
}

// Access reports whether the thread may do with the file behind the O_PATH
// descriptor fd what mask says (faccessat2(2), Linux 5.8), by its filesystem ids.
// Before, ENOSYS says that it cannot be told without doing it; whether a regular file
// may be read or written opening it tells.
func Access(fd int, mask uint32) error {
	if !HasFaccessat2() {
		return accessByOpening(fd, mask)
	}
	empty := [1]byte{}
	_, _, errno := unix.Syscall6(unix.SYS_FACCESSAT2, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])), uintptr(mask),
		unix.AT_EACCESS|unix.AT_EMPTY_PATH, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// HasFaccessat2 reports whether the kernel has the call, and lets us make it.
var HasFaccessat2 = sync.OnceValue(func() bool {
	_, _, errno := unix.Syscall6(unix.SYS_FACCESSAT2, ^uintptr(0), 0, 0, 0, 0, 0)
	return errno != unix.ENOSYS && errno != unix.EPERM
})

func accessByOpening(fd int, mask uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || mask&unix.X_OK != 0 {
		return unix.ENOSYS
	}
	flags := unix.O_RDONLY
	switch {
	case mask&(unix.R_OK|unix.W_OK) == unix.R_OK|unix.W_OK:
		flags = unix.O_RDWR
	case mask&unix.W_OK != 0:
		flags = unix.O_WRONLY
	}
	opened, err := Reopen(fd, flags)
	if err == nil {
		unix.Close(opened)
	}
	return err
}

// Readlink returns the target of the symlink name in dirfd, or of the O_PATH
// descriptor dirfd if name is empty.
func Readlink(dirfd int, name string) (string, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(dirfd, name, b)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// Pread reads len(b) bytes at off; fewer only at the end of the file.
func Pread(fd int, b []byte, off int64) (n int, err error) {
	for n < len(b) {
		m, err := unix.Pread(fd, b[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}

// Getxattr returns one xattr of name in dirfd itself, or of dirfd if name is
// empty.
func Getxattr(dirfd int, name, attr string) (value []byte, err error) {
	if name != "" && hasGetxattrat() {
		return growing(func(b []byte) (int, error) { return getxattrat(dirfd, name, attr, b) })
	}
	err = withPath(dirfd, name, func(fd int) error {
		value, err = growing(func(b []byte) (int, error) { return unix.Getxattr(procFd(fd), attr, b) })
		return err
	})
	return value, err
}

// Listxattr returns the names of all xattrs of name in dirfd itself, or of
// dirfd if name is empty.
func Listxattr(dirfd int, name string) (names []string, err error) {
	err = withPath(dirfd, name, func(fd int) error {
		b, err := growing(func(b []byte) (int, error) { return unix.Listxattr(procFd(fd), b) })
		names = SplitNames(b)
		return err
	})
	return names, err
}

// Fgetxattr returns one xattr of the open file fd, which must not be O_PATH.
func Fgetxattr(fd int, attr string) ([]byte, error) {
	return growing(func(b []byte) (int, error) { return unix.Fgetxattr(fd, attr, b) })
}

// Flistxattr returns the names of all xattrs of the open file fd, which must
// not be O_PATH.
func Flistxattr(fd int) ([]string, error) {
	b, err := growing(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	return SplitNames(b), err
}

// SplitNames splits the NUL-terminated names that listxattr(2) fills in.
func SplitNames(b []byte) []string {
	s := strings.TrimRight(string(b), "\x00")
	if s == "" {
		return nil
	}
	return strings.Split(s, "\x00")
}

// growing calls f with a buffer that is doubled until the answer fits.
func growing(f func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := f(b)
		if err == unix.ERANGE && size <= 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}

// withPath runs f on an O_PATH descriptor of name in dirfd, or of dirfd itself
// if name is empty. A symlink is not followed.
func withPath(dirfd int, name string, f func(fd int) error) error {
	fd := dirfd
	if name != "" {
		var err error
		if fd, err = OpenAt(dirfd, name, unix.O_PATH); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	return f(fd)
}

// procFd is the path of a descriptor of this process. /proc/self/fd of an
// O_PATH descriptor is the way to calls that have no *at form: the kernel
// follows it to the file itself, and to nothing else, a symlink's own inode
// included.
func procFd(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
