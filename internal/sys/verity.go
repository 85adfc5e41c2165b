package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fsIocMeasureVerity is FS_IOC_MEASURE_VERITY of linux/fsverity.h.
const fsIocMeasureVerity = 0xc0046686

// MeasureVerity returns the fs-verity digest of the open file fd, which the
// kernel holds every read of it against, and the algorithm
// (FS_VERITY_HASH_ALG_*). ENODATA: the file has none.
func MeasureVerity(fd int) (algorithm byte, digest []byte, err error) {
	// struct fsverity_digest: algorithm, length of the digest, digest.
	var arg struct {
		algorithm uint16
		size      uint16
		digest    [64]byte
	}
	arg.size = uint16(len(arg.digest))
	err = Retry(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocMeasureVerity, uintptr(unsafe.Pointer(&arg)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	return byte(arg.algorithm), arg.digest[:min(int(arg.size), len(arg.digest))], nil
}
