package sys

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Fsxattr is struct fsxattr of linux/fs.h: flags, extent size, extent count,
// project id, copy-on-write extent size, padding.
type Fsxattr [28]byte

// Inherits reports whether what is made in the directory is its project's as well
// (FS_XFLAG_PROJINHERIT).
func (x *Fsxattr) Inherits() bool { return binary.NativeEndian.Uint32(x[0:])&0x200 != 0 }

// Project returns the project id.
func (x *Fsxattr) Project() uint32 { return binary.NativeEndian.Uint32(x[12:]) }

// SetProject sets the project id.
func (x *Fsxattr) SetProject(id uint32) { binary.NativeEndian.PutUint32(x[12:], id) }

// Requests of linux/fs.h that the unix package has no name for.
const (
	FSGetXattr = 0x801c581f // FS_IOC_FSGETXATTR
	FSSetXattr = 0x401c5820 // FS_IOC_FSSETXATTR
)

// Inode flags of linux/fs.h (FS_*_FL).
const (
	FlagSync      = 0x8
	FlagImmutable = 0x10
	FlagAppend    = 0x20
	FlagNoDump    = 0x40
	FlagNoAtime   = 0x80
	FlagDirSync   = 0x10000
)

// Flags returns the inode flags (FS_*_FL, chattr(1)) of the open file or
// directory fd. ENOTTY and EOPNOTSUPP mean that its filesystem has none.
func Flags(fd int) (uint32, error) { return unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS) }

// SetFlags sets the inode flags of the open file or directory fd.
func SetFlags(fd int, flags uint32) error {
	return change("setflags", func() error {
		return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags))
	})
}

// GetFsxattr is FS_IOC_FSGETXATTR.
func GetFsxattr(fd int, x *Fsxattr) error { return ioctl(fd, FSGetXattr, unsafe.Pointer(x)) }

// SetFsxattr is FS_IOC_FSSETXATTR.
func SetFsxattr(fd int, x *Fsxattr) error {
	return change("setflags", func() error { return ioctl(fd, FSSetXattr, unsafe.Pointer(x)) })
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
