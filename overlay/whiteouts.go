package overlay

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// Besides the character device 0:0, which whiteout.Is knows by its attributes
// alone, lowers may hold whiteouts of two other forms:
//
//   - an empty regular file with overlay.whiteout, in a directory whose
//     overlay.opaque is "x" (Linux 6.8), in lowers of this host;
//   - .wh.NAME beside where NAME was, and .wh..wh..opq in a directory that hides
//     what is below it, in lowers opened with whiteout=oci. They hide names of the
//     layers below, not of their own. All names that begin with .wh. are hidden
//     there.

// isWhite reports whether the file r with these attributes, in a lower, is a
// whiteout.
func (fs *FS) isWhite(ctx context.Context, r *lowerRef, a *layers.Attr) (bool, error) {
	if !fs.formatted(r.layer) {
		return false, nil
	}
	if whiteout.Is(a) {
		return true, nil
	}
	if !a.IsRegular() || a.Size != 0 || r.path == layers.Root {
		return false, nil
	}
	x, err := r.layer.Xattrs(ctx, r.path)
	if _, ok := x[fs.cfg.Format.Name(whiteout.Whiteout)]; !ok || err != nil {
		return false, err
	}
	dir, _ := r.path.Split()
	return fs.holdsXattrWhiteouts(ctx, r.layer, dir)
}

// holdsXattrWhiteouts reports whether the directory dir in l says that it may.
func (fs *FS) holdsXattrWhiteouts(ctx context.Context, l *layer, dir layers.Path) (bool, error) {
	x, err := l.Xattrs(ctx, dir)
	return string(x[fs.cfg.Format.Name(whiteout.Opaque)]) == "x", err
}

// hiddenByOCI reports whether r's layer, read as OCI has it, hides what is at r in
// the layers below.
func (fs *FS) hiddenByOCI(ctx context.Context, r *lowerRef) (bool, error) {
	if !r.layer.oci {
		return false, nil
	}
	dir, name := r.path.Split()
	return fs.inLayer(ctx, r.layer, dir.Join(whiteout.OCIPrefix+name))
}

// opaqueByOCI is hiddenByOCI for what is in the directory r.
func (fs *FS) opaqueByOCI(ctx context.Context, r *lowerRef) (bool, error) {
	if opaque, err := fs.inLayer(ctx, r.layer, r.path.Join(whiteout.OCIOpaque)); opaque || err != nil {
		return opaque, err
	}
	return fs.hiddenByOCI(ctx, r)
}

func (fs *FS) inLayer(ctx context.Context, l *layer, p layers.Path) (bool, error) {
	if _, name := p.Split(); len(name) > layers.NameMax {
		return false, nil
	}
	_, err := l.Stat(ctx, p)
	if nothing(err) {
		return false, nil
	}
	return err == nil, err
}

// isOCIName reports names that a layer opened with whiteout=oci keeps for itself.
func isOCIName(name string) bool { return strings.HasPrefix(name, whiteout.OCIPrefix) }

// reserved reports whether name cannot be made in the directory n: it would mean
// something to us, or could not be told from what a layer says of another name.
func (fs *FS) reserved(n *node, name string) bool {
	return n == fs.root && name == Reserved || fs.oci && isOCIName(name)
}

// whites applies the whiteouts among es, the entries of the directory r in a
// lower, to what the layers below list, and returns the others.
func (fs *FS) whites(ctx context.Context, r *lowerRef, es []layers.Entry, hide func(name string)) ([]layers.Entry, error) {
	if !fs.formatted(r.layer) && !r.layer.oci {
		return es, nil
	}
	xattrs := false
	if fs.formatted(r.layer) {
		var err error
		if xattrs, err = fs.holdsXattrWhiteouts(ctx, r.layer, r.path); err != nil {
			return nil, err
		}
	}
	shown := es[:0]
	for i := range es {
		e := es[i]
		if r.layer.oci && isOCIName(e.Name) {
			hide(e.Name[len(whiteout.OCIPrefix):])
			continue
		}
		white, err := fs.isWhiteEntry(ctx, r, &e, xattrs)
		if err != nil {
			return nil, err
		}
		if white {
			hide(e.Name)
			continue
		}
		shown = append(shown, e)
	}
	return shown, nil
}

// isWhiteEntry looks whether an entry that may be a whiteout is one: few others
// have that type.
func (fs *FS) isWhiteEntry(ctx context.Context, r *lowerRef, e *layers.Entry, xattrs bool) (bool, error) {
	if !fs.formatted(r.layer) || e.Type != unix.S_IFCHR && (!xattrs || e.Type != unix.S_IFREG) {
		return false, nil
	}
	at := lowerRef{layer: r.layer, path: r.path.Join(e.Name)}
	a, err := r.layer.Stat(ctx, at.path)
	if nothing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return fs.isWhite(ctx, &at, &a)
}
