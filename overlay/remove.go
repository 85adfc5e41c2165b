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
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// Unlink implements fuse.RawFileSystem.
func (fs *FS) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	dir := fs.table.get(in.NodeId)
	err := fs.remove(ctx, dir, name, false)
	return fs.statusIn("unlink", dir, name, err)
}

// remove is unlink, or rmdir of a directory. Where other hosts do so too, what was
// looked up may be another thing by the time it is removed: then it is looked up
// again.
func (fs *FS) remove(ctx context.Context, dir *node, name string, isDir bool) error {
	if fs.ReadOnly() {
		return unix.EROFS
	}
	if dir == nil {
		return unix.ESTALE
	}
	return fs.inTurns(ctx, func() error { return fs.removeOnce(ctx, dentry{dir, name}, isDir) })
}

func (fs *FS) removeOnce(ctx context.Context, d dentry, isDir bool) error {
	n, f, err := fs.find(ctx, d.parent, d.name)
	if err != nil {
		return err
	}
	defer fs.Forget(n.id, 1)
	switch {
	case isDir && !n.isDir():
		return unix.ENOTDIR
	case !isDir && n.isDir():
		return unix.EISDIR
	}
	if err := fs.mayLose(d.parent, f); err != nil {
		return err
	}
	if isDir {
		if err := fs.isEmpty(ctx, n, d.parent); err != nil {
			return err
		}
	}
	if fs.cfg.Mode == Overlay {
		if err := fs.up(ctx, d.parent, whole); err != nil {
			return err
		}
	}
	fs.upCounted(ctx, n)
	claims, err := fs.claimNames(ctx, claimedName{dentry: d, kind: copyup.Revoke})
	if err != nil {
		return err
	}
	defer claims.release()
	last := fs.hold(d, n)
	links := linksOf(last)
	n.mu.Lock()
	if err := fs.removeHeld(ctx, d, n, claims); err != nil {
		n.mu.Unlock()
		closeFd(last)
		return err
	}
	if !claims.whole() && !isDir && last >= 0 && linksOf(last) == links {
		// Somebody had broken our claim and put another file there: that has gone.
		fs.dropName(n, d.parent, d.name)
		n.mu.Unlock()
		closeFd(last)
		return nil
	}
	if isDir {
		f.attr.Nlink = 0
	}
	buried := fs.nameGone(n, d, f, last)
	n.mu.Unlock()
	if isDir {
		fs.dirs.drop(n)
	}
	if buried {
		fs.bury(n)
	}
	return nil
}

// removeHeld takes the name d of n out of the layers. The caller holds n.mu.
func (fs *FS) removeHeld(ctx context.Context, d dentry, n *node, claims claimed) error {
	switch {
	case fs.cfg.Mode == Migrate:
		return fs.removeEverywhere(d, n, claims)
	case n.isDir():
		return fs.whiteOutDir(ctx, d.parent, d.name)
	}
	return fs.whiteOut(ctx, d.parent, d.name)
}

// hold opens the file at d, which is about to lose this name, O_PATH: who has
// looked it up may open it after that, as on any filesystem. It is -1 where a lower that
// never changes has the file.
func (fs *FS) hold(d dentry, n *node) int {
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
	dir, err := fs.lowerOf(d.parent, lowers[0].layer)
	if err != nil {
		return -1
	}
	defer fs.dirs.release(dir)
	if fd, err := openIdentified(dir.fd, d.name, lowers[0].id()); err == nil {
		return fd
	}
	return -1
}

func linksOf(fd int) uint32 {
	var st unix.Stat_t
	if fd < 0 || unix.Fstat(fd, &st) != nil {
		return 0
	}
	return uint32(st.Nlink)
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
	if !f.upper && len(f.lowers) > 0 && !f.lowers[0].layer.isLocal() {
		links = 0 // other names that the source has of it are other files here
	}
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
	if n.upper && last >= 0 && (!f.upper || hasObject(f.pending)) && !idOfFd(last).is(n.upID) {
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
func (fs *FS) whiteOut(ctx context.Context, dir *node, name string) error {
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

// removeEverywhere takes the name d of n out of every layer in migrate mode, the
// lowest first and each durably before the next higher: no crash leaves an older
// version in place of a newer. A directory must be empty; what another host puts into
// it meanwhile makes it ENOTEMPTY, and it stays. The caller holds the victim's lock.
func (fs *FS) removeEverywhere(d dentry, n *node, claims claimed) error {
	parts, err := fs.partsWith(d.parent, d.name)
	if err != nil {
		return err
	}
	defer releaseAll(fs, parts)
	if err := claims.agree(n, parts); err != nil {
		return err
	}
	if err := fs.settle(d.parent); err != nil {
		return err
	}
	if len(parts) > 0 {
		if err := fs.settleOthers(d.parent, &parts[0], d.name); err != nil {
			return err
		}
	}
	for i := len(parts) - 1; i >= 0; i-- {
		if n.isDir() && !parts[i].isDir() {
			continue
		}
		if err := fs.removePart(d, &parts[i], i == 0, claims); err != nil {
			return err
		}
		if i > 0 {
			if err := fs.syncDir(parts[i].d.fd, copyup.Config{}); err != nil {
				return err
			}
		}
	}
	if len(parts) > 0 {
		fs.dirChanged(d.parent, parts[0].layer)
	}
	if len(parts) > 0 {
		fs.lostBelow(n, &parts[0])
	}
	return nil
}

// lostBelow is called when n has lost a name that p, where it was looked up, may have had.
// If n had come up by another one, that name led to the copy by the index: once the entry has
// gone, the older lower file would show if a loss of power brought the name back. So that it is gone
// is durable first; if it cannot be, the entry stays until the next mount. The caller holds n.mu.
func (fs *FS) lostBelow(n *node, p *part) {
	if !n.indexed || len(n.lowers) == 0 {
		return
	}
	if p.layer != fs.upper {
		if err := fs.syncDir(p.d.fd, copyup.Config{}); err != nil {
			fs.log.Warn("what a hard-linked file has lost below is not durable", "cause", err)
			return
		}
	}
	fs.unmarkIfLast(&n.lowers[0])
}

// removePart takes the name d out of one layer. Of what lies under another layer's,
// only the file that was looked at goes: others do not see it, and may have made
// something else of the name by then.
func (fs *FS) removePart(d dentry, p *part, top bool, claims claimed) (err error) {
	switch {
	case p.isDir():
		if top {
			defer fs.unsynced.changed(p.layer, p.d)
		}
		err = sys.Rmdir(p.d.fd, d.name)
	case !top && claims != nil:
		return fs.takeHidden(d, p)
	default:
		if top {
			defer fs.unsynced.changed(p.layer, p.d)
		}
		err = fs.unlinkPart(p, d.parent, d.name)
	}
	switch {
	case claims == nil:
		return ignoreGone(err)
	case err == unix.ENOENT && top:
		return errChanged
	case err != nil || p.layer == fs.upper || claims.whole():
		return ignoreGone(err)
	}
	// Our claim was broken: what we removed may have come up before.
	if p.isDir() {
		return fs.inUpperAt(d, func(dirfd int, _ *unix.Statx_t) error { return ignoreGone(sys.Rmdir(dirfd, d.name)) })
	}
	if fs.succeededAt(d, p.origin()) {
		return errChanged
	}
	return nil
}

// part is a directory in one layer.
type part struct {
	layer *layer
	d     *dirFD
	attr  layers.Attr // of what stands at the name there
}

func (p *part) isDir() bool { return p.attr.IsDir() }

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
			parts = append(parts, part{l, d, local.AttrOf(&stx)})
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
	err := fs.remove(ctx, dir, name, true)
	return fs.statusIn("rmdir", dir, name, err)
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

// opaque makes the upper directory fd hide what lies below it.
func (fs *FS) opaque(fd int) error {
	return sys.Setxattr(fd, "", fs.cfg.Format.Name(whiteout.Opaque), []byte("y"), 0)
}
