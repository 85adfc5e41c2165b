package local

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// Config says how a directory becomes a layer.
type Config struct {
	// Private takes the directory as a read-only, noatime clone of its mount,
	// where the kernel and our rights allow it.
	Private bool
	// Recursive makes the clone hold what is mounted below the directory too.
	// It implies Private, and fails where no clone can be made.
	Recursive bool
	// Name is what messages call the layer; the directory if empty.
	Name string
}

// Layer is a directory of this host as a layers.Layer.
type Layer struct {
	name string
	root int // descriptor of the root directory
	id   string
	dev  uint64
	xdev bool // files on other filesystems belong to the layer
}

var (
	_ layers.Layer      = (*Layer)(nil)
	_ layers.Descriptor = (*file)(nil)
)

// Open makes dir a layer. Symlinks in dir are followed, once, now.
func Open(dir string, cfg Config) (*Layer, error) {
	if cfg.Name == "" {
		cfg.Name = dir
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	fd, err := openRoot(real, cfg)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	attr := AttrOf(&stx)
	return &Layer{
		name: cfg.Name,
		root: fd,
		id:   fmt.Sprintf("local:%x:%x", attr.Dev, attr.Ino),
		dev:  attr.Dev,
		xdev: cfg.Recursive,
	}, nil
}

func openRoot(dir string, cfg Config) (int, error) {
	if cfg.Private || cfg.Recursive {
		fd, err := sys.CloneTree(dir, cfg.Recursive)
		if err == nil {
			return fd, nil
		}
		if cfg.Recursive {
			return -1, err
		}
		// No CAP_SYS_ADMIN, or a kernel without open_tree: the directory as it is.
	}
	return unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// ID tells this directory from every other on this host.
func (l *Layer) ID() string { return l.id }

// Root returns the descriptor of the root directory, owned by the layer.
func (l *Layer) Root() int { return l.root }

// Close closes the root descriptor.
func (l *Layer) Close() error { return unix.Close(l.root) }

func (l *Layer) fail(op string, p layers.Path, err error) error {
	return &layers.PathError{Op: op, Layer: l.name, Path: p, Err: err}
}

// at runs f on the parent descriptor and last component of p; for the root, on
// its descriptor and an empty name.
func (l *Layer) at(op string, p layers.Path, f func(dirfd int, name string) error) error {
	if !p.Valid() {
		return l.fail(op, p, unix.EINVAL)
	}
	if p == layers.Root {
		if err := f(l.root, ""); err != nil {
			return l.fail(op, p, err)
		}
		return nil
	}
	dirfd, name, err := sys.OpenParent(l.root, string(p))
	if err != nil {
		return l.fail(op, p, notThere(err))
	}
	defer unix.Close(dirfd)
	if err := f(dirfd, name); err != nil {
		return l.fail(op, p, err)
	}
	return nil
}

// notThere maps what RESOLVE_NO_SYMLINKS says of a symlink in the middle of a
// path to what the path then is: not there.
func notThere(err error) error {
	if err == unix.ELOOP {
		return unix.ENOTDIR
	}
	return err
}

// Stat implements layers.Layer.
func (l *Layer) Stat(_ context.Context, p layers.Path) (attr layers.Attr, err error) {
	err = l.at("stat", p, func(dirfd int, name string) error {
		var stx unix.Statx_t
		if err := sys.Statx(dirfd, name, &stx); err != nil {
			return err
		}
		attr = AttrOf(&stx)
		return nil
	})
	return attr, err
}

// Readlink implements layers.Layer.
func (l *Layer) Readlink(_ context.Context, p layers.Path) (target string, err error) {
	err = l.at("readlink", p, func(dirfd int, name string) error {
		if name == "" {
			return unix.EINVAL
		}
		target, err = sys.Readlink(dirfd, name)
		return err
	})
	return target, err
}

// Xattrs implements layers.Layer.
func (l *Layer) Xattrs(_ context.Context, p layers.Path) (x layers.Xattrs, err error) {
	err = l.at("getxattr", p, func(dirfd int, name string) error {
		x, err = XattrsAt(dirfd, name)
		return err
	})
	return x, err
}

// XattrsAt reads every xattr of name in dirfd, or of dirfd if name is empty. A
// filesystem without xattrs has none.
func XattrsAt(dirfd int, name string) (layers.Xattrs, error) {
	names, err := sys.Listxattr(dirfd, name)
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var x layers.Xattrs
	for _, n := range names {
		v, err := sys.Getxattr(dirfd, name, n)
		if err == unix.ENODATA || err == unix.EOPNOTSUPP {
			continue // removed since, or listed but not readable, as lustre.lov
		}
		if err != nil {
			return nil, err
		}
		if x == nil {
			x = make(layers.Xattrs, len(names))
		}
		x[n] = v
	}
	return x, nil
}

// ReadDir implements layers.Layer.
func (l *Layer) ReadDir(ctx context.Context, p layers.Path) ([]layers.Entry, error) {
	if !p.Valid() {
		return nil, l.fail("readdir", p, unix.EINVAL)
	}
	fd, err := sys.OpenBeneath(l.root, string(p), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, l.fail("readdir", p, notThere(err))
	}
	defer unix.Close(fd)
	entries, err := ReadDirFd(ctx, fd)
	if err != nil {
		return nil, l.fail("readdir", p, err)
	}
	return entries, nil
}

// Open implements layers.Layer.
func (l *Layer) Open(_ context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	var f *file
	err := l.at("open", p, func(dirfd int, name string) (err error) {
		if name == "" {
			return layers.ErrNotRegular
		}
		f, err = openFile(dirfd, name, want)
		return err
	})
	if err != nil {
		return nil, err
	}
	f.layer, f.path = l, p
	return f, nil
}

// Statfs implements layers.Layer.
func (l *Layer) Statfs(context.Context) (layers.Statfs, error) {
	st, err := StatfsFd(l.root)
	if err != nil {
		return layers.Statfs{}, l.fail("statfs", layers.Root, err)
	}
	return st, nil
}

// StatfsFd describes the filesystem that fd, which may be O_PATH, lies on.
func StatfsFd(fd int) (layers.Statfs, error) {
	var st unix.Statfs_t
	if err := sys.Retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return layers.Statfs{}, err
	}
	return layers.Statfs{
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize),
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail,
		Files: st.Files, Ffree: st.Ffree, NameLen: uint32(st.Namelen),
		Fsid: uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32,
	}, nil
}
