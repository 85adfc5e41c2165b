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
)

// Link implements fuse.RawFileSystem.
func (fs *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n, dir := fs.table.get(in.Oldnodeid), fs.table.get(in.NodeId)
	if n == nil || dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if n.isDir() {
		return fuse.EPERM
	}
	err := fs.link(ctx, n, dir, name, out)
	return fs.status("link", dir, name, err)
}

func (fs *FS) link(ctx context.Context, n, dir *node, name string, out *fuse.EntryOut) error {
	if fs.ReadOnly() {
		return unix.EROFS
	}
	if fs.reserved(dir, name) {
		return unix.EPERM
	}
	return fs.inTurns(ctx, func() error { return fs.linkOnce(ctx, n, dir, name, out) })
}

func (fs *FS) linkOnce(ctx context.Context, n, dir *node, name string, out *fuse.EntryOut) error {
	if done, err := fs.linkBelow(ctx, n, dir, name); err != nil || done {
		if err != nil {
			return err
		}
		return fs.linked(ctx, n, dir, name, out)
	}
	if err := fs.upToMove(ctx, n); err != nil {
		return err
	}
	b, err := fs.bear(ctx, dir, name, nil)
	if err != nil {
		return err
	}
	defer b.end()
	if n.hasOrigin() {
		if err := fs.setImpure(dir, b.dir.fd); err != nil {
			return err
		}
	}
	fd, done, err := fs.openChanging(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if b.white {
		err = b.replaceWhiteout(func(temp string) error { return sys.LinkFd(fd, fs.work, temp) })
	} else {
		err = sys.LinkFd(fd, b.dir.fd, name)
	}
	done()
	if err == nil {
		err = b.wasFirst(ctx, idOfFd(fd))
	}
	if err != nil {
		return err
	}
	// Nothing is opened to look at it: that it has the name must not end in an error.
	a, err := unswapped(n, func() (layers.Attr, error) { return fs.attrOfHandle(n, fd) })
	if err != nil {
		return err
	}
	fs.table.ref(n)
	fs.addName(n, dir, name)
	n.named()
	fs.fillEntry(out, n, &a)
	return nil
}

// linked answers with the file under its new name.
func (fs *FS) linked(ctx context.Context, n, dir *node, name string, out *fuse.EntryOut) error {
	m, f, err := fs.find(ctx, dir, name)
	if err == nil {
		fs.fillEntry(out, m, &f.attr)
		return nil
	}
	if !errors.Is(err, unix.ENOENT) || !fs.many() {
		return err
	}
	// Another host has taken it away again, which is no error of what was before.
	a, err := fs.attr(ctx, n)
	if err != nil {
		return unix.ESTALE
	}
	fs.table.ref(n)
	fs.fillEntry(out, n, &a)
	return nil
}

// linkBelow makes the link in the lower that has the file, in migrate mode where
// the directory is there too and no higher layer has the name. done is false if
// the file has to come up.
func (fs *FS) linkBelow(ctx context.Context, n, dir *node, name string) (done bool, err error) {
	if fs.cfg.Mode != Migrate || fs.notice(n) {
		return false, nil
	}
	d, ok := n.dentry()
	if !ok {
		return false, nil
	}
	claims, err := fs.claimNames(ctx,
		claimedName{dentry: d, kind: copyup.Lock}, claimedName{dentry: dentry{dir, name}, free: true})
	if err != nil {
		return false, err
	}
	defer claims.release()
	if claims != nil && fs.notice(n) {
		return false, nil // it came up while we waited
	}
	done, err = fs.linkClaimed(n, d, dentry{dir, name}, claims)
	if !done || err != nil || claims.whole() || !fs.notice(n) {
		return done, err
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.indexed || len(n.lowers) > 0 && fs.succeededAt(dentry{dir, name}, n.lowers[0].origin()) {
		return true, nil // it came up with this name, or by it
	}
	// Our claim was broken, and the file came up before it had this name.
	_ = fs.unlinkBelow(n, dentry{dir, name})
	return false, errChanged
}

// linkClaimed makes the link to in the lower that has n at d.
func (fs *FS) linkClaimed(n *node, d, to dentry, claims claimed) (done bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.upper || len(n.lowers) == 0 {
		return false, nil
	}
	r := &n.lowers[0]
	if claims != nil && claims[r.origin()] == nil {
		return false, errChanged
	}
	if to.parent.lowerIn(r.layer) == nil {
		return false, nil
	}
	old, err := fs.lowerOf(d.parent, r.layer)
	if err != nil {
		return false, err
	}
	defer fs.dirs.release(old)
	fd, err := openIdentified(old.fd, d.name, r.id())
	if err != nil {
		return false, gone(err)
	}
	defer unix.Close(fd)
	at, err := fs.gaining(to.parent, r.layer)
	if err != nil || at == nil {
		return false, err
	}
	defer fs.dirs.release(at)
	defer fs.unsynced.changed(r.layer, at)
	switch err := sys.LinkFd(fd, at.fd, to.name); {
	case claims != nil && err == unix.ENOENT:
		return false, errChanged
	case err != nil:
		return true, err
	}
	if claims != nil {
		// What another host has made of the name in the upper was first, but for our link,
		// which came up.
		_ = claims.whole()
		err := fs.inUpperAt(to, func(dirfd int, _ *unix.Statx_t) error {
			if has, err := copyup.ReadOrigin(dirfd, to.name); err == nil && has == r.origin() && !claims.whole() {
				return nil
			}
			return unix.EEXIST
		})
		if err != nil {
			_ = fs.unlinkBelow(n, to)
			return true, err
		}
	}
	fs.dirChanged(to.parent, r.layer)
	return true, nil
}

// unlinkBelow takes back a link of n's lower file. The caller holds n.mu.
func (fs *FS) unlinkBelow(n *node, d dentry) error {
	r := &n.lowers[0]
	at, err := fs.lowerOf(d.parent, r.layer)
	if err != nil {
		return err
	}
	defer fs.dirs.release(at)
	var stx unix.Statx_t
	if err := sys.Statx(at.fd, d.name, &stx); err != nil {
		return err
	}
	p := part{r.layer, at, local.AttrOf(&stx)}
	if !idOf(&p.attr).is(r.id()) {
		return nil
	}
	return fs.takeHidden(d, &p)
}
