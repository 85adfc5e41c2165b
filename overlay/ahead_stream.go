package overlay

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/migratefs/migratefs/layers/extent"
)

const (
	// The least and the most that is fetched before a sequential reader. It grows with
	// the run of reads, and never beyond what that is long: who stops reading has
	// had at most twice as much fetched as it has read.
	windowLeast = 128 << 10
	windowMost  = 32 << 20

	// chunkAlign is what ends of chunks are multiples of: the kernel reads ahead by
	// 128 KiB, and one request of it is to wait for one chunk.
	chunkAlign = 128 << 10
	chunkMost  = 1 << 20

	// runLeast is how much is read in order, in more than one request, before it counts
	// as sequential. A page that is read at random may come with three more.
	runLeast = 64 << 10

	// earlyMost is how many requests may overtake another: the kernel sends those of
	// one reader side by side.
	earlyMost  = 4
	earlyReach = 4 << 20
)

// stream is how one handle is read.
type stream struct {
	ahead *ahead // immutable

	mu     sync.Mutex
	from   int64   // what was read last is [from, to), in order
	to     int64   //
	reads  int     // in that many requests
	early  []piece // what was read beyond, of which something before may follow
	window int64   // how much is to be here beyond to; 0: nothing
	asked  int64   // up to where it has been asked for
	rest   time.Time
	ctx    context.Context // of what was asked for; nil while window is 0
	cancel context.CancelFunc
}

// piece is a range of a file.
type piece struct{ from, to int64 }

// readAhead follows the reader of h, who is about to read n bytes at off.
func (h *handle) readAhead(off, n int64) {
	s := h.stream
	if s == nil || n <= 0 {
		return
	}
	h.n.mu.RLock()
	obj, src := h.n.obj, h.n.src
	h.n.mu.RUnlock()
	if obj == nil || src == nil || obj.Missing() == 0 {
		return
	}
	if next := s.ahead.next.Load(); next != nil && next.files[src.path] && s.ahead.next.CompareAndSwap(next, nil) {
		next.fetch()
	}
	s.read(obj, src, off, n)
}

// read notes a request and begins what is to be fetched after it. The caller keeps
// obj open.
func (s *stream) read(obj *extent.Object, src *source, off, n int64) {
	waits := !obj.PresentRange(off, n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.follow(piece{off, off + n}) {
		s.stop()
		s.from, s.to, s.reads, s.early, s.asked = off, off+n, 1, nil, 0
		return
	}
	run, most := s.to-s.from, s.ahead.most()
	if run < runLeast || s.reads < 2 || most < runLeast {
		return
	}
	l := s.ahead.link(src.layer)
	if s.window == 0 {
		s.ahead.open(1)
		s.ctx, s.cancel = context.WithCancel(s.ahead.ctx)
	} else if waits {
		s.window *= 2
	}
	s.window = min(max(windowLeast, min(s.window, l.window())), most, run)
	if now := time.Now(); now.Before(s.rest) || !src.Settled() {
		return // what came could not be kept
	}
	s.fetch(obj, src, l)
}

// follow reports whether p goes on with what was read. The caller holds s.mu.
func (s *stream) follow(p piece) bool {
	switch {
	case s.reads == 0:
		return false
	case p.to == s.from && s.reads == 1:
		s.from = p.from // overtaken, or read backward: what follows will tell
		return true
	case p.from > s.to:
		if p.from-s.to > earlyReach || len(s.early) == earlyMost {
			return false
		}
		s.early = append(s.early, p)
		return true
	case p.to <= s.to:
		return p.from >= s.from // once more
	}
	s.to = p.to
	s.reads++
	for again := true; again; {
		again = false
		s.early = slices.DeleteFunc(s.early, func(e piece) bool {
			if e.from > s.to {
				return false
			}
			s.to = max(s.to, e.to)
			s.reads++
			again = true
			return true
		})
	}
	return true
}

// fetch asks for what the window is beyond what was asked for, in chunks, so that
// who needs a part of it waits for no more than its chunk. The caller holds s.mu.
func (s *stream) fetch(obj *extent.Object, src *source, l *link) {
	end := min(s.to+s.window, obj.Source().Version.Size)
	chunk := min(s.window/4, l.within(20*time.Millisecond, chunkMost/4), chunkMost)
	chunk = max(chunk/chunkAlign*chunkAlign, chunkAlign)
	for at := max(s.asked, s.to); at < end; at = s.asked {
		to := min((at+chunk)/chunkAlign*chunkAlign, end)
		if to == end && to-at < chunk/2 && end < obj.Source().Version.Size {
			return // it comes with what follows
		}
		if !obj.PresentRange(at, to-at) && !s.begin(obj, src, l, at, to) {
			return
		}
		s.asked = to
	}
}

func (s *stream) begin(obj *extent.Object, src *source, l *link, from, to int64) bool {
	ctx, release := s.ctx, obj.Hold()
	began := s.ahead.begin(to-from, func() error {
		defer release()
		if src.busy != nil {
			defer src.busy.begin()() // somebody will wait for it in a moment
		}
		began := time.Now()
		l.sent()
		err := obj.Fill(ctx, src, from, to-from)
		switch {
		case err == nil:
			l.landed(to-from, began)
		case ctx.Err() != nil:
			l.landed(0, began)
			return nil
		default:
			l.landed(0, began)
			s.mu.Lock()
			s.rest = time.Now().Add(aheadRest)
			s.mu.Unlock()
		}
		return err
	})
	if !began {
		release()
	}
	return began
}

// stop ends what is fetched before the reader, who has gone elsewhere. The caller
// holds s.mu.
func (s *stream) stop() {
	if s.window > 0 {
		s.window = 0
		s.cancel()
		s.ahead.open(-1)
	}
}

// end is stop for a handle that is closed.
func (s *stream) end() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	s.reads = 0
}
