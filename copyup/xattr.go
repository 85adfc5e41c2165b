package copyup

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// XattrError says which extended attribute of which file the upper cannot hold.
type XattrError struct {
	Path layers.Path
	Name string
	Err  error // the errno
}

func (e *XattrError) Error() string {
	return fmt.Sprintf("the upper cannot hold the extended attribute %q of %q: %v", e.Name, string(e.Path), e.Err)
}

func (e *XattrError) Unwrap() error { return e.Err }

// xattrTarget is how to change what gets xattrs.
type xattrTarget struct {
	set   func(name string, value []byte) error
	chmod func(mode uint32) error
	room  func() bool // its disk is not full
}

// setXattrs sets xattrs in a fixed order, ACLs among them after the mode. One
// that the upper cannot hold fails the copy-up, or is left out where cfg is
// lenient: it is never lost in silence.
func setXattrs(src *Source, cfg Config, to xattrTarget) error {
	for _, n := range slices.Sorted(maps.Keys(src.Xattrs)) {
		if belongsToStorage(n) {
			continue
		}
		err := to.set(n, src.Xattrs[n])
		if err == nil {
			continue
		}
		lost := &XattrError{Path: src.Path, Name: n, Err: err}
		switch {
		case !cfg.Owner && errors.Is(err, unix.EPERM) && !strings.HasPrefix(n, "user."):
			// Without root, what only root may set cannot come along; the kernel's
			// overlayfs in a user namespace leaves it behind as well.
		case cfg.Lenient && cannotHold(err, to):
			if err := withoutACL(src, n, to); err != nil {
				lost.Err = fmt.Errorf("%w; %w", lost.Err, err)
				return lost
			}
		default:
			return lost
		}
		if cfg.LeftOut != nil {
			cfg.LeftOut(lost)
		}
	}
	return nil
}

// cannotHold reports whether err says that the attribute is not for this
// filesystem, and not that the filesystem is full or fails. ext4 says ENOSPC of a
// value for which it has no form.
func cannotHold(err error, to xattrTarget) bool {
	for _, e := range []unix.Errno{unix.EOPNOTSUPP, unix.E2BIG, unix.ERANGE, unix.EINVAL, unix.EPERM, unix.EACCES} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.Is(err, unix.ENOSPC) && to.room()
}

// hasRoom reports whether the filesystem of fd is not full.
func hasRoom(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Bavail > 256
}

// NFSv4ACL is the xattr in which NFS shows ACLs that are not POSIX's. They do not
// come along; what the mode says of them does.
const NFSv4ACL = "system.nfs4_acl"

// belongsToStorage reports xattrs that describe how the lower filesystem stores
// the file, not the file: they mean nothing elsewhere and cannot be set there.
func belongsToStorage(name string) bool {
	for _, p := range []string{
		"lustre.", "trusted.lov", "trusted.lma", "trusted.link", "trusted.fid", "trusted.som", "trusted.hsm",
		NFSv4ACL, "system.nfs4_dacl", "system.nfs4_sacl", "system.cifs_acl", "system.smb3_acl", "btrfs.", "ceph.",
	} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// HasAll reports whether a copy with the extended attributes x has all that a copy-up
// brings along of y.
func HasAll(x, y layers.Xattrs) bool {
	for n, v := range y {
		if w, ok := x[n]; !belongsToStorage(n) && (!ok || string(v) != string(w)) {
			return false
		}
	}
	return true
}
