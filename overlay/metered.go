package overlay

import "github.com/hanwen/go-fuse/v2/fuse"

// metered passes requests on and counts them.
type metered struct {
	fuse.RawFileSystem
	fs *FS
}

func (f *metered) done(began int64, in *fuse.InHeader, a asked, s fuse.Status) fuse.Status {
	f.fs.meter.done(f.fs, began, in, a, s)
	return s
}

// Lookup implements fuse.RawFileSystem.
func (f *metered) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, in, asked{op: opLookup, name: name}, f.RawFileSystem.Lookup(cancel, in, name, out))
}

// GetAttr implements fuse.RawFileSystem.
func (f *metered) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opGetattr}, f.RawFileSystem.GetAttr(cancel, in, out))
}

// SetAttr implements fuse.RawFileSystem.
func (f *metered) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opSetattr}, f.RawFileSystem.SetAttr(cancel, in, out))
}

// Mknod implements fuse.RawFileSystem.
func (f *metered) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opMknod, name: name}, f.RawFileSystem.Mknod(cancel, in, name, out))
}

// Mkdir implements fuse.RawFileSystem.
func (f *metered) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opMkdir, name: name}, f.RawFileSystem.Mkdir(cancel, in, name, out))
}

// Unlink implements fuse.RawFileSystem.
func (f *metered) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, in, asked{op: opUnlink, name: name}, f.RawFileSystem.Unlink(cancel, in, name))
}

// Rmdir implements fuse.RawFileSystem.
func (f *metered) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, in, asked{op: opRmdir, name: name}, f.RawFileSystem.Rmdir(cancel, in, name))
}

// Rename implements fuse.RawFileSystem.
func (f *metered) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opRename, name: oldName, to: newName}, f.RawFileSystem.Rename(cancel, in, oldName, newName))
}

// Link implements fuse.RawFileSystem.
func (f *metered) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opLink, name: name}, f.RawFileSystem.Link(cancel, in, name, out))
}

// Symlink implements fuse.RawFileSystem.
func (f *metered) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, in, asked{op: opSymlink, name: name, to: target}, f.RawFileSystem.Symlink(cancel, in, target, name, out))
}

// Readlink implements fuse.RawFileSystem.
func (f *metered) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	t := f.fs.meter.now()
	target, s := f.RawFileSystem.Readlink(cancel, in)
	return target, f.done(t, in, asked{op: opReadlink}, s)
}

// Access implements fuse.RawFileSystem.
func (f *metered) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opAccess}, f.RawFileSystem.Access(cancel, in))
}

// GetXAttr implements fuse.RawFileSystem.
func (f *metered) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	t := f.fs.meter.now()
	n, s := f.RawFileSystem.GetXAttr(cancel, in, attr, dest)
	return n, f.done(t, in, asked{op: opGetxattr, to: attr}, s)
}

// ListXAttr implements fuse.RawFileSystem.
func (f *metered) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	t := f.fs.meter.now()
	n, s := f.RawFileSystem.ListXAttr(cancel, in, dest)
	return n, f.done(t, in, asked{op: opListxattr}, s)
}

// SetXAttr implements fuse.RawFileSystem.
func (f *metered) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opSetxattr, to: attr}, f.RawFileSystem.SetXAttr(cancel, in, attr, data))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *metered) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, in, asked{op: opRemovexattr, to: attr}, f.RawFileSystem.RemoveXAttr(cancel, in, attr))
}

// Create implements fuse.RawFileSystem.
func (f *metered) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opCreate, name: name}, f.RawFileSystem.Create(cancel, in, name, out))
}

// Tmpfile implements fuse.RawFileSystem.
func (f *metered) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opTmpfile}, f.RawFileSystem.Tmpfile(cancel, in, out))
}

// Open implements fuse.RawFileSystem.
func (f *metered) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opOpen}, f.RawFileSystem.Open(cancel, in, out))
}

// Read implements fuse.RawFileSystem.
func (f *metered) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	t := f.fs.meter.now()
	r, s := f.RawFileSystem.Read(cancel, in, buf)
	size := 0
	if r != nil {
		size = r.Size()
	}
	return r, f.done(t, &in.InHeader, asked{op: opRead, off: int64(in.Offset), size: size}, s)
}

// Write implements fuse.RawFileSystem.
func (f *metered) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	t := f.fs.meter.now()
	n, s := f.RawFileSystem.Write(cancel, in, data)
	return n, f.done(t, &in.InHeader, asked{op: opWrite, off: int64(in.Offset), size: int(n)}, s)
}

// Writev implements fuse.RawFileSystem.
func (f *metered) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	t := f.fs.meter.now()
	n, s := f.RawFileSystem.Writev(cancel, in, data)
	return n, f.done(t, &in.InHeader, asked{op: opWrite, off: int64(in.Offset), size: int(n)}, s)
}

// Lseek implements fuse.RawFileSystem.
func (f *metered) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opLseek, off: int64(in.Offset)}, f.RawFileSystem.Lseek(cancel, in, out))
}

// GetLk implements fuse.RawFileSystem.
func (f *metered) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opGetlk}, f.RawFileSystem.GetLk(cancel, in, out))
}

// SetLk implements fuse.RawFileSystem.
func (f *metered) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opSetlk}, f.RawFileSystem.SetLk(cancel, in))
}

// SetLkw implements fuse.RawFileSystem.
func (f *metered) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opSetlkw}, f.RawFileSystem.SetLkw(cancel, in))
}

// Release implements fuse.RawFileSystem.
func (f *metered) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	t := f.fs.meter.now()
	f.RawFileSystem.Release(cancel, in)
	f.done(t, &in.InHeader, asked{op: opRelease}, fuse.OK)
}

// CopyFileRange implements fuse.RawFileSystem.
func (f *metered) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	t := f.fs.meter.now()
	n, s := f.RawFileSystem.CopyFileRange(cancel, in)
	return n, f.done(t, &in.InHeader, asked{op: opCopyRange, off: int64(in.OffIn), size: int(n)}, s)
}

// Ioctl implements fuse.RawFileSystem.
func (f *metered) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opIoctl}, f.RawFileSystem.Ioctl(cancel, in, inbuf, out, outbuf))
}

// Flush implements fuse.RawFileSystem.
func (f *metered) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opFlush}, f.RawFileSystem.Flush(cancel, in))
}

// Fsync implements fuse.RawFileSystem.
func (f *metered) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opFsync}, f.RawFileSystem.Fsync(cancel, in))
}

// Fallocate implements fuse.RawFileSystem.
func (f *metered) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opFallocate, off: int64(in.Offset)}, f.RawFileSystem.Fallocate(cancel, in))
}

// OpenDir implements fuse.RawFileSystem.
func (f *metered) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opOpendir}, f.RawFileSystem.OpenDir(cancel, in, out))
}

// ReadDir implements fuse.RawFileSystem.
func (f *metered) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opReaddir}, f.RawFileSystem.ReadDir(cancel, in, out))
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *metered) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opReaddir}, f.RawFileSystem.ReadDirPlus(cancel, in, out))
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *metered) ReleaseDir(in *fuse.ReleaseIn) {
	t := f.fs.meter.now()
	f.RawFileSystem.ReleaseDir(in)
	f.done(t, &in.InHeader, asked{op: opReleasedir}, fuse.OK)
}

// FsyncDir implements fuse.RawFileSystem.
func (f *metered) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opFsyncdir}, f.RawFileSystem.FsyncDir(cancel, in))
}

// StatFs implements fuse.RawFileSystem.
func (f *metered) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, in, asked{op: opStatfs}, f.RawFileSystem.StatFs(cancel, in, out))
}

// Statx implements fuse.RawFileSystem.
func (f *metered) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	t := f.fs.meter.now()
	return f.done(t, &in.InHeader, asked{op: opStatx}, f.RawFileSystem.Statx(cancel, in, out))
}
