package overlay

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// file drains the name in p, which is no directory's, or counts it.
func (d *drain) file(ctx context.Context, p *place, name string) {
	var stx unix.Statx_t
	switch err := sys.Statx(p.fd, name, &stx); {
	case err == unix.ENOENT:
		return
	case err != nil:
		p.left.Add(1)
		d.fail(p.path.Join(name), err)
		return
	}
	a := local.AttrOf(&stx)
	if !d.cfg.Select.wants(&a) {
		p.left.Add(1)
		d.seen.Other.Add(1)
		return
	}
	if d.fs == nil {
		p.left.Add(1)
		d.seen.Files.Add(1)
		d.seen.Bytes.Add(sizeOf(&a) / int64(max(a.Nlink, 1)))
		return
	}
	if d.cfg.Hold != nil {
		if err := d.cfg.Hold(ctx); err != nil {
			return // ctx has ended
		}
	}
	var seen atomic.Int64 // of its bytes
	size, err := d.move(d.careful(ctx, &seen), p, name, &a)
	if err != nil && !errors.Is(err, errKept) {
		size = 0
	}
	d.seen.Bytes.Add(size - seen.Load())
	switch {
	case err == nil:
		p.gone.Add(1)
		d.seen.Files.Add(1)
	case ctx.Err() != nil:
	case errors.Is(err, errKept):
		p.left.Add(1)
		if size > 0 {
			d.seen.Files.Add(1)
		} else {
			d.seen.Other.Add(1)
		}
	case errors.Is(err, errMoved), nothing(err):
		// Somebody renamed or removed it, or a directory above: the next look at
		// the directory shows what is left.
	default:
		p.left.Add(1)
		d.fail(p.path.Join(name), err)
	}
}

// careful is ctx for the copy of one file; seen is how much of it has been counted.
func (d *drain) careful(ctx context.Context, seen *atomic.Int64) context.Context {
	return copyup.WithCare(ctx, copyup.Care{Verify: d.cfg.Verify, Pace: func(ctx context.Context, n int64) error {
		seen.Add(n)
		d.seen.Bytes.Add(n)
		if d.cfg.Pace == nil {
			return ctx.Err()
		}
		return d.cfg.Pace(ctx, n)
	}})
}

// move brings up the file that is name in p, where it is the one a describes, and
// removes that name from the lower. copied is the size of what came up.
func (d *drain) move(ctx context.Context, p *place, name string, a *layers.Attr) (copied int64, err error) {
	if err := d.prepare(ctx, p); err != nil {
		return 0, err
	}
	for range 4 {
		came, err := d.step(ctx, p, name, a)
		if err != nil {
			return copied, err
		}
		copied += came
		// A copy-up is no failure because the lower's name stayed.
		var stx unix.Statx_t
		switch err := sys.Statx(p.fd, name, &stx); {
		case err == unix.ENOENT:
			return copied, nil
		case err != nil:
			return 0, err
		}
		now := local.AttrOf(&stx)
		if idOf(&now) != idOf(a) {
			return 0, errMoved // another file: the next look at p finds it
		}
		*a = now
	}
	return 0, ErrRestless
}

// step does what is to be done next about name in p: the file comes up, or gets
// the name in the upper, or loses that in the lower.
func (d *drain) step(ctx context.Context, p *place, name string, a *layers.Attr) (copied int64, err error) {
	fs := d.fs
	f, err := fs.lookup(ctx, p.n, name)
	if err != nil {
		return 0, err
	}
	n := fs.table.adopt(fs, f, p.n, name)
	defer fs.Forget(n.id, 1)
	if n.isDir() {
		return 0, d.hidden(p, name, idOf(a))
	}
	if !n.isUpper() {
		if len(f.lowers) == 0 || f.lowers[0].layer != d.l || f.lowers[0].id() != idOf(a) {
			return 0, d.hidden(p, name, idOf(a))
		}
		return sizeOf(a), fs.up(ctx, n, whole)
	}
	named, err := fs.isNamed(p.n, name)
	if err != nil {
		return 0, err
	}
	at := dentry{p.n, name}
	if !named { // a hard link, whose file has come up under another name
		return 0, fs.ensureNamed(ctx, at, n)
	}
	if fs.keepsCopy(a) {
		return 0, errKept
	}
	return 0, d.endRemoval(ctx, p, at, n, a)
}

// errKept: the lower copy stays where it is (keep_lower).
var errKept = errors.New("the lower copy is kept")

// isNamed reports whether the upper's part of dir has name.
func (fs *FS) isNamed(dir *node, name string) (bool, error) {
	if !dir.isUpper() {
		return false, nil
	}
	d, err := fs.upperDir(dir)
	if err != nil {
		return false, err
	}
	defer fs.dirs.release(d)
	return inUpper(d.fd, name)
}

// endRemoval removes the lower file a, which is at in the lower as well, where the
// upper has its successor there: a crash came before that, or another host has not
// got to it yet.
func (d *drain) endRemoval(ctx context.Context, p *place, at dentry, n *node, a *layers.Attr) error {
	fs := d.fs
	n.mu.Lock()
	defer n.mu.Unlock()
	up, err := fs.upperDir(at.parent)
	if err != nil {
		return err
	}
	defer fs.dirs.release(up)
	same, err := d.succeeds(ctx, up.fd, p.fd, at.name, a)
	if err != nil {
		return err
	}
	if !same {
		return ErrShadowed
	}
	if err := fs.syncDir(up.fd, fs.copies); err != nil {
		return err
	}
	path := p.path.Join(at.name)
	err = fs.removeFrom(at, &lowerRef{layer: d.l, path: path, attr: a}, a, path)
	return ignoreNotThere(err)
}

// succeeds reports whether what the upper has at name is the successor of the lower
// file a, and makes it durable.
func (d *drain) succeeds(ctx context.Context, up, low int, name string, a *layers.Attr) (bool, error) {
	var stx unix.Statx_t
	if err := sys.Statx(up, name, &stx); err != nil {
		return false, err
	}
	is := local.AttrOf(&stx)
	if is.Type() != a.Type() {
		return false, nil
	}
	origin, err := copyup.ReadOrigin(up, name)
	if err != nil {
		return false, err
	}
	if origin == copyup.Origin(indexName(&lowerRef{layer: d.l, attr: a})) {
		return true, syncFile(up, name, &is)
	}
	// None: the upper has no room for one, or somebody copied the file.
	switch a.Type() {
	case unix.S_IFREG:
		return d.sameData(ctx, up, low, name, &is, a)
	case unix.S_IFLNK:
		now, err := sys.Readlink(up, name)
		if err != nil {
			return false, err
		}
		was, err := sys.Readlink(low, name)
		return now == was, err
	default:
		return is.Rdev == a.Rdev, nil
	}
}

// sameData compares the data of two regular files, byte by byte.
func (d *drain) sameData(ctx context.Context, up, low int, name string, is, a *layers.Attr) (bool, error) {
	if is.Size != a.Size {
		return false, nil
	}
	ufd, err := openVery(up, name, is)
	if err != nil {
		return false, err
	}
	defer unix.Close(ufd)
	if err := sys.Fsync(ufd); err != nil {
		return false, err
	}
	lfd, err := openVery(low, name, a)
	if err != nil {
		return false, err
	}
	defer unix.Close(lfd)
	if d.cfg.Verify {
		for _, fd := range []int{ufd, lfd} {
			_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
		}
	}
	err = copyup.Compare(ctx, ufd, lfd, a.Size)
	if errors.Is(err, copyup.ErrDiffers) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var stx unix.Statx_t
	if err := sys.Statx(lfd, "", &stx); err != nil {
		return false, err
	}
	now := local.AttrOf(&stx)
	if !now.SameVersion(a) || now.Ctime != a.Ctime && now.Nlink == a.Nlink {
		return false, errChanged
	}
	return true, nil
}

// syncFile makes the file a durable. What is no regular file is with its name.
func syncFile(dirfd int, name string, a *layers.Attr) error {
	if !a.IsRegular() {
		return nil
	}
	fd, err := openVery(dirfd, name, a)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.Fsync(fd)
}

// openVery opens the very file that was looked at.
func openVery(dirfd int, name string, a *layers.Attr) (int, error) {
	fd, err := sys.OpenAt(dirfd, name, unix.O_RDONLY|unix.O_NOATIME)
	if err == unix.EPERM {
		fd, err = sys.OpenAt(dirfd, name, unix.O_RDONLY)
	}
	if err != nil {
		return -1, err
	}
	if idOfFd(fd) != idOf(a) {
		unix.Close(fd)
		return -1, errMoved
	}
	return fd, nil
}
