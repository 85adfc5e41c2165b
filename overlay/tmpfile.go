package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers/local"
)

// A file of O_TMPFILE is nameless in the upper, too: its node has no name and is
// not dead. What holds the inode is its handles and node.kept, until the kernel
// forgets the node or Link gives it a name; so its number leads to no other file
// meanwhile.

// Tmpfile implements fuse.RawFileSystem: in is about the directory. EOPNOTSUPP
// where the upper's filesystem has none.
func (fs *FS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	parent := fs.table.get(in.NodeId)
	b, err := fs.bear(ctx, parent, "", &in.Caller)
	if err != nil {
		return fs.statusIn("tmpfile", parent, "", err)
	}
	defer b.end()
	h := &handle{flags: in.Flags &^ (unix.O_TMPFILE | unix.O_EXCL), uid: fs.cfg.IDs.storeUID(in.Uid)}
	if h.fd, err = b.createNameless(in); err != nil {
		return fs.statusIn("tmpfile", parent, "", err)
	}
	if h.n, err = fs.bornNameless(h.fd, &out.EntryOut); err != nil {
		unix.Close(h.fd)
		return fs.statusIn("tmpfile", parent, "", err)
	}
	h.n.mu.Lock()
	h.n.admitLocked(h)
	h.n.mu.Unlock()
	fs.openReply(h, &out.OpenOut)
	out.SetAttrTimeout(h.n.attrTimeout(out.Mode))
	return fuse.OK
}

// createNameless makes a file without a name, of the caller's and with what it
// inherits of the directory. With O_EXCL it never gets one: the kernel sees to
// that, on our inode as well as on the upper's.
func (b *birth) createNameless(in *fuse.CreateIn) (fd int, err error) {
	fd = -1
	flags := dataFlags(in.Flags) | int(in.Flags)&unix.O_EXCL
	mode := b.mode(in.Mode&0o7777, in.Umask)
	open := func(dirfd int) error {
		return b.fs.as(b.caller, func() (err error) {
			fd, err = sys.Tmpfile(dirfd, flags, mode)
			return err
		})
	}
	if b.aside {
		err = b.inNursery(open)
	} else {
		err = open(b.dir.fd)
	}
	return fd, err
}

// bornNameless makes the node of the nameless file fd.
func (fs *FS) bornNameless(fd int, out *fuse.EntryOut) (*node, error) {
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		return nil, err
	}
	kept, err := sys.Reopen(fd, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	a := local.AttrOf(&stx)
	n := fs.table.nameless(fs, &found{attr: a, upper: true, upID: idOf(&a), keys: []identity{identityOf(fs.upper, "", &a)}}, kept)
	fs.fillEntry(out, n, &a)
	return n, nil
}

// nameless makes the node of a file that was just made without a name: whatever
// node is known by its inode number is that of another file, which is gone.
func (t *table) nameless(fs *FS, f *found, kept int) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.create(fs, f)
	n.upper, n.upID, n.kept = true, f.upID, kept
	for _, k := range f.keys {
		t.bind(n, k)
	}
	n.lookups++
	return n
}

// named lets go of the descriptor that is kept of a file without a name: it has
// one now.
func (n *node) named() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead == nil {
		n.keep(-1)
	}
}
