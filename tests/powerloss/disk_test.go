package powerloss

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// event is a write to one of the disks, or (without data) a flush of it.
type event struct {
	disk string
	off  int64
	data []byte // nil: all that was written to the disk before is on it
}

// recorder keeps what happens to a set of disks until it is told that nothing of
// interest comes any more: a loop device may flush its file when it lets go of it.
type recorder struct {
	mu   sync.Mutex
	log  []event // protected by mu until over is set, immutable then
	over bool
	size int64
}

// end keeps what there is.
func (r *recorder) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
}

// now is the number of events so far: a moment between two of them.
func (r *recorder) now() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.log)
}

func (r *recorder) add(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.log = append(r.log, e)
	}
}

// record serves a file for each of the names in a new directory, and keeps what is
// written to them. end lets go of it.
func record(t *testing.T, size int64, names ...string) (r *recorder, dir string, end func()) {
	t.Helper()
	r = &recorder{size: size}
	dir = filepath.Join(testbed.TempDir(t), "disks")
	must(t, os.Mkdir(dir, 0o700))
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{Name: "powerloss", FsName: "disks", DirectMount: true, MaxWrite: 1 << 20},
		OnAdd: func(ctx context.Context) {
			for _, name := range names {
				fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
				if err != nil {
					t.Error(err)
					return
				}
				d := &disk{r: r, name: name, f: os.NewFile(uintptr(fd), name)}
				if err := d.f.Truncate(size); err != nil {
					t.Error(err)
				}
				root.AddChild(name, root.NewPersistentInode(ctx, d, fs.StableAttr{Mode: unix.S_IFREG}), true)
			}
		},
	})
	must(t, err)
	var once sync.Once
	end = func() {
		once.Do(func() {
			// A loop device lets go of its file some time after its filesystem was
			// unmounted, the later the busier the machine is.
			var err error
			for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
				if err = server.Unmount(); err == nil {
					return
				}
			}
			t.Errorf("the disks cannot be unmounted: %v", err)
		})
	}
	t.Cleanup(end)
	return r, dir, end
}

// disk is one file that a loop device is made of.
type disk struct {
	fs.Inode
	r    *recorder
	name string
	f    *os.File
}

var (
	_ = fs.NodeGetattrer((*disk)(nil))
	_ = fs.NodeSetattrer((*disk)(nil))
	_ = fs.NodeOpener((*disk)(nil))
	_ = fs.NodeReader((*disk)(nil))
	_ = fs.NodeWriter((*disk)(nil))
	_ = fs.NodeFsyncer((*disk)(nil))
)

func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = unix.S_IFREG|0o600, uint64(d.r.size), 4096
	return 0
}

func (d *disk) Setattr(ctx context.Context, h fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return d.Getattr(ctx, h, out)
}

func (d *disk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (d *disk) Read(_ context.Context, _ fs.FileHandle, b []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := unix.Pread(int(d.f.Fd()), b, off)
	if err != nil {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(b[:n]), 0
}

func (d *disk) Write(_ context.Context, _ fs.FileHandle, b []byte, off int64) (uint32, syscall.Errno) {
	// In the log before it is answered: a flush that comes after the answer comes
	// after it in the log.
	d.r.add(event{d.name, off, append(make([]byte, 0, len(b)), b...)})
	n, err := d.f.WriteAt(b, off)
	return uint32(n), fs.ToErrno(err)
}

func (d *disk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.r.add(event{disk: d.name})
	return 0
}

// format makes a filesystem on a disk. What it needs it has from testbed/install.sh.
func format(t *testing.T, kind, path string) {
	t.Helper()
	args := map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", "-J", "size=4", "-N", "512"},
		"xfs":   {"mkfs.xfs", "-q", "-f", "-K"},
		"btrfs": {"mkfs.btrfs", "-q", "-f", "-K", "-m", "single"},
	}[kind]
	testbed.Run(t, testbed.Program(t, args[0]), append(args[1:], path)...)
}

// sizes are the smallest that the filesystems take, or near it.
var sizes = map[string]int64{"ext4": 24 << 20, "xfs": 300 << 20, "btrfs": 128 << 20}

// attach mounts the filesystem on a disk. umount lets go of it.
func attach(t *testing.T, kind, path, point string) (umount func()) {
	t.Helper()
	options := "loop"
	if kind == "xfs" {
		options += ",nouuid"
	}
	testbed.Run(t, "mount", "-t", kind, "-o", options, path, point)
	var once sync.Once
	umount = func() {
		once.Do(func() {
			if out := testbed.Run(t, "umount", point); strings.TrimSpace(out) != "" {
				t.Log(out)
			}
		})
	}
	t.Cleanup(umount)
	return umount
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
