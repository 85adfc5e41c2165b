package overlay

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// A drain walks a lower by descriptors, a part of a directory at a time: what it
// holds is one part for each directory on the way down, and on each goroutine.

// place is a directory of the lower that is walked, until all below it is done.
type place struct {
	up   *place // nil: where the walk began
	name string
	path layers.Path
	fd   int
	id   fileID
	n    *node // its node, looked up once; nil if nothing is changed
	mine bool  // the names in it are this shard's

	work   atomic.Int32 // what is under way in it
	left   atomic.Int64 // what is known to stay in it or below
	gone   atomic.Int64 // what has left it
	passes int

	mu    sync.Mutex // held while the upper's part is made
	ready bool       // the upper's part is there, and durable
}

// walk drains what lies at cfg.Path.
func (d *drain) walk(ctx context.Context) error {
	path, name := d.cfg.Path, ""
	top, err := d.start(ctx, path)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) { // one file
		path, name = path.Split()
		top, err = d.start(ctx, path)
	}
	if nothing(err) {
		return nil // nothing of it in this lower
	}
	if err != nil {
		return err
	}
	if name != "" {
		top.work.Add(1)
		top.left.Add(1) // the directory is not meant
		d.files(ctx, top, []string{name})
		d.done(ctx, top)
		return nil
	}
	d.list(ctx, top)
	return nil
}

// start opens the directory where the walk begins, and looks it up.
func (d *drain) start(ctx context.Context, path layers.Path) (*place, error) {
	fd, err := openToList(d.l.root, string(path))
	if err != nil {
		return nil, err
	}
	_, name := path.Split()
	p := &place{name: name, path: path, fd: fd}
	p.id = idOfFd(fd)
	if d.fs != nil {
		p.n, err = d.fs.reach(ctx, path)
		if err == nil && !d.isPart(p) {
			d.fs.Forget(p.n.id, 1)
			err = ErrShadowed
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	p.mine = d.mine(path)
	return p, nil
}

// reach looks path up from the root. The caller forgets the node.
func (fs *FS) reach(ctx context.Context, path layers.Path) (*node, error) {
	n := fs.root
	fs.table.ref(n)
	for _, name := range path.Components() {
		below, _, err := fs.find(ctx, n, name)
		if err != nil {
			fs.Forget(n.id, 1)
			return nil, err
		}
		fs.Forget(n.id, 1)
		n = below
	}
	return n, nil
}

// isPart reports whether the directory of p is a part of its node: a file in a
// higher layer hides it else.
func (d *drain) isPart(p *place) bool {
	r := p.n.lowerIn(d.l)
	return p.n.isDir() && r != nil && r.id().is(p.id)
}

// openToList opens a directory without changing its access time, which comes along.
func openToList(dirfd int, path string) (fd int, err error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY
	if fd, err = sys.OpenBeneath(dirfd, path, flags|unix.O_NOATIME, 0); err == unix.EPERM {
		fd, err = sys.OpenBeneath(dirfd, path, flags, 0)
	}
	return fd, err
}

// list hands out what is in p. When the last of it is done, finish ends p.
func (d *drain) list(ctx context.Context, p *place) {
	p.work.Add(1)
	err := local.EachPart(ctx, p.fd, func(es []layers.Entry) error {
		// In the order in which most filesystems have the inodes on disk.
		slices.SortFunc(es, func(a, b layers.Entry) int { return cmp.Compare(a.Ino, b.Ino) })
		d.part(ctx, p, es)
		return ctx.Err()
	})
	if err != nil && err != unix.ENOENT && ctx.Err() == nil { // ENOENT: removed by another
		p.left.Add(1)
		d.fail(p.path, err)
	}
	d.done(ctx, p)
}

// together is how many files of a directory one goroutine takes at a time.
const together = 32

func (d *drain) part(ctx context.Context, p *place, es []layers.Entry) {
	var files []string
	flush := func() {
		batch := files
		files = nil
		p.work.Add(1)
		d.hand(func() {
			d.files(ctx, p, batch)
			d.done(ctx, p)
		})
	}
	for i := range es {
		e := &es[i]
		switch {
		case ctx.Err() != nil:
			return
		case e.Name == Reserved && p.path == layers.Root:
			continue
		case e.Type == 0:
			e.Type = typeOf(p.fd, e.Name)
		}
		switch {
		case e.Type == unix.S_IFDIR:
			d.descend(ctx, p, e.Name)
		case !p.mine:
			p.left.Add(1)
			d.seen.Other.Add(1)
		default:
			if files = append(files, e.Name); len(files) == together {
				flush()
			}
		}
	}
	if len(files) > 0 {
		flush()
	}
}

func typeOf(dirfd int, name string) uint32 {
	var stx unix.Statx_t
	if sys.Statx(dirfd, name, &stx) != nil {
		return 0
	}
	return uint32(stx.Mode) & unix.S_IFMT
}

// descend walks the directory name in p, on this goroutine or another.
func (d *drain) descend(ctx context.Context, p *place, name string) {
	sub, err := d.enter(ctx, p, name)
	switch {
	case err == nil:
		p.work.Add(1)
		d.hand(func() { d.list(ctx, sub) })
	case ctx.Err() != nil, errnoOf(err) == unix.ENOENT, errors.Is(err, errMoved):
		// Somebody moved or removed it: what is left shows at the end of p.
	default:
		p.left.Add(1)
		d.fail(p.path.Join(name), err)
	}
}

func (d *drain) enter(ctx context.Context, p *place, name string) (*place, error) {
	fd, err := openToList(p.fd, name)
	if err != nil {
		return nil, err
	}
	sub := &place{up: p, name: name, path: p.path.Join(name), fd: fd}
	sub.mine = d.mine(sub.path)
	if sub.id = idOfFd(fd); sub.id.dev != p.id.dev {
		err = ErrForeign
	}
	if err == nil && d.fs != nil {
		if sub.n, _, err = d.fs.find(ctx, p.n, name); err == nil {
			if !d.isPart(sub) {
				d.fs.Forget(sub.n.id, 1)
				err = d.hidden(p, name, sub.id)
			}
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return sub, nil
}

// hidden says why the file id at name in p does not show: it has gone, or a higher
// layer has something else.
func (d *drain) hidden(p *place, name string, id fileID) error {
	var stx unix.Statx_t
	if err := sys.Statx(p.fd, name, &stx); err != nil {
		return err
	}
	a := local.AttrOf(&stx)
	if !idOf(&a).is(id) {
		return errMoved
	}
	return ErrShadowed
}

// done ends one piece of the work in p, and p with the last.
func (d *drain) done(ctx context.Context, p *place) {
	for p != nil && p.work.Add(-1) == 0 {
		if d.finish(ctx, p) {
			d.list(ctx, p)
			return
		}
		unix.Close(p.fd)
		if p.n != nil {
			d.fs.Forget(p.n.id, 1)
		}
		p = p.up
	}
}

// finish removes the directory p, in which nothing is under way any more, unless
// something is known to stay in it. It reports whether p has to be listed again:
// names have come meanwhile, by a rename in the lower.
func (d *drain) finish(ctx context.Context, p *place) (again bool) {
	if ctx.Err() != nil || d.fs == nil {
		return false
	}
	if p.left.Load() == 0 {
		err := d.leave(ctx, p)
		switch {
		case err == nil:
			return false
		case errnoOf(err) != unix.ENOTEMPTY:
			p.left.Add(1)
			d.fail(p.path, err)
		case p.passes < passes:
			p.passes++
			if _, err = unix.Seek(p.fd, 0, unix.SEEK_SET); err == nil {
				return true
			}
			fallthrough
		default:
			p.left.Add(1)
			d.fail(p.path, ErrRestless)
		}
	}
	if p.up != nil {
		p.up.left.Add(p.left.Load())
	}
	if p.gone.Load() > 0 {
		// Whoever takes a name from the upper now does not know that the lower's went.
		if err := sys.Fsync(p.fd); err != nil {
			d.fail(p.path, err)
		}
	}
	return false
}

// leave removes the directory p from the lower. One that is not empty is
// ENOTEMPTY. It stays without an error where it is another's to remove.
func (d *drain) leave(ctx context.Context, p *place) error {
	if p.path == layers.Root {
		return d.isEmpty(ctx, p)
	}
	if !p.mine && p.gone.Load() == 0 {
		if p.up != nil {
			p.up.left.Add(1)
		}
		return nil
	}
	var parent int
	if p.up != nil {
		parent = p.up.fd
	} else {
		fd, _, err := sys.OpenParent(d.l.root, string(p.path))
		if err != nil {
			return gone(err)
		}
		defer unix.Close(fd)
		parent = fd
	}
	perr := d.prepare(ctx, p)
	var stx unix.Statx_t
	if err := sys.Statx(parent, p.name, &stx); err != nil {
		return ignoreNotThere(err) // removed by another
	}
	if a := local.AttrOf(&stx); !idOf(&a).is(p.id) {
		return nil // moved: it will be found where it is
	}
	if perr != nil {
		return perr
	}
	if err := sys.Rmdir(parent, p.name); err != nil {
		return ignoreNotThere(err)
	}
	if at, named := p.n.dentry(); named {
		at.parent.losses.Add(1)
	}
	d.fs.dirs.drop(p.n)
	d.seen.Dirs.Add(1)
	if p.up != nil {
		p.up.gone.Add(1)
	}
	return nil
}

func ignoreNotThere(err error) error {
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// isEmpty returns ENOTEMPTY if the lower's root p has names but ours.
func (d *drain) isEmpty(ctx context.Context, p *place) error {
	if _, err := unix.Seek(p.fd, 0, unix.SEEK_SET); err != nil {
		return err
	}
	return local.EachPart(ctx, p.fd, func(es []layers.Entry) error {
		for i := range es {
			if es[i].Name != Reserved {
				return unix.ENOTEMPTY
			}
		}
		return nil
	})
}

// prepare makes sure that the directory p is in the upper with all its metadata,
// durably, and all directories above it: then what is in it may go below.
func (d *drain) prepare(ctx context.Context, p *place) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready {
		return nil
	}
	if p.up != nil {
		if err := d.prepare(ctx, p.up); err != nil {
			return err
		}
	}
	if err := d.fs.up(ctx, p.n, whole); err != nil {
		return err
	}
	// Itself, and its name; where the walk began, all names that lead to it.
	for n := p.n; ; {
		if err := d.sync(n); err != nil {
			return err
		}
		at, named := n.dentry()
		if !named || p.up != nil && n == p.up.n {
			break
		}
		n = at.parent
	}
	p.ready = true
	return nil
}

// sync makes the upper directory n durable.
func (d *drain) sync(n *node) error {
	dir, err := d.fs.upperDir(n)
	if err != nil {
		return err
	}
	defer d.fs.dirs.release(dir)
	return d.fs.syncDir(dir.fd, d.fs.copies)
}
