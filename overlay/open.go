package overlay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// handle is one open of a regular file.
type handle struct {
	id    uint64
	n     *node
	flags uint32 // as the caller opened it
	uid   uint32 // of the caller, in the layers

	flushed atomic.Int64 // when a descriptor of it was last closed, where the file has locks: Unix time, ns

	// Protected by n.mu, and only ever set: a copy-up gives every handle a
	// descriptor of the upper file, so that it sees what is written after it.
	fd    int         // in the upper, or -1
	lower layers.File // of a local lower, or nil

	stream *stream // how it is read, of a remote or pending file, else nil; set before h is in use

	within int64 // what lies before this offset of lower may go by a pipe; immutable

	drops atomic.Pointer[pages] // what the kernel reads from this open on; see keep.go

	uncapped uint32 // the thread that last removed n's capabilities; protected by n.mu
}

func (h *handle) writable() bool { return h.flags&unix.O_ACCMODE != unix.O_RDONLY }

// handleTable finds handles by the number the kernel has for them.
type handleTable struct {
	mu   sync.RWMutex
	next uint64
	m    map[uint64]any // *handle or *dirHandle
}

func (t *handleTable) add(h any) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = make(map[uint64]any)
	}
	t.next++
	t.m[t.next] = h
	return t.next
}

func (t *handleTable) get(id uint64) any {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[id]
}

func (t *handleTable) remove(id uint64) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.m[id]
	delete(t.m, id)
	return h
}

func (fs *FS) handle(id uint64) *handle {
	h, _ := fs.handles.get(id).(*handle)
	return h
}

// dup duplicates fd, -1 if it is -1 or that fails.
func dup(fd int) int {
	if fd < 0 {
		return -1
	}
	if fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		return fd
	}
	return -1
}

// anyFd returns a descriptor of n's upper inode, of those that handles have or that
// was kept when its last name went (O_PATH); -1 if there is none. It goes with them,
// at any time, and the number may come back with another file: who uses it holds
// n.mu, or has duplicated it.
func (n *node) anyFd() int {
	for _, h := range n.open {
		if h.fd >= 0 {
			return h.fd
		}
	}
	if n.upper {
		return n.kept
	}
	return -1
}

// Open implements fuse.RawFileSystem.
func (fs *FS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	n.told.Store(false)
	h := &handle{n: n, flags: in.Flags, uid: fs.cfg.IDs.storeUID(in.Uid), fd: -1}
	if h.writable() && fs.ReadOnly() {
		return fuse.EROFS
	}
	if err := fs.openAsCaller(h, func() error { return fs.open(ctx, h) }); err != nil {
		return fs.status("open", n, "", err)
	}
	if err := n.mayExec(h); err != nil {
		fs.Release(nil, &fuse.ReleaseIn{Fh: h.id})
		return fs.status("open", n, "", err)
	}
	fs.openReply(h, out)
	return fuse.OK
}

// open opens what h needs to read. Nothing comes up before it is changed, and no
// source is waited for longer than one exchange.
func (fs *FS) open(ctx context.Context, h *handle) error {
	n := h.n
	if !n.isRegular() {
		return unix.EINVAL
	}
	for {
		n.mu.RLock()
		here, pending := n.dataInUpper(), hasObject(n.pending)
		n.mu.RUnlock()
		var err error
		switch {
		case here:
			h.fd, err = fs.openData(n, h.flags)
		case pending || n.isRemote():
			return fs.openObject(ctx, h)
		default:
			if h.lower, err = fs.openBelow(ctx, n); err == nil {
				if err = mayOpen(ptr(h.lower.Attr()), h.flags); err != nil {
					h.close()
				} else {
					h.within = n.pipes(h.lower)
				}
			}
		}
		if errnoOf(err) == unix.ESTALE && n.isHere() != here {
			continue // it came up meanwhile, and its lower copy went
		}
		if err != nil && !here && fs.many() && fs.notice(n) {
			continue
		}
		if err != nil {
			return err
		}
		if n.admit(h, here) {
			return nil
		}
		h.close() // it came up meanwhile
	}
}

// isHere is dataInUpper for who does not hold n.mu.
func (n *node) isHere() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.dataInUpper()
}

// admit makes h one of n's handles, unless n's data came up since the caller
// looked and it was not here.
func (n *node) admit(h *handle, here bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dataInUpper() != here {
		return false
	}
	n.admitLocked(h)
	return true
}

func (n *node) admitLocked(h *handle) {
	if n.open == nil {
		n.open = make(map[uint64]*handle)
	}
	h.id = n.fs.handles.add(h)
	n.open[h.id] = h
	if n.io == ioClosed {
		n.enterMode(h)
	}
}

func (n *node) isRemote() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return !n.upper && len(n.lowers) > 0 && !n.lowers[0].layer.isLocal()
}

// dataFlags are the flags of the caller's open that matter to ours. Reading is
// always wanted: a partial page is read before it is written. Whether a write
// appends, its request says.
func dataFlags(flags uint32) int {
	keep := int(flags) & (unix.O_SYNC | unix.O_DSYNC)
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return unix.O_RDONLY | keep
	}
	return unix.O_RDWR | keep
}

// openData opens the upper file of n.
func (fs *FS) openData(n *node, flags uint32) (int, error) {
	path, err := fs.openUpper(n)
	if err != nil {
		return -1, err
	}
	defer unix.Close(path)
	how := dataFlags(flags)
	if fs.cfg.AsCaller { // who may not be let do more than asked for
		how = how&^unix.O_ACCMODE | int(flags)&unix.O_ACCMODE
	}
	if fs.cfg.NoAtime || flags&unix.O_NOATIME != 0 {
		// Only an owner, or root, may leave access times alone.
		if fd, err := sys.Reopen(path, how|unix.O_NOATIME); err == nil {
			return fd, nil
		}
	}
	fd, err := sys.Reopen(path, how)
	if err == unix.EPERM && flags&unix.O_APPEND != 0 {
		return sys.Reopen(path, how|unix.O_APPEND) // chattr +a
	}
	return fd, err
}

// openUpper returns an O_PATH descriptor of the upper inode of n, by any of its
// names, by the index, or by a handle; ESTALE if all are gone.
func (fs *FS) openUpper(n *node) (int, error) {
	if n == fs.root {
		return sys.OpenBeneath(fs.upper.root, "", unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	for {
		seq := fs.swaps.begin()
		fd, err := despiteRenames(n, func() (int, error) { return fs.openUpperOnce(n) })
		if err == nil || fs.swaps.same(seq) {
			return fd, err
		}
	}
}

func (fs *FS) openUpperOnce(n *node) (int, error) {
	n.mu.RLock()
	id, indexed := n.upID, n.indexed
	var ref *lowerRef
	if len(n.lowers) > 0 {
		r := n.lowers[0]
		ref = &r
	}
	n.mu.RUnlock()
	fs.tree.RLock()
	names := append([]dentry(nil), n.names...)
	fs.tree.RUnlock()
	var denied error
	for _, d := range names {
		if fd, err := fs.openNamed(d, id); err == nil {
			return fd, nil
		} else if fs.cfg.AsCaller && errors.Is(err, unix.EACCES) {
			denied = err // the caller came by another name
		} else if errnoOf(err) != unix.ESTALE && errnoOf(err) != unix.ENOENT {
			return -1, err
		}
	}
	if denied != nil {
		return -1, denied
	}
	if indexed && ref != nil {
		if fd, err := fs.openIndexed(ref, id); err == nil {
			return fd, nil
		}
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if held := n.anyFd(); held >= 0 {
		return sys.Reopen(held, unix.O_PATH)
	}
	return -1, unix.ESTALE
}

// openIndexed opens the copy of the hard-linked lower file r by its name in
// WORK/index.
func (fs *FS) openIndexed(r *lowerRef, id fileID) (fd int, err error) {
	err = fs.asDaemon(func() (err error) {
		dir, name := fs.indexAt(r)
		fd, err = openIdentified(dir, name, id)
		return err
	})
	return fd, err
}

func (fs *FS) openNamed(d dentry, id fileID) (int, error) {
	dir, err := fs.upperDir(d.parent)
	if err != nil {
		return -1, err
	}
	defer fs.dirs.release(dir)
	return openIdentified(dir.fd, d.name, id)
}

// openIdentified opens name in dirfd (O_PATH) if it is the inode id.
func openIdentified(dirfd int, name string, id fileID) (int, error) {
	fd, err := sys.OpenAt(dirfd, name, unix.O_PATH)
	if err != nil {
		return -1, err
	}
	is, err := idAt(fd, "")
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	if !is.is(id) {
		unix.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, nil
}

// openBelow opens the lower file of n. A name that is gone while a handle has
// the file open leads to that file still.
func (fs *FS) openBelow(ctx context.Context, n *node) (layers.File, error) {
	return despiteRenames(n, func() (layers.File, error) { return fs.openBelowOnce(ctx, n) })
}

func (fs *FS) openBelowOnce(ctx context.Context, n *node) (layers.File, error) {
	n.mu.RLock()
	if n.data != nil {
		data := n.data
		n.mu.RUnlock()
		return fs.openMeta(ctx, n, data)
	}
	if len(n.lowers) == 0 {
		n.mu.RUnlock()
		return nil, unix.ESTALE
	}
	r := n.lowers[0]
	held, attr := n.dupLowerFd()
	n.mu.RUnlock()
	defer closeFd(held)
	path, ok := n.pathIn(&r)
	if ok {
		f, err := r.layer.Open(ctx, path, nil)
		if err == nil {
			a := f.Attr()
			if sameFile(&a, r.attr) {
				return fs.dataIn(ctx, n, &r, f)
			}
			f.Close()
			err = layers.ErrStale
		}
		if errors.Is(err, layers.ErrNotRegular) {
			err = layers.ErrStale // another file stands there: the kernel looks again
		}
		if held < 0 {
			return nil, gone(err)
		}
	}
	if held < 0 {
		return nil, unix.ESTALE
	}
	if fs.cfg.AsCaller {
		return heldLower(dup(held), attr), nil // the handle's rights do
	}
	return reopenLower(held, attr)
}

// Release implements fuse.RawFileSystem.
func (fs *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	h, _ := fs.handles.remove(in.Fh).(*handle)
	if h == nil {
		return
	}
	n := h.n
	h.opened()
	h.stream.end()
	n.unlockAtRelease(h.id)
	n.mu.Lock()
	delete(n.open, h.id)
	last := len(n.open) == 0
	if last {
		n.leaveMode()
		n.closeObject()
	}
	dead, pending := n.dead != nil, n.pending
	n.mu.Unlock()
	h.close()
	switch {
	case last && dead:
		fs.bury(n)
	case last && hasObject(pending):
		fs.fill.closed(pending)
	}
}

func (h *handle) close() {
	if h.fd >= 0 {
		unix.Close(h.fd)
		h.fd = -1
	}
	if h.lower != nil {
		h.lower.Close()
		h.lower = nil
	}
}
