package overlay

import (
	"cmp"
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

// move is one rename under way: its two ends and what stands there.
type move struct {
	from, to dentry
	flags    uint32
	src, dst *node // dst is nil if nothing stands there
	srcFound *found
	dstFound *found
	last     int       // what hold returned for dst, or -1; taken by moved
	as       *sys.Cred // with creds=caller, whose rename it is; nil: the daemon itself
}

func (m *move) exchange() bool { return m.flags&unix.RENAME_EXCHANGE != 0 }

// Rename implements fuse.RawFileSystem.
func (fs *FS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	from, to := fs.table.get(in.NodeId), fs.table.get(in.Newdir)
	if from == nil || to == nil {
		return fuse.Status(unix.ESTALE)
	}
	m := &move{from: dentry{from, oldName}, to: dentry{to, newName}, flags: in.Flags}
	if fs.cfg.AsCaller && fs.switches(&in.Caller) {
		m.as = ptr(fs.cred(&in.Caller))
	}
	return fs.status("rename", from, oldName, fs.rename(ctx, m))
}

func (fs *FS) rename(ctx context.Context, m *move) error {
	switch {
	case fs.ReadOnly():
		return unix.EROFS
	case m.flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0:
		return unix.EINVAL // RENAME_WHITEOUT too, as the kernel's overlayfs has it
	case fs.reserved(m.to.parent, m.to.name), m.exchange() && fs.reserved(m.from.parent, m.from.name):
		return unix.EPERM
	case len(m.to.name) > layers.NameMax:
		return unix.ENAMETOOLONG
	}
	return fs.inTurns(ctx, func() error { return fs.renameOnce(ctx, m) })
}

// renameOnce is rename; errChanged says that other hosts were faster, and it has to be
// looked again at what there is to rename.
func (fs *FS) renameOnce(ctx context.Context, m *move) error {
	if err := fs.ends(ctx, m); err != nil {
		return err
	}
	defer fs.Forget(m.src.id, 1)
	if m.dst != nil {
		defer fs.Forget(m.dst.id, 1)
	}
	if m.src == m.dst {
		return fs.stillNamed(ctx, m.from, m.src) // two names of one file
	}
	// The kernel has seen to that, with what it knew of the names.
	if fs.isBelow(m.to.parent, m.src) || m.dst != nil && fs.isBelow(m.from.parent, m.dst) {
		return unix.EINVAL
	}
	if err := fs.mayMove(m); err != nil {
		return err
	}
	m.last = -1
	if m.dst != nil && !m.exchange() {
		fs.upCounted(ctx, m.dst)
		m.last = fs.hold(m.to, m.dst)
	}
	defer func() { closeFd(m.last) }()
	if fs.cfg.Mode == Migrate {
		return fs.renameMigrate(ctx, m)
	}
	return fs.renameOverlay(ctx, m)
}

// isBelow reports whether dir is n, or lies in it.
func (fs *FS) isBelow(dir, n *node) bool {
	if !n.isDir() {
		return false
	}
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	for dir != n {
		if len(dir.names) == 0 {
			return false
		}
		dir = dir.names[0].parent
	}
	return true
}

// stillNamed returns errChanged if other hosts have taken the name d from n: it may have
// moved from there to where it was found since.
func (fs *FS) stillNamed(ctx context.Context, d dentry, n *node) error {
	if !fs.many() {
		return nil
	}
	now, _, err := fs.find(ctx, d.parent, d.name)
	if err != nil {
		return err
	}
	fs.Forget(now.id, 1)
	if now != n {
		return errChanged
	}
	return nil
}

// ends looks up both ends and checks what rename(2) demands of them.
func (fs *FS) ends(ctx context.Context, m *move) (err error) {
	if m.src, m.srcFound, err = fs.find(ctx, m.from.parent, m.from.name); err != nil {
		return err
	}
	m.dst, m.dstFound, err = fs.find(ctx, m.to.parent, m.to.name)
	switch {
	case errors.Is(err, unix.ENOENT) && !m.exchange():
		m.dst, err = nil, nil
	case err != nil:
	case m.flags&unix.RENAME_NOREPLACE != 0:
		// What came to the new name since may have come from the old one.
		err = cmp.Or(fs.stillNamed(ctx, m.from, m.src), error(unix.EEXIST))
	case m.exchange() || m.src == m.dst:
	case m.dst.isDir() && !m.src.isDir():
		err = unix.EISDIR
	case !m.dst.isDir() && m.src.isDir():
		err = unix.ENOTDIR
	case m.dst.isDir():
		err = fs.isEmpty(ctx, m.dst, m.from.parent, m.to.parent)
	}
	if err != nil {
		fs.Forget(m.src.id, 1)
		if m.dst != nil {
			fs.Forget(m.dst.id, 1)
		}
	}
	return err
}

// lockBoth locks the files at both ends, in the order of their ids.
func lockBoth(a, b *node) (unlock func()) {
	if b == nil {
		a.mu.Lock()
		return a.mu.Unlock
	}
	if b.id < a.id {
		a, b = b, a
	}
	a.mu.Lock()
	b.mu.Lock()
	return func() { b.mu.Unlock(); a.mu.Unlock() }
}

// moved updates names after a rename. The caller holds both locks; it returns
// what is to be buried.
func (fs *FS) moved(m *move) *node {
	if m.exchange() {
		fs.tree.Lock()
		left := append(fs.renameNameLocked(m.src, m.from, m.to), fs.renameNameLocked(m.dst, m.to, m.from)...)
		fs.tree.Unlock()
		fs.leave(left)
		return nil
	}
	var bury *node
	if m.dst != nil {
		if fs.nameGone(m.dst, m.to, m.dstFound, m.last) {
			bury = m.dst
		}
		m.last = -1
		if m.dst.isDir() {
			fs.dirs.drop(m.dst)
		}
	}
	fs.tree.Lock()
	left := fs.renameNameLocked(m.src, m.from, m.to)
	fs.tree.Unlock()
	fs.leave(left)
	return bury
}

// ensureNamed gives an upper file that is known by another name, or by the
// index, the name that it still has in a lower only.
func (fs *FS) ensureNamed(ctx context.Context, d dentry, n *node) error {
	if err := fs.up(ctx, d.parent, whole); err != nil {
		return err
	}
	dir, err := fs.upperDir(d.parent)
	if err != nil {
		return err
	}
	defer fs.dirs.release(dir)
	has, err := inUpper(dir.fd, d.name)
	if err != nil || has {
		return err
	}
	claims, err := fs.claimNames(ctx, claimedName{dentry: d, kind: copyup.Lock})
	if err != nil {
		return err
	}
	defer claims.release()
	if claims != nil {
		if still, err := fs.claimedAt(d, claims, n.lowerOrigin()); err != nil || !still {
			return cmp.Or(err, errChanged) // the name is gone, or another file's
		}
	}
	fd, err := fs.openUpper(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	shown, err := fs.attrOfHandle(n, fd)
	if err != nil {
		return err
	}
	if err := fs.setImpure(d.parent, dir.fd); err != nil {
		return err
	}
	if err := fs.linkAsBelow(d, n, dir.fd, fd, claims); err != nil {
		if claims != nil && errors.Is(err, unix.EEXIST) {
			return errChanged
		}
		return err
	}
	if fs.cfg.Mode == Overlay {
		if n.indexed {
			fs.setNlink(fd, shown.Nlink)
		}
		return nil
	}
	return fs.dropLowerName(d, n, dir.fd)
}

// linkAsBelow gives the upper file fd of n the name d in its directory in the upper. In
// migrate mode that is one that a lower has; if it has lost it since we saw it there,
// by a rename or a removal, it must not come back: who does that holds n.mu, or, on many hosts,
// has the claim that we have.
func (fs *FS) linkAsBelow(d dentry, n *node, dir, fd int, claims claimed) error {
	if fs.cfg.Mode == Migrate && claims == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		if stands, err := fs.standsAt(d, n); err != nil || !stands {
			return cmp.Or(err, errChanged)
		}
	}
	return fs.timeless(d.parent, dir, func() error { return sys.LinkFd(fd, dir, d.name) })
}

// standsAt reports whether a lower has the file n, which is in the upper by now, at d.
// The caller holds n.mu.
func (fs *FS) standsAt(d dentry, n *node) (bool, error) {
	refs, err := fs.lowersAt(d)
	return slices.ContainsFunc(refs, func(r lowerRef) bool {
		return len(n.lowers) == 0 || r.id().is(n.lowers[0].id())
	}), err
}

// lowersAt returns what lowers have at d.
func (fs *FS) lowersAt(d dentry) (refs []lowerRef, err error) {
	d.parent.mu.RLock()
	lowers := d.parent.lowers
	d.parent.mu.RUnlock()
	for i := range lowers {
		dir, err := fs.lowerDir(d.parent, &lowers[i])
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var stx unix.Statx_t
		err = sys.Statx(dir.fd, d.name, &stx)
		fs.dirs.release(dir)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, err
		}
		refs = append(refs, lowerRef{layer: lowers[i].layer, attr: ptr(local.AttrOf(&stx))})
	}
	return refs, nil
}

func (fs *FS) renameOverlay(ctx context.Context, m *move) error {
	if err := fs.bringEnds(ctx, m); err != nil {
		return err
	}
	from, to, release, err := fs.upperEnds(m)
	if err != nil {
		return err
	}
	defer release()
	if err := fs.mixIn(m, from, to); err != nil {
		return err
	}
	oldCovered := fs.lowersMayHave(ctx, m.from.parent, m.from.name)
	newCovered := fs.lowersMayHave(ctx, m.to.parent, m.to.name)

	unlock := lockBoth(m.src, m.dst)
	err = fs.prepareDirs(m, oldCovered, newCovered)
	if err == nil {
		err = fs.renameUpper(m, from.fd, to.fd, oldCovered)
	}
	var bury *node
	if err == nil {
		bury = fs.moved(m)
	}
	unlock()
	if bury != nil {
		fs.bury(bury)
	}
	return err
}

// upperEnds opens the directories of both ends in the upper.
func (fs *FS) upperEnds(m *move) (from, to *dirFD, release func(), err error) {
	if from, err = fs.upperDir(m.from.parent); err != nil {
		return nil, nil, nil, err
	}
	if to, err = fs.upperDir(m.to.parent); err != nil {
		fs.dirs.release(from)
		return nil, nil, nil, err
	}
	return from, to, func() { fs.dirs.release(from); fs.dirs.release(to) }, nil
}

// mixIn marks the directories that copies move to.
func (fs *FS) mixIn(m *move, from, to *dirFD) error {
	if m.from.parent == m.to.parent {
		return nil
	}
	if m.src.hasOrigin() {
		if err := fs.setImpure(m.to.parent, to.fd); err != nil {
			return err
		}
	}
	if m.exchange() && m.dst.hasOrigin() {
		return fs.setImpure(m.from.parent, from.fd)
	}
	return nil
}

// bringEnds brings up what takes part in a rename.
func (fs *FS) bringEnds(ctx context.Context, m *move) error {
	if fs.lacksRedirect(m.src) || m.exchange() && fs.lacksRedirect(m.dst) {
		return unix.EXDEV
	}
	if err := fs.upToMove(ctx, m.src); err != nil {
		return err
	}
	if err := fs.up(ctx, m.to.parent, whole); err != nil {
		return err
	}
	if !m.src.isDir() {
		if err := fs.ensureNamed(ctx, m.from, m.src); err != nil {
			return err
		}
	}
	if !m.exchange() {
		return nil
	}
	if err := fs.upToMove(ctx, m.dst); err != nil {
		return err
	}
	if m.dst.isDir() {
		return nil
	}
	return fs.ensureNamed(ctx, m.to, m.dst)
}

// lacksRedirect reports directories with parts below that cannot be moved.
func (fs *FS) lacksRedirect(n *node) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.isDir() && len(n.lowers) > 0 && fs.cfg.NoRedirect
}

// prepareDirs marks directories for their new place, before they go there: one
// with parts below says where those are, one without hides what is there. A
// target directory is empty in the merged view; in the upper it may hold
// whiteouts, which go once nothing below can show. The caller holds both locks.
func (fs *FS) prepareDirs(m *move, oldCovered, newCovered bool) error {
	if m.src.isDir() {
		if err := fs.anchor(m.src, m.from, m.to, newCovered); err != nil {
			return err
		}
	}
	if m.dst == nil || !m.dst.isDir() {
		return nil
	}
	if m.exchange() {
		return fs.anchor(m.dst, m.to, m.from, oldCovered)
	}
	return fs.clearDir(m.dst, m.to)
}

func (fs *FS) anchor(n *node, at, to dentry, covered bool) error {
	fd, err := fs.openNamed(at, n.upID)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if len(n.lowers) > 0 {
		redirect, err := fs.redirectTo(n, at.parent == to.parent)
		if err != nil {
			return err
		}
		err = sys.Setxattr(fd, "", fs.cfg.Format.Name(whiteout.Redirect), []byte(redirect), 0)
		if err == nil {
			n.setRedirect(redirect) // before the name changes: others build paths of both
		}
		return err
	}
	if covered {
		return fs.opaque(fd)
	}
	return nil
}

func (fs *FS) clearDir(n *node, at dentry) error {
	if !n.upper {
		return nil
	}
	path, err := fs.openNamed(at, n.upID)
	if err != nil {
		return err
	}
	defer unix.Close(path)
	if len(n.lowers) > 0 {
		if err := fs.opaque(path); err != nil {
			return err
		}
		n.lowers = nil // also if it stays: what its whiteouts hide must not show
	}
	entries, err := local.ReadDirAt(context.Background(), path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type != unix.S_IFCHR {
			return unix.ENOTEMPTY
		}
		if err := sys.Unlink(path, e.Name); err != nil {
			return err
		}
	}
	return nil
}

// renameUpper makes the rename in the upper, in one step that leaves a whiteout
// where a lower would show through.
func (fs *FS) renameUpper(m *move, from, to int, oldCovered bool) error {
	if m.exchange() {
		return sys.Rename(from, m.from.name, to, m.to.name, unix.RENAME_EXCHANGE)
	}
	var stx unix.Statx_t
	err := sys.Statx(to, m.to.name, &stx)
	if err != nil && err != unix.ENOENT {
		return err
	}
	if err == nil && m.src.isDir() && stx.Mode&unix.S_IFMT != unix.S_IFDIR {
		// A whiteout: a directory cannot be renamed over it, but can change places.
		if err := sys.Rename(from, m.from.name, to, m.to.name, unix.RENAME_EXCHANGE); err != nil || oldCovered {
			return err
		}
		// Nothing lies below: left, it hides nothing.
		_ = sys.Unlink(from, m.from.name)
		return nil
	}
	if oldCovered {
		return sys.Rename(from, m.from.name, to, m.to.name, unix.RENAME_WHITEOUT)
	}
	return sys.Rename(from, m.from.name, to, m.to.name, 0)
}
