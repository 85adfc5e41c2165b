package overlay

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Link implements fuse.RawFileSystem.
func (fs *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n, dir := fs.table.get(in.Oldnodeid), fs.table.get(in.NodeId)
	if n == nil || dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	if n.isDir() {
		return fuse.EPERM
	}
	err := fs.link(ctx, n, dir, name, out)
	return fs.status("link", dir, name, err)
}

func (fs *FS) link(ctx context.Context, n, dir *node, name string, out *fuse.EntryOut) error {
	if fs.ReadOnly() {
		return unix.EROFS
	}
	if fs.reserved(dir, name) {
		return unix.EPERM
	}
	if done, err := fs.linkBelow(n, dir, name); err != nil || done {
		if err != nil {
			return err
		}
		return fs.linked(ctx, n, dir, name, out)
	}
	if err := fs.upToMove(ctx, n); err != nil {
		return err
	}
	b, err := fs.bear(ctx, dir, name, nil)
	if err != nil {
		return err
	}
	defer b.end()
	fd, err := fs.openUpper(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if n.hasOrigin() {
		if err := fs.setImpure(dir, b.dir.fd); err != nil {
			return err
		}
	}
	if b.white {
		err = b.replaceWhiteout(func(temp string) error { return sys.LinkFd(fd, fs.work, temp) })
	} else {
		err = sys.LinkFd(fd, b.dir.fd, name)
	}
	if err != nil {
		return err
	}
	// Nothing is opened to look at it: that it has the name must not end in an error.
	a, err := fs.attrOfHandle(n, fd)
	if err != nil {
		return err
	}
	fs.table.ref(n)
	fs.addName(n, dir, name)
	n.named()
	fs.fillEntry(out, n, &a)
	return nil
}

// linked answers with the file under its new name.
func (fs *FS) linked(ctx context.Context, n, dir *node, name string, out *fuse.EntryOut) error {
	f, err := fs.lookup(ctx, dir, name)
	if err != nil {
		return err
	}
	m := fs.table.adopt(fs, f, dir, name)
	fs.fillEntry(out, m, &f.attr)
	return nil
}

// linkBelow makes the link in the lower that has the file, in migrate mode where
// the directory is there too and no higher layer has the name. done is false if
// the file has to come up.
func (fs *FS) linkBelow(n, dir *node, name string) (done bool, err error) {
	if fs.cfg.Mode != Migrate || n.isUpper() {
		return false, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d, ok := n.dentry()
	if n.upper || !ok || len(n.lowers) == 0 {
		return false, nil
	}
	r := &n.lowers[0]
	from, to := d.parent.lowerIn(r.layer), dir.lowerIn(r.layer)
	if from == nil || to == nil {
		return false, nil
	}
	old, err := fs.lowerDir(d.parent, from)
	if err != nil {
		return false, err
	}
	defer fs.dirs.release(old)
	fd, err := openIdentified(old.fd, d.name, r.id())
	if err != nil {
		return false, gone(err)
	}
	defer unix.Close(fd)
	at, err := fs.lowerDir(dir, to)
	if err != nil {
		return false, err
	}
	defer fs.dirs.release(at)
	fs.unsynced.changed(r.layer, at)
	if err := sys.LinkFd(fd, at.fd, name); err != nil {
		return true, err
	}
	fs.dirChanged(dir, r.layer)
	return true, nil
}
