package overlay

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// bare brings up none of a file's data: a change of its metadata, or of its
// names, needs the inode alone.
const bare = -4

// leavesData reports whether n, if it comes up bare, becomes a metacopy. One
// without a name comes up for its open handles, and whole.
func (fs *FS) leavesData(n *node) bool {
	if !fs.cfg.Metacopy || fs.cfg.Mode != Overlay || fs.cfg.Format == whiteout.User || !n.isRegular() {
		return false
	}
	for _, l := range fs.lowers {
		if !l.isLocal() {
			return false // looking for the data would ask a source
		}
	}
	n.mu.RLock()
	dead := n.dead != nil
	n.mu.RUnlock()
	_, named := n.dentry()
	return named && !dead
}

// asBare makes the copy of src a metacopy. An empty file is whole without data;
// file capabilities are dropped by every write, also the one that completes, where
// a crash would lose them.
func (fs *FS) asBare(src *copyup.Source) {
	if _, caps := src.Xattrs["security.capability"]; caps || src.Size == 0 {
		return
	}
	if src.Xattrs == nil {
		src.Xattrs = layers.Xattrs{}
	}
	src.Bare = true
	src.Xattrs[fs.cfg.Format.Name(whiteout.Metacopy)] = nil
}

// leaveData notes that n comes up as the metacopy src. The caller holds n.mu.
func (n *node) leaveData(src *copyup.Source) {
	if n.data == nil {
		n.data = &dataBelow{lowerRef: n.lowers[0], size: src.Size}
	}
}

// isUp reports whether n needs no copy-up for what up is to bring.
func (n *node) isUp(size int64) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.upper && (n.data == nil || size == bare)
}

// complete gives the metacopy n its data, of which size bytes are wanted. cut says
// that they were left out, and n has size bytes. The caller has n's flight.
func (fs *FS) complete(ctx context.Context, n *node, size int64) (cut bool, err error) {
	path, err := fs.openUpper(n)
	if err != nil {
		return false, err
	}
	defer unix.Close(path)
	fd, err := sys.Reopen(path, unix.O_RDWR)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	n.mu.RLock()
	whole := n.data.size
	n.mu.RUnlock()
	if size == 0 && whole > 0 {
		return true, fs.empty(n, fd, whole)
	}
	f, err := fs.openBelow(ctx, n)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := copyup.Complete(ctx, fd, f, whole, fs.copies); err != nil {
		return false, err
	}
	n.mu.Lock()
	err = fs.unmark(n, fd)
	n.mu.Unlock()
	if fs.notify != nil {
		// Who looked meanwhile saw the time of the copying, and a mode without suid.
		fs.notify.InodeNotify(n.id, -1, 0)
	}
	return false, err
}

// empty makes the metacopy n, of size bytes, an empty file. A metacopy without
// bytes shows as one, so that the first step is all of it: data below that nobody
// can see needs no copy.
func (fs *FS) empty(n *node, fd int, size int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := sys.Truncate(fd, 0); err != nil {
		return err
	}
	err := fs.unmark(n, fd)
	if err != nil && n.data != nil {
		if terr := sys.Truncate(fd, size); terr != nil {
			n.data.size = 0
		}
	}
	return err
}

// unmark ends the completion of n: from the moment the mark is gone, the data in
// the upper inode fd counts. It is gone durably before anything is written: an
// fdatasync need not bring it along. The caller holds n.mu.
func (fs *FS) unmark(n *node, fd int) error {
	if err := sys.Fremovexattr(fd, fs.cfg.Format.Name(whiteout.Metacopy)); err != nil {
		return err
	}
	n.data = nil
	fs.switchOver(n, fd, extent.ID{})
	if redirect := fs.cfg.Format.Name(whiteout.Redirect); hasXattr(fd, redirect) {
		_ = sys.Fremovexattr(fd, redirect) // it means nothing without the mark
	}
	if fs.cfg.Volatile {
		return nil
	}
	return sys.Fsync(fd)
}

func hasXattr(fd int, name string) bool {
	_, err := sys.Fgetxattr(fd, name)
	return err == nil
}

// upToMove brings up the file n, which is about to get another name, and says on
// it where its data lies if it leaves that below.
func (fs *FS) upToMove(ctx context.Context, n *node) error {
	if err := fs.up(ctx, n, bare); err != nil {
		return err
	}
	if n.isUp(whole) {
		return nil
	}
	err := fs.setRedirectOf(n)
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) {
		return fs.up(ctx, n, whole) // no redirect, or no room for one
	}
	return err
}

// setRedirectOf gives the metacopy n a redirect to its data. It is a path, since
// the file's names may lie in several directories.
func (fs *FS) setRedirectOf(n *node) error {
	if fs.cfg.NoRedirect {
		return unix.EXDEV
	}
	fd, err := fs.openUpper(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	redirect, err := fs.redirectOf(fd)
	if err != nil || redirect != "" && redirect[0] == '/' {
		return err
	}
	path, err := fs.redirectTo(n, false)
	if err != nil {
		return err
	}
	if redirect != "" { // a name, in the same directory below
		path = path[:strings.LastIndexByte(path, '/')+1] + redirect
	}
	return sys.Setxattr(fd, "", fs.cfg.Format.Name(whiteout.Redirect), []byte(path), 0)
}

// syncInode makes the metadata of the upper file n durable.
func (fs *FS) syncInode(n *node) error {
	path, err := fs.openUpper(n)
	if err != nil {
		return err
	}
	defer unix.Close(path)
	fd, err := sys.Reopen(path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.Fsync(fd)
}
