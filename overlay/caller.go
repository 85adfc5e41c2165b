package overlay

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// With Config.AsCaller the layers decide about rights, not the kernel on the
// attributes that it was shown: every request that names a file runs, whole, with
// the rights of its caller. It walks from the root of the layer each time (no
// descriptor of a directory is kept), and the kernel keeps no name and no
// attribute, so that a directory which the caller may not search hides what is
// under it. What an open file was opened for it may be used for, by whoever has it.
//
// Two things are done with the daemon's rights, between the caller's: what is in
// the work directory and in LOWER/.migratefs, and copy-up, which must keep an
// owner who is somebody else. Where the daemon has no rights (root squash), a
// copy-up acts as the owner of the file. What neither may do fails as it fails
// for them.

// Raw returns what is served to the kernel.
func (fs *FS) Raw() fuse.RawFileSystem {
	if fs.cfg.AsCaller {
		return &metered{callerFS{fs}, fs}
	}
	return &metered{fs, fs}
}

// callerFS runs requests as their callers. Requests that have nothing but an open
// file go through as they are.
type callerFS struct{ *FS }

func (c callerFS) as(caller *fuse.Caller, f func() fuse.Status) (s fuse.Status) {
	if !c.switches(caller) {
		return f()
	}
	if err := sys.As(c.cred(caller), func() error { s = f(); return nil }); err != nil {
		return fuse.ToStatus(err)
	}
	return s
}

// asDaemon runs f with the daemon's own rights, also in a request that runs as its
// caller.
func (fs *FS) asDaemon(f func() error) error {
	if !fs.cfg.AsCaller {
		return f()
	}
	return sys.AsSelf(f)
}

// asOwner brings n up with the daemon's rights or, where those do not suffice, as
// its owner.
func (fs *FS) asOwner(n *node, up func() error) error {
	if !fs.cfg.AsCaller {
		return up()
	}
	err := sys.AsSelf(up)
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return err
	}
	n.mu.RLock()
	var a *layers.Attr
	if !n.upper && len(n.lowers) > 0 {
		a = n.lowers[0].attr
	}
	n.mu.RUnlock()
	if a == nil || a.UID == 0 {
		return err
	}
	return sys.As(sys.Cred{UID: a.UID, GID: a.GID}, up)
}

// copyWork is where copies lie that have no name yet. Whoever owns a file may have
// to make its copy; nobody gets at the directory but by our descriptor.
func (fs *FS) copyWork() int {
	if fs.cfg.AsCaller {
		return fs.temps
	}
	return fs.work
}

// openTemps opens WORK/temps, and sweeps it.
func (fs *FS) openTemps() (err error) {
	fs.temps, err = fs.openTempsIn(fs.work)
	return err
}

// openTempsIn is openTemps for the work directory work; -1 where there are none.
func (fs *FS) openTempsIn(work int) (temps int, err error) {
	if !fs.cfg.AsCaller {
		return -1, nil
	}
	if temps, err = sys.MkdirOpen(work, "temps"); err != nil {
		return -1, err
	}
	if err = sys.Fchmod(temps, 0o777); err == nil {
		err = copyup.Sweep(temps)
	}
	if err != nil {
		unix.Close(temps)
		return -1, err
	}
	return temps, nil
}

// syncDir is copyup.SyncDir: who may change a directory may not be let read it.
func (fs *FS) syncDir(dir int, cfg copyup.Config) error {
	err := copyup.SyncDir(dir, cfg)
	if fs.cfg.AsCaller && errors.Is(err, unix.EACCES) {
		err = sys.AsSelf(func() error { return copyup.SyncDir(dir, cfg) })
	}
	return err
}

// listDir is local.ReadDirAt: "." in a directory may be searched only by whoever
// may search it, which is not what listing takes.
func (fs *FS) listDir(ctx context.Context, dir int) ([]layers.Entry, error) {
	if !fs.cfg.AsCaller {
		return local.ReadDirAt(ctx, dir)
	}
	fd, err := sys.Reopen(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return local.ReadDirFd(ctx, fd)
}

// may asks the layer that shows n whether the caller may do what mask says
// (access(2)). The kernel has asked unless AsCaller is set.
func (fs *FS) may(n *node, mask uint32) error {
	if !fs.cfg.AsCaller {
		return nil
	}
	fd, err := fs.openShown(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.Access(fd, mask)
}

// fmodeExec is __FMODE_EXEC of linux/fs.h, in the flags of an open for execve(2).
const fmodeExec = 0x20

// openMask is what access(2) has to allow for an open with these flags.
func openMask(flags uint32) (mask uint32) {
	switch {
	case flags&fmodeExec != 0:
		return unix.X_OK
	case flags&unix.O_ACCMODE == unix.O_RDONLY:
		return unix.R_OK
	case flags&unix.O_ACCMODE == unix.O_WRONLY:
		return unix.W_OK
	}
	return unix.R_OK | unix.W_OK
}

// dropPrivileges takes suid and sgid off n as chown(2) does. The kernel asks for it
// without a word of why: after a chown to nobody else, which is the owner's to do, or
// before a write, which is for whoever may write.
func (fs *FS) dropPrivileges(ctx context.Context, n *node, c *fuse.Caller) error {
	drop := func() error {
		return fs.change(ctx, n, func(fd int, _ bool) error {
			return fs.chown(fd, n, c, -1, -1)
		})
	}
	err := drop()
	if fs.cfg.AsCaller && errors.Is(err, unix.EPERM) && fs.may(n, unix.W_OK) == nil {
		return sys.AsSelf(drop)
	}
	return err
}

// openAsCaller is open in a request that runs as its caller. What may be executed
// or written, but not read, is opened by the daemon after the caller was let in.
func (fs *FS) openAsCaller(h *handle, open func() error) error {
	if !fs.cfg.AsCaller {
		return open()
	}
	if err := fs.may(h.n, openMask(h.flags)); err != nil {
		return err
	}
	err := open()
	if errors.Is(err, unix.EACCES) {
		err = sys.AsSelf(open)
	}
	return err
}

// writableFd returns a duplicate of a descriptor of n's upper file that was opened
// for writing, -1 if there is none.
func (n *node) writableFd() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, h := range n.open {
		if h.fd >= 0 && h.writable() {
			return dup(h.fd)
		}
	}
	return -1
}

// Access implements fuse.RawFileSystem, where the kernel asks.
func (c callerFS) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status {
		n := c.table.get(in.NodeId)
		switch {
		case n == nil:
			return fuse.Status(unix.ESTALE)
		case in.Mask&unix.W_OK != 0 && c.ReadOnly():
			return fuse.EROFS
		}
		return c.status("access", n, "", c.may(n, in.Mask))
	})
}
