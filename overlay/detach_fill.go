package overlay

import (
	"context"
	"errors"
	"time"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// What a drain of a source asks of the filler.

// pendingMost is how many files are pending at once by a drain's doing.
const pendingMost = 2048

// demandAll has what is missing fetched until release is called, whatever the mount's
// options say.
func (q *fill) demandAll() (release func()) {
	q.forced.Add(1)
	q.mu.Lock()
	for _, f := range q.files {
		if !f.busy { // whoever asks may have ended what kept it
			f.after, f.err = time.Time{}, nil
		}
	}
	q.mu.Unlock()
	q.start()
	q.wake()
	return func() { q.forced.Add(-1) }
}

// fetches reports whether what is missing is fetched in the background.
func (q *fill) fetches() bool { return q.fetch.Load() || q.forced.Load() > 0 }

// count is how many files are pending.
func (q *fill) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.files)
}

// all returns the pending files.
func (q *fill) all() (ids []extent.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, f := range q.order {
		if !f.gone {
			ids = append(ids, f.id)
		}
	}
	return ids
}

// why is why the file stays pending; nil if nothing is wrong with it.
func (q *fill) why(id extent.ID) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch f := q.files[id]; {
	case f == nil:
		return nil
	case f.conflict:
		return errInConflict
	case errors.Is(f.err, errNotWhole), errors.Is(f.err, context.Canceled):
		return nil
	default:
		return f.err
	}
}

// movable is how many files are pending of which something will come of itself.
func (q *fill) movable() (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, f := range q.files {
		if !f.gone && (!f.conflict || f.moot) && (f.busy || !isForLater(f.err)) {
			n++
		}
	}
	return n
}

// isForLater reports whether err is one that only somebody can end.
func isForLater(err error) bool {
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, errNotWhole), errors.Is(err, extent.ErrUnsettled),
		isAway(err), errors.Is(err, layers.ErrReplaced):
		return false
	}
	return true
}

// roomFor waits until fewer files are pending than are to be at once.
func (q *fill) roomFor(ctx context.Context) error {
	for q.movable() >= pendingMost {
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// settled waits until nothing is pending but what only somebody can end.
func (q *fill) settled(ctx context.Context) error {
	for q.movable() > 0 {
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return ctx.Err()
}
