package overlay

import "github.com/hanwen/go-fuse/v2/fuse"

// The requests that run as their callers. What works on an open file alone (Read,
// Write, Fsync, ...) is not among them: it has the rights it was opened with.

// Lookup implements fuse.RawFileSystem.
func (c callerFS) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Lookup(cancel, in, name, out) })
}

// GetAttr implements fuse.RawFileSystem.
func (c callerFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.GetAttr(cancel, in, out) })
}

// SetAttr implements fuse.RawFileSystem.
func (c callerFS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.SetAttr(cancel, in, out) })
}

// Mknod implements fuse.RawFileSystem.
func (c callerFS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Mknod(cancel, in, name, out) })
}

// Mkdir implements fuse.RawFileSystem.
func (c callerFS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Mkdir(cancel, in, name, out) })
}

// Unlink implements fuse.RawFileSystem.
func (c callerFS) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Unlink(cancel, in, name) })
}

// Rmdir implements fuse.RawFileSystem.
func (c callerFS) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Rmdir(cancel, in, name) })
}

// Rename implements fuse.RawFileSystem.
func (c callerFS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Rename(cancel, in, oldName, newName) })
}

// Link implements fuse.RawFileSystem.
func (c callerFS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Link(cancel, in, name, out) })
}

// Symlink implements fuse.RawFileSystem.
func (c callerFS) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Symlink(cancel, in, target, name, out) })
}

// SetXAttr implements fuse.RawFileSystem.
func (c callerFS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.SetXAttr(cancel, in, attr, data) })
}

// RemoveXAttr implements fuse.RawFileSystem.
func (c callerFS) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.RemoveXAttr(cancel, in, attr) })
}

// Create implements fuse.RawFileSystem.
func (c callerFS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Create(cancel, in, name, out) })
}

// Tmpfile implements fuse.RawFileSystem.
func (c callerFS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Tmpfile(cancel, in, out) })
}

// Open implements fuse.RawFileSystem.
func (c callerFS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Open(cancel, in, out) })
}

// OpenDir implements fuse.RawFileSystem.
func (c callerFS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.OpenDir(cancel, in, out) })
}

// ReadDir implements fuse.RawFileSystem.
func (c callerFS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.ReadDir(cancel, in, out) })
}

// ReadDirPlus implements fuse.RawFileSystem.
func (c callerFS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.ReadDirPlus(cancel, in, out) })
}

// Statx implements fuse.RawFileSystem.
func (c callerFS) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Statx(cancel, in, out) })
}

// Ioctl implements fuse.RawFileSystem.
func (c callerFS) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	return c.as(&in.Caller, func() fuse.Status { return c.FS.Ioctl(cancel, in, inbuf, out, outbuf) })
}

// GetXAttr implements fuse.RawFileSystem.
func (c callerFS) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (n uint32, s fuse.Status) {
	s = c.as(&in.Caller, func() (s fuse.Status) { n, s = c.FS.GetXAttr(cancel, in, attr, dest); return s })
	return n, s
}

// ListXAttr implements fuse.RawFileSystem.
func (c callerFS) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (n uint32, s fuse.Status) {
	s = c.as(&in.Caller, func() (s fuse.Status) { n, s = c.FS.ListXAttr(cancel, in, dest); return s })
	return n, s
}

// Readlink implements fuse.RawFileSystem.
func (c callerFS) Readlink(cancel <-chan struct{}, in *fuse.InHeader) (target []byte, s fuse.Status) {
	s = c.as(&in.Caller, func() (s fuse.Status) { target, s = c.FS.Readlink(cancel, in); return s })
	return target, s
}
