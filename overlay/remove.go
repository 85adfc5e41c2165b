package overlay

import (
	"context"
	"errors"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// victim looks up the file at name in dir that is about to lose its name, and
// its node, locked.
func (fs *FS) victim(ctx context.Context, dir *node, name string) (*node, *found, error) {
	f, err := fs.lookup(ctx, dir, name)
	if err != nil {
		return nil, nil, err
	}
	n := fs.table.adopt(fs, f, dir, name)
	return n, f, nil
}

// Unlink implements fuse.RawFileSystem.
func (fs *FS) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	dir := fs.table.get(in.NodeId)
	err := fs.unlink(ctx, dir, name)
	return fs.statusIn("unlink", dir, name, err)
}

func (fs *FS) unlink(ctx context.Context, dir *node, name string) error {
	if fs.ReadOnly() {
		return unix.EROFS
	}
	if dir == nil {
		return unix.ESTALE
	}
	n, f, err := fs.victim(ctx, dir, name)
	if err != nil {
		return err
	}
	defer fs.Forget(n.id, 1)
	if n.isDir() {
		return unix.EISDIR
	}
	if err := fs.mayLose(dir, f); err != nil {
		return err
	}
	if fs.cfg.Mode == Overlay {
		if err := fs.up(ctx, dir, whole); err != nil {
			return err
		}
	}
	fs.upCounted(ctx, n)
	last := fs.hold(dentry{dir, name}, n)
	n.mu.Lock()
	remove := fs.whiteOut
	if fs.cfg.Mode == Migrate {
		remove = fs.unlinkEverywhere
	}
	if err := remove(ctx, dir, name, n); err != nil {
		n.mu.Unlock()
		closeFd(last)
		return err
	}
	buried := fs.nameGone(n, dentry{dir, name}, f, last)
	n.mu.Unlock()
	if buried {
		fs.bury(n)
	}
	return nil
}

// hold opens the file at d, which is about to lose this name, O_PATH: who has
// looked it up may open it after that, as on any filesystem. It is -1 for a
// directory, and where a lower that never changes has the file.
func (fs *FS) hold(d dentry, n *node) int {
	if n.isDir() {
		return -1
	}
	if n.isUpper() {
		if fd, err := fs.openUpper(n); err == nil {
			return fd
		}
		return -1
	}
	n.mu.RLock()
	lowers := n.lowers
	n.mu.RUnlock()
	if len(lowers) == 0 || !lowers[0].layer.writable {
		return -1
	}
	part := d.parent.lowerIn(lowers[0].layer)
	if part == nil {
		return -1
	}
	dir, err := fs.lowerDir(d.parent, part)
	if err != nil {
		return -1
	}
	defer fs.dirs.release(dir)
	if fd, err := openIdentified(dir.fd, d.name, lowers[0].id()); err == nil {
		return fd
	}
	return -1
}

func closeFd(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// keep replaces the descriptor that is kept of n. The caller holds n.mu.
func (n *node) keep(fd int) {
	closeFd(n.kept)
	n.kept = fd
}

// nameGone notes that n lost the name d. When it was the last, n is dead: its
// inode numbers may come back with other files, and what is asked of it while the
// kernel knows it is answered by handles or by last, what hold returned. It
// reports whether nobody has it open. The caller holds n.mu.
func (fs *FS) nameGone(n *node, d dentry, f *found, last int) (bury bool) {
	left := fs.dropName(n, d.parent, d.name)
	links := max(f.attr.Nlink, 1) - 1
	if fs.cfg.Mode == Overlay && !n.isDir() {
		fs.recount(n, links, last)
	}
	switch {
	case left > 0:
		closeFd(last)
		return false
	case links > 0 && !n.isDir(): // it has names that nobody has looked up
		n.keep(last)
		return false
	}
	a := f.attr
	a.Nlink, a.Known = 0, a.Known|layers.KnownNlink
	n.dead = &a
	n.keep(last)
	if n.upper && last >= 0 && (!f.upper || hasObject(f.pending)) && idOfFd(last) != n.upID {
		n.keep(-1) // it came up after it was opened
	}
	fs.table.die(n)
	_ = fs.asDaemon(func() error { fs.dropIndex(n, n.kept); return nil })
	return len(n.open) == 0
}

// recount corrects the recorded link count of a hard-linked file that has links
// names left. fd is a descriptor of the upper file, or -1. The caller holds n.mu.
func (fs *FS) recount(n *node, links uint32, fd int) {
	switch {
	case n.upper && n.indexed && links > 0 && fd >= 0:
		fs.setNlink(fd, links)
	case !n.upper && len(n.lowers) > 0 && canIndex(&n.lowers[0]):
		fs.setGone(&n.lowers[0], links)
	}
}

// whiteOut takes name out of dir in overlay mode. Where a lower has it, or may, a
// whiteout takes its place by rename, so that at no instant the lower shows
// through. The caller holds the victim's lock.
func (fs *FS) whiteOut(ctx context.Context, dir *node, name string, _ *node) error {
	d, err := fs.upperDir(dir)
	if err != nil {
		return err
	}
	defer fs.dirs.release(d)
	if !fs.lowersMayHave(ctx, dir, name) {
		return sys.Unlink(d.fd, name)
	}
	has, err := inUpper(d.fd, name)
	if err != nil {
		return err
	}
	if !has {
		return fs.linkWhiteout(d.fd, name)
	}
	temp := copyup.TempName()
	if err := fs.linkWhiteout(fs.work, temp); err != nil {
		return err
	}
	if err := sys.Rename(fs.work, temp, d.fd, name, 0); err != nil {
		_ = sys.Unlink(fs.work, temp)
		return err
	}
	return nil
}

func inUpper(dirfd int, name string) (bool, error) {
	var stx unix.Statx_t
	err := sys.Statx(dirfd, name, &stx)
	if err == unix.ENOENT {
		return false, nil
	}
	return err == nil, err
}

// sharedWhiteout is the one whiteout, in the work directory, that all others are
// links of: making a link costs no inode, so a user over quota can delete.
const sharedWhiteout = "whiteout"

// linkWhiteout makes a whiteout. A filesystem limits links per inode: the shared
// one is then replaced.
func (fs *FS) linkWhiteout(dirfd int, name string) error {
	fs.whiteoutMu.Lock()
	defer fs.whiteoutMu.Unlock()
	err := sys.Link(fs.work, sharedWhiteout, dirfd, name)
	if err == unix.EMLINK {
		if err := sys.Unlink(fs.work, sharedWhiteout); err != nil {
			return err
		}
		err = unix.ENOENT
	}
	if err != unix.ENOENT {
		return err
	}
	if err := sys.Mknod(fs.work, sharedWhiteout, unix.S_IFCHR, 0); err != nil && err != unix.EEXIST {
		return err
	}
	return sys.Link(fs.work, sharedWhiteout, dirfd, name)
}

// unlinkEverywhere takes name out of every layer in migrate mode, the lowest
// first and each durably before the next higher: no crash leaves an older
// version in place of a newer. The caller holds the victim's lock.
func (fs *FS) unlinkEverywhere(_ context.Context, dir *node, name string, n *node) error {
	parts, err := fs.partsWith(dir, name)
	if err != nil {
		return err
	}
	defer releaseAll(fs, parts)
	if err := fs.settle(dir); err != nil {
		return err
	}
	for i := len(parts) - 1; i >= 0; i-- {
		if i == 0 {
			fs.unsynced.changed(parts[i].layer, parts[i].d)
		}
		if err := fs.unlinkPart(&parts[i], dir, name); err != nil && err != unix.ENOENT {
			return err
		}
		if i > 0 {
			if err := fs.syncDir(parts[i].d.fd, copyup.Config{}); err != nil {
				return err
			}
		}
	}
	if len(parts) > 0 {
		fs.dirChanged(dir, parts[0].layer)
	}
	if n.indexed && len(n.lowers) > 0 {
		fs.unmarkIfLast(&n.lowers[0])
	}
	return nil
}

// part is a directory in one layer.
type part struct {
	layer *layer
	d     *dirFD
	isDir bool // what stands at the name there
}

func releaseAll(fs *FS, parts []part) {
	for _, p := range parts {
		fs.dirs.release(p.d)
	}
}

// partsWith returns the layers' parts of dir that have name, highest first. The
// caller releases them.
func (fs *FS) partsWith(dir *node, name string) (parts []part, err error) {
	dir.mu.RLock()
	upper, lowers := dir.upper, dir.lowers
	dir.mu.RUnlock()
	if err := fs.may(dir, unix.W_OK|unix.X_OK); err != nil {
		return nil, err
	}
	add := func(l *layer, d *dirFD, err error) error {
		if err != nil {
			return err
		}
		var stx unix.Statx_t
		switch err := sys.Statx(d.fd, name, &stx); {
		case err == nil:
			parts = append(parts, part{l, d, stx.Mode&unix.S_IFMT == unix.S_IFDIR})
			return nil
		case err == unix.ENOENT:
			fs.dirs.release(d)
			return nil
		default:
			fs.dirs.release(d)
			return err
		}
	}
	if upper {
		d, err := fs.upperDir(dir)
		if err := add(fs.upper, d, err); err != nil {
			return nil, err
		}
	}
	for i := range lowers {
		d, err := fs.lowerDir(dir, &lowers[i])
		if errors.Is(err, errMoved) {
			continue
		}
		if err := add(lowers[i].layer, d, err); err != nil {
			releaseAll(fs, parts)
			return nil, err
		}
	}
	return parts, nil
}

// Rmdir implements fuse.RawFileSystem.
func (fs *FS) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	dir := fs.table.get(in.NodeId)
	err := fs.rmdir(ctx, dir, name)
	return fs.statusIn("rmdir", dir, name, err)
}

func (fs *FS) rmdir(ctx context.Context, dir *node, name string) error {
	if fs.ReadOnly() {
		return unix.EROFS
	}
	if dir == nil {
		return unix.ESTALE
	}
	n, f, err := fs.victim(ctx, dir, name)
	if err != nil {
		return err
	}
	defer fs.Forget(n.id, 1)
	if !n.isDir() {
		return unix.ENOTDIR
	}
	if err := fs.mayLose(dir, f); err != nil {
		return err
	}
	if err := fs.isEmpty(ctx, n, dir); err != nil {
		return err
	}
	if fs.cfg.Mode == Overlay {
		if err := fs.up(ctx, dir, whole); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if fs.cfg.Mode == Migrate {
		err = fs.rmdirEverywhere(dir, name)
	} else {
		err = fs.whiteOutDir(ctx, dir, name)
	}
	if err != nil {
		return err
	}
	f.attr.Nlink = 0
	fs.nameGone(n, dentry{dir, name}, f, -1)
	fs.dirs.drop(n)
	return nil
}

// isEmpty returns ENOTEMPTY if the merged directory n has entries, or EPERM if one
// of parents, which lose a name with it, must not: any filesystem says that first.
func (fs *FS) isEmpty(ctx context.Context, n *node, parents ...*node) error {
	list, err := fs.readDir(ctx, n)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Name != "." && e.Name != ".." {
			if slices.ContainsFunc(parents, fs.mayLoseNone) {
				return unix.EPERM
			}
			return unix.ENOTEMPTY
		}
	}
	return nil
}

// whiteOutDir takes an empty directory out of dir in overlay mode. In the upper
// it may hold whiteouts: it is moved out of sight whole, then cleared.
func (fs *FS) whiteOutDir(ctx context.Context, dir *node, name string) error {
	d, err := fs.upperDir(dir)
	if err != nil {
		return err
	}
	defer fs.dirs.release(d)
	has, err := inUpper(d.fd, name)
	if err != nil {
		return err
	}
	covered := fs.lowersMayHave(ctx, dir, name)
	switch {
	case !has:
		return fs.linkWhiteout(d.fd, name)
	case !covered:
		if err := sys.Rmdir(d.fd, name); err != unix.ENOTEMPTY {
			return err
		}
		temp := copyup.TempName()
		if err := sys.Rename(d.fd, name, fs.work, temp, 0); err != nil {
			return err
		}
		copyup.RemoveTemp(fs.work, temp)
		return nil
	}
	temp := copyup.TempName()
	if err := fs.linkWhiteout(fs.work, temp); err != nil {
		return err
	}
	if err := sys.Rename(fs.work, temp, d.fd, name, unix.RENAME_EXCHANGE); err != nil {
		_ = sys.Unlink(fs.work, temp)
		return err
	}
	copyup.RemoveTemp(fs.work, temp)
	return nil
}

// rmdirEverywhere removes an empty directory from every layer, the lowest first.
// What another host put into it meanwhile makes it ENOTEMPTY, and it stays.
func (fs *FS) rmdirEverywhere(dir *node, name string) error {
	parts, err := fs.partsWith(dir, name)
	if err != nil {
		return err
	}
	defer releaseAll(fs, parts)
	for i := len(parts) - 1; i >= 0; i-- {
		if !parts[i].isDir {
			continue
		}
		if err := sys.Rmdir(parts[i].d.fd, name); err != nil && err != unix.ENOENT {
			return err
		}
		if i > 0 {
			if err := fs.syncDir(parts[i].d.fd, copyup.Config{}); err != nil {
				return err
			}
		}
	}
	if len(parts) > 0 {
		fs.dirChanged(dir, parts[0].layer)
	}
	return nil
}

// opaque makes the upper directory fd hide what lies below it.
func (fs *FS) opaque(fd int) error {
	return sys.Setxattr(fd, "", fs.cfg.Format.Name(whiteout.Opaque), []byte("y"), 0)
}
