package overlay

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// found is what the stack says of one name.
type found struct {
	attr    layers.Attr // of the highest layer that has it, as shown but for ino
	keys    []identity  // of the same file, best first
	upper   bool
	upID    fileID
	indexed bool
	origin  bool      // see node.origin
	shown   *identity // whose number is shown; nil: that of the first key
	opaque  bool
	// redirect is where an upper directory that was moved lies below.
	redirect string
	lowers   []lowerRef // a directory: all that merge; a file: the one with the data
	pending  extent.ID
	data     *dataBelow // of a metacopy
}

// upgrade tells n what a look at the layers found. A node that has an upper
// keeps it: the look may be older than a copy-up.
func (n *node) upgrade(f *found) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead != nil {
		return
	}
	if f.redirect != "" {
		n.learnRedirect(f.redirect)
	}
	if f.upper && !n.upper {
		n.upper, n.upID, n.indexed, n.pending = true, f.upID, f.indexed, f.pending
		n.lowers, n.data = f.lowers, f.data
		n.origin = n.origin || f.origin
		return
	}
	// A file that is known by its inode may be found under a new path.
	moved := !f.upper && len(f.lowers) > 0 && (f.lowers[0].layer.isLocal() || f.lowers[0].layer.pairs)
	if f.upper == n.upper && (n.isDir() || n.lowers == nil || moved) {
		same := len(n.lowers) > 0 && len(f.lowers) > 0 && sameFile(n.lowers[0].attr, f.lowers[0].attr)
		n.lowers = f.lowers
		if !n.upper && (f.data != nil || !same) { // of one with blocks an open tells, not a look
			n.data = f.data
		}
	}
}

// isBehind reports whether n, which f found by what lies below, has come up, and f does
// not show that: the look is older, or what n has in the upper is not there any more. A
// file may be there by another name.
func (f *found) isBehind(n *node) bool {
	if f.upper || n == n.fs.root || !n.isUpper() {
		return false
	}
	if n.isDir() {
		return true
	}
	fd, err := n.fs.openUpper(n)
	closeFd(fd)
	return errnoOf(err) == unix.ESTALE || errnoOf(err) == unix.ENOENT
}

// nothing is the errno of a name that no layer has.
func nothing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

func (fs *FS) lookupRoot(ctx context.Context) (*found, error) {
	f := &found{}
	if fs.upper != nil {
		if err := fs.foundUpper(f, fs.upper.root, "", nil); err != nil {
			return nil, err
		}
		fs.table.dev = f.attr.Dev
	}
	fs.table.nameDevices(fs)
	for _, l := range fs.lowers {
		attr, err := l.Stat(ctx, layers.Root)
		if err != nil {
			return nil, err
		}
		f.add(&lowerRef{layer: l, path: layers.Root, attr: &attr})
		if fs.table.dev == 0 {
			fs.table.dev = attr.Dev
		}
	}
	return f, nil
}

// add puts one lower's part below what was found so far.
func (f *found) add(r *lowerRef) {
	if len(f.keys) == 0 {
		f.attr = *r.attr
	}
	// A hard link's other names lead to the same node; so does a directory's
	// part in the lower once it has one in the upper.
	if len(f.keys) == 0 || f.attr.IsDir() && len(f.lowers) == 0 {
		f.keys = append(f.keys, identityOf(r.layer, r.path, r.attr))
	}
	f.lowers = append(f.lowers, *r)
}

// lookup finds name in the directory n. The error is ENOENT only if every layer
// that could have it was asked and does not.
func (fs *FS) lookup(ctx context.Context, n *node, name string) (*found, error) {
	if n == fs.root && name == Reserved {
		return nil, unix.ENOENT
	}
	for {
		before := fs.window.closed()
		f, err := fs.lookupNow(ctx, n, name)
		if fs.window.closed() == before {
			return f, err
		}
	}
}

func (fs *FS) lookupNow(ctx context.Context, n *node, name string) (*found, error) {
	below := fs.many() && !fs.notice(n)
	f, err := fs.lookupOnce(ctx, n, name)
	for range lookAgain {
		if !errors.Is(err, errLookAgain) {
			break
		}
		f, err = fs.lookupOnce(ctx, n, name)
	}
	if err == unix.ENOENT && fs.cfg.Mode == Migrate && (n.parts() > 1 || below && fs.notice(n)) {
		// Between our looks at the upper and at the lower a copy may have been
		// published and its lower removed.
		if err = fs.lookAbove(ctx, n, name); err == nil {
			f, err = fs.lookupOnce(ctx, n, name)
		}
	}
	return f, err
}

// lookAgain is how often a name is looked at again that changes as it is looked at.
const lookAgain = 100

// lookAbove looks whether a layer above the lowest that n is in has name: ENOENT if
// none has.
func (fs *FS) lookAbove(ctx context.Context, n *node, name string) error {
	n.mu.RLock()
	upper, lowers := n.upper, n.lowers
	n.mu.RUnlock()
	f := &found{}
	if upper {
		d, err := fs.upperDir(n)
		if err != nil {
			return err
		}
		defer fs.dirs.release(d)
		if err := fs.foundUpper(f, d.fd, name, n); err != unix.ENOENT {
			return err
		}
	}
	if len(lowers) > 1 {
		if err := fs.foundLowers(ctx, f, n, lowers[:len(lowers)-1], name); err != nil {
			return err
		}
	}
	if len(f.keys) == 0 {
		return unix.ENOENT
	}
	return nil
}

// parts is in how many layers n is.
func (n *node) parts() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.upper {
		return len(n.lowers) + 1
	}
	return len(n.lowers)
}

func (fs *FS) lookupOnce(ctx context.Context, n *node, name string) (*found, error) {
	n.mu.RLock()
	upper, lowers := n.upper, n.lowers
	n.mu.RUnlock()
	f := &found{}
	if upper {
		d, err := fs.upperDir(n)
		if err != nil {
			return nil, err
		}
		seq := fs.swaps.begin()
		err = fs.foundUpper(f, d.fd, name, n)
		fs.dirs.release(d)
		switch {
		case err == nil && (!f.attr.IsDir() || f.opaque):
			f, err = fs.finish(ctx, f, n, name)
			if !fs.swaps.same(seq) {
				return nil, errLookAgain
			}
			return f, err
		case err != nil && err != unix.ENOENT:
			return nil, err
		case err == unix.ENOENT && f.opaque: // a whiteout
			return nil, unix.ENOENT
		}
	}
	if err := fs.foundLowers(ctx, f, n, lowers, name); err != nil {
		return nil, err
	}
	if len(f.keys) == 0 {
		return nil, unix.ENOENT
	}
	return fs.finish(ctx, f, n, name)
}

// foundUpper looks at name in the upper directory dirfd, or at dirfd if name is
// empty. A whiteout is ENOENT with f.opaque set.
func (fs *FS) foundUpper(f *found, dirfd int, name string, parent *node) error {
	var stx unix.Statx_t
	if err := sys.Statx(dirfd, name, &stx); err != nil {
		return err
	}
	a := local.AttrOf(&stx)
	if fs.cfg.Mode == Overlay && whiteout.Is(&a) {
		f.opaque = true
		return unix.ENOENT
	}
	f.attr, f.upper, f.upID = a, true, idOf(&a)
	f.keys = append(f.keys, identityOf(fs.upper, "", &a))
	if fs.cfg.Mode == Overlay && a.IsDir() && name != "" {
		return fs.upperMarks(f, dirfd, name)
	}
	return nil
}

// upperMarks reads what an upper directory says of what lies below.
func (fs *FS) upperMarks(f *found, dirfd int, name string) error {
	v, err := sys.Getxattr(dirfd, name, fs.cfg.Format.Name(whiteout.Opaque))
	if err == nil && string(v) == "y" {
		f.opaque = true
		return nil
	}
	v, err = sys.Getxattr(dirfd, name, fs.cfg.Format.Name(whiteout.Redirect))
	if err != nil {
		return ignoreNoXattr(err)
	}
	f.redirect, err = checkRedirect(string(v))
	return err
}

func ignoreNoXattr(err error) error {
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// finish adds what the attributes alone do not tell: hard links that came up
// under another name, files whose data lies elsewhere, counts that include
// names of our own.
func (fs *FS) finish(ctx context.Context, f *found, n *node, name string) (*found, error) {
	if f.attr.IsDir() {
		fs.dirAttr(f)
		return f, fs.foundOrigin(f, n, name)
	}
	if !f.upper {
		if err := fs.foundLowerMark(ctx, f, n, name); err != nil {
			return nil, err
		}
		if err := fs.foundIndexed(ctx, f, n, name); err != nil {
			return nil, err
		}
		return f, fs.foundOrigin(f, n, name)
	}
	if fs.cfg.Mode == Overlay && f.attr.IsRegular() {
		d, err := fs.upperDir(n)
		if err != nil {
			return nil, err
		}
		err = fs.foundMark(ctx, f, n, name, d.fd, name)
		fs.dirs.release(d)
		if err != nil {
			return nil, err
		}
	}
	if f.attr.Nlink > 1 {
		fs.countLinks(f, n, name)
	}
	return f, fs.foundOrigin(f, n, name)
}

// dirAttr shows a directory that merges as overlayfs does: its link count says
// nothing, which 1 tells find and du.
func (fs *FS) dirAttr(f *found) {
	parts := len(f.lowers)
	if f.upper {
		parts++
	}
	if parts > 1 {
		f.attr.Nlink = 1
	}
}
