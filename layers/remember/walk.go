package remember

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/migratefs/migratefs/layers"
)

// Running ahead of a tree walker. A program that walks a tree (find, du, grep -r, git
// status) comes to one directory after the other, and would wait for each. So when it
// comes to a second one, beside or below the first, the directories that it will come to
// next are listed before it does, many in one exchange; when those are there, the ones
// below them: a tree then takes about as many exchanges as it is deep.
//
// A walker comes to a directory by listing it, or by asking for its names one by one,
// which shows at the second that was not known. Where it will go next is what lies below
// the directory it is in, then what comes after that in the directories above, in the
// order in which programs get a listing or, if it goes by name, in that.
//
// Never more directories are listed than four for each that the walker has come to, but
// for the first few; and none any more when it has not come to another for a while.

const (
	pause = 2 * time.Second // a walker that comes to nothing for so long has stopped

	firstAhead = 256 // directories that a walk may list in any case: an exchange
	perUsed    = 4   // and for each that the walker came to
	mostWalks  = 16

	batchDirs  = 128     // directories in one exchange
	mostFlying = 512     // directories of one walk that are being listed
	slowest    = 32      // directories that are listed ahead of a walker that takes its time
	mostWeight = 4 << 20 // their own sizes, which say how many names they have, about

	// A directory larger than this is listed when somebody lists it. For names that are
	// asked for one by one, each is worth so much.
	largeDir  = 256 << 10
	perMissed = 32 << 10

	mostLinks   = 256 // targets of symlinks asked for ahead
	linksAtOnce = 32

	aheadTimeout = time.Minute // of an exchange ahead
	dirsAtOnce   = 16          // of a layer that cannot be asked for many
)

// order is the order in which a walker goes through the directories in a directory.

type order uint8

const (
	unsorted order = iota
	asListed
	byName
)

// touch is a directory that somebody came to.
type touch struct {
	path layers.Path
	at   moment
}

// walk is one walker. All is protected by Layer.mu.
type walk struct {
	id   uint32
	root layers.Path // the directory above all it came to
	at   layers.Path // where it is
	last moment      // when it came there
	born moment      // when it began

	used    int // directories it came to
	fetched int // directories that were listed, by it or for it
	ready   int // of these, how many it has yet to come to
	flying  int // of these, how many are being listed for it
	weight  int // and their sizes
	named   int // how often it went by name, less how often not
	links   int // targets it had to ask for

	ctx    context.Context // of what is asked for it
	cancel context.CancelFunc
	timer  *time.Timer
}

func parentOf(p layers.Path) layers.Path {
	dir, _ := p.Split()
	return dir
}

func inside(p, dir layers.Path) bool {
	return dir == layers.Root || p == dir || strings.HasPrefix(string(p), string(dir)+"/")
}

// watches reports whether a question under ctx is somebody's, and worth to run ahead of.
func (l *Layer) watches(ctx context.Context) bool {
	return !l.cfg.NoAhead && l.cfg.Keep > 0 && !layers.IsBackground(ctx)
}

// hitLocked notes that q was asked for and known.
func (l *Layer) hitLocked(ctx context.Context, q question) {
	if !l.watches(ctx) {
		return
	}
	switch q.about {
	case aboutNames:
		l.touchLocked(q.path, known)
	case aboutAttr:
		if d := l.dirs[parentOf(q.path)]; d != nil && d.ahead {
			l.touchLocked(d.path, known)
		}
	}
}

// missLocked notes that q has to be asked of the storage.
func (l *Layer) missLocked(ctx context.Context, q question) {
	if !l.watches(ctx) {
		return
	}
	l.warmLocked()
	switch q.about {
	case aboutNames:
		l.touchLocked(q.path, listed)
	case aboutAttr:
		if q.path != layers.Root {
			l.missedNameLocked(q.path.Split())
		}
	case aboutTarget:
		l.missedLinkLocked(q.path)
	}
}

// warmLocked asks something in the background when somebody begins to use the layer: one
// that has a connection for that makes it when it is needed first, and it takes a while.
func (l *Layer) warmLocked() {
	if l.warm || l.closed {
		return
	}
	l.warm = true
	l.busy.Go(func() {
		_, _ = l.Layer.Stat(layers.Background(l.ctx), layers.Root)
	})
}

// waitedLocked notes that somebody has the answer to q only now.
func (l *Layer) waitedLocked(ctx context.Context, q question) {
	if q.about != aboutNames || !l.watches(ctx) {
		return
	}
	now := l.now()
	if w := l.walkAt(q.path); w != nil {
		w.last = now
		l.advanceLocked(w)
	}
	for i := range l.touched {
		if t := &l.touched[i]; t.at != 0 && t.path == q.path {
			t.at = now
		}
	}
}

// missedNameLocked notes that a name in p was asked for by itself. The second lists p; in a
// walk, the first.
func (l *Layer) missedNameLocked(p layers.Path, base string) {
	d := l.needDirLocked(p)
	now := l.now()
	if now-d.missAt > moment(pause) {
		d.misses, d.missed = 0, ""
	}
	d.missAt = now
	if base == d.missed {
		return // somebody watches it
	}
	d.misses++
	d.missed = base
	if d.misses < 2 && l.walkAt(p) == nil {
		return
	}
	l.touchLocked(p, named)
	size := int64(0)
	if a := l.attrLocked(p); a != nil {
		size = a.Size
	}
	if l.listableLocked(p) && size <= int64(d.misses)*perMissed {
		l.listAheadLocked(nil, []layers.Path{p}, 0)
	}
}

// listableLocked reports whether p can be listed ahead: it is not known, not under way,
// and was not refused lately.
func (l *Layer) listableLocked(p layers.Path) bool {
	if l.flights[question{aboutNames, p}] != nil {
		return false
	}
	d := l.dirs[p]
	return d == nil || !l.fresh(d.listed) && (d.refused == 0 || l.now()-d.refused > moment(10*time.Second))
}

// how somebody came to a directory.
type how uint8

const (
	known  how = iota // what he asked for was known
	listed            // he lists it, and it was not known
	named             // he asks for its names, and they are not known
)

// touchLocked notes that somebody came to the directory p.
func (l *Layer) touchLocked(p layers.Path, by how) {
	f := l.flights[question{aboutNames, p}]
	wasAhead := f != nil && f.ahead
	if d := l.dirs[p]; d != nil && d.ahead {
		d.ahead, wasAhead = false, true
		l.stats.Wanted++
	}
	now := l.now()
	w := l.walkOf(p)
	if w == nil {
		w = l.beginWalkLocked(p, now)
	}
	l.rememberTouchLocked(p, now)
	if w == nil {
		return
	}
	w.last, w.at = now, p
	if _, n := l.nameLocked(p); n != nil && p != layers.Root {
		if n.walk == w.id && by == named {
			return // it is there still, and some of it is not valid any more
		}
		if n.walk == w.id && by == listed && !wasAhead {
			l.walkID++ // it walks once more: it has been nowhere yet
			w.id, w.born, w.used, w.fetched = l.walkID, now, 0, 0
		}
		if n.walk != w.id {
			l.voteLocked(w, p)
			n.walk = w.id
			w.used++
			if !wasAhead {
				w.fetched++
			}
		}
	}
	if by != known {
		w.ready = 0
	} else if wasAhead {
		w.ready--
	}
	if by != known || w.flying == 0 && w.ready <= w.used/4 {
		l.advanceLocked(w) // it has nearly all that there is: as much as may be at once
	}
}

func (l *Layer) rememberTouchLocked(p layers.Path, now moment) {
	for i := range l.touched {
		if t := &l.touched[i]; t.at != 0 && t.path == p {
			t.at = now
			return
		}
	}
	l.touched[l.next] = touch{p, now}
	l.next = (l.next + 1) % len(l.touched)
}

// walkAt returns the walk that goes through p.
func (l *Layer) walkAt(p layers.Path) *walk {
	for _, w := range l.walks {
		if inside(p, w.root) {
			return w
		}
	}
	return nil
}

// walkOf is walkAt, or the walk that has come up to p: it may have begun in the middle.
func (l *Layer) walkOf(p layers.Path) *walk {
	if w := l.walkAt(p); w != nil {
		return w
	}
	for _, w := range l.walks {
		if up := parentOf(w.root); inside(p, up) {
			w.root = up
			return w
		}
	}
	return nil
}

// beginWalkLocked begins a walk if p is the second directory, beside the first or in it,
// that somebody came to lately.
func (l *Layer) beginWalkLocked(p layers.Path, now moment) *walk {
	if p == layers.Root || l.closed {
		return nil
	}
	root := parentOf(p)
	for _, t := range l.touched {
		if t.at == 0 || now-t.at > moment(pause) || t.path == p || t.path != root && (t.path == layers.Root || parentOf(t.path) != root) {
			continue
		}
		if len(l.walks) == mostWalks {
			l.endWalkLocked(slices.MinFunc(l.walks, func(a, b *walk) int { return cmp.Compare(a.last, b.last) }))
		}
		l.walkID++
		w := &walk{id: l.walkID, root: root, born: now, used: 1, fetched: 1}
		if _, n := l.nameLocked(t.path); n != nil {
			n.walk = w.id
		}
		w.ctx, w.cancel = context.WithCancel(l.ctx)
		w.timer = time.AfterFunc(pause, func() { l.look(w) })
		l.walks = append(l.walks, w)
		return w
	}
	return nil
}

// look ends w if its walker has stopped. One that waits has not.
func (l *Layer) look(w *walk) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.ctx.Err() != nil {
		return
	}
	idle := l.now()-w.last >= moment(pause)
	for q, f := range l.flights {
		idle = idle && !(f.waiting > 0 && inside(q.path, w.root))
	}
	if idle {
		l.endWalkLocked(w)
		return
	}
	w.timer.Reset(pause)
}

func (l *Layer) endWalkLocked(w *walk) {
	w.cancel()
	w.timer.Stop()
	l.walks = slices.DeleteFunc(l.walks, func(x *walk) bool { return x == w })
}

// voteLocked notes whether w, which comes to p, goes by name: it comes to the first by
// name that it has not come to, and another is the first of the listing.
func (l *Layer) voteLocked(w *walk, p layers.Path) {
	d := l.dirs[parentOf(p)]
	if d == nil || w.used > 16 {
		return
	}
	first := func(o order) string {
		for _, base := range l.subsLocked(d, o) {
			if d.names[base].walk != w.id {
				return base
			}
		}
		return ""
	}
	switch name, listed, base := first(byName), first(asListed), baseOf(p); {
	case name == listed:
	case base == name:
		w.named++
	case base == listed:
		w.named--
	}
}

// subsLocked returns the names of the directories in d.
func (l *Layer) subsLocked(d *dir, o order) []string {
	if d.subs == nil {
		d.subs, d.sorted = make([]string, 0), unsorted
		for base, n := range d.names {
			if base != "" && n.isDir() {
				d.subs = append(d.subs, base)
			}
		}
	}
	if d.sorted != o {
		l.sort(d.subs, o)
		d.sorted = o
	}
	return d.subs
}

func (l *Layer) sort(names []string, o order) {
	slices.SortFunc(names, func(a, b string) int {
		if o == asListed && l.cfg.Order != nil {
			if c := cmp.Compare(l.cfg.Order(a), l.cfg.Order(b)); c != 0 {
				return c
			}
		}
		return strings.Compare(a, b)
	})
}
