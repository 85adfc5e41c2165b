package overlay

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// fillAttr fills in what the kernel is told of a file. What a layer does not
// know is left at what programs expect of a filesystem that does not know: one
// link, owner root, the epoch.
func fillAttr(out *fuse.Attr, n *node, a *layers.Attr) {
	*out = fuse.Attr{
		Ino:       n.ino,
		Size:      uint64(a.Size),
		Blocks:    uint64(a.Blocks),
		Atime:     uint64(a.Atime.Sec),
		Mtime:     uint64(a.Mtime.Sec),
		Ctime:     uint64(a.Ctime.Sec),
		Atimensec: a.Atime.Nsec,
		Mtimensec: a.Mtime.Nsec,
		Ctimensec: a.Ctime.Nsec,
		Mode:      a.Mode,
		Nlink:     a.Nlink,
		Owner:     fuse.Owner{Uid: n.fs.cfg.IDs.showUID(a.UID), Gid: n.fs.cfg.IDs.showGID(a.GID)},
		Rdev:      uint32(a.Rdev),
		Blksize:   max(a.Blksize, 4096),
	}
	if !a.Has(layers.KnownAlloc) {
		out.Blocks = uint64(a.Size+511) / 512
	}
	if !a.Has(layers.KnownCtime) {
		out.Ctime, out.Ctimensec = out.Mtime, out.Mtimensec
	}
	if !a.Has(layers.KnownNlink) {
		out.Nlink = max(a.Nlink, 1)
	}
}

func (fs *FS) fillEntry(out *fuse.EntryOut, n *node, a *layers.Attr) {
	n.told.Store(true)
	out.NodeId = n.id
	out.Generation = 1 // node ids are never reused
	out.SetEntryTimeout(fs.entryTimeout)
	out.SetAttrTimeout(n.attrTimeout(a.Mode))
	fillAttr(&out.Attr, n, a)
}

// GetAttr implements fuse.RawFileSystem.
func (fs *FS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	a, err := fs.attr(ctx, n)
	if err != nil {
		return fs.status("getattr", n, "", err)
	}
	out.SetTimeout(ctx.left(n.attrTimeout(a.Mode)))
	fillAttr(&out.Attr, n, &a)
	return fuse.OK
}

// attr returns the present attributes of n.
func (fs *FS) attr(ctx context.Context, n *node) (layers.Attr, error) {
	a, err := despiteRenames(n, func() (layers.Attr, error) {
		return unswapped(n, func() (layers.Attr, error) { return fs.attrOnce(ctx, n) })
	})
	if errnoOf(err) == unix.ESTALE && !n.isUpper() {
		// Others have taken the name from it: who has it open has it still.
		if held, herr := n.attrHeld(); herr == nil {
			return held, nil
		}
	}
	return a, err
}

func (fs *FS) attrOnce(ctx context.Context, n *node) (layers.Attr, error) {
	n.mu.RLock()
	upper, dead := n.upper, n.dead
	fd := -1
	switch {
	case dead != nil && (!upper || n.isDir()):
		held := dup(n.kept)
		if !upper {
			closeFd(held)
			held, _ = n.dupLowerFd()
		}
		n.mu.RUnlock()
		return attrOfDead(held, *dead)
	case n.isRegular() && (upper || dead != nil):
		if fd = n.anyFd(); fd >= 0 && !n.indexed && !hasObject(n.pending) && n.data == nil {
			defer n.mu.RUnlock()
			var stx unix.Statx_t
			err := sys.Statx(fd, "", &stx)
			return local.AttrOf(&stx), err
		}
		fd = dup(fd)
	}
	n.mu.RUnlock()
	defer closeFd(fd)
	switch {
	case fd >= 0:
		return fs.attrOfHandle(n, fd)
	case dead != nil:
		return *dead, nil
	case !upper:
		return fs.attrBelow(ctx, n)
	case n.isDir():
		return fs.attrOfDir(n)
	}
	d, ok := n.dentry()
	if !ok {
		return layers.Attr{}, unix.ESTALE
	}
	if a, ok := fs.attrNamed(n, d); ok {
		return a, nil
	}
	f, err := fs.lookup(ctx, d.parent, d.name)
	if err != nil {
		return layers.Attr{}, gone(err)
	}
	if !f.upper || !f.upID.is(n.upperID()) {
		return fs.attrByInode(n)
	}
	return f.attr, nil
}

// attrNamed returns the attributes of the upper file n, called d, if those of its
// inode are all there is to know of it.
func (fs *FS) attrNamed(n *node, d dentry) (a layers.Attr, ok bool) {
	n.mu.RLock()
	id, plain := n.upID, !n.indexed && !hasObject(n.pending) && n.data == nil && len(n.lowers) == 0
	n.mu.RUnlock()
	if !plain {
		return a, false
	}
	dir, err := fs.upperDir(d.parent)
	if err != nil {
		return a, false
	}
	defer fs.dirs.release(dir)
	var stx unix.Statx_t
	if sys.Statx(dir.fd, d.name, &stx) != nil {
		return a, false
	}
	a = local.AttrOf(&stx)
	return a, a.Nlink == 1 && idOf(&a).is(id)
}

// attrOfDead returns the attributes of a lower file, or of a directory, that has lost its
// last name: of what is held of it, which is closed, or as they were.
func attrOfDead(held int, was layers.Attr) (layers.Attr, error) {
	if held < 0 {
		return was, nil
	}
	defer unix.Close(held)
	var stx unix.Statx_t
	err := sys.Statx(held, "", &stx)
	if errnoOf(err) == unix.ESTALE && was.IsDir() {
		return was, nil // an NFS server has none that is removed
	}
	if err != nil {
		return layers.Attr{}, err
	}
	a := local.AttrOf(&stx)
	a.Nlink = was.Nlink
	return a, nil
}

// attrOfDir returns the attributes of a directory that the upper has: no lower is
// asked, and no source waited for.
func (fs *FS) attrOfDir(n *node) (layers.Attr, error) {
	d, err := fs.upperDir(n)
	if err != nil {
		return layers.Attr{}, err
	}
	defer fs.dirs.release(d)
	var stx unix.Statx_t
	if err := sys.Statx(d.fd, "", &stx); err != nil {
		return layers.Attr{}, err
	}
	f := found{attr: local.AttrOf(&stx), upper: true}
	n.mu.RLock()
	f.lowers = n.lowers
	n.mu.RUnlock()
	fs.dirAttr(&f)
	return f.attr, nil
}

func (n *node) isRegular() bool { return n.typ == unix.S_IFREG }

func (n *node) upperID() fileID {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.upID
}

// attrByInode is for a file whose name we know no more, or never did: the index
// or another name may.
func (fs *FS) attrByInode(n *node) (layers.Attr, error) {
	fd, err := fs.openUpper(n)
	if err != nil {
		return layers.Attr{}, err
	}
	defer unix.Close(fd)
	return fs.attrOfHandle(n, fd)
}

// attrOfHandle returns the attributes of the upper inode behind fd.
func (fs *FS) attrOfHandle(n *node, fd int) (layers.Attr, error) {
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		return layers.Attr{}, err
	}
	a := local.AttrOf(&stx)
	n.mu.RLock()
	pending, obj := n.pending, n.obj
	indexed, unnamed := n.indexed, n.dead != nil
	if n.data != nil {
		a.Blocks = n.data.attr.Blocks
	}
	n.mu.RUnlock()
	switch {
	case hasObject(pending):
		if err := fs.pendingAttr(&a, pending, obj); err != nil {
			return layers.Attr{}, err
		}
		a.Nlink -= min(a.Nlink, 1)
	case indexed && !unnamed:
		a.Nlink, _ = fs.linksShown(&a, fd, "")
	}
	return a, nil
}

// attrBelow returns the attributes of a file that lies in a lower only.
func (fs *FS) attrBelow(ctx context.Context, n *node) (layers.Attr, error) {
	n.mu.RLock()
	if len(n.lowers) == 0 {
		n.mu.RUnlock()
		return layers.Attr{}, unix.ESTALE
	}
	r := n.lowers[0]
	dirs, data := len(n.lowers), n.data
	n.mu.RUnlock()
	a, named, err := fs.statBelow(ctx, n, &r)
	if !named {
		return n.attrHeld()
	}
	if fs.cfg.AsCaller && errors.Is(err, unix.EACCES) && n.isRegular() {
		if held, herr := n.attrHeld(); herr == nil {
			a, err = held, nil // who has it open may know
		}
	}
	if err != nil {
		return layers.Attr{}, gone(err)
	}
	if !sameFile(&a, r.attr) || !r.layer.isLocal() && a.IsRegular() && a.Version() != r.attr.Version() {
		return layers.Attr{}, layers.ErrStale
	}
	if data != nil {
		a.Blocks = data.attr.Blocks
	}
	switch {
	case n.isDir() && dirs > 1:
		a.Nlink = 1
	case fs.upper != nil && canIndex(&r):
		r.attr = &a
		a.Nlink = fs.linksLeft(&r)
	}
	return a, nil
}

// attrHeld returns the attributes of a lower file that has no name that we know,
// but others: by a descriptor that somebody has.
func (n *node) attrHeld() (layers.Attr, error) {
	n.mu.RLock()
	fd, _ := n.dupLowerFd()
	n.mu.RUnlock()
	if fd < 0 {
		return layers.Attr{}, unix.ESTALE
	}
	defer unix.Close(fd)
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		return layers.Attr{}, err
	}
	return local.AttrOf(&stx), nil
}

// statBelow looks at n's place in the lower r. Without a name n has none.
func (fs *FS) statBelow(ctx context.Context, n *node, r *lowerRef) (a layers.Attr, named bool, err error) {
	if d, ok := n.dentry(); ok && r.layer.isLocal() {
		if dir, ok := fs.lowerPlace(d, r); ok {
			defer fs.dirs.release(dir)
			var stx unix.Statx_t
			err := sys.Statx(dir.fd, d.name, &stx)
			return local.AttrOf(&stx), true, err
		}
	}
	path, ok := n.pathIn(r)
	if !ok {
		return layers.Attr{}, false, nil
	}
	a, err = r.layer.Stat(ctx, path)
	return a, true, err
}

// sameFile reports whether a can be the file that was looked up as b: the same
// inode, or, where a layer has none, the same version.
func sameFile(a, b *layers.Attr) bool {
	if a.Type() != b.Type() {
		return false
	}
	if a.Has(layers.KnownIno) && b.Has(layers.KnownIno) {
		return idOf(a).is(idOf(b))
	}
	return !a.IsRegular() || a.Size == b.Size && a.Mtime == b.Mtime
}

// SetAttr implements fuse.RawFileSystem.
func (fs *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if err := fs.setAttr(ctx, n, in); err != nil {
		return fs.status("setattr", n, "", err)
	}
	a, err := fs.attr(ctx, n)
	if err != nil {
		return fs.status("setattr", n, "", err)
	}
	out.SetTimeout(n.attrTimeout(a.Mode))
	fillAttr(&out.Attr, n, &a)
	return fuse.OK
}

func (fs *FS) setAttr(ctx context.Context, n *node, in *fuse.SetAttrIn) error {
	if fs.ReadOnly() {
		return unix.EROFS
	}
	if size, ok := in.GetSize(); ok {
		if size > 1<<63-1 {
			return unix.EFBIG
		}
		if in.Valid&fuse.FATTR_FH == 0 {
			if err := fs.may(n, unix.W_OK); err != nil {
				return err
			}
		}
		if err := fs.truncate(ctx, n, int64(size)); err != nil {
			return err
		}
	}
	if in.Valid&^(fuse.FATTR_FH|fuse.FATTR_LOCKOWNER) == 0 {
		// What is left of a chown to nobody else, which drops suid and sgid too, or
		// what comes before a write to what had capabilities.
		if n.isRootsWrite(&in.Caller) {
			return nil
		}
		if err := fs.mayDrop(ctx, n, &in.Caller); err != nil {
			return err
		}
		return fs.dropPrivileges(ctx, n, &in.Caller)
	}
	if in.Valid&^(fuse.FATTR_SIZE|fuse.FATTR_FH|fuse.FATTR_LOCKOWNER|fuse.FATTR_KILL_SUIDGID) == 0 {
		if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
			pending := n.isPending()
			return fs.asDaemon(func() error {
				return fs.changeUpper(n, func(fd int) error { return fs.killPriv(fd, pending, &in.Caller) })
			})
		}
		return nil
	}
	return fs.change(ctx, n, func(fd int, _ bool) error { return applyAttr(fd, n, in) })
}

// applyAttr makes the changes of in on the inode behind the O_PATH descriptor
// fd. The owner comes first: changing it drops suid and sgid.
func applyAttr(fd int, n *node, in *fuse.SetAttrIn) error {
	uid, gid := -1, -1
	ids := &n.fs.cfg.IDs
	if v, ok := in.GetUID(); ok {
		uid = int(ids.storeUID(v))
	}
	if v, ok := in.GetGID(); ok {
		gid = int(ids.storeGID(v))
	}
	if uid >= 0 || gid >= 0 {
		err := n.fs.chown(fd, n, &in.Caller, uid, gid)
		if err == unix.EPERM && ids.squash() {
			// What is squashed shows one owner whatever the layer has: a chown that the
			// daemon may not make changes nothing that could be seen but suid and sgid.
			err = n.fs.chown(fd, n, &in.Caller, -1, -1)
		}
		if err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if err := sys.Chmod(fd, "", mode&0o7777); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		return sys.Utimes(fd, "", timesOf(in))
	}
	return nil
}

// timesOf returns the times in sets; what it does not set is left as it is.
func timesOf(in *fuse.SetAttrIn) [2]unix.Timespec {
	one := func(set, now uint32, sec uint64, nsec uint32) unix.Timespec {
		switch {
		case in.Valid&now != 0:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		case in.Valid&set != 0:
			return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
		}
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return [2]unix.Timespec{
		one(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		one(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
}

// touch sets atime and mtime to now on the inode behind fd.
func touch(fd int) error {
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	return sys.Utimes(fd, "", [2]unix.Timespec{omit, {Nsec: unix.UTIME_NOW}})
}
