package overlay

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// Locks are kept twice: in a table here, which says what our own clients hold and
// who of them is next, and on the inode in the layer, where other hosts and
// programs that use the layer itself see them. The kernel keeps none: it asks for
// every one, names an owner (a process's table of files for fcntl, the open file
// for F_OFD_SETLK and flock), and tells us with FLUSH that an owner closed a
// descriptor, with RELEASE that the open file is gone.
//
// On the inode each owner has an open file description of its own, so that the
// layer's filesystem keeps our clients apart as it keeps processes apart: byte
// ranges by F_OFD_SETLK, whole files by flock(2).
//
// A file of a lower that is never changed (overlay mode) or that is on another
// host is locked in the table alone. Nobody else can lock its copy before there is
// one, and the copy-up takes what is held on the copy before it shows.

// lockOwner is who has a lock, by the number that the kernel gives it.
type lockOwner struct {
	id    uint64
	flock bool // flock(2) and fcntl(2) know nothing of each other
}

// lockRequest is what somebody wants.
type lockRequest struct {
	lockOwner
	span
	h      *handle
	pid    uint32 // of the process, shown to who asks who has a lock
	caller *fuse.Caller
}

// holder is an owner that holds locks of a file, or waits for one.
type holder struct {
	pid   uint32
	fh    uint64 // the open file it came by
	held  spans
	since uint64 // counts up: who came to hold something earlier is shown first
	waits int    // how many wait for a lock of this owner

	fd    int  // its description of the inode; -1: in the table alone
	write bool // it is open for writing, or is to be once there is an inode
}

// fileLocks is what is locked of one file. A node has none until somebody locks.
type fileLocks struct {
	deadlocks *deadlocks // immutable

	mu      sync.Mutex // after node.mu; calls on the layer that do not wait for a lock
	holders map[lockOwner]*holder
	queue   []*lockWaiter // in the order in which they came
	poll    *time.Timer   // for locks that others on the layer have
	moves   int           // how often the file came up since
	taken   uint64        // the last holder.since

	contents contents
}

// GetLk implements fuse.RawFileSystem.
func (fs *FS) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h := fs.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	r, err := lockRequestOf(in, h)
	if err == nil {
		err = fs.getLock(&r, &out.Lk)
	}
	return fs.lockStatus(h.n, err)
}

// SetLk implements fuse.RawFileSystem.
func (fs *FS) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return fs.setLk(cancel, in, false)
}

// SetLkw implements fuse.RawFileSystem. go-fuse reads the next request before it
// handles this one, however many wait here.
func (fs *FS) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return fs.setLk(cancel, in, true)
}

func (fs *FS) setLk(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	h := fs.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	r, err := lockRequestOf(in, h)
	switch {
	case err != nil:
	case r.kind == unlocked:
		err = h.n.unlock(&r)
	default:
		err = fs.lock(ctx, &r, wait)
	}
	return fs.lockStatus(h.n, err)
}

// lockStatus is status in the words of fcntl(2).
func (fs *FS) lockStatus(n *node, err error) fuse.Status {
	if errors.Is(err, errHeld) {
		return fuse.EAGAIN
	}
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		_ = fs.status("lock", n, "", err)
		return fuse.Status(unix.ENOLCK)
	}
	return fs.status("lock", n, "", err)
}

func lockRequestOf(in *fuse.LkIn, h *handle) (lockRequest, error) {
	r := lockRequest{
		lockOwner: lockOwner{in.Owner, in.LkFlags&fuse.LK_FLOCK != 0},
		span:      span{in.Lk.Start, in.Lk.End, unlocked},
		h:         h,
		pid:       in.Lk.Pid,
		caller:    &in.Caller,
	}
	switch in.Lk.Typ {
	case unix.F_RDLCK:
		r.kind = shared
	case unix.F_WRLCK:
		r.kind = exclusive
	case unix.F_UNLCK:
	default:
		return r, unix.EINVAL
	}
	if r.start > r.end || r.end > math.MaxInt64 {
		return r, unix.EINVAL
	}
	return r, nil
}

// fcntlType is what fcntl(2) calls a kind of lock.
func (k lockKind) fcntlType() int16 {
	switch k {
	case shared:
		return unix.F_RDLCK
	case exclusive:
		return unix.F_WRLCK
	}
	return unix.F_UNLCK
}

// setOn sets s on the inode behind the holder's description.
func (h *holder) setOn(fd int, o lockOwner, s span) error {
	switch {
	case fd < 0:
		return nil
	case !o.flock:
		return sys.SetLock(fd, s.kind.fcntlType(), s.start, s.end)
	case s.kind == shared:
		return sys.Flock(fd, unix.LOCK_SH)
	case s.kind == exclusive:
		return sys.Flock(fd, unix.LOCK_EX)
	}
	return sys.Flock(fd, unix.LOCK_UN)
}

// lockTable returns what is locked of n, for somebody who is about to.
func (n *node) lockTable() *fileLocks {
	if l := n.locks.Load(); l != nil {
		return l
	}
	n.mu.Lock() // a copy-up that is about to show the copy has looked for it already
	defer n.mu.Unlock()
	if n.locks.Load() == nil {
		n.locks.Store(&fileLocks{deadlocks: &n.fs.deadlocks, holders: make(map[lockOwner]*holder)})
	}
	return n.locks.Load()
}

// errHeld: another of our clients has it.
var errHeld = errors.New("locked by another")

// take gets r for h, if nobody else has any of it: errHeld where that is one of
// our clients, EAGAIN where it is not. The caller holds l.mu.
func (l *fileLocks) take(h *holder, r *lockRequest) error {
	if r.flock && len(h.held) > 0 && h.held[0].kind != r.kind {
		// A conversion is no single step (flock(2)): two that have it shared and
		// want it alone would wait for each other.
		if err := h.setOn(h.fd, r.lockOwner, span{0, math.MaxInt64, unlocked}); err != nil {
			return err
		}
		h.held = nil
	}
	if len(l.conflicts(r)) > 0 {
		return errHeld
	}
	if err := h.setOn(h.fd, r.lockOwner, r.span); err != nil {
		return err
	}
	if len(h.held) == 0 {
		l.taken++
		h.since = l.taken
	}
	h.held = h.held.with(r.span)
	return nil
}

// conflicts returns who keeps r's owner from getting r, who has had something
// longest first. The caller holds l.mu.
func (l *fileLocks) conflicts(r *lockRequest) (with []lockOwner) {
	for o, h := range l.holders {
		if o != r.lockOwner && o.flock == r.flock && h.held.conflict(&r.span) != nil {
			with = append(with, o)
		}
	}
	slices.SortFunc(with, func(a, b lockOwner) int {
		return cmp.Compare(l.holders[a].since, l.holders[b].since)
	})
	return with
}

// unlock sets r.span free.
func (n *node) unlock(r *lockRequest) error {
	l := n.locks.Load()
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[r.lockOwner]
	if h == nil {
		return nil
	}
	if err := h.setOn(h.fd, r.lockOwner, r.span); err != nil {
		return err
	}
	h.held = h.held.with(r.span)
	l.retire(r.lockOwner, h)
	l.pump()
	return nil
}

// retire lets go of an owner that has nothing and waits for nothing. The caller
// holds l.mu.
func (l *fileLocks) retire(o lockOwner, h *holder) {
	if len(h.held) > 0 || h.waits > 0 || l.holders[o] != h {
		return
	}
	closeFd(h.fd)
	delete(l.holders, o)
}

// unlockOwners sets free what the owners hold that which picks: all of it, at the
// end of an open file, or of an owner's descriptor.
func (n *node) unlockOwners(which func(o lockOwner, h *holder) bool) {
	l := n.locks.Load()
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	freed := false
	for o, h := range l.holders {
		if !which(o, h) {
			continue
		}
		freed = true
		if h.waits > 0 { // a thread waits while another closes
			_ = h.setOn(h.fd, o, span{0, math.MaxInt64, unlocked})
		}
		h.held = nil
		l.retire(o, h)
	}
	if freed {
		l.pump()
	}
}

// unlockAtFlush ends what a process has locked of n by fcntl: it has closed a
// descriptor of it, whichever.
func (n *node) unlockAtFlush(owner uint64) {
	n.unlockOwners(func(o lockOwner, _ *holder) bool { return o == lockOwner{owner, false} })
}

// unlockAtRelease ends what was locked by way of an open file that is gone.
func (n *node) unlockAtRelease(fh uint64) {
	n.unlockOwners(func(_ lockOwner, h *holder) bool { return h.fh == fh })
}

// holder returns who r is for, with a description on which r can be set. It is
// entered in l, whose lock the caller then holds unless there is an error.
func (fs *FS) holder(ctx context.Context, l *fileLocks, r *lockRequest) (*holder, error) {
	for {
		l.mu.Lock()
		h, moves := l.holders[r.lockOwner], l.moves
		if h != nil && h.fd < 0 {
			h.write = h.write || r.h.writable()
			return h, nil
		}
		if h != nil && (h.write || r.flock || r.kind == shared) {
			return h, nil
		}
		l.mu.Unlock()
		fd, write, err := fs.openLock(ctx, r)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		if l.moves != moves { // it came up meanwhile
			l.mu.Unlock()
			closeFd(fd)
			continue
		}
		switch h = l.holders[r.lockOwner]; {
		case h == nil:
			h = &holder{pid: r.pid, fh: r.h.id, fd: fd, write: write}
			l.holders[r.lockOwner] = h
		case write && !h.write && h.fd >= 0:
			err = h.moveTo(fd, r.lockOwner, true)
		default:
			closeFd(fd)
		}
		if err == nil {
			return h, nil
		}
		l.mu.Unlock()
		closeFd(fd)
		return nil, err
	}
}

// moveTo gives h the description fd, on which it first takes what it holds.
// Where both are of one inode, all that h holds is shared: a description for
// reading could not have more.
func (h *holder) moveTo(fd int, o lockOwner, write bool) error {
	for _, s := range h.held {
		if err := h.setOn(fd, o, s); err != nil {
			return err
		}
	}
	closeFd(h.fd)
	h.fd, h.write = fd, write
	return nil
}

// openLock is openForLock with the rights that the file was opened with:
// where those are the caller's, ours may not suffice (root squash).
func (fs *FS) openLock(ctx context.Context, r *lockRequest) (fd int, write bool, err error) {
	open := func() error {
		fd, write, err = fs.openForLock(ctx, r.h)
		return err
	}
	if err = open(); fs.cfg.AsCaller && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
		err = fs.as(r.caller, open)
	}
	return fd, write, err
}

// openForLock opens the inode that h's file is locked on, for writing if h is
// open for that: an exclusive lock of a byte range wants it, and an exclusive
// flock does on NFS. It returns -1 if there is none.
func (fs *FS) openForLock(ctx context.Context, h *handle) (fd int, write bool, err error) {
	n := h.n
	var path int
	switch {
	case n.isUpper():
		if path, err = fs.openUpper(n); err != nil {
			return -1, false, err
		}
		defer unix.Close(path)
	case fs.cfg.Mode == Migrate:
		f, err := fs.openBelow(ctx, n)
		if err != nil {
			return -1, false, err
		}
		defer f.Close()
		d, ok := f.(layers.Descriptor)
		if !ok {
			return -1, h.writable(), nil
		}
		path = d.Fd()
	default:
		return -1, h.writable(), nil
	}
	return reopenForLock(path, h.writable())
}

func reopenForLock(path int, write bool) (int, bool, error) {
	if write {
		// O_APPEND is of no consequence, but for files that can only be appended to.
		if fd, err := sys.Reopen(path, unix.O_RDWR|unix.O_APPEND); err == nil {
			return fd, true, nil
		} else if err == unix.EMFILE || err == unix.ENFILE {
			return -1, false, err
		}
		// It runs as a program by now, or its mode was changed.
	}
	fd, err := sys.Reopen(path, unix.O_RDONLY)
	return fd, false, err
}

// getLock says who keeps r's owner from getting r.
func (fs *FS) getLock(r *lockRequest, out *fuse.FileLock) error {
	*out = fuse.FileLock{Start: r.start, End: r.end, Typ: unix.F_UNLCK}
	fd := -1
	if l := r.h.n.locks.Load(); l != nil {
		l.mu.Lock()
		if with := l.conflicts(r); len(with) > 0 {
			h := l.holders[with[0]]
			s := h.held.conflict(&r.span)
			*out = fuse.FileLock{Start: s.start, End: s.end, Typ: uint32(s.kind.fcntlType()), Pid: h.pid}
			l.mu.Unlock()
			return nil
		}
		if h := l.holders[r.lockOwner]; h != nil {
			fd = dup(h.fd)
		}
		l.mu.Unlock()
	}
	if fd < 0 {
		var err error
		if fd, _, err = fs.openLock(context.Background(), r); err != nil || fd < 0 {
			return err
		}
	}
	defer unix.Close(fd)
	got, err := sys.GetLock(fd, r.kind.fcntlType(), r.start, r.end)
	if err != nil || got.Type == unix.F_UNLCK {
		return err
	}
	*out = fuse.FileLock{Start: uint64(got.Start), End: math.MaxInt64, Typ: uint32(got.Type), Pid: uint32(max(got.Pid, 0))}
	if got.Len > 0 {
		out.End = uint64(got.Start + got.Len - 1)
	}
	return nil
}
