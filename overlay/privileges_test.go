package overlay

import (
	"encoding/binary"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// drops are what takes suid and sgid off a file when somebody does it who is
// neither root nor in the file's group.
var drops = []struct {
	name   string
	remote bool // the file is pending
	do     func(fs *FS, h fuse.InHeader, fh uint64) fuse.Status
}{
	{name: "write", do: strangersWrite},
	{name: "write to a pending file", remote: true, do: strangersWrite},
	{name: "truncate", do: func(fs *FS, h fuse.InHeader, fh uint64) fuse.Status {
		return setAttrOf(fs, fuse.SetAttrInCommon{InHeader: h, Fh: fh, Size: 1, Valid: fuse.FATTR_FH | fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID})
	}},
	{name: "fallocate", do: func(fs *FS, h fuse.InHeader, fh uint64) fuse.Status {
		return fs.Fallocate(nil, &fuse.FallocateIn{InHeader: h, Fh: fh, Length: 1})
	}},
	{name: "before a write to what had capabilities", do: func(fs *FS, h fuse.InHeader, _ uint64) fuse.Status {
		return setAttrOf(fs, fuse.SetAttrInCommon{InHeader: h})
	}},
	{name: "chgrp", do: func(fs *FS, h fuse.InHeader, _ uint64) fuse.Status {
		return setAttrOf(fs, fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_GID, Owner: fuse.Owner{Gid: 1002}})
	}},
	{name: "an ACL", do: func(fs *FS, h fuse.InHeader, _ uint64) fuse.Status {
		acl := binary.LittleEndian.AppendUint32(nil, 2)
		for _, tag := range []uint16{1, 4, 0x20} { // owner, group, other: r-x
			acl = binary.LittleEndian.AppendUint16(acl, tag)
			acl = binary.LittleEndian.AppendUint16(acl, 5)
			acl = binary.LittleEndian.AppendUint32(acl, ^uint32(0))
		}
		return fs.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, SetXAttrFlags: fuse.SETXATTR_ACL_KILL_SGID}, "system.posix_acl_access", acl)
	}},
}

func strangersWrite(fs *FS, h fuse.InHeader, fh uint64) fuse.Status {
	_, st := fs.Write(nil, &fuse.WriteIn{InHeader: h, Fh: fh, WriteFlags: fuse.WRITE_KILL_SUIDGID}, []byte("S"))
	return st
}

func setAttrOf(fs *FS, in fuse.SetAttrInCommon) fuse.Status {
	var out fuse.AttrOut
	return fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: in}, &out)
}

// TestDroppingUndoesNothing: a mode that the owner sets in the layer, while suid and
// sgid are taken off by somebody's change, stays; and without that they go.
func TestDroppingUndoesNothing(t *testing.T) {
	base := worlds(t)
	for _, c := range drops {
		for _, meanwhile := range []bool{false, true} {
			name, kind, path := c.name, stackings[0], "up"
			if c.remote {
				kind, path = stackings[4], "low"
			}
			if meanwhile {
				name += ", while its owner changes the mode"
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, base, kind)
				defer w.remove()
				must(t, w.open())
				w.fs.xattrs = true
				d := &driver{fs: w.fs}
				defer d.end()
				if c.remote {
					if errno := d.write(path, "P", 0); errno != 0 {
						t.Fatal(errno)
					}
				}
				var was, is unix.Stat_t
				must(t, unix.Chmod(w.at("upper", path), 0o6755))
				must(t, unix.Stat(w.at("upper", path), &was))
				id, _ := d.find(path)
				h := fuse.InHeader{NodeId: id}
				var out fuse.OpenOut
				if st := w.fs.Open(nil, &fuse.OpenIn{InHeader: h, Flags: unix.O_RDWR}, &out); st != 0 {
					t.Fatal(st)
				}
				d.open = append(d.open, out.Fh)
				h.Caller = fuse.Caller{Owner: fuse.Owner{Uid: 1000, Gid: 1002}}

				wantMode := was.Mode & 0o777
				if c.name == "an ACL" {
					wantMode = 0o4555 // it is the owner's, who keeps suid
				}
				sys.SetHook(func(change sys.Change) error {
					if meanwhile && (change == "chmod" || change == "chown") {
						meanwhile = false
						wantMode = 0o600
						must(t, unix.Chmod(w.at("upper", path), wantMode))
					}
					return nil
				})
				defer sys.SetHook(nil)
				if st := c.do(w.fs, h, out.Fh); st != 0 {
					t.Fatal(st)
				}
				must(t, unix.Stat(w.at("upper", path), &is))
				if got := is.Mode & 0o7777; got != wantMode {
					t.Errorf("mode %o, want %o", got, wantMode)
				}
			})
		}
	}
}
