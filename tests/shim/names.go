package shim

import (
	"fmt"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// born ends what made name in dir: it belongs to who asked.
func (fs *FS) born(l *Lies, c *fuse.Caller, dir *node, name string, mode uint32, out *fuse.EntryOut) error {
	if err := fs.own(l, c, dir, dir.fd, name, mode); err != nil {
		return err
	}
	return fs.learn(l, dir, name, out)
}

// own gives the file at name in fd, made in dir, its owner and its mode: the umask
// of this process is not the caller's.
func (fs *FS) own(l *Lies, c *fuse.Caller, dir *node, fd int, name string, mode uint32) error {
	uid, gid := int(c.Uid), int(c.Gid)
	var st unix.Stat_t
	if unix.Fstat(dir.fd, &st) == nil && st.Mode&unix.S_ISGID != 0 {
		gid = -1
	}
	if l.RootSquash && uid == 0 {
		uid, gid = nobody, nobody
	}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	if err := unix.Fchownat(fd, name, uid, gid, flags); err != nil {
		return err
	}
	if err := unix.Fstatat(fd, name, &st, flags); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return err
	}
	if n, _ := unix.Getxattr(procFd(dir.fd), "system.posix_acl_default", nil); n > 0 {
		return nil // which the mode is made of
	}
	mode = mode&0o7777 | st.Mode&unix.S_ISGID
	if name == "" {
		return unix.Chmod(procFd(fd), mode)
	}
	return unix.Fchmodat(fd, name, mode, 0)
}

const nobody = 65534

// Mknod implements fuse.RawFileSystem.
func (fs *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.do("mknod", name, func(l *Lies) error {
		dir := fs.node(in.NodeId)
		if err := unix.Mknodat(dir.fd, name, in.Mode, int(in.Rdev)); err != nil {
			return err
		}
		return fs.born(l, &in.Caller, dir, name, in.Mode, out)
	})
}

// Mkdir implements fuse.RawFileSystem.
func (fs *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.do("mkdir", name, func(l *Lies) error {
		dir := fs.node(in.NodeId)
		if err := unix.Mkdirat(dir.fd, name, in.Mode); err != nil {
			return err
		}
		return fs.born(l, &in.Caller, dir, name, in.Mode, out)
	})
}

// Symlink implements fuse.RawFileSystem.
func (fs *FS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fs.do("symlink", name, func(l *Lies) error {
		dir := fs.node(in.NodeId)
		if err := unix.Symlinkat(target, dir.fd, name); err != nil {
			return err
		}
		return fs.born(l, &in.Caller, dir, name, 0, out)
	})
}

// Link implements fuse.RawFileSystem.
func (fs *FS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.do("link", name, func(l *Lies) error {
		if l.NoLinks {
			return unix.EPERM
		}
		n, dir := fs.node(in.Oldnodeid), fs.node(in.NodeId)
		if err := n.gone(l); err != nil {
			return err
		}
		link := func() error {
			return unix.Linkat(unix.AT_FDCWD, procFd(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW)
		}
		err := link()
		if err == unix.EEXIST && l.LinkReplaces {
			if err = unix.Unlinkat(dir.fd, name, 0); err == nil {
				err = link()
			}
		}
		if err != nil {
			return err
		}
		return fs.learn(l, dir, name, out)
	})
}

// Unlink implements fuse.RawFileSystem.
func (fs *FS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return fs.do("unlink", name, func(l *Lies) error {
		dir := fs.node(in.NodeId)
		if l.Silly {
			if n := fs.openBy(dir, name); n != nil {
				return fs.rename(dir, name, n)
			}
		}
		return unix.Unlinkat(dir.fd, name, 0)
	})
}

// openBy returns the node of name in dir if it is open, and that is its last name.
func (fs *FS) openBy(dir *node, name string) *node {
	var st unix.Stat_t
	if unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Nlink > 1 {
		return nil
	}
	fs.mu.Lock()
	n := fs.byInode[inode{st.Dev, st.Ino}]
	fs.mu.Unlock()
	if n != nil && fs.isOpen(n) {
		return n
	}
	return nil
}

// rename is the unlink of a file that is open: it keeps a name until it is closed.
func (fs *FS) rename(dir *node, name string, n *node) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.silly++
	silly := fmt.Sprintf(".nfs%016x%08x", n.inode.ino, fs.silly)
	if err := unix.Renameat(dir.fd, name, dir.fd, silly); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(uintptr(dir.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		n.silly = append(n.silly, sillyName{fd, silly})
	}
	return err
}

// Rmdir implements fuse.RawFileSystem.
func (fs *FS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return fs.do("rmdir", name, func(*Lies) error {
		return unix.Unlinkat(fs.node(in.NodeId).fd, name, unix.AT_REMOVEDIR)
	})
}

// Rename implements fuse.RawFileSystem.
func (fs *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, old, name string) fuse.Status {
	return fs.do("rename", old, func(l *Lies) error {
		if in.Flags != 0 && l.NoRenameFlags {
			return unix.EINVAL
		}
		from, to := fs.node(in.NodeId), fs.node(in.Newdir)
		if l.Silly && in.Flags == 0 {
			if n := fs.openBy(to, name); n != nil {
				if err := fs.rename(to, name, n); err != nil {
					return err
				}
			}
		}
		return unix.Renameat2(from.fd, old, to.fd, name, uint(in.Flags))
	})
}

// dirHandle is what a directory held when it was opened.
type dirHandle struct{ entries []fuse.DirEntry }

// OpenDir implements fuse.RawFileSystem.
func (fs *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fs.do("readdir", "", func(*Lies) error {
		f, err := os.Open(procFd(fs.node(in.NodeId).fd))
		if err != nil {
			return err
		}
		defer f.Close()
		es, err := f.ReadDir(-1)
		if err != nil {
			return err
		}
		d := &dirHandle{entries: []fuse.DirEntry{{Name: ".", Mode: unix.S_IFDIR}, {Name: "..", Mode: unix.S_IFDIR}}}
		for _, e := range es {
			var st unix.Stat_t
			if unix.Fstatat(int(f.Fd()), e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
				d.entries = append(d.entries, fuse.DirEntry{Name: e.Name(), Mode: st.Mode, Ino: st.Ino})
			}
		}
		out.Fh = fs.newHandle(&handle{fd: -1, dir: d})
		return nil
	})
}

// ReadDir implements fuse.RawFileSystem.
func (fs *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	d := fs.handle(in.Fh).dir
	for i := int(in.Offset); i < len(d.entries); i++ {
		e := d.entries[i]
		e.Off = uint64(i) + 1
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (fs *FS) ReleaseDir(in *fuse.ReleaseIn) { fs.dropHandle(in.Fh) }

// FsyncDir implements fuse.RawFileSystem.
func (fs *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fs.do("fsyncdir", "", func(l *Lies) error {
		if l.NoFsyncDir {
			return unix.EINVAL
		}
		fd, err := unix.Open(procFd(fs.node(in.NodeId).fd), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fsync(fd)
	})
}
