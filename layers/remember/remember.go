// Package remember is a layer around a layer whose storage is far away: what was
// seen of names and attributes is remembered, answers while it is known to be valid,
// and answers whatever its age while the storage cannot be asked. Contents are not
// its business.
//
// # How long what was seen is valid
//
// For Config.Keep from the moment on that the storage was asked for it (as NFS counts,
// not from its answer on: a link may stall in between); that a name is not there for no
// longer than Config.Absent. Every answer tells its age (layers.AnsweredAsOf), so that
// who passes it on, to a cache of his own, can pass on what is left of the time: what
// the storage holds is then seen after that time at the latest, through any number of
// caches. A listing that was fetched ahead of a walker is no exception: it counts from
// when it was asked for, and is fetched again if the walker comes too late.
//
// An answer that the storage contradicts is valid no more: a file that is opened, or
// read, and is another one by now (ErrStale) makes its path and every directory above
// it unknown, and what was asked before that moment is not kept. Storage that is not the
// one that was mounted (ErrReplaced) makes everything unknown.
//
// It never turns "cannot look" into "is not there". A name is absent if its directory
// was listed without it, or if the storage, asked for that name, said so; while the
// storage is away, only if it was listed without it.
//
// # What is asked for
//
//   - One thing once: who asks for what is being asked for waits for that answer.
//   - A directory, when a second of its names is asked for that is not known: the rest
//     of them is then known as well, also which are not there. Likewise all targets of
//     the symlinks in a directory, with the second.
//   - The directories that a tree walker will come to; see walk.go.
//
// # Locks
//
// Layer.mu protects all that is remembered and is held for memory only, never while the
// storage is asked. Attributes and listings that were handed out are not changed.
//
// Start reading at Layer.Stat, then walk.go.
package remember

import (
	"container/list"
	"context"
	"errors"
	"maps"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Forever as Config.Keep is for storage that nobody changes.
const Forever time.Duration = math.MaxInt64

// defaultMax is what may be remembered, in bytes: some 200,000 names.
const defaultMax = 64 << 20

// Config says how long and how much is remembered.
type Config struct {
	Keep   time.Duration // how long what was seen is valid; 0: it answers only while the storage is away
	Absent time.Duration // likewise that a name is not there; more than Keep is Keep

	// NoAhead: nothing is asked for that nobody has asked for.
	NoAhead bool

	// Order is the order in which a program that lists a directory gets its names, by
	// ascending value: a walker that does not sort goes on in it. Nil: by name.
	Order func(name string) uint64

	Max int // of bytes remembered; 0: 64 MiB

	now      func() moment // of tests
	patience time.Duration // leastPatience, but for tests
}

// moment is nanoseconds since the layer was made, by a clock that does not jump. The
// first is 1; 0 is never.
type moment int64

// Layer remembers for another layer.
type Layer struct {
	layers.Layer // asked for what is not known

	cfg  Config    // immutable
	born time.Time // immutable; moment 0
	ctx  context.Context
	stop context.CancelFunc
	busy sync.WaitGroup // what asks the storage

	mu        sync.Mutex
	closed    bool
	dirs      map[layers.Path]*dir
	used      list.List // of *dir, the one used last in front
	bytes     int       // of dirs
	flights   map[question]*flight
	walks     []*walk
	usual     moment // how long an answer takes
	late      bool   // what is asked ahead does not come: nobody waits for it until some has
	warm      bool   // something was asked in the background
	walkID    uint32
	touched   [8]touch // directories, lately
	next      int      // where the next goes
	forgotten int      // how often something turned out to be wrong
	doubted   moment   // what was asked until then is not valid
	statfs    *layers.Statfs
	statAt    moment
	stats     Stats
}

// Stats are totals since New.
type Stats struct {
	Known  int64 // questions that were answered from memory
	Waits  int64 // questions whose answer the storage was waited for
	Ahead  int64 // directories that were listed without having been asked for
	Wanted int64 // those of them that were asked for later
	Bytes  int64 // remembered now
}

var (
	_ layers.Layer      = (*Layer)(nil)
	_ layers.BulkStater = (*Layer)(nil)
	_ layers.BulkReader = (*Layer)(nil)
	_ layers.Offliner   = (*Layer)(nil)
)

// New wraps inner, which it closes.
func New(inner layers.Layer, cfg Config) *Layer {
	cfg.Absent = min(cfg.Absent, cfg.Keep)
	if cfg.Max == 0 {
		cfg.Max = defaultMax
	}
	if cfg.patience == 0 {
		cfg.patience = leastPatience
	}
	l := &Layer{
		Layer: inner, cfg: cfg, born: time.Now(),
		dirs: make(map[layers.Path]*dir), flights: make(map[question]*flight),
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// Close implements layers.Layer.
func (l *Layer) Close() error {
	l.mu.Lock()
	l.closed = true
	for len(l.walks) > 0 {
		l.endWalkLocked(l.walks[0])
	}
	l.mu.Unlock()
	l.stop()
	l.busy.Wait()
	return l.Layer.Close()
}

// Stats returns the totals so far.
func (l *Layer) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Bytes = int64(l.bytes)
	return s
}

func (l *Layer) now() moment {
	if l.cfg.now != nil {
		return l.cfg.now()
	}
	return moment(time.Since(l.born)) + 1
}

func (l *Layer) fresh(at moment) bool  { return l.within(at, l.cfg.Keep) }
func (l *Layer) absent(at moment) bool { return l.within(at, l.cfg.Absent) }

func (l *Layer) within(at moment, keep time.Duration) bool {
	return at > l.doubted && (keep == Forever || l.now()-at < moment(keep))
}

// note notes what err says about all that is remembered: of storage that is not the one
// that was seen nothing is valid any more. The caller holds mu.
func (l *Layer) note(err error) {
	if errors.Is(err, layers.ErrReplaced) {
		l.doubted = l.now()
		l.forgotten++
	}
}

// tell tells ctx as of when it is answered. What is kept for ever has no age.
func (l *Layer) tell(ctx context.Context, at moment) {
	if l.cfg.Keep != Forever {
		layers.AnsweredAsOf(ctx, l.born.Add(time.Duration(at)))
	}
}

// Offline implements layers.Offliner.
func (l *Layer) Offline() error {
	if o, ok := l.Layer.(layers.Offliner); ok {
		return o.Offline()
	}
	return nil
}

// away reports whether err says that the storage cannot be asked.
func away(err error) bool {
	return errors.Is(err, layers.ErrOffline) || errors.Is(err, layers.ErrDenied)
}

func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

// Stat implements layers.Layer.
func (l *Layer) Stat(ctx context.Context, p layers.Path) (layers.Attr, error) {
	return ask(ctx, l, question{aboutAttr, p}, l.recallStat, func(ctx context.Context, f *flight) {
		f.attr, f.err = l.Layer.Stat(ctx, p)
	}, func(f *flight) layers.Attr { return f.attr })
}

// recallStat answers from memory, also with ENOENT. The caller holds mu.
func (l *Layer) recallStat(p layers.Path, any bool) (a layers.Attr, at moment, known bool, err error) {
	dirPath, base := p.Split()
	d := l.dirs[dirPath]
	if d == nil {
		return a, 0, false, nil
	}
	l.used.MoveToFront(d.elem)
	n, absent := d.names[base], false
	switch {
	case n == nil:
		at = d.listed
		absent = at != 0 && base != "" && (any || l.absent(at))
	case n.absent:
		at = n.at
		absent = !any && l.absent(at)
	case n.attr != nil && (any || l.fresh(n.at)):
		return *n.attr, n.at, true, nil
	}
	if !absent {
		return a, 0, false, nil
	}
	return a, at, true, &layers.PathError{Op: "stat", Layer: l.ID(), Path: p, Err: unix.ENOENT}
}

// ReadDir implements layers.Layer.
func (l *Layer) ReadDir(ctx context.Context, p layers.Path) ([]layers.Entry, error) {
	return ask(ctx, l, question{aboutNames, p}, l.recallDir, func(ctx context.Context, f *flight) {
		f.entries, f.err = l.Layer.ReadDir(ctx, p)
	}, (*flight).listing)
}

// recallDir lists p from memory. The caller holds mu.
func (l *Layer) recallDir(p layers.Path, any bool) (entries []layers.Entry, at moment, known bool, err error) {
	d := l.dirs[p]
	if d == nil || d.listed == 0 || !any && !l.fresh(d.listed) {
		return nil, 0, false, nil
	}
	entries = make([]layers.Entry, 0, len(d.names))
	for base, n := range d.names {
		switch {
		case base == "" || n.absent:
		case n.at == 0 && !any:
			return nil, 0, false, nil // something was wrong with it
		default:
			e := layers.Entry{Name: base, Type: n.typ, Ino: n.ino}
			if any || l.fresh(n.at) {
				e.Attr = n.attr
			}
			entries = append(entries, e)
		}
	}
	l.used.MoveToFront(d.elem)
	return entries, d.listed, true, nil
}

// Readlink implements layers.Layer.
func (l *Layer) Readlink(ctx context.Context, p layers.Path) (string, error) {
	return ask(ctx, l, question{aboutTarget, p}, l.recallTarget, func(ctx context.Context, f *flight) {
		f.target, f.err = l.Layer.Readlink(ctx, p)
	}, func(f *flight) string { return f.target })
}

func (l *Layer) recallTarget(p layers.Path, any bool) (string, moment, bool, error) {
	if _, n := l.nameLocked(p); n != nil && n.target != nil && (any || n.at != 0 && l.fresh(n.targetAt)) {
		return *n.target, n.targetAt, true, nil
	}
	return "", 0, false, nil
}

// Xattrs implements layers.Layer.
func (l *Layer) Xattrs(ctx context.Context, p layers.Path) (layers.Xattrs, error) {
	return ask(ctx, l, question{aboutXattrs, p}, l.recallXattrs, func(ctx context.Context, f *flight) {
		f.xattrs, f.err = l.Layer.Xattrs(ctx, p)
	}, func(f *flight) layers.Xattrs { return maps.Clone(f.xattrs) })
}

func (l *Layer) recallXattrs(p layers.Path, any bool) (layers.Xattrs, moment, bool, error) {
	_, n := l.nameLocked(p)
	switch {
	case n == nil:
	case n.attr != nil && n.attr.Has(layers.KnownBare) && (any || l.fresh(n.at)):
		return nil, n.at, true, nil // the attributes say that there are none
	case n.xattrsAt != 0 && (any || n.at != 0 && l.fresh(n.xattrsAt)):
		return maps.Clone(n.xattrs), n.xattrsAt, true, nil // callers change what they get
	}
	return nil, 0, false, nil
}

// Statfs implements layers.Layer.
func (l *Layer) Statfs(ctx context.Context) (layers.Statfs, error) {
	return ask(ctx, l, question{aboutStatfs, layers.Root}, l.recallStatfs, func(ctx context.Context, f *flight) {
		f.statfs, f.err = l.Layer.Statfs(ctx)
	}, func(f *flight) layers.Statfs { return f.statfs })
}

func (l *Layer) recallStatfs(_ layers.Path, any bool) (st layers.Statfs, at moment, known bool, err error) {
	if l.statfs != nil && !any && l.fresh(l.statAt) {
		return *l.statfs, l.statAt, true, nil
	}
	return st, 0, false, nil
}
