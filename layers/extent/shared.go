package extent

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// A shared store holds cached objects only, and several processes have it open.
//
// Who has the lock (flock) on an object's data file changes it, for as long as it
// has the object open; the kernel drops the lock of who dies. Everybody else is a
// guest: reads the map, reads what that says is there, and believes those pieces
// only whose sum is right, each time. So it needs nothing from the owner, which may
// fetch, evict or compact meanwhile, and there is nothing to wait for and nothing
// that a crash could leave behind. What it fetches is kept once the owner has closed
// the object: it owns it then (inherit.go).
//
// Objects are made, opened and removed under the lock of the directory, which is
// held for a few system calls. Who does not get it reads without a cache.
//
// There are no epochs: every record counts, as every piece is proved anyway.

// lockName is the file whose lock is the directory's.
const lockName = "lock"

const (
	lockPatience = 250 * time.Millisecond // a process may have been stopped just then
	lockPause    = 5 * time.Second        // before it is tried again
)

// errInUse: another process has what we would need. It is as if there were no room.
var errInUse = fmt.Errorf("another process has it: %w", unix.EBUSY)

// tryLocks finds out whether the filesystem has locks.
func (s *Store) tryLocks() error {
	err := sys.Flock(s.lockFd, unix.LOCK_SH)
	if err == nil {
		err = sys.Flock(s.lockFd, unix.LOCK_UN)
	}
	if err != nil && err != unix.EAGAIN {
		return fmt.Errorf("the filesystem has no locks (flock): %w", err)
	}
	return nil
}

// lockDir takes the lock of a shared store's directory.
func (s *Store) lockDir() (unlock func(), err error) {
	if !s.shared {
		return func() {}, nil
	}
	s.dirMu.Lock()
	began := time.Now()
	err = unix.EAGAIN
	for began.After(s.busyUntil) {
		if err = sys.Flock(s.lockFd, unix.LOCK_EX); err != unix.EAGAIN {
			break
		}
		if time.Since(began) > lockPatience {
			s.busyUntil = time.Now().Add(lockPause)
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		s.dirMu.Unlock()
		return nil, fmt.Errorf("cache directory: %w: %w", errInUse, err)
	}
	return func() {
		_ = sys.Flock(s.lockFd, unix.LOCK_UN)
		s.dirMu.Unlock()
	}, nil
}

// reopen is open under the lock of the directory.
func (s *Store) reopen(name string) (*Object, error) {
	unlock, err := s.lockDir()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.open(name)
}

// discard removes a cached object that no process has open.
func (s *Store) discard(name string) error {
	unlock, err := s.lockDir()
	if err != nil {
		return err
	}
	defer unlock()
	if s.shared {
		switch fd, err := sys.OpenAt(s.dir, name+dataSuffix, unix.O_RDONLY); err {
		case nil:
			defer unix.Close(fd)
			if sys.Flock(fd, unix.LOCK_EX) != nil {
				return errInUse
			}
		case unix.ENOENT:
		default:
			return err
		}
	}
	return s.unlink(name)
}

// sweepTmp removes the temporary file of an object. In a shared store it may be
// that of a compaction which is under way.
func (s *Store) sweepTmp(base string) error {
	if s.shared {
		fd, err := sys.OpenAt(s.dir, base+dataSuffix, unix.O_RDONLY)
		if err == nil {
			defer unix.Close(fd)
			if sys.Flock(fd, unix.LOCK_EX) != nil {
				return nil
			}
		}
	}
	if err := sys.Unlink(s.dir, base+tmpSuffix); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove %s: %w", base+tmpSuffix, err)
	}
	return nil
}

// readGuest is readWindow for a guest: all of b lies within the file.
func (o *Object) readGuest(ctx context.Context, fetch Fetcher, b []byte, off int64) (int, error) {
	missing := o.takePieces(b, off)
	if len(missing) > 0 && o.refresh() {
		missing = o.takePieces(b, off)
	}
	if len(missing) > 0 && o.inherit() {
		return o.readWindow(ctx, fetch, b, off)
	}
	for _, m := range missing {
		if n, err := o.readMissing(ctx, fetch, b[m.from-off:m.to-off], m.from); err != nil {
			return int(m.from-off) + n, err
		}
	}
	return len(b), nil
}

// takePieces copies to b what is right of the pieces in [off, off+len(b)), and
// returns what it has not copied.
func (o *Object) takePieces(b []byte, off int64) (missing []span) {
	end := off + int64(len(b))
	var all []piece
	o.mu.RLock()
	o.pieces.each(off, end, func(p *piece) bool { all = append(all, *p); return true })
	o.mu.RUnlock()
	buf := proofBuffers.Get().(*[]byte)
	defer proofBuffers.Put(buf)
	at := off
	for _, p := range all {
		if o.readPiece(buf, &p) != nil {
			continue
		}
		from, to := max(p.from, off), min(p.to(), end)
		copy(b[from-off:], (*buf)[from-p.from:to-p.from])
		if at < from {
			missing = append(missing, span{at, from})
		}
		at = to
	}
	if at < end {
		missing = append(missing, span{at, end})
	}
	return missing
}

// refresh reads what the map says by now, and reports whether that is something
// new.
func (o *Object) refresh() bool {
	o.wmu.Lock()
	defer o.wmu.Unlock()
	var st unix.Stat_t
	if unix.Fstat(o.mapFd, &st) != nil {
		return false
	}
	if st.Nlink == 0 || st.Size < o.mapEnd+recordLen {
		return false // it was compacted, or went: who opens it anew sees the new one
	}
	b := make([]byte, min(st.Size-o.mapEnd, maxMap))
	n, err := sys.Pread(o.mapFd, b, o.mapEnd)
	if err != nil {
		return false
	}
	l := readLog(b[:n], o.chain, 0)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range l.recs {
		switch {
		case r.kind.isPiece() && r.a >= 0 && int64(r.n) <= o.limit-r.a && r.a/groupSize == (r.a+int64(r.n)-1)/groupSize:
			o.pieces.remove(r.a, r.a+int64(r.n))
			o.pieces.put(piece{from: r.a, n: r.n, sum: uint64(r.b), doubted: true})
		case r.kind == kindDropped && r.a >= 0 && r.b > 0 && r.b <= maxSize-r.a:
			o.pieces.remove(r.a, r.a+r.b)
		}
	}
	o.chain, o.mapEnd = l.next, o.mapEnd+l.end
	return len(l.recs) > 0
}

// adoptMost is how much is copied, where it cannot be cloned, before somebody's
// first write: what is left is fetched again.
const adoptMost = 64 << 20

// take makes a pending object of what o holds, which is of another store and stays
// as it is.
func (s *Store) take(o *Object) (ID, error) {
	p, id, err := s.NewPending(o.src)
	if err != nil {
		return ID{}, fmt.Errorf("adopt: %w", err)
	}
	defer p.Close()
	var all []piece
	o.mu.RLock()
	o.pieces.each(0, o.limit, func(c *piece) bool { all = append(all, *c); return true })
	o.mu.RUnlock()
	p.wmu.Lock()
	defer p.wmu.Unlock()
	left, clones := int64(adoptMost), true
	for len(all) > 0 {
		n := run(all)
		from, to := all[0].from, all[n-1].to()
		clones = clones && sys.CloneRange(p.data, from, o.data, from, to-from) == nil
		if left -= to - from; !clones && (left < 0 || s.lack(to-from) > 0 || copyRange(p.data, o.data, from, to) != nil) {
			break // what is not here is missing, and no worse
		}
		if p.addPieces(all[:n]) != nil {
			break
		}
		all = all[n:]
	}
	return id, nil
}

// run returns how many pieces there are from the first on that have no gap between
// them, up to a window or so.
func run(all []piece) int {
	n := 1
	for n < len(all) && all[n].from == all[n-1].to() && all[n].to()-all[0].from <= 8*window {
		n++
	}
	return n
}

// addPieces records pieces whose bytes were copied to o. Nobody has looked whether
// they are right. o.wmu is held.
func (o *Object) addPieces(all []piece) error {
	recs := make([]record, len(all))
	for i := range all {
		all[i].old, all[i].doubted = true, true
		recs[i] = all[i].record()
	}
	if err := o.append(recs...); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range all {
		o.pieces.put(c)
	}
	return nil
}

// copyRange copies [from, to) of src to the same place in dst.
func copyRange(dst, src int, from, to int64) error {
	buf := make([]byte, min(to-from, window))
	for from < to {
		n, err := sys.CopyRange(dst, from, src, from, int(to-from))
		if err != nil {
			b := buf[:min(int64(len(buf)), to-from)]
			if n, err = sys.Pread(src, b, from); err == nil && n > 0 {
				n, err = sys.Pwrite(dst, b[:n], from)
			}
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.EIO
		}
		from += int64(n)
	}
	return nil
}
