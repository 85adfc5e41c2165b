package overlay

import (
	"context"
	"slices"

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

// killPriv takes away what a stranger's write or truncate must not leave on the
// upper inode fd: suid, and sgid of a group that may execute or that the caller is
// not in. Capabilities go with any write to the inode, ours included; a pending
// file's data is elsewhere.
func killPriv(fd int, pending bool, c *fuse.Caller) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	mode := st.Mode & 0o7777
	if mode&unix.S_ISGID != 0 && (mode&unix.S_IXGRP != 0 || !inGroup(c, st.Gid)) {
		mode &^= unix.S_ISGID
	}
	if mode &^= unix.S_ISUID; mode != st.Mode&0o7777 {
		if err := sys.Chmod(fd, "", mode); err != nil {
			return err
		}
	}
	if !pending {
		return nil
	}
	return ignoreNoXattr(sys.Removexattr(fd, "", "security.capability"))
}

// killPrivOfOther does for a chown what the kernel does not do when root, the daemon,
// makes it: who is not in its group takes sgid off a file that none may execute.
func killPrivOfOther(fd int, n *node, c *fuse.Caller) error {
	if c.Uid == 0 || !n.isRegular() {
		return nil
	}
	return killPriv(fd, false, c)
}

func inGroup(c *fuse.Caller, gid uint32) bool {
	return c.Gid == gid || slices.Contains(sys.GroupsOf(c.Pid, c.Uid, c.Gid), gid)
}

// killPrivOf is killPriv for the calls with which the kernel does not say that
// the caller is a stranger: all are, but root.
func (h *handle) killPrivOf(c *fuse.Caller) error {
	if c.Uid == 0 {
		return nil
	}
	v, err := h.upperView()
	if err != nil {
		return err
	}
	return killPriv(v.fd, v.pending, c)
}

// uncapped notes that the thread pid has removed n's capabilities, which is what the
// kernel does before a write.
func (n *node) uncapped(pid uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.open {
		h.uncapped = pid
	}
}

// isRootsWrite reports whether the kernel drops n's privileges for a write of root's,
// which takes capabilities alone, rather than for a chown. Both times it removes the
// capabilities, then asks for a change of nothing. So a chown to nobody else of a
// program that has capabilities, suid, and a writer is taken for a write.
func (n *node) isRootsWrite(c *fuse.Caller) (is bool) {
	if c.Uid != 0 {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.open {
		is = is || h.writable() && h.uncapped == c.Pid
		h.uncapped = 0
	}
	return is && c.Pid != 0
}
