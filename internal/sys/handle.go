package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Handle returns the file handle of fd, which may be O_PATH: what finds the file
// again on its filesystem whatever becomes of its names. EOPNOTSUPP where the
// filesystem has none that it could decode.
func Handle(fd int) (typ int32, handle []byte, err error) {
	h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return 0, nil, err
	}
	return h.Type(), h.Bytes(), nil
}

// OpenHandle opens (O_PATH) the file with the given handle on the filesystem of
// mountfd, which must not be O_PATH. It needs CAP_DAC_READ_SEARCH; ESTALE means
// that there is no such file any more.
func OpenHandle(mountfd int, typ int32, handle []byte) (fd int, err error) {
	err = Retry(func() error {
		fd, err = unix.OpenByHandleAt(mountfd, unix.NewFileHandle(typ, handle), unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW)
		return err
	})
	return fd, err
}

// fsUUID is struct fsuuid2 of linux/fs.h.
type fsUUID struct {
	len  uint8
	uuid [16]byte
}

// UUIDOf returns the UUID of the filesystem of fd, which must not be O_PATH
// (FS_IOC_GETFSUUID, Linux 6.9).
func UUIDOf(fd int) (uuid [16]byte, err error) {
	const getUUID = 0x80111500 // _IOR(0x15, 0, struct fsuuid2)
	var u fsUUID
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getUUID, uintptr(unsafe.Pointer(&u)))
	if errno != 0 {
		return uuid, errno
	}
	if u.len != uint8(len(u.uuid)) {
		return uuid, unix.EINVAL
	}
	return u.uuid, nil
}
