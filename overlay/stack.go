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
	opaque  bool
	lowers  []lowerRef // a directory: all that merge; a file: the one with the data
	pending extent.ID
}

// upgrade tells n what a look at the layers found. A node that has an upper
// keeps it: the look may be older than a copy-up.
func (n *node) upgrade(f *found) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead != nil {
		return
	}
	if f.upper && !n.upper {
		n.upper, n.upID, n.indexed, n.pending = true, f.upID, f.indexed, f.pending
		n.lowers = f.lowers
		return
	}
	if f.upper == n.upper && (n.isDir() || n.lowers == nil) {
		n.lowers = f.lowers
	}
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
	f, err := fs.lookupOnce(ctx, n, name)
	if err == unix.ENOENT && fs.cfg.Mode == Migrate {
		// Between our looks at the upper and at the lower a copy may have been
		// published and its lower removed.
		f, err = fs.lookupOnce(ctx, n, name)
	}
	return f, err
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
		err = fs.foundUpper(f, d.fd, name, n)
		fs.dirs.release(d)
		switch {
		case err == nil && (!f.attr.IsDir() || f.opaque):
			return fs.finish(ctx, f, n, name)
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
		f.opaque = fs.isOpaque(dirfd, name)
	}
	return nil
}

func (fs *FS) isOpaque(dirfd int, name string) bool {
	v, err := sys.Getxattr(dirfd, name, fs.cfg.Format.Name(whiteout.Opaque))
	return err == nil && string(v) == "y"
}

// foundLowers looks for name in the lowers of a directory and adds what merges.
func (fs *FS) foundLowers(ctx context.Context, f *found, n *node, lowers []lowerRef, name string) error {
	redirect, err := fs.upperRedirect(f, n, name)
	if err != nil {
		return err
	}
	where := candidates(fs, lowers, name, redirect)
	for len(where) > 0 {
		r := where[0]
		where = where[1:]
		stop, redirect, err := fs.foundLower(ctx, f, n, &r, name)
		if err != nil || stop {
			return err
		}
		if redirect != "" {
			where = below(fs, r.layer, where, redirect)
		}
	}
	return nil
}

// candidates lists where name may lie below: in each lower part of its
// directory or, if an upper directory was moved, where its redirect says.
func candidates(fs *FS, lowers []lowerRef, name, redirect string) []lowerRef {
	if redirect != "" {
		return below(fs, nil, siblings(lowers, name), redirect)
	}
	return siblings(lowers, name)
}

func siblings(lowers []lowerRef, name string) []lowerRef {
	rs := make([]lowerRef, len(lowers))
	for i := range lowers {
		rs[i] = lowerRef{layer: lowers[i].layer, path: lowers[i].path.Join(name)}
	}
	return rs
}

// below applies a redirect found in layer (nil: the upper) to the layers under
// it: an absolute one leads from their roots, a bare name replaces the last
// component.
func below(fs *FS, layer *layer, rest []lowerRef, redirect string) []lowerRef {
	if redirect[0] != '/' {
		for i := range rest {
			dir, _ := rest[i].path.Split()
			rest[i].path = dir.Join(redirect)
		}
		return rest
	}
	rest = rest[:0]
	for _, l := range fs.lowers {
		if layer == nil || l.index > layer.index {
			rest = append(rest, lowerRef{layer: l, path: layers.Path(redirect[1:])})
		}
	}
	return rest
}

// foundLower looks at one place. stop says that nothing below it counts.
func (fs *FS) foundLower(ctx context.Context, f *found, n *node, r *lowerRef, name string) (stop bool, redirect string, err error) {
	attr, err := fs.statLower(ctx, n, r, name)
	if nothing(err) {
		return false, "", nil
	}
	if err != nil {
		return false, "", err
	}
	overlay := fs.cfg.Mode == Overlay && r.layer.isLocal()
	if overlay && whiteout.Is(&attr) {
		return true, "", nil
	}
	first := len(f.keys) == 0
	if !attr.IsDir() {
		if !first {
			return true, "", nil // a file under a directory is hidden, with all below
		}
		r.attr = &attr
		f.add(r)
		return true, "", nil
	}
	if !first && !f.attr.IsDir() {
		return true, "", nil
	}
	r.attr = &attr
	f.add(r)
	if !overlay {
		return false, "", nil
	}
	x, err := r.layer.Xattrs(ctx, r.path)
	if err != nil {
		return false, "", err
	}
	redirect, err = fs.redirectIn(x)
	return string(x[fs.cfg.Format.Name(whiteout.Opaque)]) == "y", redirect, err
}

// statLower looks at a place. In migrate mode the directory is the one n was
// found to be, by descriptor; an overlay lower is addressed by path.
func (fs *FS) statLower(ctx context.Context, n *node, r *lowerRef, name string) (layers.Attr, error) {
	if !r.layer.writable {
		return r.layer.Stat(ctx, r.path)
	}
	dir := n.lowerIn(r.layer)
	if dir == nil {
		return layers.Attr{}, unix.ENOENT
	}
	d, err := fs.lowerDir(n, dir)
	if errors.Is(err, errMoved) {
		return layers.Attr{}, unix.ENOENT // moved or removed by another host
	}
	if err != nil {
		return layers.Attr{}, err
	}
	defer fs.dirs.release(d)
	var stx unix.Statx_t
	if err := sys.Statx(d.fd, name, &stx); err != nil {
		return layers.Attr{}, err
	}
	return local.AttrOf(&stx), nil
}

// lowerIn returns n's part in the lower l, nil if it has none.
func (n *node) lowerIn(l *layer) *lowerRef {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for i := range n.lowers {
		if n.lowers[i].layer == l {
			return &n.lowers[i]
		}
	}
	return nil
}

// upperRedirect returns the redirect of the upper directory that f found.
func (fs *FS) upperRedirect(f *found, n *node, name string) (string, error) {
	if !f.upper || fs.cfg.Mode != Overlay {
		return "", nil
	}
	d, err := fs.upperDir(n)
	if err != nil {
		return "", err
	}
	defer fs.dirs.release(d)
	v, err := sys.Getxattr(d.fd, name, fs.cfg.Format.Name(whiteout.Redirect))
	if err != nil {
		return "", ignoreNoXattr(err)
	}
	return checkRedirect(string(v))
}

func (fs *FS) redirectIn(x layers.Xattrs) (string, error) {
	v, ok := x[fs.cfg.Format.Name(whiteout.Redirect)]
	if !ok {
		return "", nil
	}
	return checkRedirect(string(v))
}

// checkRedirect refuses a redirect that could lead out of a layer: it comes from
// a disk that others may have written.
func checkRedirect(v string) (string, error) {
	p := layers.Path(v)
	if len(v) > 1 && v[0] == '/' {
		p = layers.Path(v[1:])
	}
	if p == "" || !p.Valid() || v[0] != '/' && !layers.ValidName(v) {
		return "", layers.ErrCorrupt
	}
	return v, nil
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
		return f, nil
	}
	if !f.upper {
		return f, fs.foundIndexed(f)
	}
	if fs.cfg.Mode == Overlay && f.attr.IsRegular() && f.attr.Blocks*512 < f.attr.Size || f.attr.IsRegular() && f.attr.Size == 0 {
		if err := fs.foundStub(ctx, f, n, name); err != nil {
			return nil, err
		}
	}
	if f.attr.Nlink > 1 {
		fs.countLinks(f, n, name)
	}
	return f, nil
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
