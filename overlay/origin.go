package overlay

import (
	"bytes"
	"encoding/hex"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// In overlay mode an upper copy names the lower file it was made of by a file
// handle, in the form of the kernel's overlayfs (whiteout.Handle):
// overlay.origin. It gives the copy the st_ino that the
// lower file has, after a remount too, and a hard-linked file its name in
// WORK/index. A directory that such a copy is in, or was moved to, is marked
// overlay.impure first; in others there is none to look for.

// handles are the file handles of one layer's filesystem.
type handles struct {
	fd   int // the layer's root, to decode them; -1 without
	uuid [16]byte
}

// hasHandles reports whether files of l can be named by handles that the kernel's
// overlayfs understands.
func (l *layer) hasHandles() bool { return l.handles.fd >= 0 }

// findHandles looks which layers have file handles, as the kernel's overlayfs
// decides it: not those of filesystems whose UUID another lower has too. It marks
// what the kernel looks for when it mounts this upper with index=on.
func (fs *FS) findHandles() error {
	if fs.cfg.Mode != Overlay || fs.cfg.Format != whiteout.Trusted {
		return nil
	}
	fs.openAllHandles()
	err := fs.markIndex()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		err = errNoMarks
	}
	if errors.Is(err, errNoMarks) {
		for _, l := range append([]*layer{fs.upper}, fs.lowers...) {
			l.closeHandles()
		}
		return nil
	}
	return err
}

// openAllHandles looks which layers have file handles.
func (fs *FS) openAllHandles() {
	for _, l := range append([]*layer{fs.upper}, fs.lowers...) {
		if l.isLocal() {
			l.handles = openHandles(l.root)
		}
	}
	for i, l := range fs.lowers {
		for _, m := range fs.lowers[:i] {
			if l.hasHandles() && m.hasHandles() && l.dev != m.dev && l.handles.uuid == m.handles.uuid && !onBtrfs(l.root) {
				l.closeHandles()
				m.closeHandles()
			}
		}
	}
}

// errNoMarks: the upper cannot hold what the kernel's overlayfs would look for.
var errNoMarks = errors.New("the upper cannot be marked")

// onBtrfs: there each subvolume has a device number of its own, and the UUID is
// the filesystem's.
func onBtrfs(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.BTRFS_SUPER_MAGIC
}

func openHandles(root int) handles {
	none := handles{fd: -1}
	fd, err := sys.OpenBeneath(root, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return none
	}
	h := handles{fd: fd}
	if h.uuid, err = sys.UUIDOf(fd); err == nil {
		var typ int32
		var b []byte
		if typ, b, err = sys.Handle(fd); err == nil {
			var again int
			if again, err = sys.OpenHandle(fd, typ, b); err == nil {
				unix.Close(again)
				return h
			}
		}
	}
	unix.Close(fd)
	return none
}

func (l *layer) closeHandles() {
	if l.handles.fd >= 0 {
		unix.Close(l.handles.fd)
	}
	l.handles.fd = -1
}

// markIndex ties the upper to the highest lower and WORK/index to the upper: a
// mount by the kernel with index=on compares, and fails with ESTALE where they
// differ.
func (fs *FS) markIndex() error {
	if !fs.upper.hasHandles() || len(fs.lowers) == 0 {
		return errNoMarks
	}
	mark := func(fd int, x string, of *layer) error {
		handle, err := of.handleOf(of.handles.fd, of == fs.upper)
		if err != nil {
			return err
		}
		name := fs.cfg.Format.Name(x)
		v, err := sys.Getxattr(fd, "", name)
		if errors.Is(err, unix.ENODATA) {
			return sys.Setxattr(fd, "", name, handle, 0)
		}
		if err == nil && !bytes.Equal(v, handle) {
			fs.log.Warn("the upper or the work directory was used with other directories: the kernel's overlayfs would need index=off", "mark", x)
		}
		return err
	}
	err := mark(fs.index, whiteout.Upper, fs.upper)
	if err == nil && fs.lowers[0].hasHandles() {
		err = mark(fs.upper.root, whiteout.Origin, fs.lowers[0])
	}
	return err
}

// handleOf returns the overlayfs file handle of fd, a file in l.
func (l *layer) handleOf(fd int, upper bool) ([]byte, error) {
	typ, h, err := sys.Handle(fd)
	if err != nil {
		return nil, err
	}
	b, ok := whiteout.Handle{UUID: l.handles.uuid, Type: typ, Bytes: h, Upper: upper}.Encode()
	if !ok {
		return nil, unix.EOVERFLOW
	}
	return b, nil
}

// originOf is the overlay.origin of a copy of the lower file r: nil where its
// layer has no handles.
func (fs *FS) originOf(r *lowerRef) []byte {
	if !r.layer.hasHandles() {
		return nil
	}
	fd, err := sys.OpenBeneath(r.layer.root, string(r.path), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	b, err := r.layer.handleOf(fd, false)
	if err != nil {
		return nil
	}
	return b
}

// setOrigin adds to the xattrs of a copy of r what the kernel's overlayfs gives
// it. A name of a hard link that the index cannot lead to has none.
func (fs *FS) setOrigin(x layers.Xattrs, r *lowerRef) layers.Xattrs {
	if !r.layer.hasHandles() {
		return x
	}
	origin := fs.originOf(r)
	if origin == nil {
		return x
	}
	if x == nil {
		x = layers.Xattrs{}
	}
	x[fs.cfg.Format.Name(whiteout.Origin)] = origin
	return x
}

// lowerByHandle returns the lower file that an origin leads to: it gives its
// number, and is never read.
func (fs *FS) lowerByHandle(origin []byte) (*layer, layers.Attr, bool) {
	h, ok := whiteout.ParseHandle(origin)
	if !ok {
		return nil, layers.Attr{}, false
	}
	for _, l := range fs.lowers {
		if !l.hasHandles() || l.handles.uuid != h.UUID {
			continue
		}
		fd, err := sys.OpenHandle(l.handles.fd, h.Type, h.Bytes)
		if err != nil {
			continue
		}
		var stx unix.Statx_t
		err = sys.Statx(fd, "", &stx)
		unix.Close(fd)
		if err == nil {
			return l, local.AttrOf(&stx), true
		}
	}
	return nil, layers.Attr{}, false
}

// Whether an upper directory is marked impure.
const (
	unasked int32 = iota
	pure
	impure
)

// isImpure reports whether upper copies may be in the directory n, of which fd is
// a descriptor in the upper.
func (fs *FS) isImpure(n *node, fd int) bool {
	if is := n.impure.Load(); is != unasked {
		return is == impure
	}
	_, err := sys.Getxattr(fd, "", fs.cfg.Format.Name(whiteout.Impure))
	is := pure
	if err == nil {
		is = impure
	}
	// Somebody may have marked it meanwhile.
	n.impure.CompareAndSwap(unasked, is)
	return n.impure.Load() == impure
}

// setImpure marks the directory n, of which fd is a descriptor in the upper, for
// an upper copy about to come into it.
func (fs *FS) setImpure(n *node, fd int) error {
	if !fs.upper.hasHandles() || fs.isImpure(n, fd) {
		return nil
	}
	err := sys.Setxattr(fd, "", fs.cfg.Format.Name(whiteout.Impure), []byte("y"), 0)
	if err == nil {
		n.impure.Store(impure)
	}
	return err
}

// hasOrigin reports whether the kernel's overlayfs counts n, in the upper, as a
// copy of something below.
func (n *node) hasOrigin() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.origin || n.isDir() && len(n.lowers) > 0
}

// foundOrigin gives what was found the number of the lower file it is a copy of:
// of the highest part below, if a directory merges; else of the origin, if that
// has no other names, or all lead to this copy.
func (fs *FS) foundOrigin(f *found, n *node, name string) error {
	if !f.upper || fs.cfg.Mode != Overlay {
		return nil
	}
	if f.attr.IsDir() {
		if len(f.keys) > 1 {
			f.shown = &f.keys[1]
		}
		return nil
	}
	if len(f.lowers) > 0 { // found by the index
		f.origin, f.shown = true, &f.keys[1]
		return nil
	}
	if !fs.upper.hasHandles() || fs.table.knows(f.keys[0]) {
		return nil
	}
	d, err := fs.upperDir(n)
	if err != nil {
		return err
	}
	defer fs.dirs.release(d)
	if !fs.isImpure(n, d.fd) {
		return nil
	}
	origin, err := sys.Getxattr(d.fd, name, fs.cfg.Format.Name(whiteout.Origin))
	if err != nil {
		return ignoreNoXattr(err)
	}
	f.origin = true
	l, a, ok := fs.lowerByHandle(origin)
	if ok && a.Type() == f.attr.Type() && (a.Nlink == 1 || f.indexed) {
		k := identityOf(l, "", &a)
		f.shown = &k
	}
	return nil
}

// indexHandle is the name in WORK/index of the lower file with this handle.
func indexHandle(origin []byte) string { return hex.EncodeToString(origin) }

// shows is whose number is shown.
func (f *found) shows() *identity {
	if f.shown != nil {
		return f.shown
	}
	return &f.keys[0]
}
