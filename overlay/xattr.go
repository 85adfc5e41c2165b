package overlay

import (
	"context"
	"slices"
	"sort"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// diskName is the name of an xattr on disk. In migrate mode all are the users', but
// for ours.
func (fs *FS) diskName(attr string) string {
	if fs.cfg.Mode == Migrate {
		return attr
	}
	return fs.cfg.Format.ToDisk(attr)
}

// isOurs reports whether the xattr attr says something about a file in migrate mode
// that is hidden from all.
func (fs *FS) isOurs(attr string) bool {
	return fs.cfg.Mode == Migrate && strings.HasPrefix(attr, ourXattrs)
}

const ourXattrs = "trusted.migratefs."

// xattrsBelow returns all xattrs of n, which is not in the upper, as they are on disk.
func (fs *FS) xattrsBelow(ctx context.Context, n *node) (layers.Xattrs, error) {
	n.mu.RLock()
	if len(n.lowers) == 0 {
		n.mu.RUnlock()
		return nil, unix.ESTALE
	}
	r := n.lowers[0]
	n.mu.RUnlock()
	if r.attr.Has(layers.KnownBare) {
		return nil, nil
	}
	path, ok := n.pathIn(&r)
	if !ok {
		return nil, unix.ENODATA
	}
	return fs.xattrsAt(ctx, n, &r, path)
}

func (fs *FS) getXattr(ctx context.Context, n *node, attr string) ([]byte, error) {
	if fs.isOurs(attr) {
		return nil, unix.ENODATA
	}
	disk := fs.diskName(attr)
	if n.isUpper() {
		if v, err := n.xattrOfHandle(disk); err != unix.EBADF {
			return v, err
		}
		fd, err := fs.openUpper(n)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		return sys.Getxattr(fd, "", disk)
	}
	n.mu.RLock()
	r := lowerRef{}
	if len(n.lowers) > 0 {
		r = n.lowers[0]
	}
	n.mu.RUnlock()
	if r.layer != nil && r.layer.isLocal() {
		fd, err := fs.openShown(n)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		return sys.Getxattr(fd, "", disk)
	}
	x, err := fs.xattrsBelow(ctx, n)
	if err != nil {
		return nil, err
	}
	v, ok := x[disk]
	if !ok {
		return nil, unix.ENODATA
	}
	return v, nil
}

// xattrOfHandle reads an xattr through a handle of the upper file: the kernel asks
// for one at the first write to each file. It is EBADF if there is none.
func (n *node) xattrOfHandle(disk string) ([]byte, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if fd := n.anyFd(); fd >= 0 && fd != n.kept && !hasObject(n.pending) {
		return sys.Fgetxattr(fd, disk)
	}
	return nil, unix.EBADF
}

// isUnnamed reports whether n lies in a lower of this host and has no name that we know.
func (n *node) isUnnamed() bool {
	_, named := n.dentry()
	n.mu.RLock()
	defer n.mu.RUnlock()
	return !named && len(n.lowers) > 0 && n.lowers[0].layer.isLocal()
}

// GetXAttr implements fuse.RawFileSystem.
func (fs *FS) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	var v []byte
	var err error
	if isControl(attr) {
		v, err = fs.controlGet(ctx, n, attr, &in.Caller)
	} else {
		v, err = fs.getXattr(ctx, n, attr)
	}
	if err != nil {
		return 0, fs.status("getxattr", n, "", err)
	}
	return fit(dest, v)
}

// fit copies v into dest. An empty dest asks for the size.
func fit(dest, v []byte) (uint32, fuse.Status) {
	if len(v) > len(dest) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

// ListXAttr implements fuse.RawFileSystem.
func (fs *FS) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return 0, fuse.Status(unix.ESTALE)
	}
	names, err := fs.listXattrs(ctx, n)
	if err != nil {
		return 0, fs.status("listxattr", n, "", err)
	}
	var b []byte
	for _, name := range names {
		b = append(append(b, name...), 0)
	}
	return fit(dest, b)
}

func (fs *FS) listXattrs(ctx context.Context, n *node) ([]string, error) {
	names, err := despiteRenames(n, func() ([]string, error) { return fs.xattrNames(ctx, n) })
	if err != nil {
		return nil, err
	}
	if fs.cfg.Mode == Migrate {
		return slices.DeleteFunc(names, fs.isOurs), nil
	}
	shown := names[:0]
	for _, name := range names {
		if s, ok := fs.cfg.Format.FromDisk(name); ok {
			shown = append(shown, s)
		}
	}
	return shown, nil
}

// xattrNames returns the names of n's xattrs as they are on disk.
func (fs *FS) xattrNames(ctx context.Context, n *node) (names []string, err error) {
	if n.isUpper() || n.isUnnamed() {
		fd, err := fs.openShown(n)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		return sys.Listxattr(fd, "")
	}
	x, err := fs.xattrsBelow(ctx, n)
	for name := range x {
		names = append(names, name)
	}
	sort.Strings(names)
	return names, err
}

// SetXAttr implements fuse.RawFileSystem.
func (fs *FS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if fs.isOurs(attr) {
		return fuse.Status(unix.EOPNOTSUPP) // as the kernel's overlayfs says of its own
	}
	if isControl(attr) {
		return fs.status("setxattr", n, "", fs.controlSet(ctx, n, attr, data, &in.Caller))
	}
	disk, value := fs.diskName(attr), append([]byte(nil), data...)
	err := fs.changeXattr(ctx, n, disk, func(fd int, shown bool) error {
		if !shown {
			return sys.Setxattr(fd, "", disk, value, 0) // may or may not have one of its own
		}
		if fs.xattrs && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
			return fs.setACL(fd, &in.Caller, disk, value, int(in.Flags))
		}
		return sys.Setxattr(fd, "", disk, value, int(in.Flags))
	})
	return fs.status("setxattr", n, "", err)
}

// RemoveXAttr implements fuse.RawFileSystem.
func (fs *FS) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if fs.isOurs(attr) {
		return fuse.ENODATA
	}
	disk := fs.diskName(attr)
	if !n.isUpper() && !fs.ReadOnly() {
		// What is not there is not worth a copy-up.
		if _, err := fs.getXattr(ctx, n, attr); err != nil {
			if a, e := fs.attr(ctx, n); e == nil && (a.Immutable || a.AppendOnly) {
				err = unix.EPERM
			}
			return fs.status("removexattr", n, "", err)
		}
	}
	caps := disk == "security.capability"
	denied := caps && fs.mayDrop(ctx, n, &in.Caller) != nil
	err := fs.changeXattr(ctx, n, disk, func(fd int, shown bool) error {
		err := fs.uncap(fd, disk, denied, &in.Caller)
		if err == unix.ENODATA && !shown {
			return nil
		}
		return err
	})
	if err == nil && caps {
		n.uncapped(in.Pid)
	}
	return fs.status("removexattr", n, "", err)
}

// changeXattr changes the xattr disk of n. Of a directory that lies in several
// layers, ACLs change everywhere, because each part is a place to look things up
// in; other xattrs where they show.
func (fs *FS) changeXattr(ctx context.Context, n *node, disk string, f func(fd int, shown bool) error) error {
	if fs.ReadOnly() {
		return unix.EROFS
	}
	if fs.cfg.Mode == Overlay && disk == "security.capability" {
		// A write takes it away, and so would the one that completes a metacopy.
		if err := fs.up(ctx, n, whole); err != nil {
			return err
		}
	}
	acl := strings.HasPrefix(disk, "system.")
	return fs.change(ctx, n, func(fd int, shown bool) error {
		if !shown && !acl {
			return nil
		}
		return f(fd, shown)
	})
}
