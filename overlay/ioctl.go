package overlay

import (
	"context"
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
)

// Ioctl implements fuse.RawFileSystem: inode flags (chattr(1), lsattr(1)), which
// are those of the file in its layer and are kept there. The kernel has checked
// who may change them. Every other request is ENOTTY, as on the kernel's
// overlayfs.
func (fs *FS) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, _ *fuse.IoctlOut, outbuf []byte) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	clear(outbuf)
	var err error
	// The size of the argument is part of the request's number, and differs from
	// what is passed for flags: int, declared as long.
	switch arg := binary.NativeEndian; uint64(in.Cmd) {
	case unix.FS_IOC_GETFLAGS:
		if len(outbuf) < 4 {
			return fuse.EINVAL
		}
		err = fs.inodeFlags(n, func(fd int) error {
			flags, err := sys.Flags(fd)
			arg.PutUint32(outbuf, flags)
			return err
		})
	case unix.FS_IOC_SETFLAGS:
		if len(inbuf) < 4 {
			return fuse.EINVAL
		}
		err = fs.setInodeFlags(ctx, n, func(fd int, shown bool) error { return setFlags(fd, shown, arg.Uint32(inbuf)) })
	case sys.FSGetXattr:
		var x sys.Fsxattr
		if len(outbuf) < len(x) {
			return fuse.EINVAL
		}
		err = fs.inodeFlags(n, func(fd int) error { return sys.GetFsxattr(fd, &x) })
		copy(outbuf, x[:])
	case sys.FSSetXattr:
		var x sys.Fsxattr
		if len(inbuf) < len(x) {
			return fuse.EINVAL
		}
		copy(x[:], inbuf)
		err = fs.setInodeFlags(ctx, n, func(fd int, shown bool) error {
			if !shown {
				return nil
			}
			return sys.SetFsxattr(fd, &x)
		})
	default:
		return fuse.Status(unix.ENOTTY)
	}
	return fs.status("ioctl", n, "", err)
}

// inodeFlags runs f on a descriptor of the part of n that shows.
func (fs *FS) inodeFlags(n *node, f func(fd int) error) error {
	fd, err := fs.openShown(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return withReadable(fd, f)
}

// everywhere are the flags that say what may be done to a directory, whatever
// layer holds a part of it. The others are about its storage.
const everywhere = copyup.KeptFlags | sys.FlagImmutable | sys.FlagAppend

// setFlags sets the flags of a part of a file, of which another may show.
func setFlags(fd int, shown bool, flags uint32) error {
	if !shown {
		now, err := sys.Flags(fd)
		if err != nil {
			return err
		}
		flags = now&^everywhere | flags&everywhere
	}
	return sys.SetFlags(fd, flags)
}

// setInodeFlags runs f where the flags of n are to change.
func (fs *FS) setInodeFlags(ctx context.Context, n *node, f func(fd int, shown bool) error) error {
	if fs.ReadOnly() {
		return unix.EROFS
	}
	if fs.notify != nil {
		// The kernel does not know that this changes the ctime.
		defer fs.notify.InodeNotify(n.id, -1, 0)
	}
	if fs.cfg.Mode == Overlay {
		if err := fs.up(ctx, n, flagging); err != nil {
			return err
		}
		return fs.changeUpper(n, func(fd int) error {
			return withReadable(fd, func(fd int) error { return f(fd, true) })
		})
	}
	return fs.change(ctx, n, func(fd int, shown bool) error {
		return withReadable(fd, func(fd int) error { return f(fd, shown) })
	})
}

// withReadable runs f on the file behind the O_PATH descriptor fd, opened for
// reading as ioctl(2) wants it. Only files and directories come here: the kernel
// asks for no others.
func withReadable(fd int, f func(fd int) error) error {
	nfd, err := sys.Reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(nfd)
	return f(nfd)
}

// openShown returns an O_PATH descriptor of the part of n that shows. ENOTTY
// where that is on another host.
func (fs *FS) openShown(n *node) (int, error) {
	return despiteRenames(n, func() (int, error) { return fs.openShownOnce(n) })
}

func (fs *FS) openShownOnce(n *node) (int, error) {
	if n.isUpper() {
		return fs.openUpper(n)
	}
	n.mu.RLock()
	if len(n.lowers) == 0 {
		n.mu.RUnlock()
		return -1, unix.ESTALE
	}
	r := n.lowers[0]
	held, _ := n.dupLowerFd()
	n.mu.RUnlock()
	switch {
	case !r.layer.isLocal():
		return -1, unix.ENOTTY
	case held >= 0:
		return held, nil
	}
	path, ok := n.pathIn(&r)
	if !ok {
		return -1, unix.ESTALE
	}
	fd, err := sys.OpenBeneath(r.layer.root, string(path), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, gone(err)
	}
	if !idOfFd(fd).is(r.id()) {
		unix.Close(fd)
		return -1, errMoved
	}
	return fd, nil
}
