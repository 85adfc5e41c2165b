package overlay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// What a program is about to read of a source is fetched before it asks, so that it
// does not wait for each round trip: the bytes before a sequential reader
// (ahead_stream.go), the small files beside one that was read (ahead_siblings.go), and
// those in the directories that a walker comes to next (ahead_trail.go).
// It goes into the objects of these files, as what they were looked up as, so that it is
// read from there or fetched again like all else.
//
// What may be fetched in vain is bounded by what was read: a run of reads has as much
// fetched before it as it is long, a directory, and what comes after it, a few files more
// than three for each one that was opened. How much is under way is bounded by what the link carries in a
// moment (ahead_link.go): it is what who needs the link for something else would wait for.

const (
	// aheadBytes and aheadJobs are what may be under way at once, for all readers.
	aheadBytes = 64 << 20
	aheadJobs  = 128

	// aheadRest is how long nothing is fetched ahead after it failed.
	aheadRest = 2 * time.Second
)

// ahead is what is fetched before it is asked for, of all files.
type ahead struct {
	off    bool            // immutable once the store is open
	paused atomic.Bool     // nothing begins for now
	ctx    context.Context // of all that is under way; immutable
	waited context.Context // ctx, of what somebody waits for in a moment; immutable
	end    context.CancelFunc

	store *extent.Store // where it is kept; immutable once that is open

	mu       sync.Mutex
	ended    bool
	work     sync.WaitGroup // Add with mu held
	bytes    int64          // under way
	jobs     int
	streams  int       // that have a window
	resting  time.Time // nothing begins before
	links    map[layers.Layer]*link
	families families

	trail trail
	next  atomic.Pointer[readNext] // nil: nothing, or it has been asked for
}

func (a *ahead) init(off bool) {
	a.off = off
	a.waited, a.end = context.WithCancel(context.Background())
	a.ctx = layers.Background(a.waited)
	a.links = make(map[layers.Layer]*link)
}

// into says where what is fetched is kept; where that is nowhere, nothing is fetched
// ahead.
func (a *ahead) into(store *extent.Store) {
	if store == nil || store.Limit() < 0 {
		a.off = true
		return
	}
	a.store = store
}

// close ends what is under way and waits for it.
func (a *ahead) close() {
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	a.end()
	a.work.Wait()
}

// begin runs f, which fetches n bytes, beside the caller; not if there is no room
// for them, which it reports.
func (a *ahead) begin(n int64, f func() error) bool {
	if a.paused.Load() || a.store != nil && a.store.Limit() < 0 {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended || a.bytes+n > aheadBytes && a.bytes > 0 || a.jobs == aheadJobs || time.Now().Before(a.resting) {
		return false
	}
	a.bytes += n
	a.jobs++
	a.work.Go(func() {
		err := f()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.bytes -= n
		a.jobs--
		if rests(err) {
			a.resting = time.Now().Add(aheadRest)
		}
	})
	return true
}

// rests reports whether err is a reason to fetch nothing ahead for a while, of any
// file: the source is away, or there is no room for more.
func rests(err error) bool {
	for _, e := range []error{layers.ErrOffline, layers.ErrDenied, layers.ErrReplaced, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// open counts the streams that have a window, by which they share what is kept
// before readers.
func (a *ahead) open(change int) {
	a.mu.Lock()
	a.streams += change
	a.mu.Unlock()
}

// most is the longest window of a stream: all of them together take no more than a
// quarter of what may be kept, so that nothing goes before it was read.
func (a *ahead) most() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return min(windowMost, a.share(8*windowMost)/int64(max(a.streams, 1)))
}

// share is n, or a quarter of what may be kept.
func (a *ahead) share(n int64) int64 {
	if a.store == nil {
		return n
	}
	if limit := a.store.Limit(); limit > 0 {
		return min(n, limit/4)
	}
	return n
}

func (a *ahead) link(l layers.Layer) *link {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.links[l] == nil {
		a.links[l] = &link{}
	}
	return a.links[l]
}

// keepWhole keeps the whole content of the file that src describes.
func keepWhole(store *extent.Store, src extent.Source, content []byte) error {
	obj, err := store.Cached(src)
	if err != nil {
		return err
	}
	err = obj.Put(0, content)
	return errors.Join(err, obj.Close())
}
