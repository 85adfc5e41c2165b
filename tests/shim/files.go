package shim

import (
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is an open file or directory.
type handle struct {
	n   *node // nil for a directory
	fd  int
	dir *dirHandle
	// closed: it was flushed, and not used since. The kernel releases it later.
	closed atomic.Bool
}

func (fs *FS) newHandle(h *handle) uint64 {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.lastFh++
	fs.handles[fs.lastFh] = h
	if h.n != nil {
		if h.n.open == nil {
			h.n.open = map[*handle]bool{}
		}
		h.n.open[h] = true
	}
	return fs.lastFh
}

func (fs *FS) handle(fh uint64) *handle {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.handles[fh]
}

// used is handle for what only who has it open does.
func (fs *FS) used(fh uint64) *handle {
	h := fs.handle(fh)
	h.closed.Store(false)
	return h
}

func (fs *FS) dropHandle(fh uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	h := fs.handles[fh]
	delete(fs.handles, fh)
	if h.fd >= 0 {
		unix.Close(h.fd)
	}
	if h.n != nil {
		delete(h.n.open, h)
		fs.lastClosed(h.n)
	}
}

// inUse reports whether a program has n open. The caller holds fs.mu.
func (n *node) inUse() bool {
	for h := range n.open {
		if !h.closed.Load() {
			return true
		}
	}
	return false
}

// isOpen reports whether a program has n open, and waits a moment for the kernel to
// release what was flushed: a close(2) of a copy of a descriptor flushes, too.
func (fs *FS) isOpen(n *node) bool {
	for range 20 {
		fs.mu.Lock()
		left, used := len(n.open) > 0, n.inUse()
		fs.mu.Unlock()
		if !left || used {
			return used
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

// lastClosed takes away the names that n has for being open, if it is not any more.
// The caller holds fs.mu.
func (fs *FS) lastClosed(n *node) {
	if len(n.open) > 0 {
		return
	}
	for _, s := range n.silly {
		_ = unix.Unlinkat(s.dir, s.name, 0)
		unix.Close(s.dir)
	}
	n.silly = nil
}

// openFlags are the flags of an open that the directory's file is opened with:
// appending and caching are the kernel's business on this mount.
func openFlags(flags uint32) int {
	return int(flags)&(unix.O_ACCMODE|unix.O_TRUNC|unix.O_SYNC|unix.O_NOATIME) | unix.O_CLOEXEC
}

func (fs *FS) open(n *node, flags uint32, out *fuse.OpenOut) error {
	fd, err := unix.Open(procFd(n.fd), openFlags(flags), 0)
	if err != nil {
		return err
	}
	out.Fh = fs.newHandle(&handle{n: n, fd: fd})
	return nil
}

// Open implements fuse.RawFileSystem.
func (fs *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fs.do("open", "", func(l *Lies) error {
		n := fs.node(in.NodeId)
		if err := n.gone(l); err != nil {
			return err
		}
		return fs.open(n, in.Flags, out)
	})
}

// Create implements fuse.RawFileSystem.
func (fs *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return fs.do("create", name, func(l *Lies) error {
		dir := fs.node(in.NodeId)
		fd, err := unix.Openat(dir.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, in.Mode&0o7777)
		switch {
		case err == nil:
			unix.Close(fd)
			if err := fs.own(l, &in.Caller, dir, dir.fd, name, in.Mode); err != nil {
				return err
			}
		case err != unix.EEXIST || in.Flags&unix.O_EXCL != 0 && !l.ExclIgnored:
			return err
		}
		if err := fs.learn(l, dir, name, &out.EntryOut); err != nil {
			return err
		}
		return fs.open(fs.node(out.NodeId), in.Flags, &out.OpenOut)
	})
}

// Tmpfile implements fuse.RawFileSystem.
func (fs *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return fs.do("tmpfile", "", func(l *Lies) error {
		if l.NoTmpfile {
			return unix.EOPNOTSUPP
		}
		dir := fs.node(in.NodeId)
		fd, err := unix.Openat(dir.fd, ".", int(in.Flags)&unix.O_EXCL|unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, in.Mode&0o7777)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := fs.own(l, &in.Caller, dir, fd, "", in.Mode); err != nil {
			return err
		}
		path, err := unix.Open(procFd(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := fs.learnFd(l, path, &out.EntryOut); err != nil {
			return err
		}
		return fs.open(fs.node(out.NodeId), in.Flags, &out.OpenOut)
	})
}

// Read implements fuse.RawFileSystem.
func (fs *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (res fuse.ReadResult, st fuse.Status) {
	st = fs.do("read", "", func(l *Lies) error {
		h := fs.used(in.Fh)
		if err := h.n.gone(l); err != nil {
			return err
		}
		n, err := unix.Pread(h.fd, buf[:min(len(buf), int(in.Size))], int64(in.Offset))
		res = fuse.ReadResultData(buf[:max(n, 0)])
		return err
	})
	return res, st
}

// Write implements fuse.RawFileSystem.
func (fs *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (n uint32, st fuse.Status) {
	st = fs.do("write", "", func(l *Lies) error {
		h := fs.used(in.Fh)
		if err := h.n.gone(l); err != nil {
			return err
		}
		m, err := unix.Pwrite(h.fd, data, int64(in.Offset))
		n = uint32(max(m, 0))
		return err
	})
	return n, st
}

// Lseek implements fuse.RawFileSystem.
func (fs *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if fs.lies.Load().NoHoles {
		return fuse.ENOSYS
	}
	off, err := unix.Seek(fs.used(in.Fh).fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(max(off, 0))
	return fuse.ToStatus(err)
}

// Fallocate implements fuse.RawFileSystem.
func (fs *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if fs.lies.Load().NoHoles {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return fuse.ToStatus(unix.Fallocate(fs.used(in.Fh).fd, in.Mode, int64(in.Offset), int64(in.Length)))
}

// Flush implements fuse.RawFileSystem.
func (fs *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return fs.do("flush", "", func(*Lies) error {
		fs.handle(in.Fh).closed.Store(true)
		return nil
	})
}

// Fsync implements fuse.RawFileSystem.
func (fs *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fs.do("fsync", "", func(l *Lies) error {
		h := fs.used(in.Fh)
		if err := h.n.gone(l); err != nil {
			return err
		}
		return unix.Fsync(h.fd)
	})
}

// Release implements fuse.RawFileSystem.
func (fs *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { fs.dropHandle(in.Fh) }

// noLocks answers every lock where there are none: elsewhere the kernel keeps them
// itself, and does not ask.
func (fs *FS) noLocks() fuse.Status { return fuse.Status(unix.ENOLCK) }

// GetLk implements fuse.RawFileSystem.
func (fs *FS) GetLk(<-chan struct{}, *fuse.LkIn, *fuse.LkOut) fuse.Status { return fs.noLocks() }

// SetLk implements fuse.RawFileSystem.
func (fs *FS) SetLk(<-chan struct{}, *fuse.LkIn) fuse.Status { return fs.noLocks() }

// SetLkw implements fuse.RawFileSystem.
func (fs *FS) SetLkw(<-chan struct{}, *fuse.LkIn) fuse.Status { return fs.noLocks() }
