package overlay

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Statx implements fuse.RawFileSystem. The kernel asks for it where a program
// wants the birth time, and takes nothing else from it that GetAttr does not
// tell. Of a file that was brought up it is that of the copy, as the kernel's
// overlayfs has it: no filesystem lets a birth time be set.
func (fs *FS) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	a, err := fs.attr(ctx, n)
	if err != nil {
		return fs.status("statx", n, "", err)
	}
	out.SetTimeout(ctx.left(fs.attrTimeout))
	fillStatx(&out.Statx, n, &a)
	return fuse.OK
}

// fillStatx is fillAttr for statx(2).
func fillStatx(out *fuse.Statx, n *node, a *layers.Attr) {
	var f fuse.Attr
	fillAttr(&f, n, a)
	*out = fuse.Statx{
		Mask:    unix.STATX_BASIC_STATS,
		Blksize: f.Blksize, Nlink: f.Nlink, Uid: f.Uid, Gid: f.Gid, Mode: uint16(f.Mode),
		Ino: f.Ino, Size: f.Size, Blocks: f.Blocks,
		Atime:     fuse.SxTime{Sec: f.Atime, Nsec: f.Atimensec},
		Mtime:     fuse.SxTime{Sec: f.Mtime, Nsec: f.Mtimensec},
		Ctime:     fuse.SxTime{Sec: f.Ctime, Nsec: f.Ctimensec},
		RdevMajor: unix.Major(a.Rdev), RdevMinor: unix.Minor(a.Rdev),
	}
	if a.Has(layers.KnownBtime) {
		out.Mask |= unix.STATX_BTIME
		out.Btime = fuse.SxTime{Sec: uint64(a.Btime.Sec), Nsec: a.Btime.Nsec}
	}
}
