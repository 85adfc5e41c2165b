package overlay

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// TestRenameBeforeEveryLook moves a file to another directory before each look at
// a layer that a request for it makes: what was taken to look by is not where the
// file is by then, and the request succeeds all the same.
func TestRenameBeforeEveryLook(t *testing.T) {
	files := []string{"low", "up", "both"}
	requests := []struct {
		name string
		of   []string
		do   func(fs *FS, h fuse.InHeader) fuse.Status
	}{
		{"stat", files, func(fs *FS, h fuse.InHeader) fuse.Status {
			return fs.GetAttr(nil, &fuse.GetAttrIn{InHeader: h}, &fuse.AttrOut{})
		}},
		{"read", files, func(fs *FS, h fuse.InHeader) fuse.Status {
			_, errno := (&driver{fs: fs}).readNode(h.NodeId)
			return fuse.Status(errno)
		}},
		{"chmod", files, func(fs *FS, h fuse.InHeader) fuse.Status {
			return setAttrOf(fs, fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_MODE, Mode: 0o600})
		}},
		{"truncate", files, func(fs *FS, h fuse.InHeader) fuse.Status {
			return setAttrOf(fs, fuse.SetAttrInCommon{InHeader: h, Valid: fuse.FATTR_SIZE, Size: 3})
		}},
		{"getxattr", files, func(fs *FS, h fuse.InHeader) fuse.Status {
			_, st := fs.GetXAttr(nil, &h, "user.note", make([]byte, 100))
			return st
		}},
		{"listxattr", files, func(fs *FS, h fuse.InHeader) fuse.Status {
			_, st := fs.ListXAttr(nil, &h, make([]byte, 100))
			return st
		}},
		{"lsattr", files, func(fs *FS, h fuse.InHeader) fuse.Status {
			return fs.Ioctl(nil, &fuse.IoctlIn{InHeader: h, Cmd: unix.FS_IOC_GETFLAGS}, nil, &fuse.IoctlOut{}, make([]byte, 4))
		}},
		{"readlink", []string{"sym"}, func(fs *FS, h fuse.InHeader) fuse.Status {
			_, st := fs.Readlink(nil, &h)
			return st
		}},
		{"list", []string{"up dir", "dir"}, func(fs *FS, h fuse.InHeader) fuse.Status {
			var out fuse.OpenOut
			if st := fs.OpenDir(nil, &fuse.OpenIn{InHeader: h}, &out); st != 0 {
				return st
			}
			defer fs.ReleaseDir(&fuse.ReleaseIn{Fh: out.Fh})
			return fs.ReadDir(nil, &fuse.ReadIn{InHeader: h, Fh: out.Fh}, fuse.NewDirEntryList(make([]byte, 4096), 0))
		}},
	}
	base := worlds(t)
	for _, k := range []stacking{stackings[0], stackings[2]} {
		for _, r := range requests {
			for _, file := range r.of {
				t.Run(fmt.Sprintf("%s, %s %s", k.name, r.name, file), func(t *testing.T) {
					n := int64(1)
					for renameBeforeLook(t, base, k, file, n, r.do) {
						n++
					}
					if n == 1 {
						t.Error("it looks at nothing")
					}
				})
			}
		}
	}
}

// renameBeforeLook renames file before the n-th look that the request makes, and
// reports whether it made as many.
func renameBeforeLook(t *testing.T, base string, k stacking, file string, n int64, request func(*FS, fuse.InHeader) fuse.Status) (met bool) {
	t.Helper()
	w := newWorld(t, base, k)
	defer w.remove()
	must(t, w.open())
	d := &driver{fs: w.fs}
	defer d.end()
	id, errno := d.find(file)
	if errno != 0 {
		t.Fatal(errno)
	}
	var looks atomic.Int64
	var renaming atomic.Bool
	done := make(chan unix.Errno, 1)
	sys.SetLookHook(func() {
		if renaming.Load() || looks.Add(1) != n {
			return
		}
		renaming.Store(true)
		go func() { done <- (&driver{fs: w.fs}).rename(file, "target/moved", 0) }()
		for range 20 { // unless it waits for us
			if len(done) > 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
	})
	st := request(w.fs, fuse.InHeader{NodeId: id})
	met = renaming.Load()
	if met {
		if errno := <-done; errno != 0 {
			t.Errorf("rename before look %d: %v", n, errno)
		}
	}
	sys.SetLookHook(nil)
	if st != 0 {
		t.Errorf("renamed before look %d: %v", n, st)
	}
	return met
}
