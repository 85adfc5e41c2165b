package copyup

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Workers of one copy, besides who hands out the pieces, and of all copies. The
// first of each copy is not counted: every copy goes on, whatever others do.
const (
	workersPerCopy = 4
	workersInAll   = 12
)

var furtherWorkers = make(chan struct{}, workersInAll)

// crew works off pieces of one copy. The first error ends it.
type crew struct {
	ctx  context.Context
	stop context.CancelCauseFunc
	work chan span
	one  func(context.Context) func(span) error
	wg   sync.WaitGroup
	size int
}

// newCrew makes a crew each of whose workers handles pieces by a function that one
// returns.
func newCrew(ctx context.Context, one func(context.Context) func(span) error) *crew {
	w := &crew{work: make(chan span), one: one}
	w.ctx, w.stop = context.WithCancelCause(ctx)
	return w
}

// give hands s to a worker: a new one while there may be more, else who is free
// first.
func (w *crew) give(s span) error {
	if w.hire() {
		w.wg.Go(func() { w.run(s) })
		return nil
	}
	select {
	case w.work <- s:
		return nil
	case <-w.ctx.Done():
		return context.Cause(w.ctx)
	}
}

func (w *crew) hire() bool {
	switch {
	case w.size == 0:
	case w.size >= workersPerCopy:
		return false
	default:
		select {
		case furtherWorkers <- struct{}{}:
		default:
			return false
		}
	}
	w.size++
	return true
}

func (w *crew) run(s span) {
	do := w.one(w.ctx)
	for ok := true; ok; s, ok = <-w.work {
		if w.ctx.Err() != nil {
			return
		}
		if err := do(s); err != nil {
			w.stop(err)
			return
		}
	}
}

// end waits for all that was given and returns the first error, err if that is not
// nil.
func (w *crew) end(err error) error {
	if err != nil {
		w.stop(err)
	}
	close(w.work)
	w.wg.Wait()
	for range w.size - 1 {
		<-furtherWorkers
	}
	if err == nil {
		err = context.Cause(w.ctx)
	}
	w.stop(nil)
	return err
}

// A piece is what the storage does in about this time, so that an interrupt is
// answered at once on slow storage, and the calls do not show on fast: where
// copy_file_range shares blocks, or has the server copy, large ranges matter.
const pieceTime = 50 * time.Millisecond

const (
	smallestPiece = 4 << 20
	largestPiece  = 256 << 20
)

type pieceSize struct{ n atomic.Int64 }

func (p *pieceSize) size() int64 { return max(p.n.Load(), smallestPiece) }

// timed runs f, which handles s, and learns from how long it takes.
func (p *pieceSize) timed(s span, f func() error) error {
	began := time.Now()
	err := f()
	if s.n >= p.size() {
		switch took := time.Since(began); {
		case took < pieceTime/2:
			p.n.Store(min(s.n*2, largestPiece))
		case took > pieceTime*2:
			p.n.Store(s.n / 2)
		}
	}
	return err
}

// flag is something that was found out once.
type flag struct{ b atomic.Bool }

func (f *flag) up() bool { return f.b.Load() }
func (f *flag) raise()   { f.b.Store(true) }
