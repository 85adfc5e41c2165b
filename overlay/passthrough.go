package overlay

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// In passthrough the kernel reads, writes and maps a file of the upper itself; we
// see its opens, its metadata and its syncs. What the kernel asks of us for that,
// or else fails the open with EIO (fs/fuse/iomode.c and passthrough.c, Linux 6.9):
//
//   - While anybody has a file open, either all have it in passthrough or none
//     has. So the first open decides, and a file that comes up while it is open
//     stays with us until all have closed it: what was opened to read the lower
//     would write to it otherwise.
//   - All opens in passthrough name the same backing file, registered once.
//
// The kernel lets go of a handle before it sends RELEASE, and has a new one only
// after we answered OPEN: n.open never holds less than the kernel has. So what is
// decided while it is empty, with n.mu held, contradicts nobody.

// backer is where backing files are registered: a *fuse.Server.
type backer interface {
	RegisterBackingFd(*fuse.BackingMap) (int32, unix.Errno)
	UnregisterBackingFd(int32) unix.Errno
	InodeNotify(node uint64, off, length int64) fuse.Status
}

// ioMode is how the kernel reaches the data of a file while it is open.
type ioMode uint8

const (
	ioClosed      ioMode = iota
	ioServed             // by requests, through FUSE's page cache
	ioPassthrough        // by itself
)

const suidgid = unix.S_ISUID | unix.S_ISGID

// Init implements fuse.RawFileSystem: the kernel has said what it can do.
func (fs *FS) Init(server *fuse.Server) {
	defer fs.fill.begin()
	fs.notify = server
	fs.xattrs = server.KernelSettings().Flags64()&fuse.CAP_SETXATTR_EXT != 0
	fs.unopened = fs.listingsKept() && server.KernelSettings().Flags64()&fuse.CAP_NO_OPENDIR_SUPPORT != 0
	if fs.cfg.NoPassthrough || fs.cfg.AsCaller || !fs.super || server.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		return
	}
	if fs.upper != nil {
		fs.upper.passes = canPass(fs.upper, fs.cfg.NoAtime)
	} else {
		// Nothing can change, so a lower file is as good as one of the upper.
		for _, l := range fs.lowers {
			l.passes = canPass(l, false)
		}
	}
	fs.backer = server
}

// canPass reports whether the kernel may read and write the files of l by itself:
// those on disks of this host. On a network filesystem it would act with our
// identity in place of the caller's, and a stacked one it refuses.
func canPass(l *layer, noAtime bool) bool {
	var st unix.Statfs_t
	if !l.onDisk() || unix.Fstatfs(l.root, &st) != nil {
		return false
	}
	return !noAtime || st.Flags&unix.ST_NOATIME != 0 // the kernel would set the access time
}

// onDisk reports whether l lies on a disk, or in the memory, of this host, by the
// filesystems that are known to do so.
func (l *layer) onDisk() bool {
	var st unix.Statfs_t
	if !l.isLocal() || unix.Fstatfs(l.root, &st) != nil {
		return false
	}
	return isDisk(&st)
}

func isDisk(st *unix.Statfs_t) bool {
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

// enterMode decides, as h becomes the first handle of n, how the kernel reaches
// n's data. The caller holds n.mu.
func (n *node) enterMode(h *handle) {
	n.io = ioServed
	fd := n.passFd(h)
	if fd < 0 {
		return
	}
	var stx unix.Statx_t
	if sys.Statx(fd, "", &stx) != nil || n.upper && stx.Mode&suidgid != 0 {
		return // the kernel would take these bits off when root writes as well
	}
	if local.AttrOf(&stx).AppendOnly {
		return // the kernel would let it be mapped to write
	}
	id, err := n.fs.register(fd, h.uid)
	if err != nil {
		n.fs.log.Debug("served instead of passed through", "cause", err)
		return
	}
	n.io, n.backing = ioPassthrough, id
}

// passFd is the descriptor of h through which the kernel may reach n's data, or -1.
func (n *node) passFd(h *handle) int {
	switch {
	case n.fs.backer == nil:
	case n.upper:
		if n.fs.upper.passes && n.dataInUpper() {
			return h.fd
		}
	case len(n.lowers) > 0:
		if r := n.dataRef(); !r.layer.passes || r.attr.Dev != r.layer.dev {
			return -1
		}
		if d, ok := h.lower.(layers.Descriptor); ok {
			return d.Fd()
		}
	}
	return -1
}

// register makes the file behind fd a backing file. The kernel writes with the
// rights of the thread that registers it: those of who opened the file first, so
// that the reserve of the disk stays reserved, and without CAP_FSETID, so that
// writes take suid and sgid off.
func (fs *FS) register(fd int, uid uint32) (id int32, err error) {
	err = sys.AsWriter(uid, func() error {
		var errno unix.Errno
		if id, errno = fs.backer.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)}); errno != 0 {
			return errno
		}
		return nil
	})
	return id, err
}

// leaveMode undoes enterMode when the last handle is gone. The caller holds n.mu.
func (n *node) leaveMode() {
	if n.io == ioPassthrough {
		n.fs.backer.UnregisterBackingFd(n.backing)
	}
	n.io, n.backing = ioClosed, 0
}

// openReply is what the kernel is told of h.
func (fs *FS) openReply(h *handle, out *fuse.OpenOut) {
	n := h.n
	n.mu.Lock()
	io, id := n.io, n.backing
	news := io == ioPassthrough && h.flags&unix.O_ACCMODE == unix.O_RDWR && !n.mapped
	n.mapped = n.mapped || news
	mapped := n.mapped
	n.mu.Unlock()
	out.Fh = h.id
	switch {
	case io == ioPassthrough:
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, id
		if h.isServed() {
			out.OpenFlags |= fuse.FOPEN_DIRECT_IO
		}
	case h.flags&unix.O_DIRECT != 0:
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
	case fs.Alone() && !mapped, !fs.Alone() && n.keepPages(h):
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
	if news {
		fs.backer.InodeNotify(n.id, -1, 0) // no more of the attributes that it has
	}
}

// isServed reports whether reads and writes of h come to us though n is in
// passthrough. The kernel opens the backing file with the flags of the open;
// O_APPEND and O_DIRECT stay on it when fcntl(2) takes them off, and what is
// written then would land elsewhere or be refused (the last block of dd).
func (h *handle) isServed() bool {
	return h.flags&unix.O_DIRECT != 0 || h.writable() && h.flags&unix.O_APPEND != 0
}

// attrTimeout notes that the kernel is told this mode of n, and returns how long it
// may believe it and the other attributes. Not at all that a program has suid or sgid: the kernel's FUSE does not see that a
// direct write took them off, nor one in passthrough. What is stored through a
// mapping in passthrough, which outlives the descriptor, it does not see either.
func (n *node) attrTimeout(mode uint32) time.Duration {
	if !n.isRegular() {
		return n.fs.attrTimeout
	}
	n.shown.Store(mode & suidgid)
	if mode&suidgid != 0 {
		return 0
	}
	if n.fs.backer == nil {
		return n.fs.attrTimeout
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.mapped {
		return 0
	}
	return n.fs.attrTimeout
}

// mayExec refuses an execve(2) that would give suid or sgid to what a stranger has
// written in passthrough since the kernel was told the mode: between its look at
// the mode and its own refusal of writers there is this open. It looks again after
// ESTALE. A stranger who has the file open to write could be faster than that.
func (n *node) mayExec(h *handle) error {
	shown := n.shown.Load()
	if h.flags&fmodeExec == 0 || shown == 0 || h.fd < 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(h.fd, &st); err != nil {
		return err
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, o := range n.open {
		stranger := o.uid != 0 && (o.uid != st.Uid || shown&unix.S_ISGID != 0)
		if n.io == ioPassthrough && o.writable() && stranger {
			return unix.ETXTBSY
		}
	}
	if shown&^st.Mode != 0 {
		return layers.ErrStale
	}
	return nil
}
