package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// A metacopy is a regular file whose inode has all its metadata, its size
// included, and a mark in place of data. The data is that of the next file of the
// same name in the layers below, or of where the metacopy's redirect leads. The
// kernel's overlayfs and we make them of lower files of which only metadata
// changes, and we both complete them with the first change of data
// (copy_meta.go). A stub of ours (object.go) is a metacopy that names an object:
// the kernel finds nothing below it.
//
// Source: ovl_lookup in fs/overlayfs/namei.c of the Linux kernel.

// dataBelow is where a metacopy's data lies.
type dataBelow struct {
	lowerRef
	size int64         // of the metacopy
	mark whiteout.Mark // the metacopy's
}

// dataInUpper reports whether the upper inode of n holds its data, so that a
// descriptor of it can be read and written. The caller holds n.mu.
func (n *node) dataInUpper() bool {
	return n.upper && n.data == nil && !hasObject(n.pending)
}

// dataRef returns where the data of n lies below, nil if it does not. The caller
// holds n.mu.
func (n *node) dataRef() *lowerRef {
	switch {
	case n.data != nil:
		return &n.data.lowerRef
	case n.upper || len(n.lowers) == 0:
		return nil
	}
	return &n.lowers[0]
}

func notServed(name, why string) error {
	return fmt.Errorf("%q is a metacopy %s: %w", name, why, layers.ErrCorrupt)
}

// foundMark looks whether the upper file that f found, which is entry in dirfd, is
// a metacopy, and if so where its data is. It was found as name in dir.
func (fs *FS) foundMark(ctx context.Context, f *found, dir *node, name string, dirfd int, entry string) error {
	_, err := sys.Getxattr(dirfd, entry, fs.cfg.Format.Name(whiteout.Metacopy))
	if err != nil {
		return ignoreNoXattr(err)
	}
	// All that follows is of one inode, the one that f describes.
	fd, err := openIdentified(dirfd, entry, f.upID)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
		return errLookAgain
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	v, err := sys.Getxattr(fd, "", fs.cfg.Format.Name(whiteout.Object))
	if err == nil {
		if f.pending, err = extent.ParseID(string(v)); err != nil {
			return err
		}
		return fs.pendingAttr(&f.attr, f.pending, nil)
	}
	if err := ignoreNoXattr(err); err != nil {
		return err
	}
	if fs.cfg.Format == whiteout.User {
		return notServed(name, "of the kernel's overlayfs, which userxattr excludes")
	}
	f.data, err = fs.dataOf(ctx, dir, name, fd, &f.attr, f.lowers)
	if err != nil {
		if _, merr := sys.Getxattr(fd, "", fs.cfg.Format.Name(whiteout.Metacopy)); ignoreNoXattr(merr) == nil && merr != nil {
			return nil // it was completed just now
		}
		return err
	}
	f.attr.Blocks = f.data.attr.Blocks
	return nil
}

// errLookAgain: another file took the name between two looks at it.
var errLookAgain = errors.New("the name changed while it was looked up")

// dataOf finds the data of the metacopy behind fd, whose attributes are a. hard,
// if not empty, is the lower file that it is the copy of, by the index; else it is
// looked for. The kernel reads no redirect either of what it finds by the index:
// one that is a name was written for another name, and its directory.
func (fs *FS) dataOf(ctx context.Context, dir *node, name string, fd int, a *layers.Attr, hard []lowerRef) (*dataBelow, error) {
	mark, err := fs.readMark(fd, name)
	if err != nil {
		return nil, err
	}
	r, err := fs.dataByName(ctx, dir, name, fd, hard)
	if err != nil {
		return nil, err
	}
	return &dataBelow{lowerRef: *r, size: a.Size, mark: mark}, nil
}

func (fs *FS) dataByName(ctx context.Context, dir *node, name string, fd int, hard []lowerRef) (*lowerRef, error) {
	if len(hard) > 0 {
		return fs.lastOf(ctx, dir, name, &hard[0])
	}
	redirect, err := fs.redirectOf(fd)
	if err != nil {
		return nil, err
	}
	return fs.findData(ctx, dir, name, redirect)
}

// readMark reads the mark of the metacopy behind fd.
func (fs *FS) readMark(fd int, name string) (whiteout.Mark, error) {
	v, err := sys.Getxattr(fd, "", fs.cfg.Format.Name(whiteout.Metacopy))
	if err != nil {
		return whiteout.Mark{}, err
	}
	mark, err := whiteout.ParseMark(v)
	if err != nil {
		err = fmt.Errorf("%q: %w", name, err)
	}
	return mark, err
}

// lastOf returns r, a lower file that stands as name in dir, or where its data
// lies if it is a metacopy itself.
func (fs *FS) lastOf(ctx context.Context, dir *node, name string, r *lowerRef) (*lowerRef, error) {
	marked, _, err := fs.lowerMark(r)
	if err != nil || !marked {
		return r, err
	}
	return fs.findData(ctx, dir, name, "")
}

// lowerMark reads what the file r of a local lower says about its data.
func (fs *FS) lowerMark(r *lowerRef) (marked bool, redirect string, err error) {
	dirfd, name, err := sys.OpenParent(r.layer.root, string(r.path))
	if err != nil {
		return false, "", gone(err)
	}
	defer unix.Close(dirfd)
	fd, err := openIdentified(dirfd, name, r.id())
	if err != nil {
		return false, "", gone(err)
	}
	defer unix.Close(fd)
	if _, err = sys.Getxattr(fd, "", fs.cfg.Format.Name(whiteout.Metacopy)); err != nil {
		return false, "", ignoreNoXattr(err)
	}
	if _, err = sys.Getxattr(fd, "", fs.cfg.Format.Name(whiteout.Object)); err == nil {
		return false, "", notServed(string(r.path), "that was never completed, of another mount")
	}
	redirect, err = fs.redirectOf(fd)
	return true, redirect, err
}

func (fs *FS) redirectOf(fd int) (string, error) {
	v, err := sys.Getxattr(fd, "", fs.cfg.Format.Name(whiteout.Redirect))
	if err != nil {
		return "", ignoreNoXattr(err)
	}
	return checkRedirect(string(v))
}

// findData finds the file that holds the data of the metacopy name in dir, whose
// redirect is given if the metacopy is the upper's.
func (fs *FS) findData(ctx context.Context, dir *node, name, redirect string) (*lowerRef, error) {
	dir.mu.RLock()
	lowers := dir.lowers
	dir.mu.RUnlock()
	d := descent{fs: fs, f: &found{}, dir: dir, name: name, where: lowers, through: true}
	if redirect != "" {
		d.follow(redirect, "", "", nil)
	}
	for len(d.where) > 0 && !d.stop {
		part := d.where[0]
		d.where = d.where[1:]
		if err := d.layer(ctx, &part); err != nil {
			return nil, err
		}
	}
	switch {
	case d.data == nil:
		return nil, notServed(name, "with no data below it")
	case d.moved && fs.cfg.NoFollow:
		return nil, unix.EPERM
	}
	return d.data, nil
}

// file looks whether the file r is the data that is looked for, or a metacopy
// that leads on.
func (d *descent) file(r *lowerRef, attr *layers.Attr, prefix string) (there bool, err error) {
	d.stop = true
	switch {
	case !attr.IsRegular():
		return false, nil
	case !r.layer.isLocal():
		return false, notServed(d.name, "whose data lies on another host")
	}
	r.attr = attr
	marked, redirect, err := d.fs.lowerMark(r)
	switch {
	case err != nil:
		return false, err
	case !marked:
		d.data = r
		return true, nil
	}
	d.stop = false
	if redirect != "" {
		d.follow(redirect, prefix, "", r.layer)
	}
	return true, nil
}

// foundLowerMark is foundMark for a file of a local lower. One with blocks is asked
// when it is opened.
func (fs *FS) foundLowerMark(ctx context.Context, f *found, dir *node, name string) error {
	r := &f.lowers[0]
	if fs.cfg.Mode != Overlay || !r.layer.isLocal() || !f.attr.IsRegular() || f.attr.Blocks*512 >= f.attr.Size {
		return nil
	}
	data, err := fs.dataOfLower(ctx, dir, name, r)
	if err != nil || data == nil {
		return err
	}
	f.data = data
	f.attr.Blocks = data.attr.Blocks
	return nil
}

// dataOfLower returns where the data of the lower file r lies, nil if in r.
func (fs *FS) dataOfLower(ctx context.Context, dir *node, name string, r *lowerRef) (*dataBelow, error) {
	dirfd, last, err := sys.OpenParent(r.layer.root, string(r.path))
	if err != nil {
		return nil, gone(err)
	}
	defer unix.Close(dirfd)
	_, err = sys.Getxattr(dirfd, last, fs.cfg.Format.Name(whiteout.Metacopy))
	if err != nil {
		return nil, ignoreNoXattr(err)
	}
	if fs.cfg.Format == whiteout.User {
		return nil, notServed(string(r.path), "of the kernel's overlayfs, which userxattr excludes")
	}
	fd, err := openIdentified(dirfd, last, r.id())
	if err != nil {
		return nil, gone(err)
	}
	defer unix.Close(fd)
	mark, err := fs.readMark(fd, string(r.path))
	if err != nil {
		return nil, err
	}
	data, err := fs.findData(ctx, dir, name, "") // by way of r
	if err != nil {
		return nil, err
	}
	return &dataBelow{lowerRef: *data, size: r.attr.Size, mark: mark}, nil
}

// learnData is for a lower file that turned out to be a metacopy when it was
// opened: a lookup does not ask a file that has blocks.
func (fs *FS) learnData(ctx context.Context, n *node) error {
	d, ok := n.dentry()
	n.mu.RLock()
	if !ok || len(n.lowers) == 0 {
		n.mu.RUnlock()
		return unix.ESTALE
	}
	r := n.lowers[0]
	n.mu.RUnlock()
	data, err := fs.dataOfLower(ctx, d.parent, d.name, &r)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if data != nil && n.data == nil && !n.upper {
		n.data = data
	}
	return nil
}

// dataIn returns f, the lower file r of n, or the data of n if f is a metacopy.
func (fs *FS) dataIn(ctx context.Context, n *node, r *lowerRef, f layers.File) (layers.File, error) {
	if !fs.isMarked(r.layer, f) {
		return f, nil
	}
	f.Close()
	if err := fs.learnData(ctx, n); err != nil {
		return nil, err
	}
	n.mu.RLock()
	data := n.data
	n.mu.RUnlock()
	if data == nil {
		return nil, layers.ErrStale
	}
	return fs.openMeta(ctx, n, data)
}

// isMarked reports whether the open file f of a local lower is a metacopy.
func (fs *FS) isMarked(l *layer, f layers.File) bool {
	d, ok := f.(layers.Descriptor)
	if !ok || fs.cfg.Mode != Overlay || !l.isLocal() {
		return false
	}
	_, err := sys.Fgetxattr(d.Fd(), fs.cfg.Format.Name(whiteout.Metacopy))
	return err == nil
}

// checkData makes sure that f can be the data of a metacopy: it has the length
// that was recorded and, if a digest was, that digest.
func (b *dataBelow) checkData(f layers.File) error {
	if size := f.Attr().Size; size != b.size {
		return notServed(string(b.path), fmt.Sprintf("of %d bytes, and what is below it has %d", b.size, size))
	}
	if b.mark.Digest == nil {
		return nil
	}
	var algorithm byte
	var digest []byte
	err := error(unix.ENODATA)
	if d, ok := f.(layers.Descriptor); ok {
		algorithm, digest, err = sys.MeasureVerity(d.Fd())
	}
	switch {
	case err != nil:
		return notServed(string(b.path), fmt.Sprintf("with a digest, and what is below it cannot be held against that (fs-verity: %v)", err))
	case algorithm != b.mark.Algorithm || !bytes.Equal(digest, b.mark.Digest):
		return notServed(string(b.path), "with a digest, and what is below it has another")
	}
	return nil
}

// dupDataFd returns a duplicate of a descriptor that a handle has of n's data in a
// lower, with the attributes it had when it was looked up; -1 if none has. The
// caller holds n.mu.
func (n *node) dupDataFd() (fd int, attr layers.Attr) {
	for _, h := range n.open {
		if d, ok := h.lower.(layers.Descriptor); ok {
			return dup(d.Fd()), h.lower.Attr()
		}
	}
	return -1, attr
}

// openMeta opens the data of the metacopy n. One that is empty was cut to nothing,
// which a crash kept from losing its mark: it is its own data.
func (fs *FS) openMeta(ctx context.Context, n *node, b *dataBelow) (layers.File, error) {
	if b.size == 0 && n.isUpper() {
		fd, err := fs.openUpper(n)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		var stx unix.Statx_t
		if err := sys.Statx(fd, "", &stx); err != nil {
			return nil, err
		}
		return reopenLower(fd, local.AttrOf(&stx))
	}
	n.mu.RLock()
	held, attr := n.dupDataFd()
	n.mu.RUnlock()
	defer closeFd(held)
	f, err := b.layer.Open(ctx, b.path, nil)
	if err == nil {
		if a := f.Attr(); !sameFile(&a, b.attr) {
			f.Close()
			err = layers.ErrStale
		}
	}
	switch {
	case err == nil || held < 0:
	case fs.cfg.AsCaller:
		f, err = heldLower(dup(held), attr), nil // the handle's rights do
	default:
		f, err = reopenLower(held, attr)
	}
	if err != nil {
		return nil, gone(err)
	}
	if err := b.checkData(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
