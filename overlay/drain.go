package overlay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// DrainConfig says what Drain brings up, and how fast.
type DrainConfig struct {
	// Path is the directory of the merged tree whose files are meant, or one file.
	Path   layers.Path
	Select Selection

	// Shard and Shards are one part of the work, for several drains at once: the
	// names in a directory are one shard's, Shard from 0 on. No Shards: all is ours.
	Shard, Shards int

	Jobs int // files under way at once; 0 is one

	// Hold, if not nil, is called before each file, and returns when it may move; Pace
	// after each piece of n bytes that was copied, and returns when the next may be.
	Hold func(ctx context.Context) error
	Pace func(ctx context.Context, n int64) error
	// Verify compares each copy with its source before the lower one goes, both read
	// from where they are stored.
	Verify bool

	// Failed is told of each name that stays although it is meant, one at a time.
	Failed func(DrainFailure)

	// Seen, if not nil, has the counts while Drain runs.
	Seen *DrainCounts
}

// DrainCounts is how far a drain is. Of a file with several names the first has
// the bytes, and the others none.
type DrainCounts struct {
	Files atomic.Int64 // names that left the lowers, or would
	Bytes atomic.Int64 // in them
	Dirs  atomic.Int64 // directories that left the lowers
	Left  atomic.Int64 // names that are meant and stay
	Other atomic.Int64 // names that are not meant, or another shard's
	Known atomic.Bool  // the counts are all that there is: a walk has ended
}

// DrainFailure is a name that stays in a lower.
type DrainFailure struct {
	Path  layers.Path
	Lower int // which one, from 0 on, the highest first
	Err   error
}

// Errno is the error as a program would have seen it.
func (f *DrainFailure) Errno() unix.Errno { return errnoOf(f.Err) }

var (
	// ErrShadowed: a higher layer has another file of that name. Which of the two is
	// wanted nobody can tell: neither is touched.
	ErrShadowed = errors.New("a higher layer has another file of that name, with other content")
	// ErrForeign: a filesystem, or a subvolume, of its own.
	ErrForeign = errors.New("another filesystem or subvolume begins here: drain it as a lower of its own")
	// ErrRestless: a directory whose names come and go, again and again.
	ErrRestless = errors.New("it was changed each time it was looked at")
)

// passes is how often a directory is listed when there is more in it afterwards
// than is known to stay.
const passes = 8

// drain is one call of Drain.
type drain struct {
	fs   *FS // nil: nothing is changed, only counted
	cfg  DrainConfig
	seen *DrainCounts
	l    *layer // the lower that is walked

	room   chan struct{} // a token for each goroutine but the first
	crew   sync.WaitGroup
	told   sync.Mutex // protects calls of cfg.Failed
	cancel context.CancelCauseFunc
}

// Drain brings up what still lies in the lowers, in migrate mode, and removes it
// from there, directories too when they have become empty. What cannot come up is
// reported and stays; the rest goes on. It is an error when Drain as a whole cannot
// go on: ctx has ended, or the upper is full.
func (fs *FS) Drain(ctx context.Context, cfg DrainConfig) error {
	if fs.cfg.Mode != Migrate || fs.upper == nil {
		return fmt.Errorf("drain is for mode=migrate: %w", unix.EINVAL)
	}
	fs.removals.now.Store(true) // it looks at what is left
	return newDrain(fs, cfg).run(ctx, fs.lowers)
}

// CountDrain counts what Drain would move, and changes nothing.
func CountDrain(ctx context.Context, lowers []Lower, cfg DrainConfig) error {
	d := newDrain(nil, cfg)
	var ls []*layer
	for i, low := range lowers {
		r, ok := low.Layer.(interface{ Root() int })
		if !ok {
			return fmt.Errorf("drain is for local lowers: %w", unix.EINVAL)
		}
		ls = append(ls, &layer{Layer: low.Layer, index: i + 1, root: r.Root()})
	}
	return d.run(ctx, ls)
}

func newDrain(fs *FS, cfg DrainConfig) *drain {
	d := &drain{fs: fs, cfg: cfg, seen: cfg.Seen, room: make(chan struct{}, max(cfg.Jobs, 1)-1)}
	if d.seen == nil {
		d.seen = new(DrainCounts)
	}
	return d
}

// run drains the lowers one after the other, the highest first: then each name is
// visited once, and what a higher lower hides is hidden by the upper by then.
func (d *drain) run(ctx context.Context, lowers []*layer) error {
	ctx, d.cancel = context.WithCancelCause(ctx)
	defer d.cancel(nil)
	for _, l := range lowers {
		d.l = l
		if err := d.walk(ctx); err != nil {
			d.fail(d.cfg.Path, err)
		}
		d.crew.Wait()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	d.seen.Known.Store(true)
	return nil
}

// fail reports that path stays. An upper that is full, or gone, ends the drain:
// nothing else would come up either.
func (d *drain) fail(path layers.Path, err error) {
	d.told.Lock()
	defer d.told.Unlock()
	d.seen.Left.Add(1)
	if d.cfg.Failed != nil {
		d.cfg.Failed(DrainFailure{Path: path, Lower: d.l.index - 1, Err: err})
	}
	switch errnoOf(err) {
	case unix.ENOSPC, unix.EROFS, unix.ENOTCONN, unix.ESHUTDOWN:
		d.cancel(fmt.Errorf("stopped at %q: %w", string(path), err))
	}
}

// hand runs f, on a goroutine of its own while there may be more of them: what
// waits is then bounded by how deep the tree is, not by how wide.
func (d *drain) hand(f func()) {
	select {
	case d.room <- struct{}{}:
		d.crew.Go(func() {
			defer func() { <-d.room }()
			f()
		})
	default:
		f()
	}
}
