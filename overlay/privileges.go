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
func (fs *FS) killPriv(fd int, pending bool, c *fuse.Caller) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&suidgid == 0 && !pending {
		return nil
	}
	return fs.chownAs(fd, c, -1, -1)
}

// chownAs changes the owner of fd, which is no directory, as if c did. That takes
// suid, sgid and capabilities off, also where the owner stays. The kernel does it in
// one step: what somebody else makes of the mode meanwhile is not undone.
func (fs *FS) chownAs(fd int, c *fuse.Caller, uid, gid int) error {
	err := fs.asStranger(c, func() error { return sys.Fchown(fd, uid, gid) })
	if err != nil || kills(fd) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	mode := st.Mode & 0o7777
	if mode&unix.S_ISGID != 0 && (mode&unix.S_IXGRP != 0 || !inGroup(c, fs.cfg.IDs.showGID(st.Gid))) {
		mode &^= unix.S_ISGID
	}
	if mode &^= unix.S_ISUID; mode == st.Mode&0o7777 {
		return nil
	}
	return sys.Chmod(fd, "", mode)
}

// chown changes the owner of fd, a part of n, for c. -1 leaves an id as it is.
func (fs *FS) chown(fd int, n *node, c *fuse.Caller, uid, gid int) error {
	if c.Uid == 0 || n.isDir() {
		return sys.Fchown(fd, uid, gid)
	}
	return fs.chownAs(fd, c, uid, gid)
}

// setACL sets the ACL disk of fd, which chmods, for c, who is not in fd's group. Only
// the kernel knows that, and says so: sgid goes.
func (fs *FS) setACL(fd int, c *fuse.Caller, disk string, value []byte, flags int) error {
	err := fs.asStranger(c, func() error { return sys.Setxattr(fd, "", disk, value, flags) })
	if err != nil || kills(fd) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_ISGID == 0 {
		return err
	}
	return sys.Chmod(fd, "", st.Mode&0o7777&^unix.S_ISGID)
}

// asStranger runs f so that what it changes loses suid and sgid as if c changed it.
func (fs *FS) asStranger(c *fuse.Caller, f func() error) error {
	if !fs.super {
		return sys.AsStranger(nil, f) // the daemon acts for its own user alone
	}
	return sys.AsStranger(ptr(fs.cred(c)), f)
}

// kills reports whether fd lies where this host's kernel takes suid and sgid off. On
// network filesystems the server does, for whom we are root; there, what somebody
// else makes of the mode just then may be undone.
func kills(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && isDisk(&st)
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
	v, done, err := h.stayingView()
	if err != nil {
		return err
	}
	defer done()
	return h.n.fs.killPriv(v.fd, v.pending, c)
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
