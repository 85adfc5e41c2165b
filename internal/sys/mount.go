package sys

import (
	"golang.org/x/sys/unix"
)

// CloneTree returns a descriptor of dir in a private clone of the mount it lies
// on, read-only and without access times (open_tree(2), Linux 5.2;
// mount_setattr(2), 5.12). With recursive the clone holds what is mounted below
// dir as well. It needs CAP_SYS_ADMIN.
func CloneTree(dir string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	attrFlags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
		attrFlags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, flags)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOATIME,
		Attr_clr: unix.MOUNT_ATTR__ATIME,
	}
	if err := unix.MountSetattr(fd, "", attrFlags, &attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
