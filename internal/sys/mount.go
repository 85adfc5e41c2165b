package sys

import (
	"strconv"

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

// CloneMount returns a descriptor of the file that path leads to in a private clone of the
// mount it lies on, which is mounted nowhere: whoever asks the kernel for the path of what
// was opened by it learns none that leads anywhere (open_tree(2), Linux 5.2). It needs
// CAP_SYS_ADMIN.
func CloneMount(path string) (int, error) {
	return unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// Memory returns a descriptor of the root of a filesystem in memory that holds so many
// bytes at most and that nobody else can reach. It goes with its last descriptor
// (fsopen(2), Linux 5.2). It needs CAP_SYS_ADMIN.
func Memory(bytes int64) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "size", strconv.FormatInt(bytes, 10)); err != nil {
		return -1, err
	}
	if err := unix.FsconfigSetString(fs, "mode", "0700"); err != nil {
		return -1, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}
