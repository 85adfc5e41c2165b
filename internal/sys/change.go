package sys

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Change names a call that changes a layer or the work directory, for hooks.
type Change string

// A Hook sees every change before it is made. What it returns, if not nil, is
// what the call returns, and the change is not made.
type Hook func(Change) error

var hook atomic.Pointer[Hook]

// SetHook installs h for the whole process, or removes the hook if h is nil.
// Tests only.
func SetHook(h Hook) {
	if h == nil {
		hook.Store(nil)
		return
	}
	hook.Store(&h)
}

var looks atomic.Pointer[func()]

// SetLookHook installs f, which runs before a name or a path is looked up in a
// layer: what a test does there comes between taking a name and using it. nil
// removes it. Tests only.
func SetLookHook(f func()) {
	if f == nil {
		looks.Store(nil)
		return
	}
	looks.Store(&f)
}

func look() {
	if f := looks.Load(); f != nil {
		(*f)()
	}
}

func announce(c Change) error {
	if h := hook.Load(); h != nil {
		return (*h)(c)
	}
	return nil
}

// change runs f, which is repeated while it is interrupted, after the hook has
// let it pass.
func change(c Change, f func() error) error {
	if err := announce(c); err != nil {
		return err
	}
	return Retry(f)
}

// Retry repeats f while it returns EINTR.
func Retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// Create opens name in dirfd with O_CREAT and the given flags and mode. The
// process umask is zero in the daemon, so mode is what the file gets.
func Create(dirfd int, name string, flags int, mode uint32) (fd int, err error) {
	fd = -1 // also if a hook refuses
	err = change("create", func() error {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		return err
	})
	return fd, err
}

// Tmpfile opens a nameless file on the filesystem of the directory dirfd.
func Tmpfile(dirfd int, flags int, mode uint32) (fd int, err error) {
	fd = -1
	err = change("tmpfile", func() error {
		fd, err = unix.Openat(dirfd, ".", flags|unix.O_TMPFILE|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// Mkdir makes a directory.
func Mkdir(dirfd int, name string, mode uint32) error {
	return change("mkdir", func() error { return unix.Mkdirat(dirfd, name, mode) })
}

// Mknod makes a node of the type in mode.
func Mknod(dirfd int, name string, mode uint32, rdev uint64) error {
	return change("mknod", func() error { return unix.Mknodat(dirfd, name, mode, int(rdev)) })
}

// Symlink makes a symlink that holds target.
func Symlink(target string, dirfd int, name string) error {
	return change("symlink", func() error { return unix.Symlinkat(target, dirfd, name) })
}

// Link gives the file olddir/oldname another name. It fails with EEXIST if
// there is one; a symlink is linked itself.
func Link(olddir int, oldname string, newdir int, newname string) error {
	return change("link", func() error { return unix.Linkat(olddir, oldname, newdir, newname, 0) })
}

// LinkFd gives the open file fd, which may be nameless, the name newname.
func LinkFd(fd int, newdir int, newname string) error {
	return change("link", func() error {
		// AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH; the way through /proc does not.
		return unix.Linkat(unix.AT_FDCWD, procFd(fd), newdir, newname, unix.AT_SYMLINK_FOLLOW)
	})
}

// Unlink removes a name that is not a directory.
func Unlink(dirfd int, name string) error {
	return change("unlink", func() error { return unix.Unlinkat(dirfd, name, 0) })
}

// Rmdir removes an empty directory.
func Rmdir(dirfd int, name string) error {
	return change("rmdir", func() error { return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR) })
}

// Rename renames with the RENAME_* flags of renameat2(2).
func Rename(olddir int, oldname string, newdir int, newname string, flags uint) error {
	return change("rename", func() error {
		if flags == 0 {
			return unix.Renameat(olddir, oldname, newdir, newname)
		}
		return unix.Renameat2(olddir, oldname, newdir, newname, flags)
	})
}

// Pwrite writes all of b at off. n < len(b) comes with an error.
func Pwrite(fd int, b []byte, off int64) (n int, err error) {
	if err := announce("write"); err != nil {
		return 0, err
	}
	for n < len(b) {
		m, err := unix.Pwrite(fd, b[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, unix.EIO
		}
		n += m
	}
	return n, nil
}

// Append writes all of b at the end of the file, wherever that is by then.
// n < len(b) comes with an error.
func Append(fd int, b []byte) (n int, err error) {
	if err := announce("write"); err != nil {
		return 0, err
	}
	for n < len(b) {
		m, err := unix.Pwritev2(fd, [][]byte{b[n:]}, 0, unix.RWF_APPEND)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, unix.EIO
		}
		n += m
	}
	return n, nil
}

// CopyRange copies up to n bytes with copy_file_range(2).
func CopyRange(dst int, dstOff int64, src int, srcOff int64, n int) (copied int, err error) {
	err = change("copy_file_range", func() error {
		so, do := srcOff, dstOff
		copied, err = unix.CopyFileRange(src, &so, dst, &do, n, 0)
		return err
	})
	return copied, err
}

// CloneRange makes dst share n bytes of src (FICLONERANGE): whole blocks, unless
// they reach the end of src.
func CloneRange(dst int, dstOff int64, src int, srcOff int64, n int64) error {
	return change("clone", func() error {
		return unix.IoctlFileCloneRange(dst, &unix.FileCloneRange{
			Src_fd: int64(src), Src_offset: uint64(srcOff), Src_length: uint64(n), Dest_offset: uint64(dstOff),
		})
	})
}

// SyncRange starts writing n bytes of fd at off to the disk, or waits until they
// are there. It makes nothing durable: metadata stays where it is. A filesystem
// that cannot do it does nothing.
func SyncRange(fd int, off, n int64, wait bool) error {
	flags := unix.SYNC_FILE_RANGE_WRITE
	if wait {
		flags |= unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	}
	err := change("sync_file_range", func() error { return unix.SyncFileRange(fd, off, n, flags) })
	if err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
		return nil
	}
	return err
}

// CloseEarly does to fd what close(2) does for one of its descriptors, and returns
// what that says: on network storage, errors of writing. fd stays open.
func CloseEarly(fd int) error {
	return change("close", func() error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(dup)
	})
}

// Truncate sets the size of the open file fd.
func Truncate(fd int, size int64) error {
	return change("truncate", func() error { return unix.Ftruncate(fd, size) })
}

// Fallocate is fallocate(2).
func Fallocate(fd int, mode uint32, off, n int64) error {
	return change("fallocate", func() error { return unix.Fallocate(fd, mode, off, n) })
}

// Fsync makes the file or directory fd durable.
func Fsync(fd int) error {
	return change("fsync", func() error { return unix.Fsync(fd) })
}

// Fdatasync makes the data of fd, and the metadata needed to read it, durable.
func Fdatasync(fd int) error {
	return change("fdatasync", func() error { return unix.Fdatasync(fd) })
}

// Chmod changes the mode of name in dirfd, or of the descriptor dirfd, which may
// be O_PATH, if name is empty. A symlink is EOPNOTSUPP.
func Chmod(dirfd int, name string, mode uint32) error {
	return change("chmod", func() error {
		return withPath(dirfd, name, func(fd int) error {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT == unix.S_IFLNK {
				return unix.EOPNOTSUPP
			}
			// fchmodat2(2) is too new (Linux 6.6) to rely on.
			return unix.Chmod(procFd(fd), mode)
		})
	})
}

// Fchmod changes the mode of the open file fd.
func Fchmod(fd int, mode uint32) error {
	return change("chmod", func() error { return unix.Fchmod(fd, mode) })
}

// Chown changes the owner of name in dirfd itself. -1 leaves an id as it is.
func Chown(dirfd int, name string, uid, gid int) error {
	return change("chown", func() error {
		return unix.Fchownat(dirfd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// Fchown changes the owner of the open file fd, which may be O_PATH.
func Fchown(fd int, uid, gid int) error {
	return change("chown", func() error {
		return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH)
	})
}

// Utimes sets atime and mtime of name in dirfd itself; a Nsec of
// unix.UTIME_OMIT or UTIME_NOW works as in utimensat(2). An empty name means
// dirfd itself, which may be O_PATH only on kernels with AT_EMPTY_PATH (5.8).
func Utimes(dirfd int, name string, ts [2]unix.Timespec) error {
	return change("utimes", func() error {
		flags := unix.AT_SYMLINK_NOFOLLOW
		if name == "" {
			flags |= unix.AT_EMPTY_PATH
		}
		return unix.UtimesNanoAt(dirfd, name, ts[:], flags)
	})
}

// Fsetxattr sets an xattr of the open file fd, which must not be O_PATH.
func Fsetxattr(fd int, name string, value []byte, flags int) error {
	return change("setxattr", func() error { return unix.Fsetxattr(fd, name, value, flags) })
}

// Fremovexattr removes an xattr of the open file fd, which must not be O_PATH.
func Fremovexattr(fd int, name string) error {
	return change("removexattr", func() error { return unix.Fremovexattr(fd, name) })
}

// Setxattr sets an xattr of name in dirfd itself, whatever its type.
func Setxattr(dirfd int, name, attr string, value []byte, flags int) error {
	return change("setxattr", func() error {
		return withPath(dirfd, name, func(fd int) error {
			return unix.Setxattr(procFd(fd), attr, value, flags)
		})
	})
}

// Removexattr removes an xattr of name in dirfd itself, whatever its type.
func Removexattr(dirfd int, name, attr string) error {
	return change("removexattr", func() error {
		return withPath(dirfd, name, func(fd int) error {
			return unix.Removexattr(procFd(fd), attr)
		})
	})
}

// BeatAt gives name in dirfd itself, or the open file dirfd if name is empty, the
// present time by its filesystem's clock. It is a sign of life, not a change that
// anything depends on: no hook sees it.
func BeatAt(dirfd int, name string) error {
	now := [2]unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return Retry(func() error { return unix.UtimesNanoAt(dirfd, name, now[:], flags) })
}
