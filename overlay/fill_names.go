package overlay

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// To put a data file in its stub's place takes the stub's name, and WORK/stubs tells
// the inode alone. The name of what was written to since the mount is known. After a
// remount a file most often lies where its source does; what has been moved since is
// found by a walk through the upper, once for all of them.

// nodeOf returns the node of the pending file f, with a lookup to its account.
func (q *fill) nodeOf(ctx context.Context, f *filling) (*node, error) {
	q.mu.Lock()
	n, path := f.n, f.path
	if n != nil {
		q.fs.table.ref(n)
	}
	q.mu.Unlock()
	if n != nil {
		return n, nil
	}
	if path == "" {
		obj, err := q.fs.store.Pending(f.id)
		if err != nil {
			return nil, err
		}
		path = obj.Source().Path
		obj.Close()
	}
	n, err := q.fs.pendingAt(ctx, path, f.id)
	if err == nil || !errors.Is(err, errNameless) {
		return n, err
	}
	return q.found(ctx, f)
}

// found is nodeOf by way of the upper.
func (q *fill) found(ctx context.Context, f *filling) (*node, error) {
	if err := q.findNames(ctx); err != nil {
		return nil, err
	}
	q.mu.Lock()
	path := f.path
	q.mu.Unlock()
	return q.fs.pendingAt(ctx, path, f.id)
}

// pendingAt returns the node at path, with a lookup to its account, if it is the
// pending file id, and errNameless if it is not.
func (fs *FS) pendingAt(ctx context.Context, path layers.Path, id extent.ID) (*node, error) {
	n, err := fs.nodeAt(ctx, path)
	if nothing(err) || err == nil && n.isDir() {
		if n != nil {
			fs.Forget(n.id, 1)
		}
		return nil, errNameless
	}
	if err != nil {
		return nil, err
	}
	n.mu.RLock()
	is := n.pending == id
	n.mu.RUnlock()
	if !is {
		fs.Forget(n.id, 1)
		return nil, errNameless
	}
	return n, nil
}

// nodeAt looks path up, component by component. The node has a lookup to its account.
func (fs *FS) nodeAt(ctx context.Context, path layers.Path) (*node, error) {
	n := fs.root
	fs.table.ref(n)
	for _, name := range path.Components() {
		if !n.isDir() {
			fs.Forget(n.id, 1)
			return nil, unix.ENOTDIR
		}
		child, _, err := fs.find(ctx, n, name)
		if err != nil {
			fs.Forget(n.id, 1)
			return nil, err
		}
		fs.Forget(n.id, 1)
		n = child
	}
	return n, nil
}

// findNames walks the upper for the names of the pending files that are not where
// they were last seen.
func (q *fill) findNames(ctx context.Context) error {
	q.names.Lock() // one walk serves all who wait for it
	defer q.names.Unlock()
	return q.walk(ctx, q.fs.upper.root, layers.Root)
}

func (q *fill) walk(ctx context.Context, dir int, at layers.Path) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := local.ReadDirAt(ctx, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := at.Join(e.Name)
		switch {
		case at == layers.Root && e.Name == Reserved:
		case e.Type == unix.S_IFDIR:
			fd, err := sys.OpenAt(dir, e.Name, unix.O_RDONLY|unix.O_DIRECTORY)
			if ignoreGone(err) != nil {
				return err
			}
			if err != nil {
				continue
			}
			err = q.walk(ctx, fd, path)
			unix.Close(fd)
			if err != nil {
				return err
			}
		case e.Type == unix.S_IFREG:
			v, err := sys.Getxattr(dir, e.Name, q.fs.cfg.Format.Name(whiteout.Object))
			if err != nil {
				continue
			}
			if id, err := extent.ParseID(string(v)); err == nil {
				q.seen(id, path)
			}
		}
	}
	return nil
}

// seen notes where the file of the object id lies.
func (q *fill) seen(id extent.ID, path layers.Path) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if f := q.files[id]; f != nil {
		f.path = path
	}
}

// pathOf returns a path of the file of the object id; empty if none is known.
func (q *fill) pathOf(id extent.ID) layers.Path {
	q.mu.Lock()
	f := q.files[id]
	var n *node
	var path layers.Path
	if f != nil {
		n, path = f.n, f.path
	}
	q.mu.Unlock()
	if n != nil {
		if p, ok := n.path(); ok {
			return p
		}
	}
	return path
}
