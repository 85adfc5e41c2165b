package overlay

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// Fill fetches all that pending files miss and makes ordinary files of them, once.
// What cannot be is left pending; of several errors one is returned.
func (fs *FS) Fill(ctx context.Context) error {
	q := &fs.fill
	ctx = layers.Background(ctx)
	q.mu.Lock()
	var all []*filling
	for _, f := range q.order {
		if !f.gone && !f.busy {
			f.busy = true
			all = append(all, f)
		}
	}
	q.mu.Unlock()
	var first error
	for _, f := range all {
		err := q.work(ctx, f, true)
		q.done(f, err)
		first = cmp.Or(first, err)
	}
	return first
}

// work does for f what there is to do: nil says that it is an ordinary file now.
func (q *fill) work(ctx context.Context, f *filling, fetch bool) error {
	q.mu.Lock()
	id := f.id
	fetch = fetch && !f.conflict
	q.mu.Unlock()
	obj, err := q.fs.store.Pending(id)
	if err != nil {
		return err
	}
	defer obj.Close()
	q.mu.Lock()
	f.layer = obj.Source().LayerID
	q.mu.Unlock()
	f.size = obj.Size()
	if obj.Missing() == 0 {
		obj.PresentRange(0, obj.Size()) // after a remount: is it what it was?
	}
	proven := f.proven
	if fetch && !obj.Whole() {
		proven = obj.Clean() == 0 && obj.Source().Version.Size <= fillPiece && len(obj.Gaps(0, 2)) == 1
		err = q.fetchAll(ctx, id, obj)
	}
	q.mu.Lock()
	f.missing = obj.Missing()
	q.mu.Unlock()
	if err != nil {
		return err
	}
	if !obj.Whole() {
		return errNotWhole
	}
	n, err := q.nodeOf(ctx, f)
	if err != nil {
		return err
	}
	defer q.fs.Forget(n.id, 1)
	if err = q.fs.finishPending(ctx, n, proven); !errors.Is(err, errNameless) {
		return err
	}
	// It lost the name that we knew, and has another.
	if n, err = q.found(ctx, f); err != nil {
		return err
	}
	defer q.fs.Forget(n.id, 1)
	return q.fs.finishPending(ctx, n, proven)
}

// fetchAll fetches all that obj misses.
func (q *fill) fetchAll(ctx context.Context, id extent.ID, obj *extent.Object) error {
	src := q.fs.sourceOf(id, obj)
	defer src.close()
	from := counting{src, &q.fetched}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for !obj.Whole() {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var failed error
		for _, gap := range obj.Gaps(0, fillBatched) {
			for gap.Len > 0 && ctx.Err() == nil {
				off, n := gap.Off, min(gap.Len, fillPiece-gap.Off%fillPiece)
				if err := q.enter(ctx, n); err != nil {
					break
				}
				gap.Off, gap.Len = off+n, gap.Len-n
				wg.Add(1)
				go func() {
					defer wg.Done()
					defer func() { <-q.pieces }()
					if err := obj.Fill(ctx, from, off, n); err != nil {
						mu.Lock()
						defer mu.Unlock()
						if failed == nil {
							failed = err
							stop()
						}
					}
				}()
			}
		}
		wg.Wait()
		if err := cmp.Or(failed, ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

// counting counts the bytes that a source gives.
type counting struct {
	*source
	n *atomic.Int64
}

func (c counting) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	n, err := c.source.ReadAt(ctx, b, off)
	c.n.Add(int64(n))
	return n, err
}

// enter waits until n bytes may be fetched, and takes one token of q.pieces.
func (q *fill) enter(ctx context.Context, n int64) error {
	for until := time.Now().Add(fillYield); !q.demand.quiet() && time.Now().Before(until); {
		if err := sleep(ctx, fillQuiet/4); err != nil {
			return err
		}
	}
	if rate := q.rate.Load(); rate > 0 {
		q.mu.Lock()
		now := time.Now()
		q.next = latest(q.next, now).Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
		next := q.next
		q.mu.Unlock()
		// At a low rate that is a long time, and the rate may be another one meanwhile.
		for left := next.Sub(now); left > 0 && q.rate.Load() == rate; left = time.Until(next) {
			if err := sleep(ctx, min(left, fillQuiet)); err != nil {
				return err
			}
		}
	}
	select {
	case q.pieces <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (q *fill) isRunning() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stop != nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Progress is how far pending files are.
type Progress struct {
	Fetching   bool  // what is missing is fetched in the background
	Waiting    bool  // the source cannot be reached
	Files      int   // that are pending
	Missing    int64 // bytes that only the source has
	Size       int64 // of the files
	Incomplete int   // of the files: they miss something
	Conflicts  int   // of the files: they wait for the operator
	Fetched    int64 // bytes, in the background since the mount
	Finished   int64 // files that became ordinary ones since the mount
	Err        error // what went wrong last
	When       time.Time
}

// Progress tells how far pending files are. It opens those that nobody has open.
func (fs *FS) Progress(ctx context.Context) (Progress, error) {
	q := &fs.fill
	p := Progress{Fetching: q.isRunning() && q.fetches(), Fetched: q.fetched.Load(), Finished: q.finished.Load()}
	q.mu.Lock()
	var ids []extent.ID
	now := time.Now()
	for _, f := range q.order {
		if f.gone {
			continue
		}
		ids = append(ids, f.id)
		if f.conflict {
			p.Conflicts++
		} else if f.layer != "" && q.away[f.layer].After(now) {
			p.Waiting = true
		}
	}
	p.Err, p.When = q.last.err, q.last.when
	q.mu.Unlock()
	p.Files = len(ids)
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		obj, err := fs.store.Pending(id)
		if err != nil {
			continue // it became an ordinary file, or cannot be read: that was told
		}
		missing := obj.Missing()
		p.Missing += missing
		p.Size += obj.Size()
		if missing > 0 {
			p.Incomplete++
		}
		obj.Close()
	}
	return p, nil
}
