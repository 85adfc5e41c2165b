package copyup

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// xattrCaps is dropped by the kernel at every write.
const xattrCaps = "security.capability"

// Complete copies the data of a metacopy, all size bytes of src, into its inode
// fd, and makes it durable. While the mark stands nothing counts of what is in
// there; removing it is the caller's last step.
func Complete(ctx context.Context, fd int, src layers.File, size int64, cfg Config) error {
	if size > 0 {
		var stx unix.Statx_t
		if err := sys.Statx(fd, "", &stx); err != nil {
			return err
		}
		caps, capsErr := sys.Fgetxattr(fd, xattrCaps)
		err := copyData(ctx, fd, src, size, size, cfg)
		if capsErr == nil {
			if cerr := sys.Fsetxattr(fd, xattrCaps, caps, 0); err == nil {
				err = cerr
			}
		}
		was := local.AttrOf(&stx)
		if merr := restoreMode(fd, &was); err == nil {
			err = merr
		}
		if terr := RestoreTimes(fd, &was); err == nil {
			err = terr
		}
		if err != nil {
			// Room that a full disk lacks. Failing is harmless: the next try writes over it.
			_ = sys.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size)
			return err
		}
	}
	return settled(ctx, fd, cfg)
}

// restoreMode puts back suid and sgid, which a write takes off unless the daemon
// has CAP_FSETID.
func restoreMode(fd int, was *layers.Attr) error {
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil || uint32(stx.Mode) == was.Mode {
		return err
	}
	return sys.Fchmod(fd, was.Mode&0o7777)
}

// Dress gives the open regular file fd, which has src's data, owner, mode, xattrs,
// flags and times of src; what it has of xattrs besides goes. It syncs nothing.
func Dress(fd int, src *Source, cfg Config) error {
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		return err
	}
	if stx.Uid != src.Attr.UID || stx.Gid != src.Attr.GID {
		if err := sys.Fchown(fd, int(src.Attr.UID), int(src.Attr.GID)); err != nil {
			return err
		}
	}
	names, err := sys.Flistxattr(fd)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	for _, n := range names {
		if _, has := src.Xattrs[n]; has || belongsToStorage(n) || strings.HasPrefix(n, "system.") {
			continue // ACLs are metadata's
		}
		if err := sys.Fremovexattr(fd, n); err != nil && (!strings.HasPrefix(n, "security.") || n == xattrCaps) {
			return err // a label that the kernel gives is not ours to take
		}
	}
	err = metadata(fd, src, cfg)
	if err == nil {
		err = times(fd, src)
	}
	if err != nil {
		return err
	}
	setFlags(fd, src)
	return nil
}
