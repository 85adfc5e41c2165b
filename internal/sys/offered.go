package sys

import (
	"bytes"
	"os"

	"golang.org/x/sys/unix"
)

// What kernels have and older ones have not is tried, not guessed from a version:
// distributions bring new calls to old kernels, and containers filter them.

// there reports whether a call that was made with nonsense is known to the kernel,
// and let through.
func there(number uintptr) bool {
	_, _, errno := unix.Syscall6(number, ^uintptr(0), 0, 0, 0, 0, 0)
	return errno != unix.ENOSYS && errno != unix.EPERM
}

// HasOpenTree reports whether mounts can be cloned privately (open_tree(2)).
func HasOpenTree() bool { return there(unix.SYS_OPEN_TREE) }

// HasMountSetattr reports whether the attributes of a clone can be set
// (mount_setattr(2)).
func HasMountSetattr() bool { return there(unix.SYS_MOUNT_SETATTR) }

// HasGetxattrat reports whether xattrs are read with one call.
func HasGetxattrat() bool { return hasGetxattrat() }

// HasStatxMountID reports whether statx(2) tells which mount a file is on.
func HasStatxMountID() bool {
	var stx unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_MNT_ID, &stx) == nil && stx.Mask&unix.STATX_MNT_ID != 0
}

// HasPressure reports whether the kernel tells how long tasks wait for I/O.
func HasPressure() bool {
	_, err := os.ReadFile("/proc/pressure/io")
	return err == nil
}

// Filtered reports whether a seccomp filter looks at the calls of this process.
func Filtered() bool {
	b, err := os.ReadFile("/proc/self/status")
	return err == nil && bytes.Contains(b, []byte("\nSeccomp:\t2\n"))
}

// HasUserNS reports whether users can have namespaces of their own.
func HasUserNS() bool {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil || len(b) == 0 || b[0] == '0' {
		return false
	}
	b, err = os.ReadFile("/proc/sys/kernel/unprivileged_userns_clone") // Debian's
	return err != nil || b[0] != '0'
}

// Clones reports whether two files of the directory dirfd can share blocks
// (FICLONE). What it makes for that has no name.
func Clones(dirfd int) error {
	a, err := Tmpfile(dirfd, unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := Tmpfile(dirfd, unix.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	if _, err := Pwrite(a, make([]byte, 4096), 0); err != nil {
		return err
	}
	return CloneRange(b, 0, a, 0, 4096)
}
