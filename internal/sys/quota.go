package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kinds of quotas, of linux/quota.h.
const (
	UserQuota    = 0 // USRQUOTA
	GroupQuota   = 1 // GRPQUOTA
	ProjectQuota = 2 // PRJQUOTA
)

// Quota is what a user, group or project uses and may use; a limit of zero is none.
type Quota struct {
	Bytes, BytesSoft, BytesHard    uint64
	Inodes, InodesSoft, InodesHard uint64
}

// GetQuota returns the quota of the user, group or project id on the filesystem of fd
// (quotactl_fd(2), Linux 5.14). ESRCH: its quotas are off; ENOENT: it has none for
// id; ENOSYS: the filesystem or the kernel has no quotas that can be asked this way,
// which says nothing of a server's.
func GetQuota(fd int, kind int, id uint32) (Quota, error) {
	const (
		getQuota  = 0x800007 // Q_GETQUOTA
		blockSize = 1 << 10  // QIF_DQBLKSIZE
	)
	// struct if_dqblk
	var d struct {
		bhard, bsoft, space  uint64
		ihard, isoft, inodes uint64
		btime, itime         uint64
		valid                uint32
		_                    uint32
	}
	err := Retry(func() error {
		_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), getQuota<<8|uintptr(kind), uintptr(id),
			uintptr(unsafe.Pointer(&d)), 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return Quota{}, err
	}
	return Quota{
		Bytes: d.space, BytesSoft: d.bsoft * blockSize, BytesHard: d.bhard * blockSize,
		Inodes: d.inodes, InodesSoft: d.isoft, InodesHard: d.ihard,
	}, nil
}
