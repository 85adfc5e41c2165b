package remember

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// question is one thing that can be asked of the storage.
type question struct {
	about about
	path  layers.Path
}

type about uint8

const (
	aboutAttr about = iota
	aboutNames
	aboutTarget
	aboutXattrs
	aboutStatfs
)

func (a about) String() string {
	return [...]string{"stat", "readdir", "readlink", "xattrs", "statfs"}[a]
}

// flight is a question under way. All who ask it wait for the one answer; when the last
// of them has given up, so does the question.
type flight struct {
	asked moment        // when
	done  chan struct{} // closed when the answer is complete

	// protected by Layer.mu until done is closed
	waiting int
	stale   bool               // the answer is not to be remembered, and nobody joins
	cancel  context.CancelFunc // nil: asked ahead, together with others

	ahead   bool // immutable
	attr    layers.Attr
	entries []layers.Entry
	target  string
	xattrs  layers.Xattrs
	statfs  layers.Statfs
	err     error
}

// listing is a copy of f's entries: callers change what they get.
func (f *flight) listing() []layers.Entry { return append([]layers.Entry(nil), f.entries...) }

// ask answers q from memory or, if that does not know, from the storage.
func ask[T any](ctx context.Context, l *Layer, q question,
	recall func(p layers.Path, any bool) (T, moment, bool, error),
	do func(ctx context.Context, f *flight), result func(f *flight) T,
) (none T, err error) {
	for alone := false; ; {
		if err := ctx.Err(); err != nil {
			return none, err
		}
		off := away(l.Offline())
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			return none, &layers.PathError{Op: q.about.String(), Layer: l.ID(), Path: q.path, Err: unix.EBADF}
		}
		if v, at, known, err := recall(q.path, off); known {
			l.stats.Known++
			if !off {
				l.hitLocked(ctx, q)
			}
			l.mu.Unlock()
			l.tell(ctx, at)
			return v, err
		}
		if q.about != aboutXattrs { // which a layer without any knows by itself
			l.stats.Waits++
		}
		f := l.joinLocked(ctx, q, do, alone)
		l.missLocked(ctx, q)
		l.mu.Unlock()
		if err := l.wait(ctx, q, f); err == errSlow {
			alone = true
			continue
		} else if err != nil {
			return none, err
		}
		switch {
		case f.err == nil:
		case away(f.err):
			l.mu.Lock()
			v, at, known, err := recall(q.path, true)
			l.mu.Unlock()
			if known {
				l.tell(ctx, at)
				return v, err
			}
		case f.ahead:
			continue // it was asked for with much else, and maybe given up with that
		}
		l.tell(ctx, f.asked)
		if f.err != nil {
			return none, f.err
		}
		return result(f), nil
	}
}

// joinLocked returns the flight of q, which begins now if there is none, with one more
// who waits; if alone, not one that was asked ahead.
func (l *Layer) joinLocked(ctx context.Context, q question, do func(ctx context.Context, f *flight), alone bool) *flight {
	if f := l.flights[q]; f != nil && l.cfg.Keep > 0 && !(f.ahead && (alone || l.late)) {
		f.waiting++
		return f
	}
	f := &flight{asked: l.now(), done: make(chan struct{}), waiting: 1}
	base := l.ctx
	if layers.IsBackground(ctx) {
		base = layers.Background(base)
	}
	base, f.cancel = context.WithCancel(base)
	if l.cfg.Keep > 0 {
		l.flights[q] = f
	}
	l.busy.Go(func() {
		defer f.cancel()
		do(base, f)
		l.land(q, f)
		if f.err == nil && !layers.IsBackground(base) {
			l.took(l.now() - f.asked)
		}
	})
	return f
}

// errSlow: what was asked ahead does not come in the time that it takes to ask for it.
var errSlow = errors.New("asked ahead, and slow to come")

// leastPatience is how long what was asked ahead is waited for at least.
const leastPatience = 50 * time.Millisecond

// took notes how long an answer took that somebody waited for.
func (l *Layer) took(d moment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.usual == 0 {
		l.usual = d
	}
	l.usual += (d - l.usual) / 8
}

// wait waits for f. It returns the error of ctx if that ends before, and errSlow if the
// background, where f was asked, has much else to do.
func (l *Layer) wait(ctx context.Context, q question, f *flight) error {
	var err error
	var slow <-chan time.Time
	if f.ahead {
		l.mu.Lock()
		t := time.NewTimer(max(l.cfg.patience, 4*time.Duration(l.usual)))
		l.mu.Unlock()
		defer t.Stop()
		slow = t.C
	}
	select {
	case <-f.done:
	case <-slow:
		err = errSlow
	case <-ctx.Done():
		err = ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f.waiting--
	l.late = l.late || err == errSlow
	if err == nil {
		l.waitedLocked(ctx, q)
	} else if f.waiting == 0 && f.cancel != nil {
		f.cancel()
		f.stale = true
		l.takeOffLocked(q, f)
	}
	return err
}

func (l *Layer) takeOffLocked(q question, f *flight) {
	if l.flights[q] == f {
		delete(l.flights, q)
	}
}

// land remembers the answer of f and tells who waits for it.
func (l *Layer) land(q question, f *flight) {
	var new newListing
	if q.about == aboutNames && f.err == nil {
		new = prepare(f.entries, f.asked)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.landLocked(q, f, new)
}

func (l *Layer) landLocked(q question, f *flight, new newListing) {
	l.takeOffLocked(q, f)
	if !f.stale {
		l.rememberLocked(q, f, new)
	}
	l.late = l.late && !(f.ahead && f.err == nil)
	close(f.done)
}

func (l *Layer) rememberLocked(q question, f *flight, new newListing) {
	l.note(f.err)
	switch {
	case f.err == nil:
	case q.about == aboutAttr && errors.Is(f.err, unix.ENOENT):
		l.putLocked(q.path, f.asked, func(n *name) { n.miss(f.asked) })
		return
	case gone(f.err):
		l.forgetLocked(q.path)
		return
	default:
		return
	}
	switch q.about {
	case aboutAttr:
		a := f.attr
		l.putLocked(q.path, f.asked, func(n *name) { n.see(&a, f.asked) })
	case aboutNames:
		l.putListingLocked(q.path, f.asked, new)
	case aboutTarget:
		l.putLocked(q.path, f.asked, func(n *name) {
			t := f.target
			n.target, n.targetAt = &t, f.asked
		})
	case aboutXattrs:
		l.putLocked(q.path, f.asked, func(n *name) { n.xattrs, n.xattrsAt = f.xattrs, f.asked })
	case aboutStatfs:
		st := f.statfs
		l.statfs, l.statAt = &st, f.asked
	}
}
