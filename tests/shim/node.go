package shim

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// inode is what a node is of. While its descriptor is open, no other is.
type inode struct{ dev, ino uint64 }

// node is an inode of the directory that the kernel knows.
type node struct {
	id      uint64
	fd      int // O_PATH
	inode   inode
	lookups uint64           // protected by FS.mu
	open    map[*handle]bool // protected by FS.mu
	silly   []sillyName      // likewise
}

// sillyName is what a name became whose file was open.
type sillyName struct {
	dir  int
	name string
}

func procFd(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (fs *FS) node(id uint64) *node {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.nodes[id]
}

// learn tells the kernel of name in dir.
func (fs *FS) learn(l *Lies, dir *node, name string, out *fuse.EntryOut) error {
	fd, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return fs.learnFd(l, fd, out)
}

// learnFd tells the kernel of the file fd (O_PATH), which it takes.
func (fs *FS) learnFd(l *Lies, fd int, out *fuse.EntryOut) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	key := inode{st.Dev, st.Ino}
	fs.mu.Lock()
	n := fs.byInode[key]
	if n == nil {
		fs.lastID++
		n = &node{id: fs.lastID, fd: fd, inode: key}
		fs.nodes[n.id], fs.byInode[key] = n, n
	} else {
		unix.Close(fd)
	}
	n.lookups++
	fs.mu.Unlock()
	out.NodeId, out.Generation = n.id, 1
	out.SetEntryTimeout(l.Stale)
	out.SetAttrTimeout(l.Stale)
	return attrOf(n.fd, &out.Attr)
}

func attrOf(fd int, out *fuse.Attr) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return err
	}
	out.FromStat(&st)
	return nil
}

// Lookup implements fuse.RawFileSystem.
func (fs *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return fs.do("lookup", name, func(l *Lies) error {
		if l.Unseen != nil && l.Unseen(name) {
			return unix.ENOENT
		}
		err := fs.learn(l, fs.node(in.NodeId), name, out)
		if err == unix.ENOENT && l.Stale > 0 && !l.Positive {
			out.NodeId = 0 // the kernel keeps that it is not there
			out.SetEntryTimeout(l.Stale)
			return nil
		}
		return err
	})
}

// Forget implements fuse.RawFileSystem.
func (fs *FS) Forget(id, lookups uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := fs.nodes[id]
	if n == nil {
		return
	}
	if n.lookups -= lookups; n.lookups == 0 {
		delete(fs.nodes, id)
		delete(fs.byInode, n.inode)
		unix.Close(n.fd)
	}
}

// gone is ESTALE for a file without names, where that is so.
func (n *node) gone(l *Lies) error {
	var st unix.Stat_t
	if l.Estale && unix.Fstat(n.fd, &st) == nil && st.Nlink == 0 {
		return unix.ESTALE
	}
	return nil
}

// GetAttr implements fuse.RawFileSystem.
func (fs *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return fs.do("getattr", "", func(l *Lies) error {
		n := fs.node(in.NodeId)
		if err := n.gone(l); err != nil {
			return err
		}
		out.SetTimeout(l.Stale)
		return attrOf(n.fd, &out.Attr)
	})
}

// Statx implements fuse.RawFileSystem.
func (fs *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	if fs.lies.Load().NoBtime {
		return fuse.ENOSYS
	}
	return fs.do("getattr", "", func(l *Lies) error {
		n := fs.node(in.NodeId)
		if err := n.gone(l); err != nil {
			return err
		}
		var stx unix.Statx_t
		if err := unix.Statx(n.fd, "", unix.AT_EMPTY_PATH, int(in.SxMask), &stx); err != nil {
			return err
		}
		out.FromStatx(&stx)
		out.AttrValid = uint64(l.Stale / time.Second)
		return nil
	})
}

// SetAttr implements fuse.RawFileSystem.
func (fs *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return fs.do("setattr", "", func(l *Lies) error {
		n := fs.node(in.NodeId)
		if err := n.gone(l); err != nil {
			return err
		}
		if err := setAttr(n.fd, in); err != nil {
			return err
		}
		out.SetTimeout(l.Stale)
		return attrOf(n.fd, &out.Attr)
	})
}

func setAttr(fd int, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		uid, gid := -1, -1
		if in.Valid&fuse.FATTR_UID != 0 {
			uid = int(in.Uid)
		}
		if in.Valid&fuse.FATTR_GID != 0 {
			gid = int(in.Gid)
		}
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		if err := unix.Chmod(procFd(fd), in.Mode&0o7777); err != nil {
			return err
		}
	}
	if in.Valid&fuse.FATTR_SIZE != 0 {
		if err := unix.Truncate(procFd(fd), int64(in.Size)); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	when := func(given, now uint32, sec uint64, nsec uint32) unix.Timespec {
		switch {
		case in.Valid&now != 0:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		case in.Valid&given != 0:
			return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
		}
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{
		when(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		when(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}, unix.AT_EMPTY_PATH)
}

// Readlink implements fuse.RawFileSystem.
func (fs *FS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fs.node(in.NodeId).fd, "", b)
	return b[:max(n, 0)], fuse.ToStatus(err)
}

// StatFs implements fuse.RawFileSystem.
func (fs *FS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return fs.do("statfs", "", func(*Lies) error {
		var st syscall.Statfs_t
		err := syscall.Statfs(procFd(fs.node(in.NodeId).fd), &st)
		if err == nil {
			out.FromStatfsT(&st)
		}
		return err
	})
}

// xattr runs f on a path of the inode, unless there are no such attributes.
func (fs *FS) xattr(op string, id uint64, attr string, f func(path string) error) fuse.Status {
	return fs.do(op, attr, func(l *Lies) error {
		if l.NoXattrs || l.NoTrusted && strings.HasPrefix(attr, "trusted.") {
			return unix.EOPNOTSUPP
		}
		return f(procFd(fs.node(id).fd))
	})
}

// GetXAttr implements fuse.RawFileSystem.
func (fs *FS) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (n uint32, st fuse.Status) {
	st = fs.xattr("getxattr", in.NodeId, attr, func(path string) error {
		m, err := unix.Getxattr(path, attr, dest)
		n = uint32(max(m, 0))
		return err
	})
	return n, st
}

// ListXAttr implements fuse.RawFileSystem.
func (fs *FS) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (n uint32, st fuse.Status) {
	st = fs.xattr("getxattr", in.NodeId, "", func(path string) error {
		b := make([]byte, 1<<16)
		m, err := unix.Listxattr(path, b)
		if err != nil {
			return err
		}
		var shown []byte
		for name := range strings.SplitSeq(strings.TrimSuffix(string(b[:m]), "\x00"), "\x00") {
			if name != "" && (!fs.lies.Load().NoTrusted || !strings.HasPrefix(name, "trusted.")) {
				shown = append(append(shown, name...), 0)
			}
		}
		n = uint32(len(shown))
		if len(dest) == 0 {
			return nil
		}
		if len(shown) > len(dest) {
			return unix.ERANGE
		}
		copy(dest, shown)
		return nil
	})
	if st == fuse.Status(unix.EOPNOTSUPP) {
		return 0, fuse.OK // as from NFS
	}
	return n, st
}

// SetXAttr implements fuse.RawFileSystem.
func (fs *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return fs.xattr("setxattr", in.NodeId, attr, func(path string) error {
		return unix.Setxattr(path, attr, data, int(in.Flags))
	})
}

// RemoveXAttr implements fuse.RawFileSystem.
func (fs *FS) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	return fs.xattr("removexattr", in.NodeId, attr, func(path string) error { return unix.Removexattr(path, attr) })
}
