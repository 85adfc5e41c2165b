package overlay

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// descent is the lookup of one name in the lowers of its directory, highest
// first, as the kernel's overlayfs makes it (ovl_lookup in fs/overlayfs/namei.c):
// what one layer says decides what is looked for in those under it.
type descent struct {
	fs  *FS
	f   *found
	dir *node

	// name is what to look for in the next layer: a name in the directory's part,
	// or, after an absolute redirect, a path from the layer's root ("/a/b"), whose
	// directories are gone through one by one: whiteouts, opaque directories and
	// redirects on the way count.
	name  string
	where []lowerRef // the directory's parts, or roots, that are left
	stop  bool       // nothing in the layers below counts
	moved bool       // a redirect was met

	through bool      // metacopies are gone through, to
	data    *lowerRef // what holds the data
}

// foundLowers looks for name in the lowers of a directory and adds what merges.
func (fs *FS) foundLowers(ctx context.Context, f *found, n *node, lowers []lowerRef, name string) error {
	d := descent{fs: fs, f: f, dir: n, name: name, where: lowers}
	if f.redirect != "" && (len(lowers) > 0 || !fs.cfg.NoFollow) {
		d.follow(f.redirect, "", "", nil)
	}
	for len(d.where) > 0 && !d.stop {
		part := d.where[0]
		d.where = d.where[1:]
		had := len(f.lowers)
		if err := d.layer(ctx, &part); err != nil {
			return err
		}
		if d.moved && fs.cfg.NoFollow && len(f.lowers) > had {
			return unix.EPERM // as the kernel's overlayfs with redirect_dir=nofollow
		}
	}
	return nil
}

// follow applies a redirect found in l (nil: the upper) at a path's component
// between prefix and post.
func (d *descent) follow(redirect, prefix, post string, l *layer) {
	absolute := d.name[0] == '/'
	d.moved = true
	if redirect[0] != '/' {
		d.name = prefix + redirect + post
		return
	}
	d.name = redirect + post
	d.stop = false // a directory above may have been opaque: the redirect leads out of it
	if absolute {
		return
	}
	d.where = nil
	for _, m := range d.fs.lowers {
		if l == nil || m.index > l.index {
			d.where = append(d.where, lowerRef{layer: m, path: layers.Root})
		}
	}
}

// layer looks in one layer, from the directory's part or the root there.
func (d *descent) layer(ctx context.Context, part *lowerRef) error {
	if d.name[0] != '/' {
		_, err := d.component(ctx, &lowerRef{layer: part.layer, path: part.path.Join(d.name)}, "", "")
		return err
	}
	if !d.fs.formatted(part.layer) && !part.layer.oci {
		_, err := d.component(ctx, &lowerRef{layer: part.layer, path: layers.Path(d.name[1:])}, "", "")
		return err
	}
	path, rest := part.path, d.name[1:]
	for {
		name, post := rest, ""
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			name, post = rest[:i], rest[i:]
		}
		path = path.Join(name)
		// The prefix may have been redirected: what is left of the name has not.
		prefix := d.name[:len(d.name)-len(rest)]
		there, err := d.component(ctx, &lowerRef{layer: part.layer, path: path}, prefix, post)
		if err != nil || !there || post == "" {
			return err
		}
		rest = post[1:]
	}
}

// formatted reports whether what the layer l holds is to be read as the kernel's
// overlayfs writes it.
func (fs *FS) formatted(l *layer) bool { return fs.cfg.Mode == Overlay && l.isLocal() }

// component looks at one place, which is on the way to what is looked for if
// post, what follows it in the name, is not empty.
func (d *descent) component(ctx context.Context, r *lowerRef, prefix, post string) (there bool, err error) {
	if _, name := r.path.Split(); r.layer.oci && isOCIName(name) {
		return false, nil
	}
	attr, err := d.stat(ctx, r)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		d.stop = d.fs.cfg.Mode == Overlay // a file, on the way: it hides what is below
		return false, nil
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG):
		if r.layer.oci {
			hidden, err := d.fs.hiddenByOCI(ctx, r)
			d.stop = d.stop || hidden
			return false, err
		}
		return false, nil
	case err != nil:
		return false, err
	}
	last, first, lowest := post == "", len(d.f.keys) == 0, r.layer.index == len(d.fs.lowers)
	if white, err := d.isWhite(ctx, r, &attr); white || err != nil {
		d.stop = true
		return false, err
	}
	if last && d.through {
		return d.file(r, &attr, prefix)
	}
	if !attr.IsDir() {
		d.stop = true
		if last && first {
			r.attr = &attr
			d.f.add(r)
		}
		return last && first, nil // a file under a directory is hidden, with all below
	}
	if last {
		if !first && !d.f.attr.IsDir() {
			d.stop = true
			return false, nil
		}
		r.attr = &attr
		d.f.add(r)
	}
	if lowest {
		return true, nil
	}
	if r.layer.oci {
		if opaque, err := d.fs.opaqueByOCI(ctx, r); opaque || err != nil {
			d.stop = true
			return true, err
		}
	}
	if !d.fs.formatted(r.layer) {
		return true, nil
	}
	return true, d.marks(ctx, r, prefix, post)
}

// marks reads what the directory r says of the layers below.
func (d *descent) marks(ctx context.Context, r *lowerRef, prefix, post string) error {
	x, err := r.layer.Xattrs(ctx, r.path)
	if err != nil {
		return err
	}
	if string(x[d.fs.cfg.Format.Name(whiteout.Opaque)]) == "y" {
		d.stop = true
		return nil
	}
	v, ok := x[d.fs.cfg.Format.Name(whiteout.Redirect)]
	if !ok {
		return nil
	}
	redirect, err := checkRedirect(string(v))
	if err != nil {
		return err
	}
	d.follow(redirect, prefix, post, r.layer)
	return nil
}

// stat looks at a place: in a local layer in the directory that the node was found
// to be, by descriptor; by path where there is none, or a redirect leads elsewhere.
func (d *descent) stat(ctx context.Context, r *lowerRef) (layers.Attr, error) {
	fs := d.fs
	if !r.layer.isLocal() || d.name[0] == '/' {
		return r.layer.Stat(ctx, r.path)
	}
	dir := d.dir.lowerIn(r.layer)
	if dir == nil {
		return layers.Attr{}, unix.ENOENT
	}
	at, err := fs.lowerDir(d.dir, dir)
	if errors.Is(err, errMoved) {
		if !r.layer.writable {
			return r.layer.Stat(ctx, r.path)
		}
		return layers.Attr{}, unix.ENOENT // moved or removed by another host
	}
	if err != nil {
		return layers.Attr{}, err
	}
	defer fs.dirs.release(at)
	var stx unix.Statx_t
	if err := sys.Statx(at.fd, d.name, &stx); err != nil {
		return layers.Attr{}, err
	}
	return local.AttrOf(&stx), nil
}

// isWhite is FS.isWhite for what stat has found. Of an empty file, which may be one, the
// directory's descriptor tells with one call that it is none.
func (d *descent) isWhite(ctx context.Context, r *lowerRef, a *layers.Attr) (bool, error) {
	fs := d.fs
	if a.IsRegular() && a.Size == 0 && fs.formatted(r.layer) && d.name[0] != '/' {
		if dir, err := fs.lowerOf(d.dir, r.layer); err == nil {
			_, err = sys.Getxattr(dir.fd, d.name, fs.cfg.Format.Name(whiteout.Whiteout))
			fs.dirs.release(dir)
			if err == unix.ENODATA || err == unix.EOPNOTSUPP {
				return false, nil
			}
		}
	}
	return fs.isWhite(ctx, r, a)
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

// redirectMax is how long a redirect may be: overlay.redirect_max of the kernel's
// overlayfs as it comes. Moving a directory that needs a longer one is EXDEV.
const redirectMax = 256

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

// redirectTo returns the redirect that leads to what lies below the directory n
// once it has left its name: the name itself while n stays in its directory, else
// its path in the lowers as they merge. That is the path the kernel's overlayfs
// gives it: of the names and redirects up to the root, or to the first directory
// with an absolute one.
func (fs *FS) redirectTo(n *node, stays bool) (string, error) {
	fs.tree.RLock()
	defer fs.tree.RUnlock()
	if n.redirect != "" && (stays || n.redirect[0] == '/') {
		return n.redirect, nil
	}
	var redirect string
	for m := n; m != fs.root; m = m.names[0].parent {
		if len(m.names) == 0 {
			return "", unix.ENOENT
		}
		part := m.redirect
		if part == "" {
			part = m.names[0].name
		}
		if stays {
			return part, nil
		}
		redirect = part + redirect
		if redirect[0] == '/' {
			break
		}
		redirect = "/" + redirect
	}
	if len(redirect) > redirectMax {
		return "", unix.EXDEV
	}
	return redirect, nil
}

// setRedirect records that the upper directory n has a redirect.
func (n *node) setRedirect(redirect string) {
	n.fs.tree.Lock()
	defer n.fs.tree.Unlock()
	n.redirect = redirect
}

// learnRedirect is setRedirect for one that was read, which may be older than one
// that was set.
func (n *node) learnRedirect(redirect string) {
	n.fs.tree.Lock()
	defer n.fs.tree.Unlock()
	if n.redirect == "" {
		n.redirect = redirect
	}
}
