package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// Files that lie on another host are read through objects of the extent store.
// A read-only one is a cache. On the first modification the object is adopted:
// the upper gets a stub, an empty inode with all metadata and the kernel's
// metacopy mark, that names the object, and the file is pending.
//
// A further name of the stub in WORK/stubs, made before any other, tells at the
// next mount which objects still have a file: one whose stub has no other name
// goes.

func hasObject(id extent.ID) bool { return id != extent.ID{} }

// openObject makes h a handle of a remote or pending file.
func (fs *FS) openObject(ctx context.Context, h *handle) error {
	n := h.n
	if n.isPending() {
		var err error
		if h.fd, err = fs.openData(n, h.flags); err != nil { // the stub
			return err
		}
	}
	n.mu.Lock()
	if hasObject(n.pending) && h.fd < 0 {
		n.mu.Unlock() // it came up just now
		return fs.openObject(ctx, h)
	}
	if n.dataInUpper() {
		n.mu.Unlock() // it turned into an ordinary file just now
		h.close()
		return fs.open(ctx, h)
	}
	if err := fs.needObject(n); err != nil {
		n.mu.Unlock()
		h.close()
		return err
	}
	if !fs.ahead.off {
		h.stream = &stream{ahead: &fs.ahead}
	}
	n.admitLocked(h)
	src, obj, pending := n.src, n.obj, hasObject(n.pending)
	n.mu.Unlock()
	if !pending {
		defer src.bringXattrs(ctx, h)()
	}
	if pending {
		return nil
	}
	if obj != nil {
		if whole, err := fs.bringSmall(ctx, h, obj, src); whole || isAway(err) {
			return nil
		}
	}
	// The source is opened now, not at the first read: its handle then survives
	// a rename there. One that cannot be reached will be asked again by a read.
	_, err := src.open(ctx)
	if err == nil || obj != nil && isAway(err) {
		return nil
	}
	if errors.Is(err, ErrDetached) && h.writable() {
		return nil // it may be cut to nothing next, with O_TRUNC, and is ours then
	}
	fs.dropHandle(h)
	return err
}

func (n *node) isPending() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return hasObject(n.pending)
}

func (fs *FS) dropHandle(h *handle) {
	fs.handles.remove(h.id)
	h.stream.end()
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.open, h.id)
	if len(n.open) == 0 {
		n.leaveMode()
		n.closeObject()
	}
	h.close() // a copy-up may have given it a descriptor
}

// needObject opens the object of n, which is remote or pending. The caller holds
// n.mu.
func (fs *FS) needObject(n *node) (err error) {
	if n.src != nil {
		return nil
	}
	if hasObject(n.pending) {
		obj, err := fs.store.Pending(n.pending)
		if err != nil {
			return err
		}
		n.obj, n.src = obj, fs.sourceOf(n.pending, obj)
		fs.fill.opened(n.pending)
		return nil
	}
	if len(n.lowers) == 0 {
		return unix.ESTALE
	}
	r := &n.lowers[0]
	if !r.attr.Has(layers.KnownSize | layers.KnownTimes) {
		// An image alone knows no version, and of some files no size: what would be
		// read, or completed later, could be anything.
		return fmt.Errorf("size and time of %q are not known without its source: %w", string(r.path), layers.ErrOffline)
	}
	fs.touch(r)
	if n.src = fs.early.take(r); n.src == nil {
		n.src = newSource(r.layer.Layer, r.path, r.attr)
		n.src.busy = &fs.fill.demand
	}
	store := fs.cache()
	if store == nil {
		return nil
	}
	if n.obj, err = store.Cached(cacheSource(r)); err != nil {
		// No room for a copy is no reason not to read, nor that others are at work.
		if !errors.Is(err, unix.EBUSY) {
			fs.log.Warn("read without a cache", "path", string(r.path), "cause", err)
		}
		n.obj = nil
	}
	return nil
}

// sourceOf is where the pending object id has its missing extents from.
func (fs *FS) sourceOf(id extent.ID, obj *extent.Object) *source {
	from := obj.Source()
	want := from.Attr()
	s := newSource(fs.layerByID(from.LayerID), from.Path, &want)
	s.busy = &fs.fill.demand
	s.ownedBy(fs, id)
	s.shared.store, s.shared.of = fs.shared, from
	return s
}

func cacheSource(r *lowerRef) extent.Source {
	return extent.Source{LayerID: r.layer.ID(), Path: r.path, Version: r.attr.Version(), Mode: r.attr.Mode}
}

func (fs *FS) layerByID(id string) layers.Layer {
	for _, l := range fs.lowers {
		if l.ID() == id {
			return l.Layer
		}
	}
	return nil
}

// readable is what a remote or pending file is read through.
type readable struct {
	obj *extent.Object
	src *source
}

// closeObject lets go of what n's last handle needed. The caller holds n.mu.
func (n *node) closeObject() {
	n.retired = append(n.retired, readable{n.obj, n.src})
	n.obj, n.src = nil, nil
	for _, r := range n.retired {
		if r.obj != nil {
			if err := r.obj.Close(); err != nil {
				n.fs.log.Error("object not closed", "cause", err)
			}
		}
		if r.src != nil {
			r.src.close()
		}
	}
	n.retired = nil
}

// retireObject takes n's object out of use. A read under way, which began with
// it, ends with it: it stays open until the last handle has gone. The caller
// holds n.mu.
func (n *node) retireObject() {
	if len(n.open) == 0 {
		n.closeObject()
		return
	}
	if n.src != nil {
		n.retired = append(n.retired, readable{n.obj, n.src})
		n.obj, n.src = nil, nil
	}
}

// useObject makes sure that n's handles read and write what n's pending object
// holds: those that came while it was adopted have another of the same source.
// The caller holds n.mu.
func (fs *FS) useObject(n *node) error {
	if n.src == nil {
		return nil
	}
	n.src.ownedBy(fs, n.pending)
	obj, err := fs.store.Pending(n.pending)
	if err != nil {
		return err
	}
	if obj == n.obj {
		return obj.Close()
	}
	n.retired = append(n.retired, readable{n.obj, nil})
	n.obj = obj
	return nil
}

// makePending brings up a remote file without its data. The caller has n's
// flight and does not hold n.mu.
func (fs *FS) makePending(ctx context.Context, n *node) error {
	n.mu.Lock()
	held := n.src != nil
	err := fs.needObject(n)
	if err == nil && !held && len(n.open) == 0 {
		defer func() {
			n.mu.Lock()
			if len(n.open) == 0 {
				n.closeObject()
			}
			n.mu.Unlock()
		}()
	}
	if err == nil && n.obj == nil {
		n.obj, err = fs.store.Cached(cacheSource(&n.lowers[0]))
	}
	obj := n.obj
	if err == nil {
		// The handles it was opened for may all close before we are done.
		defer obj.Hold()()
	}
	n.mu.Unlock()
	if err != nil {
		return err
	}
	src, err := fs.copySource(ctx, n)
	if err != nil {
		return err
	}
	fs.ending.coming.RLock() // a detach sees it pending, or it does not become that
	defer fs.ending.coming.RUnlock()
	if fs.Detached() {
		return ErrDetached
	}
	id, err := fs.store.Adopt(obj)
	if err != nil {
		return err
	}
	if fs.copies.Owner && src.Attr.Has(layers.KnownOwner) {
		if err := fs.charge(id, &src.Attr); err != nil {
			fs.log.Warn("pending data is charged to root", "object", id.String(), "cause", err)
		}
	}
	if src.Xattrs == nil {
		src.Xattrs = layers.Xattrs{}
	}
	src.Xattrs[fs.cfg.Format.Name(whiteout.Metacopy)] = nil
	src.Xattrs[fs.cfg.Format.Name(whiteout.Object)] = []byte(id.String())
	err = fs.bringUp(ctx, n, src, func(c *copyup.Copy) error { return c.LinkTo(fs.stubs, id.String()) }, id)
	if err != nil {
		_ = sys.Unlink(fs.stubs, id.String())
		if rerr := fs.store.Remove(id); rerr != nil {
			fs.log.Warn("object left for the next mount to sweep", "object", id.String(), "cause", rerr)
		}
		n.mu.Lock()
		n.retireObject() // it was adopted: the next open makes another
		if len(n.open) > 0 {
			_ = fs.needObject(n)
		}
		n.mu.Unlock()
		return err
	}
	fs.fill.add(id, n)
	return nil
}

// pendingAttr shows the size of the object instead of the stub's.
func (fs *FS) pendingAttr(a *layers.Attr, id extent.ID, obj *extent.Object) error {
	if fs.store == nil {
		return nil // it is looked at only, and Check looks at objects by itself
	}
	if obj == nil {
		var err error
		if obj, err = fs.store.Pending(id); err != nil {
			return err
		}
		defer obj.Close()
	}
	a.Size = obj.Size()
	a.Blocks = (a.Size + 511) / 512
	return nil
}

// readObject reads through the object, or straight from the source where there
// is no place for one.
func (h *handle) readObject(ctx context.Context, b []byte, off int64) (int, error) {
	n := h.n
	n.mu.RLock()
	obj, src := n.obj, n.src
	n.mu.RUnlock()
	if src == nil {
		v, err := h.upperView() // it turned into an ordinary file just now
		if err != nil || v.fd < 0 || v.pending {
			return 0, cmp.Or(err, error(unix.EBADF))
		}
		return sys.Pread(v.fd, b, off)
	}
	var got int
	var err error
	if obj == nil {
		got, err = src.ReadAt(ctx, b, off)
	} else {
		got, err = obj.ReadAt(ctx, src, b, off)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return got, err
}

// sweepObjects removes pending objects whose file has no name any more, and
// stubs' own names without an object.
func (fs *FS) sweepObjects(ctx context.Context) error {
	ids, err := fs.store.Pendings()
	if err != nil {
		return err
	}
	known := make(map[string]bool, len(ids))
	for _, id := range ids {
		has, err := fs.stubHas(id)
		if err != nil {
			return err
		}
		if has {
			known[id.String()] = true
			continue
		}
		if err := fs.store.Remove(id); err != nil {
			return err
		}
		_ = sys.Unlink(fs.stubs, id.String())
	}
	entries, err := local.ReadDirAt(ctx, fs.stubs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, err := extent.ParseID(e.Name)
		if known[e.Name] || err != nil {
			continue
		}
		// One that has a name and says that its content is in the object that is not
		// there stays for somebody to look at.
		if has, err := fs.stubHas(id); err == nil && !has {
			_ = sys.Unlink(fs.stubs, e.Name)
		}
	}
	return nil
}

// stubHas reports whether the stub of the object id has a name in the tree, and has
// its content in that object still: neither in itself nor, after a conflict, in another.
func (fs *FS) stubHas(id extent.ID) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(fs.stubs, id.String(), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || st.Nlink < 2 {
		return false, ignoreGone(err)
	}
	for _, x := range []string{whiteout.Metacopy, whiteout.Object} {
		v, err := sys.Getxattr(fs.stubs, id.String(), fs.cfg.Format.Name(x))
		if err != nil {
			return false, ignoreNoXattr(err)
		}
		if x == whiteout.Object && string(v) != id.String() {
			return false, nil
		}
	}
	return true, nil
}

// bury removes what a file without names, and now without handles, leaves.
func (fs *FS) bury(n *node) {
	n.mu.Lock()
	id := n.pending
	n.pending = extent.ID{}
	n.mu.Unlock()
	if !hasObject(id) {
		return
	}
	fs.dropPending(id)
	fs.fill.drop(id)
}
