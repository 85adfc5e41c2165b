package overlay

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// What migrate mode does to lowers. Every change is made through the descriptor
// of the very directory that was looked up, and a removal compares identities.

// private opens LOWER/.migratefs/NAME, which it makes if needed.
func (fs *FS) private(l *layer, slot *int, name string) (int, error) {
	if *slot >= 0 {
		return *slot, nil
	}
	dir, err := openReserved(l.root, fs.cfg.AsCaller)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	*slot, err = sys.MkdirOpen(dir, name)
	return *slot, err
}

func (fs *FS) trash(l *layer) (int, error) {
	fs.whiteoutMu.Lock()
	defer fs.whiteoutMu.Unlock()
	return fs.private(l, &l.trash, "trash")
}

func (fs *FS) marks(l *layer) (int, error) {
	fs.whiteoutMu.Lock()
	defer fs.whiteoutMu.Unlock()
	return fs.private(l, &l.marks, "hl")
}

// afterUp ends a copy-up. In migrate mode the copy's name becomes durable and
// the lower copy goes, later (removals.go) or now; if that fails, both stay, and the
// upper one shows. The caller holds n.mu.
func (fs *FS) afterUp(ctx context.Context, n *node, src *copyup.Source, d dentry) {
	// What was looked up may be older: the file's other names are removed as
	// what was copied, too.
	if len(n.lowers) > 0 {
		r := n.lowers[0]
		r.attr = &src.Attr
		n.lowers = append([]lowerRef{r}, n.lowers[1:]...)
	}
	switch {
	case fs.cfg.Mode != Migrate || n.isDir() || n.dead != nil || fs.keepsCopy(&src.Attr):
	case d.parent == nil || len(n.lowers) == 0:
	case fs.addTo(ctx, n, src, d):
	case fs.mayRemoveLater(src):
		fs.removeLater(n, src, d)
	default:
		if err := fs.removeLower(n, src, d); err != nil {
			fs.lowerCopyLeft(n, err)
		}
	}
}

// removeLower removes the lower name d of n, which was published under that name:
// others that n has are not in the upper yet.
func (fs *FS) removeLower(n *node, src *copyup.Source, d dentry) error {
	if n.fresh.Load() {
		if err := fs.syncNameIn(d.parent); err != nil {
			return err
		}
		n.fresh.Store(false)
	}
	if err := fs.syncNames(d.parent); err != nil {
		return err
	}
	path, ok := d.parent.path()
	if !ok {
		return nil
	}
	return fs.removeFrom(d, &n.lowers[0], &src.Attr, path.Join(d.name))
}

// removeFrom removes the name d from the lower r's layer, where it is the file
// was describes.
func (fs *FS) removeFrom(d dentry, r *lowerRef, was *layers.Attr, path layers.Path) error {
	fs.removing.RLock()
	defer fs.removing.RUnlock()
	if now, ok := fs.pathOf(d); ok {
		path = now
	}
	dir, err := fs.lowerOf(d.parent, r.layer)
	if err != nil {
		return err
	}
	defer fs.dirs.release(dir)
	if canIndex(r) {
		// Other names that the file has below lead to its copy by the index alone.
		if err := fs.syncDir(fs.links, fs.copies); err != nil {
			return err
		}
	}
	defer fs.unsynced.changed(r.layer, dir)
	if err := fs.takeAway(r, dir.fd, d.name, was, path); err != nil {
		return err
	}
	fs.unmarkIfLast(r)
	return nil
}

// mark gives the hard-linked lower file r a further name, so that its other
// names stay recognisable when this one goes, and remembers for its copy which
// lower file it was.
func (fs *FS) mark(n *node, r *lowerRef) error {
	marks, err := fs.marks(r.layer)
	if err != nil {
		return err
	}
	name := indexName(r)
	d, ok := n.dentry()
	if !ok {
		held, _ := n.dupLowerFd()
		if held < 0 {
			return unix.ESTALE
		}
		defer unix.Close(held)
		return ignoreExists(sys.LinkFd(held, marks, name))
	}
	dir, err := fs.lowerOf(d.parent, r.layer)
	if err != nil {
		return err
	}
	defer fs.dirs.release(dir)
	// By name, another host may have put another file there.
	fd, err := openIdentified(dir.fd, d.name, r.id())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return ignoreExists(sys.LinkFd(fd, marks, name))
}

func ignoreExists(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// backName is the name in WORK/index that leads from an upper inode to the name
// of the lower file it came from.
func backName(ino uint64) string { return fmt.Sprintf(backPrefix+"%x", ino) }

const backPrefix = "u-"

// unmarkIfLast takes away the marker of a lower file that has no other name left,
// and with it the index entry: the upper file is then like any other.
func (fs *FS) unmarkIfLast(r *lowerRef) {
	if r.layer.marks < 0 || r.attr.IsDir() {
		return
	}
	_ = fs.asDaemon(func() error { fs.unmarkLast(r.layer, indexName(r), 0); return nil })
}

func (fs *FS) unmarkLast(l *layer, name string, kept int64) {
	var st unix.Stat_t
	if unix.Fstatat(l.marks, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || int64(st.Nlink) > 1+kept {
		return
	}
	var up unix.Stat_t
	if unix.Fstatat(fs.links, name, &up, unix.AT_SYMLINK_NOFOLLOW) == nil {
		// What stays is counted as a name that is ours while the other says so.
		if err := sys.Unlink(fs.links, backName(up.Ino)); err != nil && err != unix.ENOENT {
			return
		}
		if err := sys.Unlink(fs.links, name); err != nil {
			return
		}
	}
	_ = sys.Unlink(l.marks, name)
}

// linksInLowers is the link count of an upper file: its own names without the
// index's, and those that still stand in a lower, without the marker.
func (fs *FS) linksInLowers(a *layers.Attr) (links uint32, indexed bool) {
	name, err := sys.Readlink(fs.links, backName(a.Ino))
	if err != nil {
		return a.Nlink, false
	}
	links = a.Nlink - 1
	for _, l := range fs.lowers {
		marks, err := fs.marks(l)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Fstatat(marks, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Nlink > 1 {
			links += uint32(st.Nlink) - 1
		}
	}
	return max(links, 1), true
}

// change applies f, a change of metadata, to n: in overlay mode to the upper
// copy; in migrate mode where the file lies, and for a directory in every layer
// that has it, the lowest first. f gets an O_PATH descriptor, and whether it is of
// the part whose attributes show.
func (fs *FS) change(ctx context.Context, n *node, f func(fd int, shown bool) error) error {
	if fs.cfg.Mode == Overlay {
		if err := n.mayChange(); err != nil {
			return err
		}
		if err := fs.up(ctx, n, bare); err != nil {
			return err
		}
		if !n.isUp(whole) { // who completes it puts back what that changes
			if err := fs.flights.enter(ctx, n); err != nil {
				return err
			}
			defer fs.flights.leave(n)
		}
		return fs.changeUpper(n, func(fd int) error { return f(fd, true) })
	}
	if err := fs.flights.enter(ctx, n); err != nil {
		return err
	}
	defer fs.flights.leave(n)
	n.mu.RLock()
	upper := n.upper
	n.mu.RUnlock()
	if !upper && fs.many() {
		return fs.changeShared(ctx, n, f)
	}
	if n.isDir() || !upper {
		if err := fs.changeParts(n, f); err != nil {
			return err
		}
	}
	if upper {
		return fs.changeUpper(n, func(fd int) error { return f(fd, true) })
	}
	return nil
}

// changeUpper runs f on a descriptor of the upper inode of n: one that is open, as
// after a write, or else one that is opened for it. f must not lock n.
func (fs *FS) changeUpper(n *node, f func(fd int) error) error {
	n.mu.RLock()
	if fd := n.anyFd(); fd >= 0 && n.upper && !hasObject(n.pending) {
		defer n.mu.RUnlock()
		return f(fd)
	}
	n.mu.RUnlock()
	fd, done, err := fs.openChanging(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	defer done()
	return f(fd)
}

func (fs *FS) changeLower(n *node, r *lowerRef, f func(fd int) error) error {
	if n.isDir() {
		d, err := fs.lowerDir(n, r)
		if err != nil {
			return err
		}
		defer fs.dirs.release(d)
		return f(d.fd)
	}
	n.mu.RLock()
	held, _ := n.dupLowerFd()
	n.mu.RUnlock()
	if held >= 0 {
		defer unix.Close(held)
		return f(held)
	}
	fd, err := despiteRenames(n, func() (int, error) { return fs.openNamedBelow(n, r) })
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

// openNamedBelow returns an O_PATH descriptor of the file n in the local lower r,
// where its name leads to it.
func (fs *FS) openNamedBelow(n *node, r *lowerRef) (int, error) {
	d, ok := n.dentry()
	if !ok {
		return -1, unix.ESTALE
	}
	dir, err := fs.lowerOf(d.parent, r.layer)
	if err != nil {
		return -1, err
	}
	defer fs.dirs.release(dir)
	fd, err := openIdentified(dir.fd, d.name, r.id())
	if err != nil {
		return -1, gone(err)
	}
	return fd, nil
}

// dupLowerFd is dup of a descriptor of n's lower file, with the attributes it had when it was
// looked up. The caller holds n.mu.
func (n *node) dupLowerFd() (fd int, attr layers.Attr) {
	if n.data == nil {
		if fd, attr := n.dupDataFd(); fd >= 0 {
			return fd, attr
		}
	}
	if n.upper {
		return -1, attr // what is kept is the upper's
	}
	if len(n.lowers) > 0 {
		attr = *n.lowers[0].attr
	}
	return dup(n.kept), attr
}

// dirChanged gives the directory dir, whose part in layer l has just changed, the
// present time in the part that shows.
func (fs *FS) dirChanged(dir *node, l *layer) {
	dir.mu.RLock()
	upper, lowers := dir.upper, dir.lowers
	dir.mu.RUnlock()
	var d *dirFD
	var err error
	switch {
	case upper && l != fs.upper:
		d, err = fs.upperDir(dir)
	case !upper && len(lowers) > 0 && lowers[0].layer != l:
		d, err = fs.lowerDir(dir, &lowers[0])
	default:
		return
	}
	if err == nil {
		err = fs.asDaemon(func() error { return touch(d.fd) })
		fs.dirs.release(d)
	}
	if err != nil {
		fs.log.Warn("time of a directory not set", "cause", err)
	}
}

// recover sweeps the work directory and, in migrate mode, ends the removals that
// a crash interrupted.
func (fs *FS) recover(ctx context.Context) error {
	if fs.cfg.Mode == Migrate {
		if err := fs.finishRename(); err != nil { // first: the rest goes by paths
			return err
		}
		fs.sweepDaemons(ctx)
		if fs.many() {
			fs.sweepClaims(ctx)
		}
	} else {
		if err := copyup.Sweep(fs.work); err != nil {
			return err
		}
		if err := fs.sweepObjects(ctx); err != nil {
			return err
		}
	}
	if err := fs.sweepIndex(ctx); err != nil {
		return err
	}
	if fs.cfg.Mode != Migrate {
		return nil
	}
	if err := fs.settleAll(); err != nil {
		return err
	}
	for _, l := range fs.lowers {
		trash, err := fs.trash(l)
		if fs.cfg.AsCaller && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
			fs.log.Warn("no rights to the lower's .migratefs: lower copies stay", "layer", l.ID(), "cause", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("lower %s: %w", l.ID(), err)
		}
		if err := fs.settleTrash(ctx, l, trash); err != nil {
			fs.log.Warn("a removal that was interrupted is left", "layer", l.ID(), "cause", err)
		}
		if err := fs.sweepMarks(ctx, l); err != nil {
			return fmt.Errorf("lower %s: %w", l.ID(), err)
		}
	}
	return nil
}

// settleTrash ends the removals that a crash interrupted, of this host or of
// another, while others may be at theirs.
func (fs *FS) settleTrash(ctx context.Context, l *layer, trash int) error {
	t := copyup.Trash{Dir: trash, Root: l.root, Lower: l.name, Successor: fs.hasSuccessor, Keep: fs.keeps()}
	if fs.many() {
		t.Grace = lifeless
	}
	left, err := t.Settle(ctx)
	if left > 0 {
		fs.log.Warn("removed lower files without a successor in the upper stay in .migratefs/trash: see 'migratefs check'", "layer", l.ID(), "files", left)
	}
	return err
}

// hasSuccessor reports whether the upper has, at path, the file that came of the
// lower inode o. Where it keeps no origins, any file is taken for that: nothing is
// in the trash whose successor was not durable. A hard-linked file that has come up is in
// the index, whatever became of this name since.
func (fs *FS) hasSuccessor(path layers.Path, o copyup.Origin) bool {
	if has, err := inUpper(fs.links, string(o)); err == nil && has {
		return true
	}
	dir, name, err := sys.OpenParent(fs.upper.root, string(path))
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	var stx unix.Statx_t
	if sys.Statx(dir, name, &stx) != nil || stx.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false
	}
	has, err := copyup.Succeeds(dir, name, o)
	return err == nil && (has || !fs.self.origins)
}

func ptr[T any](v T) *T { return &v }
