package remember

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// What is listed, and which targets are asked for, before a walker comes to them.

// advanceLocked lists what w will come to, as far as it may.
func (l *Layer) advanceLocked(w *walk) {
	if w.ctx.Err() != nil || away(l.Offline()) {
		return
	}
	// Of the first few, half is for what turns out to be below the next.
	room := max(perUsed*w.used-w.fetched, (firstAhead-w.fetched+1)/2)
	room = min(room, mostFlying-w.flying, l.inTimeLocked(w)-w.ready-w.flying)
	if room <= 0 {
		return
	}
	c := coming{l: l, w: w, room: room, weight: mostWeight - w.weight, steps: 4096 + 4*room, order: asListed}
	if w.named > 0 {
		c.order = byName
	}
	at, from := w.at, layers.Path("")
	if l.flights[question{aboutNames, at}] != nil && at != w.root {
		// It has yet to show what comes first. What it lies beside comes in the same exchange.
		c.in(parentOf(at), at, false)
		c.stop = true
	}
	for ; !c.stop; at, from = parentOf(at), at {
		c.in(at, from, true)
		if at == w.root || !inside(at, w.root) {
			break
		}
	}
	w.fetched += len(c.paths)
	for batch := range slices.Chunk(c.paths, batchDirs) {
		weight := 0
		for _, p := range batch {
			weight += l.weightLocked(p)
		}
		l.listAheadLocked(w, batch, weight)
	}
}

// inTimeLocked is how many directories w comes to, at its pace, before what is listed now is
// not valid any more, and some time to spare.
func (l *Layer) inTimeLocked(w *walk) int {
	took := l.now() - w.born
	if l.cfg.Keep == Forever || took <= 0 || w.used < slowest {
		return mostFlying
	}
	return max(slowest, int(float64(w.used)*float64(l.cfg.Keep)/2/float64(took)))
}

// coming looks for the directories that a walker comes to next and that are not listed,
// in the order in which it comes to them. What is being listed it does not look beyond:
// that shows what comes next.
type coming struct {
	l      *Layer
	w      *walk
	order  order
	paths  []layers.Path
	room   int // for so many
	weight int // of so much
	steps  int // after so many looks
	stop   bool
}

// in looks in p, and below what is listed there, but not in from, where it comes from.
func (c *coming) in(p, from layers.Path, below bool) {
	d := c.l.dirs[p]
	if d == nil || d.listed == 0 {
		return // an old listing does: that is what the walker goes by
	}
	for _, base := range c.l.subsLocked(d, c.order) {
		n := d.names[base]
		sub := p.Join(base)
		if n.walk == c.w.id || sub == from {
			continue // it was there, or is
		}
		switch {
		case c.l.listedLocked(sub) != nil:
			if below {
				c.in(sub, "", true)
			}
		case c.l.flights[question{aboutNames, sub}] != nil:
			c.stop = below
		case c.l.listableLocked(sub) && (n.attr == nil || n.attr.Size <= largeDir):
			c.paths = append(c.paths, sub)
			c.weight -= c.l.weightLocked(sub)
			c.room--
		}
		if c.steps--; c.room <= 0 || c.weight <= 0 || c.steps <= 0 {
			c.stop = true
		}
		if c.stop {
			return
		}
	}
}

func (l *Layer) weightLocked(p layers.Path) int {
	if a := l.attrLocked(p); a != nil && a.Size > 4096 {
		return int(min(a.Size, largeDir))
	}
	return 4096
}

// listAheadLocked lists paths in the background: for w, or because several of their
// names were asked for.
func (l *Layer) listAheadLocked(w *walk, paths []layers.Path, weight int) {
	if l.closed {
		return
	}
	asked, base := l.now(), l.ctx
	flights := make([]*flight, len(paths))
	for i, p := range paths {
		flights[i] = &flight{asked: asked, done: make(chan struct{}), ahead: true}
		l.flights[question{aboutNames, p}] = flights[i]
	}
	if w != nil {
		base = w.ctx
		w.flying += len(paths)
		w.weight += weight
		l.stats.Ahead += int64(len(paths))
	}
	l.busy.Go(func() {
		ctx, cancel := context.WithTimeout(layers.Background(base), aheadTimeout)
		defer cancel()
		lists, err := listMany(ctx, l.Layer, paths)
		news := make([]newListing, len(paths))
		for i, f := range flights {
			if f.err = err; err == nil {
				f.entries, f.err = lists[i].Entries, lists[i].Err
			}
			news[i] = prepare(f.entries, asked)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, p := range paths {
			l.landAheadLocked(p, flights[i], news[i], w)
		}
		if w != nil {
			w.flying -= len(paths)
			w.weight -= weight
			l.advanceLocked(w)
		}
	})
}

func (l *Layer) landAheadLocked(p layers.Path, f *flight, new newListing, w *walk) {
	wanted := f.waiting > 0
	l.landLocked(question{aboutNames, p}, f, new)
	d := l.dirs[p]
	switch {
	case away(f.err) || errors.Is(f.err, context.Canceled):
	case f.err != nil || d == nil || !l.fresh(d.listed):
		l.needDirLocked(p).refused = l.now() // or it takes too much to be remembered
	case w == nil:
	case wanted:
		l.stats.Wanted++
	default:
		// Who comes to it later counts as having come to what was listed for him; who came
		// meanwhile has counted.
		_, n := l.nameLocked(p)
		d.ahead = n == nil || n.walk != w.id
		if d.ahead {
			w.ready++
		} else {
			l.stats.Wanted++
		}
	}
}

// listMany lists many directories, one by one where the layer cannot do better.
func listMany(ctx context.Context, in layers.Layer, paths []layers.Path) ([]layers.Listing, error) {
	if b, ok := in.(layers.BulkLister); ok {
		return b.ReadDirs(ctx, paths)
	}
	lists := make([]layers.Listing, len(paths))
	each(len(paths), dirsAtOnce, func(i int) { lists[i].Entries, lists[i].Err = in.ReadDir(ctx, paths[i]) })
	return lists, nil
}

// each runs f for 0 to n-1, so many at a time.
func each(n, atOnce int, f func(i int)) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, atOnce)
	for i := range n {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			f(i)
		})
	}
	wg.Wait()
}

// missedLinkLocked notes that the target of the symlink p was asked for. With the second
// in a directory, or in a walk, all in it are.
func (l *Layer) missedLinkLocked(p layers.Path) {
	d, _ := l.nameLocked(p)
	if d == nil {
		return
	}
	d.links++
	w := l.walkAt(p)
	if w != nil {
		w.links++
	}
	if d.links > 1 || w != nil && w.links > 1 {
		l.linksAheadLocked(d, baseOf(p))
	}
}

// linksAheadLocked asks for the targets of the symlinks in d, from base on as they are
// listed.
func (l *Layer) linksAheadLocked(d *dir, base string) {
	if l.closed {
		return
	}
	var names []string
	for base, n := range d.names {
		q := question{aboutTarget, d.path.Join(base)}
		if base != "" && n.typ == unix.S_IFLNK && !n.absent && l.flights[q] == nil && (n.target == nil || !l.fresh(n.targetAt)) {
			names = append(names, base)
		}
	}
	if len(names) == 0 {
		return
	}
	l.sort(names, asListed)
	if len(names) > mostLinks {
		from, _ := slices.BinarySearchFunc(names, base, func(a, b string) int {
			if l.cfg.Order != nil {
				return cmp.Compare(l.cfg.Order(a), l.cfg.Order(b))
			}
			return strings.Compare(a, b)
		})
		names = append(names[from:], names[:from]...)[:mostLinks]
	}
	flights := make([]*flight, len(names))
	for i, base := range names {
		flights[i] = &flight{asked: l.now(), done: make(chan struct{}), ahead: true}
		l.flights[question{aboutTarget, d.path.Join(base)}] = flights[i]
	}
	l.busy.Go(func() {
		ctx, cancel := context.WithTimeout(layers.Background(l.ctx), aheadTimeout)
		defer cancel()
		each(len(names), linksAtOnce, func(i int) {
			p, f := d.path.Join(names[i]), flights[i]
			f.target, f.err = l.Layer.Readlink(ctx, p)
			l.land(question{aboutTarget, p}, f)
		})
	})
}
