package extent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/migratefs/migratefs/layers"
)

const (
	// page is what fetches are rounded to: the kernel reads files in pages, and
	// would come back for the rest of one.
	page = 4096

	// joinGap is the longest written range that is fetched in vain to make one
	// fetch out of two: a round trip costs more than that many bytes. What was
	// fetched is never fetched again.
	joinGap = 32 << 10

	// settleTime is how old an mtime of whole seconds must be for a later change
	// to show in it.
	settleTime = 2 * time.Second
)

// ErrUnsettled: the source was changed so recently that what was fetched cannot
// be kept. Fetching again two seconds later will do.
var ErrUnsettled = errors.New("source changed just now")

// A flight is one fetch of one range, on its way or landed.
type flight struct {
	span
	cancel context.CancelFunc
	done   chan struct{} // closed when it has landed

	waiters int // protected by Object.mu

	// users are those who may look at buf: each waiter until it calls leave, and fly.
	users atomic.Int32

	// Set before done is closed.
	buf  []byte
	err  error // why the bytes are not in buf
	kept error // why they are not in the object either
}

// board returns flights that together bring all that is missing in [from, to),
// each with the caller as a waiter. Those under way are joined, unless alone.
func (o *Object) board(ctx context.Context, fetch Fetcher, from, to int64, alone bool) []*flight {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []*flight
	for _, m := range o.wanted(from, to) {
		at := m.from
		if !alone {
			for _, f := range o.flights {
				if f.from < m.to && m.from < f.to {
					f.waiters++
					f.users.Add(1)
					all = append(all, f)
				}
			}
		}
		for at < m.to {
			next, skip := m.to, m.to
			for _, f := range all {
				switch {
				case f.from <= at && at < f.to:
					next, skip = at, f.to // already on its way
				case at < f.from && f.from < next:
					next, skip = f.from, f.from
				}
				if next == at {
					break
				}
			}
			if at < next {
				f := &flight{span: span{at, next}, done: make(chan struct{}), waiters: 1}
				f.users.Store(2)
				o.flights = append(o.flights, f)
				all = append(all, f)
				o.retain()
				fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
				f.cancel = cancel
				go o.fly(fctx, fetch, f)
			}
			at = skip
		}
	}
	return all
}

// wanted returns what to fetch for [from, to): its missing ranges in whole
// pages, those with only a short written range between them as one. o.mu is held.
func (o *Object) wanted(from, to int64) []span {
	var out []span
	from = from / page * page
	if to = min(to, o.limit); o.limit-to < page { // also: no overflow near 8 EiB
		to = o.limit
	} else {
		to = (to + page - 1) / page * page
	}
	o.present.gaps(from, to, func(from, to int64) bool {
		if n := len(out); n > 0 && from-out[n-1].to <= joinGap && o.dirty.has(out[n-1].to, from) {
			out[n-1].to = to
		} else {
			out = append(out, span{from, to})
		}
		return true
	})
	return out
}

// await waits until all flights have landed, and returns the first error. It
// takes the caller off them.
func (o *Object) await(ctx context.Context, flights []*flight) (err error) {
	for _, f := range flights {
		select {
		case <-f.done:
			if err == nil {
				err = f.err
			}
			continue
		case <-ctx.Done():
			err = ctx.Err()
		}
		break
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range flights {
		if f.waiters--; f.waiters == 0 {
			// Nobody may join what is about to be cancelled.
			o.landLocked(f)
			f.cancel()
		}
	}
	return err
}

// leave ends the caller's use of flights that it has waited for.
func leave(flights []*flight) {
	for _, f := range flights {
		if f.users.Add(-1) == 0 {
			freeBuf(f.buf)
		}
	}
}

// landLocked takes f off the list that later readers join.
func (o *Object) landLocked(f *flight) {
	for i, g := range o.flights {
		if g == f {
			last := len(o.flights) - 1
			o.flights[i], o.flights[last] = o.flights[last], nil
			o.flights = o.flights[:last]
			return
		}
	}
}

// fly fetches f, stores it, and tells who waits. It has a reference to o.
func (o *Object) fly(ctx context.Context, fetch Fetcher, f *flight) {
	defer leave([]*flight{f})
	defer close(f.done)
	defer o.release() // whoever waits has one of its own
	defer f.cancel()
	// Asked before the fetch: a change after this moment must show in the
	// version, or the bytes may be of either.
	settled := o.settled(fetch)
	f.buf = newBuf(int(f.to - f.from)) // which a fetch that succeeds fills
	n, err := fetch.ReadAt(ctx, f.buf, f.from)
	o.store.count.fetched.Add(int64(n))
	switch {
	case n == len(f.buf):
	case err == io.EOF:
		f.err = fmt.Errorf("source ends at %d: %w", f.from+int64(n), layers.ErrStale)
	case err == nil:
		f.err = fmt.Errorf("source gave %d bytes of %d: %w", n, len(f.buf), layers.ErrCorrupt)
	default:
		f.err = err
	}
	if f.err == nil {
		if settled {
			f.kept = o.keep(f.from, f.buf)
		} else {
			f.kept = ErrUnsettled
		}
	}
	o.mu.Lock()
	o.landLocked(f)
	o.mu.Unlock()
}

func (o *Object) settled(fetch Fetcher) bool {
	if s, ok := fetch.(Settler); ok {
		return s.Settled()
	}
	m := o.src.Version.Mtime
	return !o.store.now().Before(time.Unix(m.Sec, int64(m.Nsec)).Add(settleTime))
}

// keep stores b, the source's bytes at off, where they are missing still, and
// records it. A range that was written, zeroed or cut off since is left alone.
func (o *Object) keep(off int64, b []byte) error {
	if err := o.room(int64(len(b))); err != nil {
		return err
	}
	o.wmu.Lock()
	defer o.wmu.Unlock()
	o.proveHeld(off, off+int64(len(b)))
	o.mu.RLock()
	missing := o.present.missing(off, min(off+int64(len(b)), o.limit))
	o.mu.RUnlock()
	// Only wmu's holder changes ranges or limit, so missing stays right.
	var pieces []piece
	var recs []record
	for _, m := range missing {
		if err := o.putClean(b[m.from-off:m.to-off], m.from); err != nil {
			return o.uncached(err)
		}
		if !o.sums {
			recs = append(recs, record{kind: kindFetched, a: m.from, b: m.to - m.from})
			continue
		}
		for _, p := range o.cut(m.from, b[m.from-off:m.to-off]) {
			pieces, recs = append(pieces, p), append(recs, p.record())
		}
	}
	if len(recs) == 0 {
		return nil
	}
	if err := o.append(recs...); err != nil {
		return o.uncached(err)
	}
	o.mu.Lock()
	for _, m := range missing {
		o.present.add(m.from, m.to)
	}
	for _, p := range pieces {
		o.pieces.put(p)
	}
	o.mu.Unlock()
	o.grown(missing)
	o.compactIfLong()
	return nil
}

// uncached says that fetched bytes cannot be kept, once for each reason.
func (o *Object) uncached(err error) error {
	o.store.logOnce(err, "what is fetched cannot be kept", o.src.Path)
	return err
}

// bring waits for flights that together bring [from, to), once. An error is one that
// another attempt, alone, would not change.
func (o *Object) bring(ctx context.Context, fetch Fetcher, from, to int64, alone bool) error {
	flights := o.board(ctx, fetch, from, to, alone)
	defer leave(flights)
	if err := o.await(ctx, flights); err != nil && (alone || ctx.Err() != nil) {
		return err
	}
	for _, f := range flights {
		if f.err == nil && f.kept != nil {
			return f.kept
		}
	}
	return nil
}

// Fill makes [off, off+n), as far as it lies within the file, present. Unlike
// ReadAt it returns the error if what was fetched cannot be stored; ErrUnsettled
// if it may not be.
func (o *Object) Fill(ctx context.Context, fetch Fetcher, off, n int64) error {
	if off < 0 || n < 0 || off > maxSize-n {
		return errInvalid
	}
	for end := min(off+n, o.Size()); off < end; {
		from, to := off, off+min(window, end-off)
		for alone := false; !o.PresentRange(from, to-from); alone = true {
			if fetch == nil {
				return layers.ErrOffline
			}
			if err := o.bring(ctx, fetch, from, to, alone); err != nil {
				return err
			}
		}
		off = to
	}
	return nil
}
