package shim

import (
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lies says what a filesystem lacks or gets wrong. The zero value is honest.
type Lies struct {
	NoTmpfile     bool // O_TMPFILE is EOPNOTSUPP
	NoRenameFlags bool // renameat2(2) with flags is EINVAL
	NoXattrs      bool // of any kind: EOPNOTSUPP
	NoTrusted     bool // trusted.*: EOPNOTSUPP
	NoBtime       bool // files have no birth time
	NoLinks       bool // link(2) is EPERM
	NoFsyncDir    bool // fsync(2) of a directory is EINVAL
	NoHoles       bool // lseek(2) for holes, and fallocate(2), are EOPNOTSUPP
	NoLocks       bool // flock(2) and fcntl(2) are ENOLCK; cannot be changed while mounted

	LinkReplaces bool // link(2) takes a name that is there away
	ExclIgnored  bool // O_CREAT|O_EXCL opens a file that is there
	Silly        bool // unlink of a file that this mount has open renames it to .nfs*, until it is closed
	Estale       bool // an open file that lost its last name is ESTALE
	RootSquash   bool // root is 65534, and may do what that may; cannot be changed while mounted

	// Stale is how long names, that they are not there, and attributes are believed.
	Stale time.Duration
	// Positive believes in names that are there only (lookupcache=positive).
	Positive bool

	// Unseen says which names are not found although they are there, as when another
	// host has just made them. The kernel asks before it links or creates, and gives
	// EEXIST itself for what it finds.
	Unseen func(name string) bool

	// Repeat says whether a request is carried out twice and answered the second
	// time, as when the first answer is lost: EEXIST for a link that was made, ENOENT
	// for a name that was removed. op is link, unlink, mkdir, rmdir, symlink, mknod,
	// create or rename.
	Repeat func(op, name string) bool
	// Before is called before each request that is about a name or a file: what it
	// returns, if not 0, is the answer. After is called when it was carried out, and
	// its answer is what is told instead. op is as above, and lookup, getattr, setattr,
	// open, read, write, fsync, flush, fsyncdir, readdir, getxattr, setxattr,
	// removexattr, tmpfile, statfs; name is empty for what is about an inode.
	Before func(op, name string) unix.Errno
	After  func(op, name string, errno unix.Errno) unix.Errno
}

// NFS is what an NFS client is like, mounted lookupcache=positive.
func NFS() Lies {
	return Lies{
		NoTmpfile: true, NoRenameFlags: true, NoXattrs: true, NoBtime: true,
		Silly: true, Estale: true, Stale: time.Second, Positive: true,
	}
}

// Lustre is what a Lustre client is like.
func Lustre() Lies { return Lies{NoTmpfile: true, NoRenameFlags: true, NoBtime: true} }

// FS is a mount of a directory.
type FS struct {
	fuse.RawFileSystem
	Point string

	lies   atomic.Pointer[Lies]
	asked  sync.Map // op -> *atomic.Int64
	server *fuse.Server

	mu      sync.Mutex
	nodes   map[uint64]*node // protected by mu
	byInode map[inode]*node  // protected by mu
	lastID  uint64           // protected by mu
	handles map[uint64]*handle
	lastFh  uint64
	silly   uint64
}

// Mount shows dir at point, which must be there, until the test ends.
func Mount(tb testing.TB, dir, point string, l Lies) *FS {
	tb.Helper()
	fs, err := Serve(dir, point, l)
	if err != nil {
		tb.Fatalf("shim on %s: %v", point, err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			tb.Errorf("unmount of the shim on %s: %v", point, err)
			_ = unix.Unmount(point, unix.MNT_DETACH)
			return
		}
		fs.Wait()
	})
	return fs
}

// Serve shows dir at point until that is unmounted.
func Serve(dir, point string, l Lies) (*FS, error) {
	fs := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), Point: point,
		nodes: map[uint64]*node{}, byInode: map[inode]*node{}, handles: map[uint64]*handle{}, lastID: 1,
	}
	fs.lies.Store(&l)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	root := &node{id: fuse.FUSE_ROOT_ID, fd: fd, inode: inode{st.Dev, st.Ino}, lookups: 1}
	fs.nodes[root.id], fs.byInode[root.inode] = root, root
	fs.server, err = fuse.NewServer(fs, point, &fuse.MountOptions{
		AllowOther: true, DirectMountStrict: true, DirectMountFlags: unix.MS_MGC_VAL,
		Options: []string{"default_permissions"}, FsName: "shim:" + filepath.Base(dir), Name: "shim",
		DisableReadDirPlus: true, EnableLocks: l.NoLocks, MaxWrite: 1 << 20,
	})
	if err != nil {
		return nil, err
	}
	go fs.server.Serve()
	return fs, fs.server.WaitMount()
}

// Wait returns when the filesystem is unmounted.
func (fs *FS) Wait() {
	fs.server.Wait()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, n := range fs.nodes {
		unix.Close(n.fd)
	}
}

// Set changes what is told from now on.
func (fs *FS) Set(f func(*Lies)) {
	l := *fs.lies.Load()
	f(&l)
	fs.lies.Store(&l)
}

// Asked is how many requests of a kind there were; see Lies.Before for the kinds.
func (fs *FS) Asked(op string) int {
	if n, ok := fs.asked.Load(op); ok {
		return int(n.(*atomic.Int64).Load())
	}
	return 0
}

// do carries a request out with what the lies make of it.
func (fs *FS) do(op, name string, f func(l *Lies) error) fuse.Status {
	n, _ := fs.asked.LoadOrStore(op, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	l := fs.lies.Load()
	if l.Before != nil {
		if errno := l.Before(op, name); errno != 0 {
			return fuse.Status(errno)
		}
	}
	err := f(l)
	if err == nil && l.Repeat != nil && changesNames[op] && l.Repeat(op, name) {
		err = f(l)
	}
	st := fuse.ToStatus(err)
	if l.After != nil {
		st = fuse.Status(l.After(op, name, unix.Errno(st)))
	}
	return st
}

var changesNames = map[string]bool{
	"link": true, "unlink": true, "mkdir": true, "rmdir": true, "symlink": true, "mknod": true, "create": true, "rename": true,
}

// Stale is for how long names may be believed that are not so.
func (fs *FS) Stale() time.Duration { return fs.lies.Load().Stale }
