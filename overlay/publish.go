package overlay

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// target is the directory a copy goes to, and its name there.
type target struct {
	fs    *FS
	dir   *dirFD
	name  string
	named bool
	at    dentry // the name it was published under; none yet, or ever, if the parent is nil
}

func (t *target) release() {
	if t.dir != nil {
		t.fs.dirs.release(t.dir)
	}
}

// placeFor finds where n comes up: in the directory of its name, which is
// brought up first. A file without a name goes to the upper's root, nameless.
func (fs *FS) placeFor(ctx context.Context, n *node) (*target, copyup.Place, error) {
	t := &target{fs: fs}
	d, ok := n.dentry()
	if !ok {
		return t, copyup.Place{Dir: fs.upper.root, Work: fs.copyWork()}, nil
	}
	if err := fs.up(ctx, d.parent, whole); err != nil {
		return t, copyup.Place{}, err
	}
	dir, err := fs.upperDir(d.parent)
	if err != nil {
		return t, copyup.Place{}, err
	}
	t.dir, t.name, t.named = dir, d.name, true
	return t, copyup.Place{Dir: dir.fd, Name: d.name, Work: fs.copyWork()}, nil
}

// publish gives the copy its name. n.mu is held: nobody renames or unlinks n
// now, but somebody may have done so while the data was copied.
func (fs *FS) publish(ctx context.Context, n *node, c *copyup.Copy, src *copyup.Source, before func(*copyup.Copy) error, t *target) error {
	d, ok := n.dentry()
	switch {
	case src.Bare && (!ok || n.dead != nil):
		return errChanged // for its handles, or for names by the index, it comes up whole
	case n.dead != nil:
		c.Nameless()
		return nil
	case !ok: // names that nobody has looked up since the mount lead to it by the index
		if before != nil {
			if err := before(c); err != nil {
				return err
			}
		}
		if err := fs.enterShared(n, c.Fd, nil); err != nil {
			return err
		}
		c.Nameless()
		return nil
	}
	if t.dir == nil || d.parent != t.dir.key.n {
		return errChanged // moved to another directory: once more
	}
	if err := fs.unchanged(ctx, n, src); err != nil {
		return err
	}
	if before != nil {
		if err := before(c); err != nil {
			return err
		}
	}
	if err := fs.setImpure(d.parent, t.dir.fd); err != nil {
		return err
	}
	t.name = d.name
	err := fs.knownAs(n, c.Fd, "", func() error {
		return fs.timeless(d.parent, t.dir.fd, func() error { return c.PublishAs(d.name) })
	})
	if err != nil {
		switch {
		case fs.many() && (errors.Is(err, unix.EEXIST) || errors.Is(err, copyup.ErrRevoked)):
			return errChanged // whose file it is, or what became of the lower one, is looked at anew
		case errors.Is(err, unix.EEXIST):
			return layers.ErrStale // somebody else's file
		}
		return err
	}
	if err := fs.enterShared(n, c.Fd, t); err != nil {
		return err
	}
	t.at = d
	return nil
}

// timeless runs publish, which gives the upper directory dirfd of dir a name that it
// had below: that is no change of it, and leaves its times. One at a time does so in
// a directory, lest it takes the time of another's name for the directory's.
func (fs *FS) timeless(dir *node, dirfd int, publish func() error) error {
	mu := &fs.timesMu[dir.id%uint64(len(fs.timesMu))]
	mu.Lock()
	defer mu.Unlock()
	if fs.many() {
		defer fs.timesLock(dirfd)()
	}
	var stx unix.Statx_t
	if err := sys.Statx(dirfd, "", &stx); err != nil {
		return err
	}
	if err := publish(); err != nil {
		return err
	}
	_ = copyup.RestoreTimes(dirfd, ptr(local.AttrOf(&stx)))
	return nil
}

// timesLock is timesMu between daemons, as far as the upper's filesystem locks
// directories; nobody else locks those. A daemon that does not give it back is not
// waited for: what is at stake is the time of a directory.
func (fs *FS) timesLock(dirfd int) (unlock func()) {
	fd, err := sys.OpenBeneath(dirfd, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return func() {}
	}
	for range 50 {
		if sys.Flock(fd, unix.LOCK_EX) != unix.EWOULDBLOCK {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return func() { unix.Close(fd) }
}

// knownAs runs publish, which gives the copy that is name in dirfd a name in the
// tree. Who finds it there finds n: it is known by its inode before.
func (fs *FS) knownAs(n *node, dirfd int, name string, publish func() error) error {
	var stx unix.Statx_t
	if err := sys.Statx(dirfd, name, &stx); err != nil {
		return err
	}
	k := identityOf(fs.upper, "", ptr(local.AttrOf(&stx)))
	fs.table.also(n, k)
	err := publish()
	if err != nil {
		fs.table.not(n, k)
	}
	return err
}

// unchanged compares the lower file with what was copied. The caller holds n.mu.
func (fs *FS) unchanged(ctx context.Context, n *node, src *copyup.Source) error {
	r := &n.lowers[0]
	if !r.layer.isLocal() {
		return nil // every fetch carries its version
	}
	now, err := outside(&fs.window, func() (layers.Attr, error) {
		path, ok := n.pathIn(r)
		if !ok {
			return src.Attr, nil
		}
		return r.layer.Stat(ctx, path)
	})
	if err != nil {
		return gone(err)
	}
	if !now.SameVersion(&src.Attr) || now.Ctime != src.Attr.Ctime {
		return errChanged
	}
	return nil
}
