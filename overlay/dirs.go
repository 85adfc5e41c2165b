package overlay

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// dirCacheMax bounds the descriptors that are kept of directories in local
// layers, and so does half of what a process may have.
const dirCacheMax = 4096

// dirCache keeps descriptors of directories that were used last. A descriptor
// names the directory itself, not its path: what happens to the names above it
// does not matter.
type dirCache struct {
	max int // immutable
	mu  sync.Mutex
	m   map[dirKey]*dirFD
	lru list.List // of *dirFD, least recently used first
}

type dirKey struct {
	n *node
	l *layer
}

// dirFD is an O_PATH descriptor of a directory in one layer.
type dirFD struct {
	fd   int
	id   fileID
	key  dirKey
	refs int // protected by dirCache.mu; the cache's own included
	elem *list.Element
}

func (c *dirCache) init() {
	c.m, c.max = make(map[dirKey]*dirFD), dirCacheMax
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		c.max = int(max(min(limit.Cur/2, dirCacheMax), 1))
	}
}

func (c *dirCache) get(k dirKey) *dirFD {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.m[k]
	if d != nil {
		d.refs++
		c.lru.MoveToBack(d.elem)
	}
	return d
}

func (c *dirCache) put(k dirKey, fd int, id fileID) *dirFD {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.m[k]; d != nil {
		if d.id.is(id) { // somebody was faster
			unix.Close(fd)
			d.refs++
			return d
		}
		c.evictLocked(d) // another directory took its place underneath
	}
	for len(c.m) >= c.max {
		c.evictLocked(c.lru.Front().Value.(*dirFD))
	}
	d := &dirFD{fd: fd, id: id, key: k, refs: 2}
	d.elem = c.lru.PushBack(d)
	c.m[k] = d
	return d
}

func (c *dirCache) release(d *dirFD) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(d)
}

func (c *dirCache) dropLocked(d *dirFD) {
	if d.refs--; d.refs == 0 {
		unix.Close(d.fd)
	}
}

func (c *dirCache) evictLocked(d *dirFD) {
	delete(c.m, d.key)
	c.lru.Remove(d.elem)
	c.dropLocked(d)
}

// drop forgets what is kept of n in every layer.
func (c *dirCache) drop(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropInLocked(n, n.fs.upper)
	for _, l := range n.fs.lowers {
		c.dropInLocked(n, l)
	}
}

func (c *dirCache) dropInLocked(n *node, l *layer) {
	if d := c.m[dirKey{n, l}]; d != nil {
		c.evictLocked(d)
	}
}

// dropIn forgets what is kept of n in layer l.
func (c *dirCache) dropIn(n *node, l *layer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropInLocked(n, l)
}

func (c *dirCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.m {
		c.evictLocked(d)
	}
}

// openDir returns a descriptor of the directory n in the local layer l, where
// it has the identity id. The caller releases it.
func (fs *FS) openDir(n *node, l *layer, path layers.Path, id fileID) (*dirFD, error) {
	k := dirKey{n, l}
	if d := fs.dirs.get(k); d != nil {
		if d.id.is(id) {
			return d, nil
		}
		fs.dirs.release(d)
	}
	fd, err := sys.OpenBeneath(l.root, string(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, gone(err)
	}
	is, err := idAt(fd, "")
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if !is.is(id) {
		unix.Close(fd)
		return nil, errMoved
	}
	if fs.cfg.AsCaller {
		return &dirFD{fd: fd, id: id, key: k, refs: 1}, nil // others may not get here
	}
	return fs.dirs.put(k, fd, id), nil
}

// errMoved: what was looked up is not where it was; another host, or somebody
// working in a layer directly, moved or removed it. It differs from an ESTALE of
// the storage itself, which says nothing about names.
var errMoved = fmt.Errorf("moved or removed underneath: %w", unix.ESTALE)

// gone is what a directory that is not where it was means to who holds it.
func gone(err error) error {
	if nothing(err) || errors.Is(err, unix.ELOOP) {
		return errMoved
	}
	return err
}

// upperDir returns a descriptor of the directory n in the upper, which it must
// have.
func (fs *FS) upperDir(n *node) (*dirFD, error) {
	if d := fs.dirs.get(dirKey{n, fs.upper}); d != nil {
		return d, nil
	}
	n.mu.RLock()
	id := n.upID
	n.mu.RUnlock()
	return fs.retryRenames(func() (*dirFD, error) {
		path, ok := n.path()
		if !ok {
			return nil, unix.ENOENT
		}
		return fs.openDir(n, fs.upper, path, id)
	})
}

// lowerDir returns a descriptor of the directory n in the local lower r.
func (fs *FS) lowerDir(n *node, r *lowerRef) (*dirFD, error) {
	if d := fs.dirs.get(dirKey{n, r.layer}); d != nil {
		if d.id.is(r.id()) {
			return d, nil
		}
		fs.dirs.release(d)
	}
	return fs.retryRenames(func() (*dirFD, error) {
		path, ok := n.pathIn(r)
		if !ok {
			return nil, unix.ENOENT
		}
		return fs.openDir(n, r.layer, path, r.id())
	})
}

// lowerOf returns a descriptor of the part of the directory n in the local lower l;
// ESTALE if it has none.
func (fs *FS) lowerOf(n *node, l *layer) (*dirFD, error) {
	part := n.lowerIn(l)
	if part == nil {
		return nil, errMoved
	}
	return fs.lowerDir(n, part)
}

// gaining is lowerOf for who gives the directory a name; nil if it is gone there: who
// drains a lower removes what is empty.
func (fs *FS) gaining(n *node, l *layer) (*dirFD, error) {
	d, err := fs.lowerOf(n, l)
	if errors.Is(err, errMoved) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if unix.Fstat(d.fd, &st) == nil && st.Nlink == 0 {
		fs.dirs.release(d)
		fs.dirs.drop(n)
		return nil, nil
	}
	return d, nil
}

// statIn looks at name in n's part r of a local lower.
func (fs *FS) statIn(ctx context.Context, n *node, r *lowerRef, name string) (layers.Attr, error) {
	dir, err := fs.lowerDir(n, r)
	if err != nil {
		return r.layer.Stat(ctx, r.path.Join(name))
	}
	defer fs.dirs.release(dir)
	var stx unix.Statx_t
	err = sys.Statx(dir.fd, name, &stx)
	return local.AttrOf(&stx), err
}

// lowerPlace returns the directory in which the name d lies in the local lower r,
// and whether it does: a redirect may lead to another. The caller releases it.
func (fs *FS) lowerPlace(d dentry, r *lowerRef) (*dirFD, bool) {
	part := d.parent.lowerIn(r.layer)
	if part == nil {
		return nil, false
	}
	if in, name := r.path.Split(); !r.layer.writable && (in != part.path || name != d.name) {
		return nil, false
	}
	dir, err := fs.lowerDir(d.parent, part)
	return dir, err == nil
}

// retryRenames repeats f, which uses a path, while a rename of an ancestor may
// have come between taking the path and using it.
func (fs *FS) retryRenames(f func() (*dirFD, error)) (d *dirFD, err error) {
	for range 4 {
		if d, err = outside(&fs.window, f); !errors.Is(err, errMoved) {
			return d, err
		}
	}
	return nil, err
}

// despiteRenames repeats f, which looks for n by a name, while n gets and loses
// names: one that was taken to look by may be gone by the time it is looked for.
// f returns an ESTALE or ENOENT of its own otherwise. The caller holds no lock.
func despiteRenames[T any](n *node, f func() (T, error)) (v T, err error) {
	for range 8 {
		before, _ := n.dentry()
		if v, err = outside(&n.fs.window, f); err == nil || errnoOf(err) != unix.ESTALE && errnoOf(err) != unix.ENOENT {
			return v, err
		}
		n.mu.RLock() // who is at it has changed the names by then
		now, _ := n.dentry()
		n.mu.RUnlock()
		if now == before {
			if up := n.isUpper(); up || !n.fs.notice(n) {
				return v, err
			}
		}
	}
	return v, err
}
