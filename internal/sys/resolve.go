package sys

import (
	"golang.org/x/sys/unix"
)

// OpenFollowing opens path below the directory rootfd and follows symlinks, as
// open(2) does, but no magic link (/proc/PID/fd and the like). With confined,
// nothing outside of rootfd is reached, whatever is renamed meanwhile: a path or a
// symlink that leads out, an absolute one included, is EXDEV. Without it rootfd
// is what "/" means.
func OpenFollowing(rootfd int, path string, flags int, mode uint32, confined bool) (fd int, err error) {
	resolve := uint64(unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS)
	if confined {
		resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
	}
	open := func() error {
		look()
		if path == "" {
			path = "."
		}
		if !hasOpenat2() {
			fd, err = walkFollowing(rootfd, path, flags, mode, confined)
			return err
		}
		how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: resolve}
		for {
			// EAGAIN: a rename raced with the check that the path stays below.
			if fd, err = unix.Openat2(rootfd, path, &how); err != unix.EAGAIN {
				return err
			}
		}
	}
	if flags&unix.O_CREAT != 0 {
		err = change("create", open)
	} else {
		err = Retry(open)
	}
	return fd, err
}

// PathOf returns the path of the open file fd, from the root of the process. It
// needs /proc.
func PathOf(fd int) (string, error) {
	b := make([]byte, unix.PathMax+64)
	n, err := unix.Readlink(procFd(fd), b)
	return string(b[:max(n, 0)]), err
}

// ListxattrAt is Listxattr without a descriptor of its own for name, where dirfd is
// one to look things up in.
func ListxattrAt(dirfd int, name string) (names []string, err error) {
	look()
	path := procFd(dirfd)
	if name != "" {
		path += "/" + name
		b, err := growing(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
		return SplitNames(b), err
	}
	b, err := growing(func(b []byte) (int, error) { return unix.Listxattr(path, b) })
	return SplitNames(b), err
}
