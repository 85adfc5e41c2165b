package overlay

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// as runs f with the rights of the caller of a request: what f makes belongs to
// the caller and is charged to the caller's quota. f does not run if the switch
// fails.
func (fs *FS) as(c *fuse.Caller, f func() error) error {
	if !fs.switches(c) {
		return f()
	}
	return sys.As(fs.cred(c), f)
}

// switches reports whether the caller c acts in the layers as somebody else than
// the daemon.
func (fs *FS) switches(c *fuse.Caller) bool {
	return fs.super && (c.Uid != 0 || c.Gid != 0 || fs.cfg.IDs.Changed())
}

// birth is a name about to be made in a directory.
type birth struct {
	fs     *FS
	n      *node // the directory, in the upper
	dir    *dirFD
	name   string
	caller *fuse.Caller
	white  bool // a whiteout stands at the name
	aside  bool // it cannot be made in place, but in a nursery
	below  bool // lowers are below the directory: a new directory must hide them
	claims claimed
}

func (b *birth) end() {
	b.claims.release()
	b.fs.dirs.release(b.dir)
}

// bear prepares the making of name in n: the directory comes up first.
func (fs *FS) bear(ctx context.Context, n *node, name string, caller *fuse.Caller) (*birth, error) {
	if fs.ReadOnly() {
		return nil, unix.EROFS
	}
	if n == nil {
		return nil, unix.ESTALE
	}
	if len(name) > layers.NameMax {
		return nil, unix.ENAMETOOLONG
	}
	if fs.reserved(n, name) {
		return nil, unix.EPERM
	}
	if err := n.mayGain(); err != nil {
		return nil, err
	}
	if err := fs.up(ctx, n, whole); err != nil {
		return nil, err
	}
	dir, err := fs.upperDir(n)
	if err != nil {
		return nil, err
	}
	b := &birth{fs: fs, n: n, dir: dir, name: name, caller: caller}
	// Whoever may write to the directory as it is shown may not on disk, where it
	// belongs to somebody else.
	b.aside = fs.super && fs.cfg.IDs.Changed()
	if fs.cfg.Mode == Overlay {
		n.mu.RLock()
		b.below = len(n.lowers) > 0
		n.mu.RUnlock()
		var stx unix.Statx_t
		if b.below && sys.Statx(dir.fd, name, &stx) == nil {
			b.white = whiteout.Is(ptr(local.AttrOf(&stx)))
		}
	}
	if err := b.claim(ctx); err != nil {
		b.end()
		return nil, err
	}
	return b, nil
}

// mode applies the caller's umask unless the directory has a default ACL, which
// takes its place (the kernel leaves this to us: CAP_DONT_MASK).
func (b *birth) mode(mode, umask uint32) uint32 {
	if umask&mode == 0 {
		return mode
	}
	if _, err := sys.Getxattr(b.dir.fd, ".", "system.posix_acl_default"); err == nil {
		return mode
	}
	return mode &^ umask
}

// born looks the new name up and makes its node.
func (fs *FS) born(ctx context.Context, b *birth, out *fuse.EntryOut) (*node, error) {
	// What was just made is looked at without a descriptor: that it is there must
	// not end in an error. Only what another host made before us needs a lookup.
	f := &found{}
	err := fs.foundUpper(f, b.dir.fd, b.name, b.n)
	if err == nil && !f.attr.IsDir() && (f.attr.Nlink > 1 || f.attr.Size > 0 && f.attr.IsRegular()) {
		f, err = fs.lookup(ctx, b.n, b.name)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, unix.ESTALE // another host has removed it again: the kernel begins anew
	}
	if err != nil {
		return nil, err
	}
	n := fs.table.adopt(fs, f, b.n, b.name)
	fs.fillEntry(out, n, &f.attr)
	return n, nil
}

// bornFile is born for the regular file that was just opened as fd, which tells all
// there is to know of it unless another host made it before us.
func (fs *FS) bornFile(ctx context.Context, b *birth, fd int, out *fuse.EntryOut) (*node, error) {
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		return nil, err
	}
	a := local.AttrOf(&stx)
	// Another host may even have removed it again: then it is open here as there.
	if a.IsRegular() && (a.Nlink == 0 || a.Nlink == 1 && a.Size == 0) {
		f := &found{attr: a, upper: true, upID: idOf(&a), keys: []identity{identityOf(fs.upper, "", &a)}}
		n := fs.table.adopt(fs, f, b.n, b.name)
		fs.fillEntry(out, n, &f.attr)
		return n, nil
	}
	n, err := fs.born(ctx, b, out)
	if err == nil && !n.upperID().is(idOf(&a)) {
		fs.Forget(n.id, 1)
		return nil, unix.ESTALE
	}
	return n, err
}

// Create implements fuse.RawFileSystem.
func (fs *FS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	parent := fs.table.get(in.NodeId)
	b, err := fs.bear(ctx, parent, name, &in.Caller)
	if err == unix.EEXIST && int(in.Flags)&unix.O_EXCL == 0 {
		err = unix.ESTALE // the kernel looks it up again, and opens it
	}
	if err != nil {
		return fs.statusIn("create", parent, name, err)
	}
	defer b.end()
	fd, err := b.createFile(ctx, in)
	if err != nil {
		return fs.statusIn("create", parent, name, err)
	}
	h := &handle{flags: in.Flags &^ (unix.O_CREAT | unix.O_EXCL), uid: fs.cfg.IDs.storeUID(in.Uid), fd: fd}
	if h.n, err = fs.bornFile(ctx, b, fd, &out.EntryOut); err != nil {
		unix.Close(fd)
		return fs.statusIn("create", parent, name, err)
	}
	h.n.mu.Lock()
	h.n.admitLocked(h)
	h.n.mu.Unlock()
	fs.openReply(h, &out.OpenOut)
	out.SetAttrTimeout(h.n.attrTimeout(out.Mode))
	return fuse.OK
}

func idOfFd(fd int) fileID {
	id, _ := idAt(fd, "")
	return id
}

// createFile makes a regular file. Over a whiteout it is made nameless and then
// renamed over it: at no instant does what lies below show through.
func (b *birth) createFile(ctx context.Context, in *fuse.CreateIn) (fd int, err error) {
	fd = -1
	mode := b.mode(in.Mode&0o7777, in.Umask)
	flags := dataFlags(in.Flags)
	if b.aside {
		err = b.viaNursery(func(b *birth, dirfd int, at string) error {
			return b.fs.as(b.caller, func() (err error) {
				fd, err = sys.Create(dirfd, at, flags|unix.O_EXCL, mode)
				return err
			})
		})
		if err != nil && fd >= 0 {
			unix.Close(fd)
		}
		return fd, err
	}
	if !b.white {
		// The kernel looked the name up: there is none. Another host may be faster.
		err = b.fs.as(b.caller, func() (err error) {
			excl := int(in.Flags) & unix.O_EXCL
			if b.fs.many() {
				excl = unix.O_EXCL // what was there before is not to be taken back
			}
			fd, err = sys.Create(b.dir.fd, b.name, flags|excl, mode)
			return err
		})
		if err == nil && b.fs.many() {
			err = b.wasFirst(ctx, idOfFd(fd))
			if err != nil {
				unix.Close(fd)
			}
		}
		if err == unix.EEXIST && int(in.Flags)&unix.O_EXCL == 0 {
			err = unix.ESTALE // the kernel looks it up again, and opens it
		}
		return fd, err
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		flags = flags&^unix.O_ACCMODE | unix.O_RDWR // O_TMPFILE wants to write
	}
	err = b.fs.as(b.caller, func() (err error) {
		fd, err = sys.Tmpfile(b.dir.fd, flags, mode)
		return err
	})
	if err != nil {
		return -1, err
	}
	if err = b.replaceWhiteout(func(temp string) error { return sys.LinkFd(fd, b.fs.work, temp) }); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// replaceWhiteout makes a temporary name in the work directory with f and
// renames it over the whiteout.
func (b *birth) replaceWhiteout(f func(temp string) error) error {
	temp := copyup.TempName()
	if err := f(temp); err != nil {
		return err
	}
	if err := sys.Rename(b.fs.work, temp, b.dir.fd, b.name, 0); err != nil {
		_ = sys.Unlink(b.fs.work, temp)
		return err
	}
	return nil
}

// Mknod implements fuse.RawFileSystem.
func (fs *FS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	parent := fs.table.get(in.NodeId)
	if fs.cfg.Mode == Overlay && in.Mode&unix.S_IFMT == unix.S_IFCHR && in.Rdev == 0 {
		return fuse.EPERM // would be a whiteout
	}
	f := func(b *birth, dirfd int, at string) error {
		mode := in.Mode&unix.S_IFMT | b.mode(in.Mode&0o7777, in.Umask)
		if !isDevice(in.Mode) {
			return fs.as(b.caller, func() error { return sys.Mknod(dirfd, at, mode, 0) })
		}
		// Whether the caller may make a device is the kernel's to say, and it did.
		if err := sys.Mknod(dirfd, at, mode, uint64(in.Rdev)); err != nil {
			return err
		}
		if err := fs.own(dirfd, at, b.caller); err != nil || mode&suidgid == 0 {
			return err
		}
		var stx unix.Statx_t // the chown took suid and sgid off
		if err := sys.Statx(dirfd, at, &stx); err != nil {
			return err
		}
		return sys.Chmod(dirfd, at, uint32(stx.Mode)&0o777|mode&0o7000)
	}
	return fs.make("mknod", cancel, parent, name, &in.Caller, out, func(b *birth, dirfd int, at string) error {
		if isDevice(in.Mode) && dirfd == b.dir.fd && fs.switches(b.caller) {
			return b.viaNursery(f) // it gets its owner before its name
		}
		return f(b, dirfd, at)
	})
}

func isDevice(mode uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFCHR || mode&unix.S_IFMT == unix.S_IFBLK
}

// Symlink implements fuse.RawFileSystem.
func (fs *FS) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	parent := fs.table.get(in.NodeId)
	return fs.make("symlink", cancel, parent, name, &in.Caller, out, func(b *birth, dirfd int, at string) error {
		return fs.as(b.caller, func() error { return sys.Symlink(target, dirfd, at) })
	})
}

// make makes what is neither regular file nor directory: in place or, over a
// whiteout, beside it in a place of the caller's and then over it.
func (fs *FS) make(op string, cancel <-chan struct{}, parent *node, name string, caller *fuse.Caller, out *fuse.EntryOut, f func(b *birth, dirfd int, at string) error) fuse.Status {
	ctx := begin(cancel, caller.Pid)
	defer ctx.end()
	b, err := fs.bear(ctx, parent, name, caller)
	if err != nil {
		return fs.statusIn(op, parent, name, err)
	}
	defer b.end()
	if b.white || b.aside {
		err = b.viaNursery(f)
	} else {
		err = f(b, b.dir.fd, name)
	}
	if err == nil {
		err = b.wasFirst(ctx, fileID{})
	}
	if err == nil {
		_, err = fs.born(ctx, b, out)
	}
	return fs.statusIn(op, parent, name, err)
}

// viaNursery makes the thing in a nursery and renames it into place, over the
// whiteout if there is one.
func (b *birth) viaNursery(f func(b *birth, dirfd int, at string) error) error {
	return b.inNursery(func(fd int) error {
		if err := f(b, fd, "x"); err != nil {
			return err
		}
		if b.white {
			return sys.Rename(fd, "x", b.dir.fd, b.name, 0)
		}
		return sys.Rename(fd, "x", b.dir.fd, b.name, unix.RENAME_NOREPLACE)
	})
}

// inNursery runs f on a temporary directory that belongs to the caller (the work
// directory itself is closed to others).
func (b *birth) inNursery(f func(dirfd int) error) error {
	fs, temp := b.fs, copyup.TempName()
	if err := sys.Mkdir(fs.work, temp, 0o700); err != nil {
		return err
	}
	defer copyup.RemoveTemp(fs.work, temp)
	if err := b.likeParent(temp); err != nil {
		return err
	}
	fd, err := sys.OpenAt(fs.work, temp, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

// likeParent gives a temporary directory what its children inherit: group and
// setgid bit, and the default ACL.
func (b *birth) likeParent(temp string) error {
	var stx unix.Statx_t
	if err := sys.Statx(b.dir.fd, "", &stx); err != nil {
		return err
	}
	if b.fs.super {
		uid := b.fs.cfg.IDs.storeUID(b.caller.Uid)
		if err := sys.Chown(b.fs.work, temp, int(uid), int(stx.Gid)); err != nil {
			return err
		}
	}
	if err := sys.Chmod(b.fs.work, temp, 0o700|uint32(stx.Mode)&unix.S_ISGID); err != nil {
		return err
	}
	acl, err := sys.Getxattr(b.dir.fd, "", "system.posix_acl_default")
	if err != nil {
		return ignoreNoXattr(err)
	}
	return sys.Setxattr(b.fs.work, temp, "system.posix_acl_default", acl, 0)
}

func (fs *FS) own(dirfd int, name string, c *fuse.Caller) error {
	if !fs.switches(c) {
		return nil
	}
	var stx unix.Statx_t
	if err := sys.Statx(dirfd, "", &stx); err != nil {
		return err
	}
	gid := int(fs.cfg.IDs.storeGID(c.Gid))
	if stx.Mode&unix.S_ISGID != 0 {
		gid = int(stx.Gid)
	}
	return sys.Chown(dirfd, name, int(fs.cfg.IDs.storeUID(c.Uid)), gid)
}

// Mkdir implements fuse.RawFileSystem.
func (fs *FS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	parent := fs.table.get(in.NodeId)
	b, err := fs.bear(ctx, parent, name, &in.Caller)
	if err != nil {
		return fs.statusIn("mkdir", parent, name, err)
	}
	defer b.end()
	mode := b.mode(in.Mode&0o7777, in.Umask)
	switch {
	case b.white || b.below && fs.lowersMayHave(ctx, b.n, name):
		err = b.mkdirOpaque(mode)
	case b.aside:
		err = b.viaNursery(func(b *birth, dirfd int, at string) error {
			return fs.as(b.caller, func() error { return sys.Mkdir(dirfd, at, mode) })
		})
	default:
		err = fs.as(b.caller, func() error { return sys.Mkdir(b.dir.fd, name, mode) })
	}
	if err == nil {
		err = b.wasFirst(ctx, fileID{})
	}
	if err == nil {
		_, err = fs.born(ctx, b, out)
	}
	return fs.statusIn("mkdir", parent, name, err)
}

// mkdirOpaque makes a directory that hides what lies below its name: made and
// marked in a nursery, then exchanged with the whiteout.
func (b *birth) mkdirOpaque(mode uint32) error {
	fs, temp := b.fs, copyup.TempName()
	if err := sys.Mkdir(fs.work, temp, 0o700); err != nil {
		return err
	}
	defer copyup.RemoveTemp(fs.work, temp)
	if err := b.likeParent(temp); err != nil {
		return err
	}
	nursery, err := sys.OpenAt(fs.work, temp, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(nursery)
	if err := fs.as(b.caller, func() error { return sys.Mkdir(nursery, "x", mode) }); err != nil {
		return err
	}
	if err := sys.Setxattr(nursery, "x", fs.cfg.Format.Name(whiteout.Opaque), []byte("y"), 0); err != nil {
		return err
	}
	if !b.white {
		return sys.Rename(nursery, "x", b.dir.fd, b.name, unix.RENAME_NOREPLACE)
	}
	return sys.Rename(nursery, "x", b.dir.fd, b.name, unix.RENAME_EXCHANGE)
}

// lowersMayHave reports whether a lower of the directory n has name, or cannot
// be asked without waiting for a source: then it may.
func (fs *FS) lowersMayHave(ctx context.Context, n *node, name string) bool {
	n.mu.RLock()
	lowers := n.lowers
	n.mu.RUnlock()
	for i := range lowers {
		r := &lowers[i]
		if !r.layer.isLocal() {
			return true
		}
		at := lowerRef{layer: r.layer, path: r.path.Join(name)}
		a, err := fs.statIn(ctx, n, r, name)
		if nothing(err) {
			if hidden, herr := fs.hiddenByOCI(ctx, &at); hidden || herr != nil {
				return herr != nil
			}
			continue
		}
		if err != nil {
			return true
		}
		white, err := fs.isWhite(ctx, &at, &a)
		return err != nil || !white
	}
	return false
}

// statusIn is status for an operation on a name, whose directory may be unknown.
func (fs *FS) statusIn(op string, n *node, name string, err error) fuse.Status {
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if errors.Is(err, unix.ELOOP) {
		err = unix.EEXIST
	}
	return fs.status(op, n, name, err)
}
