package overlay

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// Lookup implements fuse.RawFileSystem.
func (fs *FS) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	dir := fs.table.get(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if len(name) > layers.NameMax {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	n, f, err := fs.find(ctx, dir, name)
	if err != nil {
		if errnoOf(err) == unix.ENOENT {
			if fs.negTimeout == 0 {
				return fuse.ENOENT
			}
			out.SetEntryTimeout(ctx.left(fs.negTimeout)) // no node id: the kernel remembers that there is none
			return fuse.OK
		}
		return fs.status("lookup", dir, name, err)
	}
	fs.fillEntry(out, n, &f.attr)
	ctx.shorten(out)
	return fuse.OK
}

// Readlink implements fuse.RawFileSystem.
func (fs *FS) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	target, err := fs.readlink(ctx, n)
	return []byte(target), fs.status("readlink", n, "", err)
}

func (fs *FS) readlink(ctx context.Context, n *node) (string, error) {
	return despiteRenames(n, func() (string, error) { return fs.readlinkOnce(ctx, n) })
}

func (fs *FS) readlinkOnce(ctx context.Context, n *node) (string, error) {
	if n.isUpper() || n.isUnnamed() {
		fd, err := fs.openShown(n)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return sys.Readlink(fd, "")
	}
	n.mu.RLock()
	if len(n.lowers) == 0 {
		n.mu.RUnlock()
		return "", unix.ESTALE
	}
	r := n.lowers[0]
	n.mu.RUnlock()
	path, ok := n.pathIn(&r)
	if !ok {
		return "", unix.ENOENT
	}
	fs.touch(&r)
	return r.layer.Readlink(ctx, path)
}

// Access implements fuse.RawFileSystem. The kernel decides (default_permissions)
// and does not ask.
func (fs *FS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// StatFs implements fuse.RawFileSystem: the filesystem that new files go to.
func (fs *FS) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	st, err := fs.statfs(ctx)
	if err != nil {
		return fs.status("statfs", fs.root, "", err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: st.Bsize, Frsize: max(st.Frsize, 1), NameLen: layers.NameMax,
	}
	return fuse.OK
}

func (fs *FS) statfs(ctx context.Context) (layers.Statfs, error) {
	if fs.upper != nil {
		return local.StatfsFd(fs.upper.root)
	}
	return fs.lowers[0].Statfs(ctx)
}

// reopenLower opens the file behind a lower descriptor once more.
func reopenLower(fd int, attr layers.Attr) (layers.File, error) {
	nfd, err := sys.Reopen(fd, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return heldLower(nfd, attr), nil
}

func heldLower(fd int, attr layers.Attr) layers.File { return local.NewFile(fd, attr) }
