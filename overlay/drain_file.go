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

// step does what is to be done next about name in p: the file comes up, or gets
// the name in the upper, or loses that in the lower.
func (d *drain) step(ctx context.Context, p *place, name string, a *layers.Attr) (copied int64, err error) {
	fs := d.fs
	n, f, err := fs.find(ctx, p.n, name)
	if err != nil {
		return 0, err
	}
	defer fs.Forget(n.id, 1)
	if n.isDir() {
		return 0, d.hidden(p, name, idOf(a))
	}
	if !n.isUpper() {
		if len(f.lowers) == 0 || f.lowers[0].layer != d.l || !f.lowers[0].id().is(idOf(a)) {
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
	if has, err := copyup.Succeeds(up, name, (&lowerRef{layer: d.l, attr: a}).origin()); err != nil {
		return false, err
	} else if has {
		return true, syncFile(up, name, &is)
	}
	if is.Type() != a.Type() {
		return false, nil
	}
	// None: the upper has no room for one, or somebody copied the file, and perhaps
	// not all of it.
	if all, err := hasAll(up, low, name, &is, a); err != nil || !all {
		return false, err
	}
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

// hasAll reports whether name in the upper has all that the lower file a has besides
// its data: copies made by others, as by rsync, may be without xattrs, and are without
// the other names of hard links.
func hasAll(up, low int, name string, is, a *layers.Attr) (bool, error) {
	if !sameMetadata(is, a) || a.Nlink > 1 {
		return false, nil
	}
	has, err := local.XattrsAt(up, name)
	if err != nil {
		return false, err
	}
	of, err := local.XattrsAt(low, name)
	return err == nil && copyup.HasAll(has, of), err
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
	if !idOfFd(fd).is(idOf(a)) {
		unix.Close(fd)
		return -1, errMoved
	}
	return fd, nil
}
