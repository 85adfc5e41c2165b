package overlay

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// bringUpNode brings up what is neither regular file nor directory.
func (fs *FS) bringUpNode(ctx context.Context, n *node, src copyup.Source) error {
	t, at, err := fs.placeFor(ctx, n)
	if err != nil {
		return err
	}
	defer t.release()
	if !t.named {
		return unix.ESTALE
	}
	claim, err := fs.claim(ctx, n, copyup.Lock)
	if err != nil {
		return err
	}
	defer claim.Release()
	if claim != nil {
		if err := fs.stillFree(n, t); err != nil {
			return err
		}
		at.Claim, at.Work = claim, fs.claims
	}
	temp, err := copyup.Node(src, at, fs.copies)
	if err != nil {
		return err
	}
	index := fs.indexer(n, src)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := fs.publishNode(n, temp, at, t, &src, index); err != nil {
		copyup.RemoveTemp(at.Work, temp)
		if errors.Is(err, copyup.ErrRevoked) || claim != nil && errors.Is(err, unix.EEXIST) {
			return errChanged
		}
		return err
	}
	fs.afterUp(ctx, n, &src, t.at)
	return nil
}

// publishNode puts the copy at temp in place; index, if not nil, enters it into
// the index first.
func (fs *FS) publishNode(n *node, temp string, at copyup.Place, t *target, src *copyup.Source, index func(fd int) error) error {
	d, ok := n.dentry()
	if !ok || n.dead != nil {
		return unix.ESTALE
	}
	if d.parent != t.dir.key.n {
		return errChanged
	}
	at.Name, t.name = d.name, d.name
	if at.Claim != nil {
		if err := fs.unchanged(context.Background(), n, src); err != nil {
			return err
		}
	}
	var stx unix.Statx_t
	if err := sys.Statx(at.Work, temp, &stx); err != nil {
		return err
	}
	if err := fs.setImpure(d.parent, t.dir.fd); err != nil {
		return err
	}
	err := fs.indexNode(n, at.Work, temp, t, index, func() error {
		return fs.knownAs(n, at.Work, temp, func() error {
			return fs.timeless(d.parent, t.dir.fd, func() error { return copyup.PublishNode(temp, at, n.isDir()) })
		})
	})
	if err != nil {
		return err
	}
	a := local.AttrOf(&stx)
	n.upper, n.upID, n.origin = true, idOf(&a), true
	n.fresh.Store(true)
	t.at = d
	fs.table.also(n, identityOf(fs.upper, "", &a))
	return nil
}

// indexNode runs publish on the copy at temp after index has entered it; what
// was entered is taken back if that fails.
func (fs *FS) indexNode(n *node, work int, temp string, t *target, index func(fd int) error, publish func() error) error {
	if index == nil {
		return publish()
	}
	fd, err := sys.OpenAt(work, temp, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err = index(fd); err == nil {
		err = publish()
	}
	if err == nil {
		err = fs.enterShared(n, fd, t)
	}
	switch {
	case err == nil:
		fs.isIndexed(n, fd)
	case n.indexed:
		fs.unindex(n, fd)
	}
	return err
}

// upDir makes the directory n in the upper, its parents first, with the metadata
// it has below. What is in it stays where it is.
func (fs *FS) upDir(ctx context.Context, n *node) error {
	if err := fs.flights.enter(ctx, n); err != nil {
		return err
	}
	defer fs.flights.leave(n)
	if fs.notice(n) {
		return nil
	}
	t, at, err := fs.placeFor(ctx, n)
	if err != nil {
		return err
	}
	defer t.release()
	if !t.named {
		return unix.ENOENT
	}
	claim, err := fs.claim(ctx, n, copyup.Lock)
	if errors.Is(err, errChanged) || claim != nil && fs.notice(n) {
		claim.Release()
		return nil
	}
	if err != nil {
		return err
	}
	defer claim.Release()
	src, err := fs.copySource(ctx, n)
	if err != nil {
		return err
	}
	temp, err := copyup.Node(src, at, fs.copies)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	err = fs.publishNode(n, temp, at, t, &src, nil)
	switch {
	case err == nil && !claim.Held():
		return fs.catchUp(ctx, n, at, &src)
	case err == nil:
		return nil
	}
	copyup.RemoveTemp(fs.copyWork(), temp)
	if errors.Is(err, unix.EEXIST) && fs.cfg.Mode == Migrate {
		return fs.useDir(n, at) // another host was first
	}
	return err
}

// useDir makes the directory that stands at n's place in the upper n's own.
func (fs *FS) useDir(n *node, at copyup.Place) error {
	var stx unix.Statx_t
	if err := sys.Statx(at.Dir, at.Name, &stx); err != nil {
		return err
	}
	a := local.AttrOf(&stx)
	if !a.IsDir() {
		return layers.ErrStale
	}
	n.upper, n.upID = true, idOf(&a)
	fs.table.also(n, identityOf(fs.upper, "", &a))
	return nil
}
