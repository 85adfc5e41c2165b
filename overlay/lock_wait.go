package overlay

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// Who waits for one of our clients stands in a queue, and gets the lock from who
// lets go of it. Nobody tells us when somebody else on the layer lets go, and a
// thread that waited in the kernel could not be called back by a signal: the
// layer is asked again, after an eighth of the time that was waited already.
const (
	pollSoonest = time.Millisecond
	pollLatest  = 100 * time.Millisecond
)

// lockWaiter is a request that waits. All but done is protected by fileLocks.mu.
type lockWaiter struct {
	r       *lockRequest
	h       *holder
	since   time.Time
	outside bool          // who has it is not one of our clients
	again   bool          // whether it waits for ever could not be told yet
	before  []span        // what r took the place of
	err     error         // once done is closed
	done    chan struct{} // closed when it has the lock, or cannot get it

	listed bool        // in deadlocks; protected by its lock, as is
	by     []lockOwner // who has what it wants
}

// lock gets r, which the caller has by then on the highest copy there is of the
// file. An exclusive lock in migrate mode brings the file up: where it lies below,
// some other host's copy could show at any time, with nobody's lock on it.
func (fs *FS) lock(ctx *request, r *lockRequest, wait bool) error {
	l := r.h.n.lockTable()
	before, err := fs.acquire(ctx, l, r, wait)
	if err != nil {
		return err
	}
	if err := fs.lockHighest(ctx, r); err != nil {
		l.restore(r, before)
		return err
	}
	fs.refresh(l, r)
	return nil
}

// lockHighest makes sure that the file that r is locked on is the one that shows
// at its name. The lower copy is locked first: who has it shared is waited for.
func (fs *FS) lockHighest(ctx context.Context, r *lockRequest) error {
	n := r.h.n
	if fs.cfg.Mode != Migrate || fs.upper == nil || n.isUpper() {
		return nil
	}
	path, ok := n.path()
	if !ok {
		return nil // it has no name: nobody else comes to it
	}
	if r.kind == exclusive {
		return fs.up(ctx, n, whole)
	}
	fd, err := sys.OpenBeneath(fs.upper.root, string(path), unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		if nothing(err) {
			return nil
		}
		return err
	}
	unix.Close(fd)
	if n.isUpper() {
		return nil
	}
	return layers.ErrStale // another host brought it up
}

// acquire gets r, waiting for it if wait is set, and returns what it took the
// place of. Any signal ends the wait, as it does fcntl(F_SETLKW): the kernel
// repeats the call where that is wanted.
func (fs *FS) acquire(ctx *request, l *fileLocks, r *lockRequest, wait bool) ([]span, error) {
	h, err := fs.holder(ctx, l, r)
	if err != nil {
		return nil, err
	}
	before := h.held.within(&r.span)
	err = l.take(h, r)
	if !wait && err == errHeld {
		err = fs.takeSoon(l, h, r)
	}
	if !wait || err != errHeld && err != unix.EAGAIN {
		l.retire(r.lockOwner, h)
		l.pump()
		l.mu.Unlock()
		return before, err
	}
	w := &lockWaiter{r: r, h: h, since: time.Now(), before: before, done: make(chan struct{})}
	h.waits++
	l.queue = append(l.queue, w)
	l.refused(w, err)
	if r.flock {
		l.pump() // what it had, if anything, is free
	} else {
		l.schedule()
	}
	l.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.cancel:
		l.mu.Lock()
		l.end(w, unix.EINTR)
		l.mu.Unlock()
	}
	return w.before, w.err
}

// releaseGrace is how long somebody who does not wait for a lock does so
// nevertheless, while who has it may just have closed its file.
const releaseGrace = 20 * time.Millisecond

// takeSoon takes r, which others have, if one of them has closed a descriptor just
// now: close(2) returns before the kernel tells us that the open file is gone, and a
// lock that went with it is free for all that a program can know. The caller holds
// l.mu, which is let go of meanwhile.
func (fs *FS) takeSoon(l *fileLocks, h *holder, r *lockRequest) error {
	h.waits++ // it stays
	defer func() { h.waits-- }()
	for end := time.Now().Add(releaseGrace); fs.closing(l, r) && time.Now().Before(end); {
		l.mu.Unlock()
		time.Sleep(time.Millisecond)
		l.mu.Lock()
		if err := l.take(h, r); err != errHeld {
			return err
		}
	}
	return errHeld
}

// closing reports whether a descriptor of an open file by which somebody keeps r
// from its owner was closed just now. The caller holds l.mu.
func (fs *FS) closing(l *fileLocks, r *lockRequest) bool {
	for _, o := range l.conflicts(r) {
		h := fs.handle(l.holders[o].fh)
		if h == nil || time.Since(time.Unix(0, h.flushed.Load())) < 5*releaseGrace {
			return true
		}
	}
	return false
}

// end takes w out of the queue, unless it has its answer already. The caller
// holds l.mu.
func (l *fileLocks) end(w *lockWaiter, err error) {
	i := slices.Index(l.queue, w)
	if i < 0 {
		return
	}
	l.queue = slices.Delete(l.queue, i, i+1)
	w.err = err
	w.h.waits--
	l.deadlocks.over(w)
	l.retire(w.r.lockOwner, w.h)
	close(w.done)
}

// pump gives what can be had to those who wait for it, first come first served.
// Nobody waits behind somebody who waits: what is free is given to who asks, as
// every filesystem does, or a program that has a file locked and starts another
// that locks it too would hang. The caller holds l.mu.
func (l *fileLocks) pump() {
	for given := true; given; {
		given = false
		var refused []*lockRequest // by somebody outside
		for _, w := range slices.Clone(l.queue) {
			if covers(refused, w.r) {
				w.outside = true
				continue
			}
			w.before = w.h.held.within(&w.r.span)
			switch err := l.take(w.h, w.r); err {
			case errHeld, unix.EAGAIN:
				l.refused(w, err)
				if err == unix.EAGAIN {
					refused = append(refused, w.r)
				}
			default:
				l.end(w, err)
				given = given || err == nil
			}
		}
	}
	l.schedule()
}

// refused notes why w, which take refused, has to wait, and ends it if it would
// for ever. The caller holds l.mu.
func (l *fileLocks) refused(w *lockWaiter, err error) {
	w.outside = err == unix.EAGAIN
	var by []lockOwner
	if !w.outside {
		by = l.conflicts(w.r)
	}
	var dead bool
	if dead, w.again = l.deadlocks.blocked(w, by); dead {
		l.end(w, unix.EDEADLK)
	}
}

// covers reports whether one of those refused wanted no more than r.
func covers(refused []*lockRequest, r *lockRequest) bool {
	for _, no := range refused {
		if no.flock == r.flock && no.kind <= r.kind && r.start <= no.start && no.end <= r.end {
			return true
		}
	}
	return false
}

// schedule sees to it that the layer is asked again while somebody waits for
// somebody outside, or who waits for whom has to be looked at again. The caller holds l.mu.
func (l *fileLocks) schedule() {
	var youngest time.Time
	for _, w := range l.queue {
		if (w.outside || w.again) && w.since.After(youngest) {
			youngest = w.since
		}
	}
	if youngest.IsZero() {
		return
	}
	d := min(max(time.Since(youngest)/8, pollSoonest), pollLatest)
	d -= rand.N(d / 4) // hosts that wait for the same shall not ask at the same time
	if l.poll != nil {
		l.poll.Reset(d)
		return
	}
	l.poll = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.pump()
	})
}

// restore sets what r took the place of.
func (l *fileLocks) restore(r *lockRequest, before []span) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.holders[r.lockOwner]
	if h == nil {
		return
	}
	for _, s := range before {
		if h.setOn(h.fd, r.lockOwner, s) == nil {
			h.held = h.held.with(s)
		}
	}
	l.retire(r.lockOwner, h)
	l.pump()
}

// moveLocks takes what is locked of n on the file copied, which nobody knows yet,
// and keeps everybody from locking n until the caller has called end: with true
// when copied is what n is from now on. The caller holds n.mu.
func (n *node) moveLocks(copied int) (end func(up bool), err error) {
	l := n.locks.Load()
	if l == nil {
		return func(bool) {}, nil
	}
	l.mu.Lock()
	type description struct {
		fd    int
		write bool
	}
	on := make(map[*holder]description, len(l.holders))
	end = func(up bool) {
		for h, d := range on {
			if up {
				h.fd, d.fd = d.fd, h.fd
				h.write = d.write
			}
			closeFd(d.fd)
		}
		if up {
			l.moves++
			l.pump()
		}
		l.mu.Unlock()
	}
	for o, h := range l.holders {
		fd, write, err := reopenForLock(copied, h.write)
		if err == nil {
			on[h] = description{fd, write}
			for _, s := range h.held {
				if err = h.setOn(fd, o, s); err != nil {
					break
				}
			}
		}
		if err != nil {
			end(false)
			return nil, err
		}
	}
	return end, nil
}
