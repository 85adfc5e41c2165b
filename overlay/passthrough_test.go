package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// TestMayExec: a program that the kernel believes suid is executed only if it still
// is, and no stranger can write to it meanwhile.
func TestMayExec(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	owner := uint32(os.Getuid())
	for _, c := range []struct {
		name      string
		shown, is uint32
		flags     uint32
		io        ioMode
		other     *handle
		want      error
	}{
		{name: "plain", flags: fmodeExec},
		{name: "suid", shown: unix.S_ISUID, is: unix.S_ISUID, flags: fmodeExec},
		{name: "suid that is gone", shown: unix.S_ISUID, flags: fmodeExec, want: layers.ErrStale},
		{name: "suid that is gone, not for execve", shown: unix.S_ISUID},
		{name: "a stranger writes", shown: unix.S_ISUID, is: unix.S_ISUID, flags: fmodeExec, io: ioPassthrough, other: &handle{flags: unix.O_RDWR, uid: owner + 1000}, want: unix.ETXTBSY},
		{name: "a stranger reads", shown: unix.S_ISUID, is: unix.S_ISUID, flags: fmodeExec, io: ioPassthrough, other: &handle{flags: unix.O_RDONLY, uid: owner + 1000}},
		{name: "the owner writes", shown: unix.S_ISUID, is: unix.S_ISUID, flags: fmodeExec, io: ioPassthrough, other: &handle{flags: unix.O_RDWR, uid: owner}},
	} {
		if err := unix.Fchmod(int(f.Fd()), 0o755|c.is); err != nil {
			t.Fatal(err)
		}
		n := &node{io: c.io, open: make(map[uint64]*handle)}
		n.shown.Store(c.shown)
		h := &handle{n: n, flags: c.flags, fd: int(f.Fd())}
		n.open[1] = h
		if c.other != nil {
			n.open[2] = c.other
		}
		if err := n.mayExec(h); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// takesAll is a kernel that takes every backing file.
type takesAll struct{}

func (takesAll) RegisterBackingFd(*fuse.BackingMap) (int32, unix.Errno) { return 7, 0 }
func (takesAll) UnregisterBackingFd(int32) unix.Errno                   { return 0 }
func (takesAll) InodeNotify(uint64, int64, int64) fuse.Status           { return fuse.OK }

// TestMappedAppendOnly: what can only be appended to is not changed by way of a
// mapping, which the kernel grants because it does not know.
func TestMappedAppendOnly(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[0])
	defer w.remove()
	flags := func(flags uint32) {
		f, err := os.Open(w.at("upper", "up"))
		must(t, err)
		defer f.Close()
		must(t, sys.SetFlags(int(f.Fd()), flags))
	}
	flags(sys.FlagAppend)
	defer flags(0)
	must(t, w.open())
	w.fs.backer, w.fs.upper.passes = takesAll{}, true
	d := &driver{fs: w.fs}
	defer d.end()
	open := func(name string) (fh uint64, passed bool) {
		var out fuse.OpenOut
		errno := d.on(name, func(h fuse.InHeader) fuse.Status {
			return d.fs.Open(nil, &fuse.OpenIn{InHeader: h, Flags: unix.O_RDWR | unix.O_APPEND}, &out)
		})
		if errno != 0 {
			t.Fatalf("%s: %v", name, errno)
		}
		d.open = append(d.open, out.Fh)
		return out.Fh, out.OpenFlags&fuse.FOPEN_PASSTHROUGH != 0
	}
	must(t, os.Chmod(w.at("upper", "both"), 0o640))
	if _, passed := open("both"); !passed {
		t.Error("a plain file is not passed through")
	}
	fh, passed := open("up")
	if passed {
		t.Error("the kernel may map it to write")
	}
	page := []byte("page")
	if _, st := d.fs.Write(nil, &fuse.WriteIn{Fh: fh, WriteFlags: fuse.WRITE_CACHE, Flags: unix.O_RDWR | unix.O_APPEND}, page); st != fuse.EPERM {
		t.Errorf("a page of a mapping: %v", st)
	}
	if _, st := d.fs.Write(nil, &fuse.WriteIn{Fh: fh, Flags: unix.O_RDWR | unix.O_APPEND}, []byte("+")); st != fuse.OK {
		t.Errorf("an append: %v", st)
	}
	if got := string(d.content(t, "up")); got != "upper up+" {
		t.Errorf("%q", got)
	}
}
