package overlay

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/local"
)

// whole copies all of a file's data.
const whole = -1

// More sizes: all of a file's data, although it is append-only or immutable.
const (
	appending = -2 // to append to it
	flagging  = -3 // to change its flags
)

// up makes sure that n is in the upper, with all its data. One goroutine brings a
// file up; others that need it wait and can be interrupted. Reads go on from the
// lower meanwhile.
func (fs *FS) up(ctx context.Context, n *node, size int64) error {
	_, err := fs.upCut(ctx, n, size)
	return err
}

// upCut is up, bringing up at most size bytes of a file's data (whole: all; bare:
// none is needed). cut says that it left some out: the file has size bytes now, and
// the present time.
func (fs *FS) upCut(ctx context.Context, n *node, size int64) (cut bool, err error) {
	if fs.upper == nil {
		return false, unix.EROFS
	}
	if n.isUp(size) {
		return false, nil
	}
	if fs.strange.Load() {
		return false, unix.ESTALE
	}
	ctx = untilKilled(ctx)
	if err := fs.roomForRemoval(ctx); err != nil {
		return false, err
	}
	err = fs.asOwner(n, func() (err error) {
		if n.isDir() {
			return fs.upDir(ctx, n)
		}
		cut, err = fs.upFile(ctx, n, size)
		return err
	})
	return cut, err
}

func (fs *FS) upFile(ctx context.Context, n *node, size int64) (cut bool, err error) {
	if err := fs.flights.enter(ctx, n); err != nil {
		return false, err
	}
	defer fs.flights.leave(n)
	if n.isUp(size) {
		return false, nil
	}
	began, below := fs.meter.now(), n.bytesBelow()
	if n.isUpper() {
		cut, err = fs.complete(ctx, n, size)
		fs.meter.cameUp(ctx, n, below, began, err)
		return cut, err
	}
	if fs.notice(n) {
		return false, nil // another host was faster
	}
	cut, err = fs.upLocked(ctx, n, size)
	if cut {
		below = size
	}
	fs.meter.cameUp(ctx, n, below, began, err)
	if err != nil {
		return false, err
	}
	if err := fs.upNames(ctx, n); err != nil {
		// They lead to the copy by the index.
		fs.log.Warn("names of a hard-linked file left below", "cause", err)
	}
	return cut, nil
}

// upNames gives a hard-linked file that came up under one of its names the
// others that we know: the upper then shows the same file whatever becomes of
// the index.
func (fs *FS) upNames(ctx context.Context, n *node) error {
	fs.tree.RLock()
	names := append([]dentry(nil), n.names...)
	fs.tree.RUnlock()
	if len(names) < 2 {
		return nil
	}
	for _, d := range names {
		if err := fs.ensureNamed(ctx, d, n); err != nil && !errors.Is(err, errChanged) {
			return err
		}
	}
	return nil
}

// upLocked is upCut for who has n's flight.
func (fs *FS) upLocked(ctx context.Context, n *node, size int64) (cut bool, err error) {
	if n.isRemote() && n.isRegular() && size != 0 {
		if fs.Detached() {
			return false, ErrDetached
		}
		err := fs.makePending(ctx, n)
		for range 2 {
			if errors.Is(err, errChanged) { // renamed on the way
				err = fs.makePending(ctx, n)
			}
		}
		return false, err
	}
	tries := 3
	if fs.many() {
		tries = sharedTries
	}
	for i := range tries {
		src, err := fs.copySource(ctx, n)
		if err != nil {
			if fs.many() && fs.notice(n) {
				return false, nil
			}
			return false, err
		}
		if err := mayComeUp(&src.Attr, size); err != nil {
			return false, err
		}
		switch {
		case size == bare && fs.leavesData(n):
			fs.asBare(&src)
		case size >= 0:
			src.Size = min(size, src.Size)
		}
		err = fs.upWith(ctx, n, src)
		if err != nil && fs.many() && fs.notice(n) {
			return false, nil
		}
		if !errors.Is(err, errChanged) {
			return n.isRegular() && src.Size < src.Attr.Size, err
		}
		if err := fs.pause(ctx, i); err != nil {
			return false, err
		}
	}
	return false, unix.EBUSY
}

// errChanged: the lower file changed while it was copied.
var errChanged = copyup.ErrChanged

func (fs *FS) upWith(ctx context.Context, n *node, src copyup.Source) error {
	if n.isRegular() && src.Size > 0 {
		f, err := fs.openBelow(ctx, n)
		if err != nil {
			return err
		}
		defer f.Close()
		src.File = f // of a metacopy not read: what it points to is there
	}
	if !n.isRegular() {
		return fs.bringUpNode(ctx, n, src)
	}
	return fs.bringUp(ctx, n, src, nil, extent.ID{})
}

func (n *node) isUpper() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.upper
}

// copySource gathers what is known of n in its lower.
func (fs *FS) copySource(ctx context.Context, n *node) (copyup.Source, error) {
	return despiteRenames(n, func() (copyup.Source, error) { return fs.copySourceOnce(ctx, n) })
}

func (fs *FS) copySourceOnce(ctx context.Context, n *node) (copyup.Source, error) {
	n.mu.RLock()
	if len(n.lowers) == 0 {
		n.mu.RUnlock()
		return copyup.Source{}, unix.ESTALE
	}
	r := n.lowers[0]
	dead := n.dead
	n.mu.RUnlock()
	path, ok := n.pathIn(&r)
	if !ok || dead != nil && r.layer.writable {
		return fs.copySourceOfHandle(n)
	}
	attr := *r.attr
	if r.layer.isLocal() {
		// A source is not asked: a write does not wait for it, and every fetch
		// compares with what was looked up.
		var err error
		if attr, err = r.layer.Stat(ctx, path); err != nil {
			return copyup.Source{}, gone(err)
		}
		if !sameFile(&attr, r.attr) {
			return copyup.Source{}, layers.ErrStale
		}
	}
	var err error
	src := copyup.Source{Attr: attr, Size: attr.Size, Flags: fs.flagsBelow(n, &r), Path: path}
	if !attr.Has(layers.KnownBare) {
		src.Xattrs, err = fs.xattrsAt(ctx, n, &r, path)
		// A layer that knows ctimes knows that there are some: they are not lost
		// because it is away.
		if err != nil && (!errors.Is(err, layers.ErrOffline) || attr.Has(layers.KnownCtime)) {
			return copyup.Source{}, gone(err)
		}
	}
	fs.seeACL(src.Xattrs, path)
	if fs.cfg.Mode == Overlay {
		src.Xattrs = fs.setOrigin(fs.ownXattrsOut(src.Xattrs), &r)
	} else {
		r.attr = &attr
		src.Origin = r.origin()
		delete(src.Xattrs, copyup.XattrOver) // of an earlier migration
	}
	if attr.Type() == unix.S_IFLNK {
		src.Target, err = r.layer.Readlink(ctx, path)
	}
	return src, err
}

// copySourceOfHandle is for a lower file whose name is gone: an open handle
// has it still.
func (fs *FS) copySourceOfHandle(n *node) (copyup.Source, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, h := range n.open {
		if h.lower == nil {
			continue
		}
		attr := h.lower.Attr()
		src := copyup.Source{Attr: attr, Size: attr.Size}
		if d, ok := h.lower.(layers.Descriptor); ok {
			var stx unix.Statx_t
			if err := sys.Statx(d.Fd(), "", &stx); err != nil {
				return src, err
			}
			src.Attr = local.AttrOf(&stx)
			src.Size = src.Attr.Size
			var err error
			if src.Xattrs, err = local.XattrsAt(d.Fd(), ""); err != nil {
				return src, err
			}
		}
		if fs.cfg.Mode == Overlay {
			src.Xattrs = fs.ownXattrsOut(src.Xattrs)
		}
		return src, nil
	}
	return copyup.Source{}, unix.ESTALE
}

// ownXattrsOut leaves out what a lower that once was an upper says about itself.
func (fs *FS) ownXattrsOut(x layers.Xattrs) layers.Xattrs {
	for name := range x {
		if _, ok := fs.cfg.Format.FromDisk(name); !ok {
			delete(x, name)
		}
	}
	return x
}

// bringUp copies a regular file and publishes it at its present name, or keeps it
// nameless if n has none any more. before runs on the complete copy.
func (fs *FS) bringUp(ctx context.Context, n *node, src copyup.Source, before func(*copyup.Copy) error, id extent.ID) error {
	dir, at, err := fs.placeFor(ctx, n)
	if err != nil {
		return err
	}
	defer func() { dir.release() }()
	claim, err := fs.claimCopy(ctx, n, dir)
	if err != nil {
		return err
	}
	at.Claim = claim
	c, err := copyup.File(ctx, src, at, fs.copies)
	if err != nil {
		return err
	}
	if index := fs.indexer(n, src); before == nil && index != nil {
		before = func(c *copyup.Copy) error { return index(c.Fd) }
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	endMove, err := n.moveLocks(c.Fd)
	if err != nil {
		c.Discard()
		return err
	}
	if err := fs.publish(ctx, n, c, &src, before, dir); err != nil {
		endMove(false)
		if n.indexed {
			fs.unindex(n, c.Fd)
		}
		c.Discard()
		return err
	}
	fs.isIndexed(n, c.Fd)
	if src.Bare {
		n.leaveData(&src)
	} else {
		n.data = nil
	}
	fs.switchOver(n, c.Fd, id)
	endMove(true)
	if src.Attr.AppendOnly {
		keepAppendOnly(fs, n, c.Fd)
	}
	fs.afterUp(ctx, n, &src, dir.at)
	claim.Release()
	unix.Close(c.Fd)
	return nil
}

// indexer returns what makes the copy of a hard-linked file known to the file's
// other names, nil if it has none. It gets a descriptor of the copy, which may be
// O_PATH, and runs with n.mu held.
func (fs *FS) indexer(n *node, src copyup.Source) func(fd int) error {
	n.mu.RLock()
	r := n.lowers[0]
	dead := n.dead != nil
	n.mu.RUnlock()
	r.attr = &src.Attr
	if _, named := n.dentry(); dead || !canIndex(&r) && (named || !r.layer.isLocal()) {
		return nil
	}
	return func(fd int) error {
		// What the count of links is made of comes first: where a crash leaves one
		// that is too low, the copy would be given up for the older lower file
		// while it has a name. Too high costs space.
		dir, name := fs.indexAt(&r)
		var err error
		if dir == fs.links {
			err = fs.enterIndex(fd, &r)
		}
		switch {
		case err != nil:
		case fs.cfg.Mode == Overlay:
			err = fs.setNlinkOf(fd, nlinkValue(fs.linksLeft(&r), 1))
		default:
			err = fs.mark(n, &r)
			if fs.many() && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE)) {
				err = errChanged // another host took the name away
			}
		}
		if err == nil && !fs.many() {
			err = sys.LinkFd(fd, dir, name)
		}
		if err != nil {
			fs.unindex(n, fd)
			return err
		}
		n.indexed = true
		return nil
	}
}

// isIndexed corrects the count of a copy that is published. The caller holds n.mu.
func (fs *FS) isIndexed(n *node, fd int) {
	if n.indexed && fs.cfg.Mode == Overlay {
		r := &n.lowers[0]
		fs.setNlink(fd, fs.linksLeft(r))
		_ = sys.Unlink(fs.links, goneName(r))
	}
}

// switchOver makes n an upper file and gives its handles descriptors of it. The
// caller holds n.mu. A handle that cannot get one (EMFILE) fails from now on; it
// never goes on reading the lower.
func (fs *FS) switchOver(n *node, fd int, id extent.ID) {
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		fs.log.Error("copy not known by its inode", "cause", err)
	}
	a := local.AttrOf(&stx)
	n.upper, n.upID, n.pending, n.origin = true, idOf(&a), id, true
	n.fresh.Store(true)
	fs.table.also(n, identityOf(fs.upper, "", &a))
	if n.kept >= 0 {
		nfd, err := sys.Reopen(fd, unix.O_PATH)
		if err != nil {
			nfd = -1
		}
		n.keep(nfd)
	}
	if n.data != nil {
		return // handles have the data below
	}
	for _, h := range n.open {
		nfd, err := sys.Reopen(fd, dataFlags(h.flags))
		if err != nil {
			fs.log.Error("open file not moved to its copy", "cause", err)
			continue
		}
		h.fd = nfd
	}
	if !hasObject(id) {
		n.retireObject()
	} else if err := fs.useObject(n); err != nil {
		fs.log.Error("open file not moved to its pending data", "cause", err)
		n.retireObject()
	}
}
