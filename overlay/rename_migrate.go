package overlay

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
)

// dropLowerName removes the lower name of a hard-linked file that was just given
// the same name in the upper.
func (fs *FS) dropLowerName(d dentry, n *node, dir int) error {
	n.mu.RLock()
	lowers := n.lowers
	n.mu.RUnlock()
	if len(lowers) == 0 {
		return nil
	}
	if err := fs.syncDir(dir, fs.copies); err != nil {
		return err
	}
	if err := fs.syncNames(d.parent); err != nil {
		return err
	}
	path, _ := d.parent.path()
	err := fs.asDaemon(func() error { return fs.removeFrom(d, &lowers[0], lowers[0].attr, path.Join(d.name)) })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, errMoved) {
		return nil
	}
	return err
}

// renameMigrate renames in the one layer that has the file. What would need two
// layers is brought up first; a directory that would, or what changes places with one, moves
// in each if no other host can see that (rename_parts.go), else it is EXDEV, and mv copies.
func (fs *FS) renameMigrate(ctx context.Context, m *move) error {
	if fs.many() && (m.src.isDir() && m.src.parts() > 1 || m.exchange() && m.dst.isDir() && m.dst.parts() > 1) {
		return unix.EXDEV
	}
	inParts := !fs.many() && (m.src.isDir() || m.exchange() && m.dst.isDir())
	if inParts {
		fs.dirMoves.Lock()
		defer fs.dirMoves.Unlock()
	}
	if m.src.isUpper() && !m.src.isDir() {
		if err := fs.ensureNamed(ctx, m.from, m.src); err != nil {
			return err
		}
	}
	if m.exchange() && m.dst.isUpper() && !m.dst.isDir() {
		if err := fs.ensureNamed(ctx, m.to, m.dst); err != nil {
			return err
		}
	}
	for range 3 {
		if m.src.isUpper() {
			// Not while we have claims: others, with claims of their own, may wait for ours.
			// Nor locks: a copy-up may wait for the worker of removals.go, and that for them.
			if err := fs.up(ctx, m.to.parent, whole); err != nil {
				return err
			}
		}
		if inParts && m.exchange() && m.dst.isUpper() {
			if err := fs.up(ctx, m.from.parent, whole); err != nil {
				return err
			}
		}
		if inParts {
			if err := fs.spreadTo(ctx, m); err != nil {
				return err
			}
			if done, err := fs.renameParts(m); done || err != nil {
				return err
			}
		}
		again, err := fs.claimAndRename(ctx, m)
		if !again {
			return err
		}
		if m.src.isDir() || m.exchange() && m.dst.isDir() {
			return unix.EXDEV
		}
		if err := fs.up(ctx, m.src, whole); err != nil {
			return err
		}
		if err := fs.up(ctx, m.to.parent, whole); err != nil {
			return err
		}
		if m.exchange() {
			if err := fs.up(ctx, m.dst, whole); err != nil {
				return err
			}
		}
	}
	if fs.many() {
		return errChanged
	}
	return unix.EBUSY
}

// claimAndRename is tryRename with the claims of what lowers have at both names. What
// is replaced, nobody needs to bring up any more.
func (fs *FS) claimAndRename(ctx context.Context, m *move) (up bool, err error) {
	kind := copyup.Revoke
	if m.exchange() {
		kind = copyup.Lock
	}
	claims, err := fs.claimNames(ctx,
		claimedName{dentry: m.from, kind: copyup.Lock}, claimedName{dentry: m.to, kind: kind}, claimedName{dentry: m.to, free: true})
	if err != nil {
		return false, err
	}
	defer claims.release()
	return fs.tryRename(ctx, m, claims)
}

// tryRename renames within one layer if it can; up says that the source has to
// come up first.
func (fs *FS) tryRename(ctx context.Context, m *move, claims claimed) (up bool, err error) {
	unlock := lockBoth(m.src, m.dst)
	var bury *node
	defer func() {
		unlock()
		if bury != nil {
			fs.bury(bury) // takes its lock itself
		}
	}()
	old, err := fs.partsWith(m.from.parent, m.from.name)
	if err != nil {
		return false, err
	}
	defer releaseAll(fs, old)
	if err := claims.agree(m.src, old); err != nil {
		return false, err
	}
	if len(old) == 0 {
		return false, unix.ENOENT
	}
	if len(old) > 1 {
		if m.src.isDir() {
			return true, nil
		}
		// A shadowed copy is older than what shows: it goes before anything moves.
		if err := fs.unlinkParts(m.from, old[1:], old[0].d, claims); err != nil {
			return false, err
		}
	}
	if err := fs.settle(m.from.parent); err != nil {
		return false, err
	}
	if err := fs.settleOthers(m.from.parent, &old[0], m.from.name); err != nil {
		return false, err
	}
	targets, err := fs.partsWith(m.to.parent, m.to.name)
	if err != nil {
		return false, err
	}
	defer releaseAll(fs, targets)
	if m.dst != nil {
		err = claims.agree(m.dst, targets)
	} else if claims != nil && len(targets) > 0 {
		err = errChanged
	}
	if err != nil {
		return false, err
	}
	at := old[0].layer
	dir, err := fs.partIn(ctx, m.to.parent, at)
	if err != nil || dir == nil {
		return dir == nil && err == nil, err
	}
	defer fs.dirs.release(dir)
	if len(targets) > 0 && targets[0].layer.index < at.index ||
		m.exchange() && (len(targets) == 0 || targets[0].layer != at) {
		return true, nil
	}
	if m.exchange() && len(targets) > 1 {
		if m.dst.isDir() {
			return true, nil
		}
		if err := fs.unlinkParts(m.to, targets[1:], targets[0].d, claims); err != nil {
			return false, err
		}
		targets = targets[:1]
	}
	flags := uint(m.flags & unix.RENAME_EXCHANGE)
	if claims != nil {
		flags = uint(m.flags)
	}
	defer fs.unsynced.changed(at, old[0].d)
	defer fs.unsynced.changed(at, dir)
	forget := func() {}
	if !m.exchange() {
		if forget, err = fs.keepTarget(targets, at, m.to); err != nil {
			return false, err
		}
	}
	if at == fs.upper && !m.exchange() {
		fs.noteOver(old[0].d.fd, m.from.name, targets)
	}
	linked := false
	if at != fs.upper && claims != nil && flags == unix.RENAME_NOREPLACE && !m.src.isDir() {
		linked, err = fs.renameByLink(m, &old[0], dir, claims)
	}
	if !linked {
		err = sys.Rename(old[0].d.fd, m.from.name, dir.fd, m.to.name, flags)
	}
	if !linked && flags == unix.RENAME_NOREPLACE && (err == unix.EINVAL || err == unix.ENOSYS) {
		// No such flag here, as on NFS and Lustre: that the name is free was looked at.
		err = sys.Rename(old[0].d.fd, m.from.name, dir.fd, m.to.name, 0)
	}
	if err != nil {
		forget()
		if claims != nil && err == unix.ENOENT {
			return false, errChanged
		}
		return false, err
	}
	switch {
	case at == fs.upper:
		err = fs.renamedAbove(m, old[0].d, dir, targets, claims)
	case !linked:
		err = fs.renamedBelow(m, &old[0], dir, claims)
	}
	if err != nil {
		return false, err
	}
	if m.dst != nil && !m.exchange() && at != fs.upper {
		fs.lostBelow(m.dst, &part{layer: at, d: dir})
	}
	if err := fs.unlinkShadowed(m, targets, at, dir, claims); err != nil {
		// What shows has moved. What is under it is hidden, and goes with it.
		fs.log.Warn("lower copies left under a renamed file", "name", m.to.name, "cause", err)
	}
	fs.dirChanged(m.from.parent, at)
	fs.dirChanged(m.to.parent, at)
	bury = fs.moved(m)
	return false, nil
}

// noteOver notes on name in the upper directory dirfd which lower files it is about to be
// renamed over: if those are not removed any more, a drain or another host does it.
// Without the note they stay, hidden, for people to look at.
func (fs *FS) noteOver(dirfd int, name string, targets []part) {
	var over []copyup.Origin
	for i := range targets {
		if targets[i].layer != fs.upper && !targets[i].isDir() {
			over = append(over, targets[i].origin())
		}
	}
	if len(over) == 0 {
		return
	}
	if err := fs.asDaemon(func() error { return copyup.NoteOver(dirfd, name, over) }); err != nil {
		fs.log.Debug("not noted what a file is renamed over", "name", name, "cause", err)
	}
}

// partIn returns the part of the directory n in layer l; nil if it has none and
// cannot get one without a copy-up.
func (fs *FS) partIn(ctx context.Context, n *node, l *layer) (*dirFD, error) {
	if l == fs.upper {
		if fs.many() && !fs.notice(n) {
			return nil, nil
		}
		if err := fs.up(ctx, n, whole); err != nil {
			return nil, err
		}
		return fs.upperDir(n)
	}
	return fs.gaining(n, l)
}

// unlinkParts removes the name of from layers under the one that shows, the lowest
// first, after what shows is durable.
func (fs *FS) unlinkParts(d dentry, parts []part, above *dirFD, claims claimed) error {
	if err := fs.syncDir(above.fd, copyup.Config{}); err != nil {
		return err
	}
	for i := len(parts) - 1; i >= 0; i-- {
		var err error
		switch {
		case parts[i].isDir():
			err = sys.Rmdir(parts[i].d.fd, d.name)
		case claims != nil:
			err = fs.takeHidden(d, &parts[i])
		default:
			err = fs.unlinkPart(&parts[i], d.parent, d.name)
		}
		fs.unsynced.changed(parts[i].layer, parts[i].d)
		if err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

// unlinkShadowed ends a rename onto a name that layers under at have too.
func (fs *FS) unlinkShadowed(m *move, targets []part, at *layer, dir *dirFD, claims claimed) error {
	for i := range targets {
		if targets[i].layer.index > at.index {
			return fs.unlinkParts(m.to, targets[i:], dir, claims)
		}
	}
	return nil
}
