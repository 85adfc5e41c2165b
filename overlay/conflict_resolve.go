package overlay

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// Resolution is the operator's word about a file in conflict.
type Resolution struct {
	// KeepLocal makes what is here the file: what only the source had reads as zeros
	// from then on. Otherwise the source's present version takes the place of what is
	// here, as far as data goes: owner, mode and xattrs stay.
	KeepLocal bool

	// Loss says that KeepLocal may give up bytes that only the source had.
	Loss bool

	// Aside is the name, in the same directory, of a copy of what is here; what is
	// missing are holes there. Empty: what was written here is given up.
	Aside string
}

// Why a conflict is not resolved.
var (
	ErrNoConflict = fmt.Errorf("not in conflict with its source: %w", unix.ENODATA)
	ErrLoss       = fmt.Errorf("bytes that only the source had would be lost: %w", unix.ENOTEMPTY)
)

// resolve ends the conflict of n.
func (fs *FS) resolve(ctx context.Context, n *node, how Resolution) error {
	if fs.store == nil || !n.isRegular() {
		return ErrNoConflict
	}
	if err := fs.flights.enter(ctx, n); err != nil {
		return err
	}
	defer fs.flights.leave(n)
	n.mu.RLock()
	id := n.pending
	n.mu.RUnlock()
	if !hasObject(id) {
		return ErrNoConflict
	}
	switch kind, _, err := fs.conflictOf(id); {
	case err != nil:
		return err
	case kind != conflictOpen:
		return ErrNoConflict
	}
	obj, err := fs.store.Pending(id)
	if err != nil {
		return err
	}
	defer obj.Close()
	// What was kept before a restart is held against its sums: what is damaged is
	// missing, and nothing that is sound is taken for that.
	obj.PresentRange(0, obj.Size())
	if how.KeepLocal {
		return fs.keepLocal(n, id, obj, how.Loss)
	}
	return fs.takeSource(ctx, n, id, obj, how.Aside)
}

// keepLocal makes zeros of what the source alone had. The file is whole then.
func (fs *FS) keepLocal(n *node, id extent.ID, obj *extent.Object, loss bool) error {
	n.mu.Lock()
	defer n.mu.Unlock() // or what is written to a gap now would be gone
	if obj.Missing() > 0 && !loss {
		return ErrLoss
	}
	for gaps := obj.Gaps(0, fillBatched); len(gaps) > 0; gaps = obj.Gaps(0, fillBatched) {
		for _, g := range gaps {
			if err := obj.Punch(g.Off, g.Len); err != nil {
				return err
			}
		}
	}
	if !fs.cfg.Volatile {
		if err := obj.Sync(false); err != nil {
			return err
		}
	}
	if err := fs.setConflict(id, conflictKept, "by the operator"); err != nil {
		return err
	}
	fs.fill.inConflict(id, false)
	return nil
}

// takeSource gives the stub of n another object, which knows the source's present
// version and has nothing of it. That takes one setxattr.
func (fs *FS) takeSource(ctx context.Context, n *node, id extent.ID, obj *extent.Object, aside string) error {
	src := obj.Source()
	l := fs.layerByID(src.LayerID)
	if l == nil {
		return layers.ErrOffline
	}
	now, err := l.Stat(ctx, src.Path)
	if err != nil {
		return err
	}
	if !now.IsRegular() {
		return layers.ErrNotRegular
	}
	if !now.Has(layers.KnownSize | layers.KnownTimes) {
		return layers.ErrOffline
	}
	src.Version, src.Mode = now.Version(), now.Mode

	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.open) > 0 {
		return unix.EBUSY // who has it open, or mapped, would see two versions
	}
	if n.pending != id || n.dead != nil {
		return unix.ESTALE
	}
	stub, err := sys.OpenAt(fs.stubs, id.String(), unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(stub)
	if !idOfFd(stub).is(n.upID) {
		return unix.ESTALE
	}
	if aside != "" {
		if err := fs.putAside(ctx, n, stub, obj, aside); err != nil {
			return err
		}
	}
	next, err := fs.newObjectFor(stub, src)
	if err != nil {
		return err
	}
	if err := fs.pointTo(n, stub, next, &now); err != nil {
		_ = sys.Unlink(fs.stubs, next.String())
		_ = fs.store.Remove(next)
		return err
	}
	_ = sys.Removexattr(stub, "", fs.cfg.Format.Name(whiteout.Conflict)) // it is about the former object
	if err := fs.syncStub(next); err != nil && !fs.cfg.Volatile {
		fs.log.Error("the end of a conflict may not be durable", "source", string(src.Path), "cause", err)
	} else {
		fs.dropPending(id) // or the next mount finds which of the two it is
	}
	fs.fill.replace(id, next)
	if fs.notify != nil {
		go fs.notify.InodeNotify(n.id, 0, 0) // its pages are of the old version; not with n.mu held
	}
	return nil
}

// newObjectFor makes a pending object for src and enters it for the stub, by which it
// is not known yet.
func (fs *FS) newObjectFor(stub int, src extent.Source) (extent.ID, error) {
	obj, id, err := fs.store.NewPending(src)
	if err != nil {
		return id, err
	}
	defer obj.Close()
	var st unix.Stat_t
	if fs.copies.Owner && unix.Fstat(stub, &st) == nil {
		if err := sys.Fchown(obj.DataFd(), int(st.Uid), int(st.Gid)); err != nil {
			fs.log.Warn("pending data is charged to root", "object", id.String(), "cause", err)
		}
	}
	if err := sys.LinkFd(stub, fs.stubs, id.String()); err != nil {
		_ = fs.store.Remove(id)
		return id, err
	}
	return id, nil
}

// pointTo makes id the object of n, whose stub it is. The time comes first, as with
// any write. n.mu is held, and nobody has n open.
func (fs *FS) pointTo(n *node, stub int, id extent.ID, now *layers.Attr) error {
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	mtime := unix.Timespec{Sec: now.Mtime.Sec, Nsec: int64(now.Mtime.Nsec)}
	if err := sys.Utimes(stub, "", [2]unix.Timespec{omit, mtime}); err != nil {
		return err
	}
	return fs.swaps.do(func() error {
		err := sys.Setxattr(stub, "", fs.cfg.Format.Name(whiteout.Object), []byte(id.String()), 0)
		if err == nil {
			n.pending = id
		}
		return err
	})
}

// putAside makes name, beside n, a copy of what is here of n.
func (fs *FS) putAside(ctx context.Context, n *node, stub int, obj *extent.Object, name string) error {
	d, ok := n.dentry()
	if !ok {
		return errNameless
	}
	if !layers.ValidName(name) || fs.reserved(d.parent, name) {
		return unix.EINVAL
	}
	if _, err := fs.lookup(ctx, d.parent, name); !errors.Is(err, unix.ENOENT) {
		if err == nil {
			err = unix.EEXIST
		}
		return err
	}
	dir, err := fs.upperDir(d.parent)
	if err != nil {
		return err
	}
	defer fs.dirs.release(dir)
	var stx unix.Statx_t
	if err := sys.Statx(stub, "", &stx); err != nil {
		return err
	}
	src := copyup.Source{Attr: local.AttrOf(&stx), Size: obj.Size()}
	src.Attr.Size = src.Size
	if src.Xattrs, err = local.XattrsAt(stub, ""); err != nil {
		return err
	}
	for _, x := range []string{whiteout.Metacopy, whiteout.Object, whiteout.Conflict} {
		delete(src.Xattrs, fs.cfg.Format.Name(x))
	}
	data := dup(obj.DataFd())
	if data < 0 {
		return unix.EMFILE
	}
	src.File = local.NewFile(data, src.Attr)
	defer src.File.Close()
	c, err := copyup.File(ctx, src, copyup.Place{Dir: dir.fd, Name: name, Work: fs.copyWork()}, fs.copies)
	if err != nil {
		return err
	}
	if err = fs.blank(c.Fd, obj, &src.Attr); err == nil {
		err = c.Publish()
	}
	if err != nil {
		c.Discard()
		return err
	}
	unix.Close(c.Fd)
	if fs.notify != nil {
		go fs.notify.InodeNotify(d.parent.id, 0, 0) // its listing has one name more
	}
	return copyup.SyncDir(dir.fd, fs.copies)
}

// blank makes holes of what obj misses in the copy fd of its data file: what lies there
// has no meaning.
func (fs *FS) blank(fd int, obj *extent.Object, was *layers.Attr) error {
	off := int64(0)
	for gaps := obj.Gaps(off, fillBatched); len(gaps) > 0; gaps = obj.Gaps(off, fillBatched) {
		for _, g := range gaps {
			err := sys.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, g.Off, g.Len)
			if err != nil {
				return err
			}
			off = g.Off + g.Len
		}
	}
	if off == 0 {
		return nil
	}
	if err := copyup.RestoreTimes(fd, was); err != nil || fs.cfg.Volatile {
		return err
	}
	return sys.Fsync(fd)
}
