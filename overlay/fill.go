package overlay

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// What pending files miss is fetched while nobody waits for it, so that the source can
// be let go of; a file of which all is here becomes an ordinary one (fill_finish.go).
// Files that were opened last come first, since what runs here needs them, then those
// that have been pending longest. What is only read is not filled: it is the source's.
//
// The filler gives way to who waits for the same source, and stands still while that
// cannot be reached. All it knows is in the objects: a remount, or a crash, costs what
// was on its way.

const (
	fillFiles  = 4       // at once
	fillPieces = 8       // at once, of all files
	fillPiece  = 1 << 20 // bytes that are fetched with one call

	fillQuiet   = 100 * time.Millisecond // without a fetch for somebody, before it goes on
	fillYield   = time.Second            // it waits no longer for that, lest it stands still for good
	fillAgain   = time.Second            // until it asks again for a source that is away
	fillLater   = 30 * time.Second       // until it tries a file again that failed
	fillBatched = 64                     // gaps that are looked up at once
)

// FillConfig says what is done with pending files in the background. The zero value
// leaves them as they are.
type FillConfig struct {
	Finish bool  // those of which all is here become ordinary files
	Fetch  bool  // what they miss is fetched
	Rate   int64 // bytes a second at most; 0: as fast as it comes
}

// demand is how busy sources are with what somebody waits for.
type demand struct {
	meter *meter // immutable
	busy  atomic.Int64
	last  atomic.Int64 // when it was last answered: Unix time, ns
}

func (d *demand) begin() (end func()) {
	d.busy.Add(1)
	return func() {
		d.last.Store(time.Now().UnixNano())
		d.busy.Add(-1)
	}
}

func (d *demand) quiet() bool {
	return d.busy.Load() == 0 && time.Since(time.Unix(0, d.last.Load())) >= fillQuiet
}

// fill is what is known of pending files, and what fills them.
type fill struct {
	fs     *FS // immutable; so is cfg
	cfg    FillConfig
	fetch  atomic.Bool  // cfg.Fetch, or what was set since
	forced atomic.Int32 // a drain has what is missing fetched, whatever that says
	demand demand
	pieces chan struct{} // a token for each piece under way
	woken  chan struct{}
	stop   context.CancelFunc // nil: nothing runs
	begun  chan struct{}      // closed when the mount is there
	ended  chan struct{}

	rate atomic.Int64 // bytes a second; 0: as fast as it comes

	fetched  atomic.Int64 // bytes, by the filler since the mount
	finished atomic.Int64 // files, since the mount

	names sync.Mutex // who walks the upper; any I/O

	mu    sync.Mutex // after every node's; nothing is done under it
	files map[extent.ID]*filling
	order []*filling // oldest first, with some that are gone
	front []*filling // opened last: last; with some that are gone
	next  time.Time  // when the rate allows the next piece
	away  map[string]time.Time
	last  failure
	until context.Context // of what is fetched because fetch says so; ends when it is turned off
	pause context.CancelFunc
}

// filling is one pending file.
type filling struct {
	id    extent.ID
	since time.Time
	n     *node       // with a lookup of its own; nil: not known
	path  layers.Path // where it was last seen
	layer string      // id of the lower that its source is in, once known

	gone     bool
	busy     bool
	conflict bool
	moot     bool // it may not be in conflict any more
	missing  int64
	size     int64     // who made it busy sets it
	after    time.Time // it is not tried before
	err      error     // why
	proven   bool      // what came of it from the source came in one exchange; who made it busy sets it
}

// failure is what went wrong last.
type failure struct {
	err  error
	when time.Time
}

// startFill notes what is pending and, if it is to, begins to fill it.
func (fs *FS) startFill() error {
	q := &fs.fill
	q.fs, q.cfg = fs, fs.cfg.Fill
	q.rate.Store(q.cfg.Rate)
	q.fetch.Store(q.cfg.Fetch)
	q.until, q.pause = context.WithCancel(context.Background())
	q.files, q.away = make(map[extent.ID]*filling), make(map[string]time.Time)
	q.pieces, q.woken = make(chan struct{}, fillPieces), make(chan struct{}, 1)
	if fs.store == nil {
		return nil
	}
	ids, err := fs.store.Pendings()
	if err != nil {
		return err
	}
	for _, id := range ids {
		f := &filling{id: id}
		var stx unix.Statx_t
		if unix.Statx(fs.stubs, id.String(), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME|unix.STATX_CTIME, &stx) == nil {
			born := cmp.Or(stx.Btime.Sec, stx.Ctime.Sec)
			f.since = time.Unix(born, 0)
		}
		kind, _, err := fs.conflictOf(id)
		if err != nil {
			fs.log.Warn("whether a pending file is in conflict cannot be read", "object", id.String(), "cause", err)
		}
		f.conflict = kind == conflictOpen
		q.files[id] = f
		q.order = append(q.order, f)
	}
	slices.SortStableFunc(q.order, func(a, b *filling) int { return a.since.Compare(b.since) })
	q.begun = make(chan struct{})
	if (q.cfg.Finish || q.cfg.Fetch) && !fs.LocalOnly() {
		q.start()
	}
	return nil
}

// start runs it, if it does not run.
func (q *fill) start() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(layers.Background(context.Background()))
	q.stop, q.ended = stop, make(chan struct{})
	go q.run(ctx)
}

// setFetch says whether what is missing is fetched in the background from now on. What
// is on its way is given up; what has come stays.
func (q *fill) setFetch(on bool) {
	q.mu.Lock()
	if q.fetch.Swap(on) == on {
		q.mu.Unlock()
		return
	}
	if on {
		q.until, q.pause = context.WithCancel(context.Background())
		for _, f := range q.files {
			if !f.busy && errors.Is(f.err, errNotWhole) {
				f.after = time.Time{}
			}
		}
	} else if q.forced.Load() == 0 {
		q.pause()
	}
	q.mu.Unlock()
	if on && !q.fs.LocalOnly() {
		q.start()
	}
	q.wake()
}

// setRate says how many bytes a second may be fetched from now on.
func (q *fill) setRate(rate int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rate.Store(rate)
	q.next = time.Time{}
}

// whileFetching is ctx that ends as well when the fetching is turned off.
func (q *fill) whileFetching(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.fetch.Load() {
		return ctx, cancel // a drain asks for it, or nothing is fetched
	}
	stop := context.AfterFunc(q.until, cancel)
	return ctx, func() { stop(); cancel() }
}

// close ends what runs.
func (q *fill) close() {
	q.mu.Lock()
	if q.pause != nil {
		q.pause()
	}
	stop := q.stop
	q.stop = nil
	q.mu.Unlock()
	if stop != nil {
		stop()
		<-q.ended
	}
}

// add notes that n is pending now.
func (q *fill) add(id extent.ID, n *node) {
	f := &filling{id: id, since: time.Now()}
	f.path, _ = n.path()
	q.mu.Lock()
	if q.stop != nil {
		n.fs.table.ref(n)
		f.n = n
		q.front = append(q.front, f)
	}
	q.files[id] = f
	q.order = append(q.order, f)
	q.mu.Unlock()
	q.wake()
}

// drop forgets a file that is pending no more.
func (q *fill) drop(id extent.ID) {
	q.mu.Lock()
	f := q.files[id]
	delete(q.files, id)
	var n *node
	if f != nil {
		n, f.n, f.gone = f.n, nil, true
		if len(q.order) > 64 && len(q.order) > 2*len(q.files) {
			q.order = slices.DeleteFunc(q.order, func(f *filling) bool { return f.gone })
		}
	}
	q.mu.Unlock()
	if n != nil {
		q.fs.Forget(n.id, 1)
	}
}

// opened notes that somebody has opened the file: it comes before others.
func (q *fill) opened(id extent.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f := q.files[id]
	if q.stop == nil || f == nil {
		return
	}
	if i := slices.Index(q.front, f); i >= 0 {
		q.front = slices.Delete(q.front, i, i+1)
	}
	const most = 1024
	if len(q.front) >= most {
		q.front = slices.Delete(q.front, 0, most/2)
	}
	q.front = append(q.front, f)
}

// closed notes that nobody has the file open any more: all of it may be here.
func (q *fill) closed(id extent.ID) {
	q.mu.Lock()
	f := q.files[id]
	if f != nil && errors.Is(f.err, errNotWhole) {
		f.after = time.Time{}
	}
	if f != nil && f.conflict { // cut to nothing and written anew, it has nothing of the source's
		f.moot, f.after = true, time.Time{}
	}
	q.mu.Unlock()
	if f != nil {
		q.wake()
	}
}

// wake has it look for something to do.
func (q *fill) wake() {
	select {
	case q.woken <- struct{}{}:
	default:
	}
}

// replace notes that the file of the object old has its data in the object id now.
func (q *fill) replace(old, id extent.ID) {
	q.mu.Lock()
	if f := q.files[old]; f != nil {
		delete(q.files, old)
		q.files[id] = f
		f.id, f.conflict, f.after, f.err = id, false, time.Time{}, nil
	}
	q.mu.Unlock()
	q.wake()
}

// inConflict notes whether the operator's word is waited for.
func (q *fill) inConflict(id extent.ID, is bool) {
	q.mu.Lock()
	if f := q.files[id]; f != nil {
		f.conflict, f.after = is, time.Time{}
	}
	q.mu.Unlock()
	q.wake()
}

func (q *fill) conflicts() (ids []extent.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, f := range q.order {
		if !f.gone && f.conflict {
			ids = append(ids, f.id)
		}
	}
	return ids
}

// pick returns the next file to do something for, which is its caller's until done,
// or when to look again.
func (q *fill) pick(now time.Time) (f *filling, again time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	again = now.Add(time.Hour)
	due := func(f *filling) bool {
		if f.busy || f.conflict && !f.moot {
			return false
		}
		at := f.after
		if away := q.away[f.layer]; f.layer != "" && away.After(at) {
			at = away
		}
		if at.After(now) {
			if at.Before(again) {
				again = at
			}
			return false
		}
		return true
	}
	// What is gone is passed over once, and taken out: there may be millions. Those that are
	// kept on the way are few, and close up.
	kept := len(q.front)
	for i := len(q.front) - 1; i >= 0; i-- {
		f := q.front[i]
		if f.gone {
			continue
		}
		kept--
		q.front[kept] = f
		if due(f) {
			q.front = slices.Delete(q.front, i, kept)
			f.busy = true
			return f, again
		}
	}
	q.front = slices.Delete(q.front, 0, kept)
	kept = 0
	for i, f := range q.order {
		if f.gone {
			continue
		}
		q.order[kept] = f
		kept++
		if due(f) {
			copy(q.order[i+1-kept:], q.order[:kept])
			q.order = q.order[i+1-kept:]
			f.busy = true
			return f, again
		}
	}
	q.order = slices.Delete(q.order, kept, len(q.order))
	return nil, again
}

// begin lets it do something: the kernel has said what it can do.
func (q *fill) begin() {
	if q.begun != nil {
		close(q.begun)
	}
}

// run fills until ctx ends.
func (q *fill) run(ctx context.Context) {
	defer close(q.ended)
	select {
	case <-q.begun:
	case <-ctx.Done():
		return
	}
	var under sync.WaitGroup
	defer under.Wait()
	slots := make(chan struct{}, fillFiles)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		f, again := q.pick(time.Now())
		if f == nil {
			<-slots
			t := time.NewTimer(max(time.Until(again), 10*time.Millisecond))
			select {
			case <-q.woken:
			case <-t.C:
			case <-ctx.Done():
			}
			t.Stop()
			if ctx.Err() != nil {
				return
			}
			continue
		}
		under.Add(1)
		go func() {
			defer under.Done()
			q.serve(ctx, f)
			<-slots
			q.wake()
		}()
	}
}

// done notes what came of the work at f, which may be tried again later.
func (q *fill) done(f *filling, err error) {
	if err == nil {
		q.finished.Add(1)
		q.fs.ending.filled(f.size)
		q.drop(f.id)
		return
	}
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	last := f.err
	f.busy, f.moot, f.err = false, false, err
	switch {
	case errors.Is(err, context.Canceled):
	case errors.Is(err, layers.ErrStale):
		f.conflict = true
	case errors.Is(err, layers.ErrOffline), errors.Is(err, layers.ErrDenied), errors.Is(err, layers.ErrReplaced):
		f.after = now.Add(fillAgain)
		if f.layer != "" {
			q.away[f.layer] = f.after
		}
		q.last = failure{err, now}
	case errors.Is(err, errNotWhole): // and nothing is to be fetched: a close wakes us
		f.after = now.Add(fillLater)
	case errors.Is(err, errNameless): // looking for it takes a walk
		f.after = now.Add(10 * fillLater)
	case errors.Is(err, extent.ErrUnsettled):
		f.after = now.Add(2 * fillAgain)
	default:
		if last == nil || last.Error() != err.Error() {
			q.fs.log.Warn("a pending file stays pending for now", "path", string(f.path), "object", f.id.String(), "cause", err)
		}
		f.after = now.Add(fillLater)
		q.last = failure{err, now}
	}
}
