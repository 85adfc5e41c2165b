package overlay

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// view is what a handle works on at one instant.
type view struct {
	fd      int // of the upper file
	lower   layers.File
	object  bool // remote or pending
	pending bool
	upper   bool // and not a metacopy, whose data is still in lower
	meta    bool // a metacopy in the upper
}

func (h *handle) view() view {
	n := h.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	return view{fd: h.fd, lower: h.lower, object: n.src != nil, pending: hasObject(n.pending), upper: n.upper && n.data == nil, meta: n.upper && n.data != nil}
}

// upperView is view for a handle of an upper file. A descriptor that could not be
// had when the file came up (EMFILE) is tried for again.
func (h *handle) upperView() (view, error) {
	if v := h.view(); v.fd >= 0 || !v.upper {
		return v, nil
	}
	fd, err := h.n.fs.openData(h.n, h.flags)
	if err != nil {
		return view{}, err
	}
	h.n.mu.Lock()
	if h.fd < 0 {
		h.fd, fd = fd, -1
	}
	h.n.mu.Unlock()
	if fd >= 0 {
		unix.Close(fd)
	}
	return h.view(), nil
}

// stayingView is upperView; until done is called, a file that is pending stays so,
// and its stub the place of its metadata.
func (h *handle) stayingView() (v view, done func(), err error) {
	if v, err = h.upperView(); err != nil || !v.pending {
		return v, func() {}, err
	}
	h.n.mu.RLock()
	if hasObject(h.n.pending) {
		v.fd = h.fd
		return v, h.n.mu.RUnlock, nil
	}
	h.n.mu.RUnlock()
	v, err = h.upperView()
	return v, func() {}, err
}

// Read implements fuse.RawFileSystem. What is on this host is read without an
// allocation.
func (fs *FS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := fs.handle(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	h.opened()
	off := int64(in.Offset)
	if err := fs.afterWrites(cancel, in.Pid, h.n, off, len(buf)); err != nil {
		return nil, fs.status("read", h.n, "", err)
	}
	v := h.view()
	var err error
	if !v.object && v.fd < 0 && (v.upper || v.lower == nil || fs.noticeNowAndThen(h.n)) {
		v, err = h.upperView()
	}
	var r fuse.ReadResult
	switch d, ok := v.lower.(layers.Descriptor); {
	case err != nil:
	case v.object:
		h.readAhead(off, int64(len(buf)))
		if r = h.spliceObject(len(buf), off); r != nil {
			break
		}
		r, err = readWaiting(cancel, in, buf, func(ctx context.Context) (int, error) { return h.readObject(ctx, buf, off) })
	case v.fd >= 0:
		r, err = readFile(v.fd, buf, off)
	case ok:
		r, err = readBelow(d.Fd(), buf, off, h.within)
	case v.lower == nil:
		err = unix.EBADF
	default:
		r, err = readWaiting(cancel, in, buf, func(ctx context.Context) (int, error) {
			n, err := v.lower.ReadAt(ctx, buf, off)
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, err
		})
	}
	if err != nil {
		fs.lostRead(h.n, in.Pid, err)
		return nil, fs.status("read", h.n, "", err)
	}
	return r, fuse.OK
}

// readWaiting answers a read with what f reads into buf, which can be interrupted.
func readWaiting(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte, f func(context.Context) (int, error)) (fuse.ReadResult, error) {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n, err := f(ctx)
	if err != nil {
		return nil, err
	}
	return readInto(buf[:n]), nil
}

// Write implements fuse.RawFileSystem.
func (fs *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	h := fs.handle(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	r := fs.writes.begin(h.n, int64(in.Offset), len(data))
	n, err := fs.write(ctx, h, data, int64(in.Offset), in)
	fs.writes.end(h.n, r)
	if err != nil && n == 0 {
		return 0, fs.status("write", h.n, "", err)
	}
	fs.wroteDirectly(h.n, in, n)
	return uint32(n), fuse.OK
}

// Writev implements fuse.RawFileSystem.
func (fs *FS) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	h := fs.handle(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	r := fs.writes.begin(h.n, int64(in.Offset), int(in.Size))
	total, err := fs.writeAll(ctx, h, data, in)
	fs.writes.end(h.n, r)
	if err != nil && total == 0 {
		return 0, fs.status("write", h.n, "", err)
	}
	fs.wroteDirectly(h.n, in, total)
	return uint32(total), fuse.OK
}

func (fs *FS) writeAll(ctx context.Context, h *handle, data [][]byte, in *fuse.WriteIn) (total int, err error) {
	for _, b := range data {
		n, err := fs.write(ctx, h, b, int64(in.Offset)+int64(total), in)
		total += n
		if err != nil || n < len(b) {
			return total, err
		}
	}
	return total, nil
}

// wroteDirectly takes out of the page cache what others have read into it while a
// direct write of size bytes was under way: where we tell the kernel what to keep,
// it does so itself only for writes that it waits for, not for io_submit(2).
func (fs *FS) wroteDirectly(n *node, in *fuse.WriteIn, size int) {
	if in.Flags&unix.O_DIRECT == 0 || size == 0 || fs.notify == nil || !fs.Alone() {
		return
	}
	n.mu.RLock()
	served := n.io != ioPassthrough
	n.mu.RUnlock()
	if served {
		fs.notify.InodeNotify(n.id, int64(in.Offset), int64(size))
	}
}

// write writes b, a part of what in has. Whether it is an append is in the request:
// fcntl(2) changes that after the open. A page of a mapping never is.
func (fs *FS) write(ctx context.Context, h *handle, b []byte, off int64, in *fuse.WriteIn) (int, error) {
	n, flags := h.n, in.WriteFlags
	end := in.Flags&unix.O_APPEND != 0 && flags&fuse.WRITE_CACHE == 0
	size := int64(whole)
	if h.flags&unix.O_APPEND != 0 {
		size = appending
	}
	if err := fs.up(ctx, n, size); err != nil {
		return 0, err
	}
	v, done, err := h.stayingView()
	if err != nil {
		return 0, err
	}
	defer done()
	if flags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := fs.killPriv(v.fd, v.pending, &in.Caller); err != nil {
			return 0, err
		}
	}
	switch {
	case flags&fuse.WRITE_CACHE != 0 && appends(v.fd):
		return 0, unix.EPERM
	case !v.pending && end:
		return sys.Append(v.fd, b)
	case !v.pending:
		return sys.Pwrite(v.fd, b, off)
	case n.obj == nil:
		return 0, unix.EIO
	}
	if end {
		off = n.obj.Size()
	}
	// The time first, as in any filesystem: a crash leaves no new content under
	// an old time.
	if err := touch(v.fd); err != nil {
		return 0, err
	}
	return n.obj.WriteAt(b, off)
}

// appends reports whether fd can only be appended to: of a file that can only be
// appended to. A page of a mapping would land at its end.
func appends(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_APPEND != 0
}

// truncate sets the size of n. What it cuts off is not copied first.
func (fs *FS) truncate(ctx context.Context, n *node, size int64) error {
	if !n.isRegular() {
		return unix.EINVAL
	}
	cut, err := fs.upCut(ctx, n, size)
	if err != nil || cut {
		return err
	}
	return fs.withData(n, func(obj objectWriter, fd int) error {
		if obj == nil {
			return sys.Truncate(fd, size)
		}
		if err := touch(fd); err != nil {
			return err
		}
		return obj.Truncate(size)
	})
}

// objectWriter is what changes an object's size and extents.
type objectWriter interface {
	Truncate(size int64) error
	Fallocate(mode uint32, off, n int64) error
}

// withData runs f on a writable descriptor of the upper file n or, if n is
// pending, on its object and a descriptor of its stub.
func (fs *FS) withData(n *node, f func(obj objectWriter, fd int) error) error {
	seq := fs.swaps.begin()
	fd, err := fs.openToChange(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n.mu.Lock()
	if !hasObject(n.pending) {
		same := fs.swaps.same(seq)
		n.mu.Unlock()
		if !same {
			return fs.withData(n, f) // fd may be a stub that n had
		}
		return f(nil, fd)
	}
	defer n.mu.Unlock()
	if err := fs.needObject(n); err != nil {
		return err
	}
	if len(n.open) == 0 {
		defer func() {
			n.closeObject()
			fs.fill.closed(n.pending)
		}()
	}
	return f(n.obj, fd)
}

// openToChange opens the upper file of n to change its data.
func (fs *FS) openToChange(n *node) (int, error) {
	if !fs.cfg.AsCaller {
		return fs.openData(n, unix.O_RDWR)
	}
	if fd := n.writableFd(); fd >= 0 {
		return fd, nil
	}
	return fs.openData(n, unix.O_WRONLY)
}

// Fallocate implements fuse.RawFileSystem.
func (fs *FS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	h := fs.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	const known = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	if in.Mode&^known != 0 {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if err := fs.up(ctx, h.n, whole); err != nil {
		return fs.status("fallocate", h.n, "", err)
	}
	if err := h.killPrivOf(&in.Caller); err != nil {
		return fs.status("fallocate", h.n, "", err)
	}
	off, length := int64(in.Offset), int64(in.Length)
	err := fs.withData(h.n, func(obj objectWriter, fd int) error {
		if obj == nil {
			return sys.Fallocate(fd, in.Mode, off, length)
		}
		if err := touch(fd); err != nil {
			return err
		}
		return obj.Fallocate(in.Mode, off, length)
	})
	return fs.status("fallocate", h.n, "", err)
}

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE only, the kernel
// does the others.
func (fs *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := fs.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	v, err := h.upperView()
	var off int64
	switch d, ok := v.lower.(layers.Descriptor); {
	case err != nil:
	case v.object:
		off, err = h.seekObject(int64(in.Offset), int(in.Whence))
	case v.fd >= 0:
		off, err = unix.Seek(v.fd, int64(in.Offset), int(in.Whence))
	case ok:
		off, err = unix.Seek(d.Fd(), int64(in.Offset), int(in.Whence))
	default:
		return fuse.ENOSYS
	}
	out.Offset = uint64(off)
	return fs.status("lseek", h.n, "", err)
}

// seekObject takes what is missing here for data: for all we know, it is data
// there.
func (h *handle) seekObject(off int64, whence int) (int64, error) {
	n := h.n
	n.mu.RLock()
	defer n.mu.RUnlock()
	switch {
	case n.dataInUpper() && h.fd >= 0: // since just now
		return unix.Seek(h.fd, off, whence)
	case n.obj != nil && whence == unix.SEEK_DATA:
		return n.obj.SeekData(off)
	case n.obj != nil:
		return n.obj.SeekHole(off)
	case n.src == nil || off >= n.src.want.Size:
		return 0, unix.ENXIO
	case whence == unix.SEEK_DATA:
		return off, nil
	}
	return n.src.want.Size, nil
}

// CopyFileRange implements fuse.RawFileSystem, for files whose data is at hand;
// for others the kernel reads and writes.
func (fs *FS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	src, dst := fs.handle(in.FhIn), fs.handle(in.FhOut)
	if src == nil || dst == nil {
		return 0, fuse.EBADF
	}
	if err := fs.up(ctx, dst.n, whole); err != nil {
		return 0, fs.status("copy_file_range", dst.n, "", err)
	}
	from, err := src.upperView()
	if err != nil {
		return 0, fs.status("copy_file_range", src.n, "", err)
	}
	to, err := dst.upperView()
	if err != nil {
		return 0, fs.status("copy_file_range", dst.n, "", err)
	}
	in0 := from.fd
	if d, ok := from.lower.(layers.Descriptor); ok && in0 < 0 {
		in0 = d.Fd()
	}
	if from.object || to.object || in0 < 0 || to.fd < 0 {
		return 0, fuse.Status(unix.EOPNOTSUPP)
	}
	if err := dst.killPrivOf(&in.Caller); err != nil {
		return 0, fs.status("copy_file_range", dst.n, "", err)
	}
	n, err := sys.CopyRange(to.fd, int64(in.OffOut), in0, int64(in.OffIn), int(min(in.Len, 1<<30)))
	return uint32(n), fs.status("copy_file_range", dst.n, "", err)
}

// Flush implements fuse.RawFileSystem. What close(2) of the upper file would
// report (a quota on NFS, say) is reported here.
func (fs *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := fs.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if h.n.locks.Load() != nil {
		h.flushed.Store(time.Now().UnixNano())
		h.n.unlockAtFlush(in.LockOwner)
	}
	v := h.view()
	if !h.writable() || v.fd < 0 || !fs.closeTells {
		return fuse.OK
	}
	fd, err := unix.FcntlInt(uintptr(v.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return fs.status("flush", h.n, "", err)
}

// Fsync implements fuse.RawFileSystem.
func (fs *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := fs.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	err := fs.fsync(h, in.FsyncFlags&1 != 0)
	if err == nil {
		err = fs.syncNames(h.n)
	}
	return fs.status("fsync", h.n, "", err)
}

func (fs *FS) fsync(h *handle, dataOnly bool) error {
	v := h.view()
	switch {
	case v.meta:
		return fs.syncInode(h.n)
	case v.fd < 0 && v.upper:
		return unix.EIO // its copy could not be opened: others may have written to it
	case v.fd < 0:
		return fs.syncBelow(v.lower)
	case v.pending:
		h.n.mu.RLock()
		obj, still := h.n.obj, hasObject(h.n.pending)
		h.n.mu.RUnlock()
		if !still {
			return fs.fsync(h, dataOnly) // it turned into an ordinary file just now
		}
		if obj == nil {
			return unix.EIO
		}
		if err := obj.Sync(dataOnly); err != nil {
			return err
		}
	}
	if dataOnly && !v.pending {
		return sys.Fdatasync(v.fd)
	}
	return sys.Fsync(v.fd)
}

// syncBelow makes durable what was changed of a lower file: in migrate mode, its
// metadata.
func (fs *FS) syncBelow(f layers.File) error {
	if d, ok := f.(layers.Descriptor); ok && fs.cfg.Mode == Migrate {
		return sys.Fsync(d.Fd())
	}
	return nil
}
