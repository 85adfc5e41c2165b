package overlay

import (
	"context"
	"errors"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// driver asks the filesystem what the kernel would ask it, by path. It forgets
// what it looked up when it ends.
type driver struct {
	fs   *FS
	seen []uint64
	open []uint64 // handles that stay open until the end
}

func (d *driver) end() {
	for _, fh := range d.open {
		d.fs.Release(nil, &fuse.ReleaseIn{Fh: fh})
	}
	for _, id := range d.seen {
		d.fs.Forget(id, 1)
	}
	d.seen, d.open = nil, nil
}

func (d *driver) lookup(dir uint64, name string) (*node, *fuse.EntryOut, unix.Errno) {
	var out fuse.EntryOut
	if st := d.fs.Lookup(nil, &fuse.InHeader{NodeId: dir}, name, &out); st != 0 {
		return nil, nil, unix.Errno(st)
	}
	d.seen = append(d.seen, out.NodeId)
	return d.fs.table.get(out.NodeId), &out, 0
}

// find walks a path.
func (d *driver) find(path string) (uint64, unix.Errno) {
	id := uint64(fuse.FUSE_ROOT_ID)
	if path == "" {
		return id, 0
	}
	for name := range strings.SplitSeq(path, "/") {
		n, _, errno := d.lookup(id, name)
		if errno != 0 {
			return 0, errno
		}
		id = n.id
	}
	return id, 0
}

// parent walks to the directory of a path.
func (d *driver) parent(path string) (fuse.InHeader, string, unix.Errno) {
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	id, errno := d.find(dir)
	return fuse.InHeader{NodeId: id}, name, errno
}

// on runs f with the node of a path.
func (d *driver) on(path string, f func(fuse.InHeader) fuse.Status) unix.Errno {
	id, errno := d.find(path)
	if errno != 0 {
		return errno
	}
	return unix.Errno(f(fuse.InHeader{NodeId: id}))
}

// in runs f with the directory of a path, and the last component.
func (d *driver) in(path string, f func(h fuse.InHeader, name string) fuse.Status) unix.Errno {
	h, name, errno := d.parent(path)
	if errno != 0 {
		return errno
	}
	return unix.Errno(f(h, name))
}

func (d *driver) born(out *fuse.EntryOut, st fuse.Status) fuse.Status {
	if st == 0 {
		d.seen = append(d.seen, out.NodeId)
	}
	return st
}

func (d *driver) readNode(id uint64) ([]byte, unix.Errno) {
	var out fuse.OpenOut
	if st := d.fs.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: id}}, &out); st != 0 {
		return nil, unix.Errno(st)
	}
	defer d.fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
	return d.readHandle(out.Fh)
}

func (d *driver) readHandle(fh uint64) ([]byte, unix.Errno) {
	var all []byte
	buf := make([]byte, 4096)
	for {
		res, st := d.fs.Read(nil, &fuse.ReadIn{Fh: fh, Offset: uint64(len(all)), Size: uint32(len(buf))}, buf)
		if st != 0 {
			return nil, unix.Errno(st)
		}
		b, st := res.Bytes(buf)
		all = append(all, b...)
		res.Done()
		if st != 0 {
			return nil, unix.Errno(st)
		}
		if len(b) == 0 {
			return all, 0
		}
	}
}

// write opens, writes at off, and closes.
func (d *driver) write(path, content string, off uint64) unix.Errno {
	return d.on(path, func(h fuse.InHeader) fuse.Status {
		var out fuse.OpenOut
		if st := d.fs.Open(nil, &fuse.OpenIn{InHeader: h, Flags: unix.O_RDWR}, &out); st != 0 {
			return st
		}
		defer d.fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
		n, st := d.fs.Write(nil, &fuse.WriteIn{InHeader: h, Fh: out.Fh, Offset: off, Size: uint32(len(content))}, []byte(content))
		if st == 0 && int(n) != len(content) {
			return fuse.EIO
		}
		return st
	})
}

func (d *driver) setAttr(path string, in fuse.SetAttrInCommon) unix.Errno {
	return d.on(path, func(h fuse.InHeader) fuse.Status {
		in.InHeader = h
		var out fuse.AttrOut
		return d.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &out)
	})
}

func (d *driver) truncate(path string, size uint64) unix.Errno {
	return d.setAttr(path, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE, Size: size})
}

func (d *driver) chmod(path string, mode uint32) unix.Errno {
	return d.setAttr(path, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: mode})
}

func (d *driver) chown(path string, uid uint32) unix.Errno {
	return d.setAttr(path, fuse.SetAttrInCommon{Valid: fuse.FATTR_UID, Owner: fuse.Owner{Uid: uid}})
}

func (d *driver) utimes(path string, sec uint64) unix.Errno {
	return d.setAttr(path, fuse.SetAttrInCommon{Valid: fuse.FATTR_MTIME | fuse.FATTR_ATIME, Mtime: sec, Atime: sec})
}

// chattr sets inode flags; what is below comes up for it in overlay mode.
func (d *driver) chattr(path string, flags byte) unix.Errno {
	return d.on(path, func(h fuse.InHeader) fuse.Status {
		const set = unix.FS_IOC_SETFLAGS
		return d.fs.Ioctl(nil, &fuse.IoctlIn{InHeader: h, Cmd: set, InSize: 4}, []byte{flags, 0, 0, 0}, &fuse.IoctlOut{}, nil)
	})
}

func (d *driver) setxattr(path, name, value string) unix.Errno {
	return d.on(path, func(h fuse.InHeader) fuse.Status {
		return d.fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h}, name, []byte(value))
	})
}

func (d *driver) removexattr(path, name string) unix.Errno {
	return d.on(path, func(h fuse.InHeader) fuse.Status { return d.fs.RemoveXAttr(nil, &h, name) })
}

func (d *driver) create(path, content string) unix.Errno {
	return d.in(path, func(h fuse.InHeader, name string) fuse.Status {
		var out fuse.CreateOut
		st := d.fs.Create(nil, &fuse.CreateIn{InHeader: h, Flags: unix.O_RDWR | unix.O_EXCL, Mode: 0o640}, name, &out)
		if d.born(&out.EntryOut, st) != 0 {
			return st
		}
		defer d.fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
		if content == "" {
			return st
		}
		_, st = d.fs.Write(nil, &fuse.WriteIn{Fh: out.Fh, Size: uint32(len(content))}, []byte(content))
		return st
	})
}

func (d *driver) mkdir(path string) unix.Errno {
	return d.in(path, func(h fuse.InHeader, name string) fuse.Status {
		var out fuse.EntryOut
		return d.born(&out, d.fs.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: 0o750}, name, &out))
	})
}

func (d *driver) mkfifo(path string) unix.Errno {
	return d.in(path, func(h fuse.InHeader, name string) fuse.Status {
		var out fuse.EntryOut
		return d.born(&out, d.fs.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFIFO | 0o640}, name, &out))
	})
}

func (d *driver) symlink(target, path string) unix.Errno {
	return d.in(path, func(h fuse.InHeader, name string) fuse.Status {
		var out fuse.EntryOut
		return d.born(&out, d.fs.Symlink(nil, &h, target, name, &out))
	})
}

func (d *driver) link(old, path string) unix.Errno {
	id, errno := d.find(old)
	if errno != 0 {
		return errno
	}
	return d.in(path, func(h fuse.InHeader, name string) fuse.Status {
		var out fuse.EntryOut
		return d.born(&out, d.fs.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: id}, name, &out))
	})
}

func (d *driver) unlink(path string) unix.Errno {
	return d.in(path, func(h fuse.InHeader, name string) fuse.Status { return d.fs.Unlink(nil, &h, name) })
}

func (d *driver) rmdir(path string) unix.Errno {
	return d.in(path, func(h fuse.InHeader, name string) fuse.Status { return d.fs.Rmdir(nil, &h, name) })
}

func (d *driver) rename(old, path string, flags uint32) unix.Errno {
	to, name, errno := d.parent(path)
	if errno != 0 {
		return errno
	}
	return d.in(old, func(h fuse.InHeader, oldName string) fuse.Status {
		return d.fs.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: to.NodeId, Flags: flags}, oldName, name)
	})
}

// tmpfile makes a nameless file in dir, writes to it and links it at path, if that
// is not empty.
func (d *driver) tmpfile(dir, content, path string) unix.Errno {
	return d.on(dir, func(h fuse.InHeader) fuse.Status {
		var out fuse.CreateOut
		st := d.fs.Tmpfile(nil, &fuse.CreateIn{InHeader: h, Flags: unix.O_TMPFILE | unix.O_RDWR, Mode: 0o640}, &out)
		if d.born(&out.EntryOut, st) != 0 {
			return st
		}
		defer d.fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
		if _, st := d.fs.Write(nil, &fuse.WriteIn{Fh: out.Fh, Size: uint32(len(content))}, []byte(content)); st != 0 || path == "" {
			return st
		}
		return fuse.Status(d.in(path, func(h fuse.InHeader, name string) fuse.Status {
			var e fuse.EntryOut
			return d.born(&e, d.fs.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: out.NodeId}, name, &e))
		}))
	})
}

// keep opens a file for reading and leaves it open.
func (d *driver) keep(path string) (fh uint64, errno unix.Errno) {
	errno = d.on(path, func(h fuse.InHeader) fuse.Status {
		var out fuse.OpenOut
		st := d.fs.Open(nil, &fuse.OpenIn{InHeader: h}, &out)
		if st == 0 {
			fh = out.Fh
			d.open = append(d.open, fh)
		}
		return st
	})
	return fh, errno
}

// resolve ends the conflict of path, and fills it.
func (d *driver) resolve(path string, how Resolution) unix.Errno {
	id, errno := d.find(path)
	if errno != 0 {
		return errno
	}
	err := d.fs.resolve(context.Background(), d.fs.table.get(id), how)
	if err == nil || errors.Is(err, ErrNoConflict) { // it was, before the filling failed
		err = d.fs.Fill(context.Background())
	}
	if err != nil {
		return errnoOf(err)
	}
	return 0
}
