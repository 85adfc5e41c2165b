package copyup

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// ownerFirst gives the empty file its owner, so that what follows is charged to
// the user's quota and not to ours.
func ownerFirst(fd int, a *layers.Attr, cfg Config) error {
	if !cfg.Owner || !a.Has(layers.KnownOwner) {
		return nil
	}
	return sys.Fchown(fd, int(a.UID), int(a.GID))
}

// metadata gives the open regular file fd everything but owner, data and times. The
// mode comes before xattrs because a chmod rewrites an ACL's mask; times come
// last because everything else changes them.
func metadata(fd int, src *Source, cfg Config) error {
	if err := dropInherited(func() ([]string, error) { return sys.Flistxattr(fd) },
		func(n string) error { return sys.Fremovexattr(fd, n) }); err != nil {
		return err
	}
	if err := sys.Fchmod(fd, src.Attr.Mode&0o7777); err != nil {
		return err
	}
	if err := setXattrs(src, cfg, xattrTarget{
		set:   func(n string, v []byte) error { return sys.Fsetxattr(fd, n, v, 0) },
		chmod: func(mode uint32) error { return sys.Fchmod(fd, mode) },
		room:  func() bool { return hasRoom(fd) },
	}); err != nil {
		return err
	}
	return setOrigin(src, func(n string, v []byte) error { return sys.Fsetxattr(fd, n, v, 0) })
}

// times gives the open regular file fd its times.
func times(fd int, src *Source) error {
	if src.Attr.IsRegular() && src.Size < src.Attr.Size {
		return nil // cut while it is copied: that is a change, and has its time
	}
	return setTimes(fd, "", &src.Attr)
}

// nodeMetadata is metadata, and the owner, for name in dirfd of any type.
func nodeMetadata(dirfd int, name string, src *Source, cfg Config) error {
	a := &src.Attr
	if cfg.Owner && a.Has(layers.KnownOwner) {
		if err := sys.Chown(dirfd, name, int(a.UID), int(a.GID)); err != nil {
			return err
		}
	}
	if a.Type() != unix.S_IFLNK {
		if err := dropInherited(func() ([]string, error) { return sys.Listxattr(dirfd, name) },
			func(n string) error { return sys.Removexattr(dirfd, name, n) }); err != nil {
			return err
		}
		if err := sys.Chmod(dirfd, name, a.Mode&0o7777); err != nil {
			return err
		}
	}
	if err := setXattrs(src, cfg, xattrTarget{
		set:   func(n string, v []byte) error { return sys.Setxattr(dirfd, name, n, v, 0) },
		chmod: func(mode uint32) error { return sys.Chmod(dirfd, name, mode) },
		room:  func() bool { return hasRoom(dirfd) },
	}); err != nil {
		return err
	}
	if err := setOrigin(src, func(n string, v []byte) error {
		return sys.Setxattr(dirfd, name, n, v, 0)
	}); err != nil {
		return err
	}
	if src.Flags&KeptFlags != 0 {
		if fd, err := sys.OpenAt(dirfd, name, unix.O_RDONLY|unix.O_NONBLOCK); err == nil {
			setFlags(fd, src)
			unix.Close(fd)
		}
	}
	return setTimes(dirfd, name, a)
}

// KeptFlags are the inode flags that come along with a file: S and A of chattr(1),
// as with the kernel's overlayfs, and d and D.
const KeptFlags = sys.FlagSync | sys.FlagNoAtime | sys.FlagNoDump | sys.FlagDirSync

// setFlags gives the open file or directory fd the flags that come along. What the
// upper cannot have is left: flags are advice.
func setFlags(fd int, src *Source) {
	if src.Flags&KeptFlags == 0 {
		return
	}
	if now, err := sys.Flags(fd); err == nil {
		_ = sys.SetFlags(fd, now|src.Flags&KeptFlags)
	}
}

// dropInherited removes the ACLs a new file got from the default ACL of the
// directory it was made in: they are not the lower file's.
func dropInherited(list func() ([]string, error), remove func(string) error) error {
	names, err := list()
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		if n != aclAccess && n != aclDefault {
			continue
		}
		if err := remove(n); err != nil && !errors.Is(err, unix.ENODATA) {
			return err
		}
	}
	return nil
}

func setTimes(dirfd int, name string, a *layers.Attr) error {
	if !a.Has(layers.KnownTimes) {
		return nil
	}
	return sys.Utimes(dirfd, name, [2]unix.Timespec{timespec(a.Atime), timespec(a.Mtime)})
}

func timespec(t layers.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

// RestoreTimes puts atime and mtime of the directory dir, which may be O_PATH,
// back to what they were: a copy-up is not a change of the directory.
func RestoreTimes(dir int, a *layers.Attr) error { return setTimes(dir, "", a) }
