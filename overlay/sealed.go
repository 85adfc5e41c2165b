package overlay

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// Immutable and append-only files (chattr(1)). In the upper, and wherever a change
// is made in the file's own layer, the filesystem there refuses what it must. Here
// is what would change a lower file without touching it: a copy-up, a whiteout, a
// name in a directory that merges.

// mayComeUp returns EPERM if a file that a describes must not change by size, which
// is what is to come up of it.
func mayComeUp(a *layers.Attr, size int64) error {
	switch {
	case a.IsDir() || size == flagging:
		return nil // a directory comes up for what is below it
	case a.Immutable, a.AppendOnly && size != appending:
		return unix.EPERM
	}
	return nil
}

// mayOpen returns EPERM if the file that a describes must not be opened with flags.
func mayOpen(a *layers.Attr, flags uint32) error {
	if flags&unix.O_ACCMODE != unix.O_RDONLY && (a.Immutable || a.AppendOnly && flags&unix.O_APPEND == 0) {
		return unix.EPERM
	}
	return nil
}

// mayLose returns EPERM if the file that was found must not lose a name in dir.
func (fs *FS) mayLose(dir *node, f *found) error {
	below := dir.attrIfBelow()
	if f.attr.Immutable || f.attr.AppendOnly || below != nil && (below.Immutable || below.AppendOnly) {
		return unix.EPERM
	}
	return nil
}

// mayLoseNone reports whether the directory dir must lose no name.
func (fs *FS) mayLoseNone(dir *node) bool {
	if !dir.isUpper() {
		below := dir.attrIfBelow()
		return below != nil && (below.Immutable || below.AppendOnly)
	}
	d, err := fs.upperDir(dir)
	if err != nil {
		return false
	}
	defer fs.dirs.release(d)
	var stx unix.Statx_t
	return sys.Statx(d.fd, "", &stx) == nil && stx.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0
}

// mayMove returns EPERM if what is known of both ends forbids the rename.
func (fs *FS) mayMove(m *move) error {
	if err := fs.mayLose(m.from.parent, m.srcFound); err != nil {
		return err
	}
	if m.dst != nil {
		return fs.mayLose(m.to.parent, m.dstFound)
	}
	return m.to.parent.mayGain()
}

// mayGain returns EPERM if the directory n must not get a name.
func (n *node) mayGain() error {
	if below := n.attrIfBelow(); below != nil && below.Immutable {
		return unix.EPERM
	}
	return nil
}

// mayChange returns EPERM if the attributes of the directory n must not change.
func (n *node) mayChange() error {
	if below := n.attrIfBelow(); n.isDir() && below != nil && (below.Immutable || below.AppendOnly) {
		return unix.EPERM
	}
	return nil
}

// attrIfBelow returns what is known of a node that is not in the upper, else nil.
func (n *node) attrIfBelow() *layers.Attr {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.upper || len(n.lowers) == 0 {
		return nil
	}
	return n.lowers[0].attr
}

// flagsBelow returns the inode flags of the lower file r; 0 where they cannot be
// had, or there is no need to know.
func (fs *FS) flagsBelow(n *node, r *lowerRef) uint32 {
	if !r.layer.isLocal() || !n.isDir() && !n.isRegular() {
		return 0
	}
	fd, err := fs.openShown(n)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var flags uint32
	_ = withReadable(fd, func(fd int) (err error) { flags, err = sys.Flags(fd); return err })
	return flags & copyup.KeptFlags
}

// keepAppendOnly makes the copy fd append-only, which its link to a name had to
// come before. In migrate mode its lower copy is let go.
func keepAppendOnly(fs *FS, n *node, fd int) {
	flags, err := sys.Flags(fd)
	if err == nil {
		err = sys.SetFlags(fd, flags|sys.FlagAppend)
	}
	if err != nil {
		fs.log.Warn("copy is not append-only", "cause", err)
	}
	if fs.cfg.Mode != Migrate || len(n.lowers) == 0 {
		return
	}
	below, err := fs.openNamedBelow(n, &n.lowers[0])
	if err == nil {
		defer unix.Close(below)
		err = withReadable(below, func(fd int) error {
			flags, err := sys.Flags(fd)
			if err != nil {
				return err
			}
			return sys.SetFlags(fd, flags&^sys.FlagAppend)
		})
	}
	if err != nil {
		fs.log.Warn("lower copy stays append-only", "cause", err)
	}
}
