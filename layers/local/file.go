package local

import (
	"context"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// file is an open regular file. What makes it one version is its inode: the
// layer is read-only to us, and a local file that somebody rewrites in place
// shows the new bytes, as it does to every process that has it open.
type file struct {
	layer *Layer
	path  layers.Path
	fd    int
	attr  layers.Attr
	done  atomic.Bool
}

// openFile opens name in dirfd if it is a regular file. It is looked at through
// an O_PATH descriptor first and opened through that very descriptor, so that
// what is opened is what was looked at: a FIFO swapped in is never opened.
func openFile(dirfd int, name string, want *layers.Attr) (*file, error) {
	path, err := sys.OpenAt(dirfd, name, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer unix.Close(path)
	var stx unix.Statx_t
	if err := sys.Statx(path, "", &stx); err != nil {
		return nil, err
	}
	attr := AttrOf(&stx)
	if !attr.IsRegular() {
		return nil, layers.ErrNotRegular
	}
	if want != nil && !attr.SameVersion(want) {
		return nil, layers.ErrStale
	}
	fd, err := sys.Reopen(path, unix.O_RDONLY|unix.O_NOATIME)
	if err == unix.EPERM {
		fd, err = sys.Reopen(path, unix.O_RDONLY)
	}
	if err != nil {
		return nil, err
	}
	return &file{fd: fd, attr: attr}, nil
}

// Attr implements layers.File.
func (f *file) Attr() layers.Attr { return f.attr }

// Fd implements layers.Descriptor.
func (f *file) Fd() int { return f.fd }

// ReadAt implements layers.File.
func (f *file) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := sys.Pread(f.fd, b, off)
	if err != nil {
		return n, f.layer.fail("read", f.path, err)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Close implements layers.File.
func (f *file) Close() error {
	if f.done.Swap(true) {
		return unix.EBADF
	}
	return unix.Close(f.fd)
}

// NewFile makes a layers.File of an open descriptor, which it owns from then on.
func NewFile(fd int, attr layers.Attr) layers.File {
	return &file{layer: &Layer{name: "open file"}, fd: fd, attr: attr}
}
