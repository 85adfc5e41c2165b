package sys

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linux 6.13 reads an xattr of a name in a directory with one call, where it took
// three and a walk through /proc. It takes no O_PATH descriptor of the file.

// sysGetxattrat has this number on every architecture that Go has.
const sysGetxattrat = 464

// xattrArgs is struct xattr_args of linux/xattr.h, on 64-bit and little-endian
// machines.
type xattrArgs struct {
	value unsafe.Pointer
	_     [8 - unsafe.Sizeof(uintptr(0))]byte
	size  uint32
	_     uint32 // flags, for setxattrat(2)
}

// hasGetxattrat reports whether the kernel has the call, and lets us make it.
var hasGetxattrat = sync.OnceValue(func() bool {
	_, err := getxattrat(unix.AT_FDCWD, "/", "user.migratefs", nil)
	return err != unix.ENOSYS && err != unix.EPERM
})

// getxattrat reads attr of name, which is not empty, in dirfd itself.
func getxattrat(dirfd int, name, attr string, b []byte) (int, error) {
	path, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	key, err := unix.BytePtrFromString(attr)
	if err != nil {
		return 0, err
	}
	args := xattrArgs{value: unsafe.Pointer(unsafe.SliceData(b)), size: uint32(len(b))}
	n, _, errno := unix.Syscall6(sysGetxattrat, uintptr(dirfd), uintptr(unsafe.Pointer(path)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(key)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
