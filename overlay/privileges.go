package overlay

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// mayDrop reports whether c may take suid and sgid off n with a request that says no
// more than that. It comes before a write, for which somebody has n open, and for a
// chown to nobody else, which the kernel lets anybody make: it does not know that the
// mode changes. That is for root and the owner, as on ext4.
func (fs *FS) mayDrop(ctx context.Context, n *node, c *fuse.Caller) error {
	if c.Uid == 0 || fs.cfg.AsCaller || n.hasWriter() {
		return nil
	}
	a, err := fs.attr(ctx, n)
	if err != nil {
		return err
	}
	ids := &fs.cfg.IDs
	sgid := a.Mode&unix.S_ISGID != 0 && (a.Mode&unix.S_IXGRP != 0 || !inGroup(c, ids.showGID(a.GID)))
	if a.IsDir() || a.Mode&unix.S_ISUID == 0 && !sgid || c.Uid == ids.showUID(a.UID) {
		return nil
	}
	return unix.EPERM
}

// uncap removes the xattr disk from fd. Capabilities go before suid and sgid do, and
// before a truncate(2) as well, for which nobody needs to have the file open: who may
// not drop (denied) must be let write.
func (fs *FS) uncap(fd int, disk string, denied bool, c *fuse.Caller) error {
	if denied && fs.as(c, func() error { return sys.Access(fd, unix.W_OK) }) != nil {
		return unix.EPERM
	}
	return sys.Removexattr(fd, "", disk)
}

// hasWriter reports whether anybody has n open for writing.
func (n *node) hasWriter() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, h := range n.open {
		if h.writable() {
			return true
		}
	}
	return false
}
