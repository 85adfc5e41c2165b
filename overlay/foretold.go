package overlay

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Foretold is a part of a file that will be read, as somebody knows who does not read
// it: a checkpoint says where its process goes on.
type Foretold struct {
	Path     layers.Path
	Off, Len int64 // bytes; none: the file will be opened
	Beside   bool  // not it, but some of the small files that lie beside it
	When     When
}

// When says how soon something is needed.
type When uint8

const (
	// Now is what somebody waits for in a moment: it is asked for as if somebody did.
	// Its files are held open for a while for who opens them.
	Now When = iota
	// Soon stands behind everybody who waits, but does not wait for quiet.
	Soon
	// Later waits until nobody else waits for the source.
	Later
)

const (
	foretoldNow  = 32               // at once, of what is needed now
	foretoldJobs = 4                // at once, of the rest
	foretoldMost = 1 << 20          // bytes that are fetched with one call
	foretoldHeld = 60 * time.Second // that what was opened for somebody is held open
	foretoldDir  = 256 << 10        // bytes of a directory that is listed for what lies beside a file
)

// Foretell fetches parts of files of sources into the cache, in the order given, as far
// as they are unchanged here and nobody has fetched them yet. It returns at once.
// Whatever fails is not fetched ahead: who reads it will ask.
func (fs *FS) Foretell(parts []Foretold) {
	a := &fs.ahead
	if a.off || len(parts) == 0 || fs.cache() == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	a.work.Go(func() {
		fs.foretell(parts)
		_ = sleep(a.ctx, foretoldHeld)
		fs.early.drop()
	})
}

// readNext are parts of files of which the first that is read tells that the rest will be.
type readNext struct {
	files map[layers.Path]bool
	fetch func()
}

// ForetellOnRead is Foretell from the moment on when somebody reads one of these files:
// what goes through all its files then waits once, and if nobody reads, nothing comes.
func (fs *FS) ForetellOnRead(parts []Foretold) {
	next := &readNext{files: make(map[layers.Path]bool), fetch: func() { fs.Foretell(parts) }}
	for _, p := range parts {
		next.files[p.Path] = true
	}
	fs.ahead.next.Store(next)
}

// foretell returns when all parts are here, or will not come.
func (fs *FS) foretell(parts []Foretold) {
	ctx := fs.ahead.ctx
	slots := [...]chan struct{}{Now: make(chan struct{}, foretoldNow), Soon: make(chan struct{}, foretoldJobs), Later: make(chan struct{}, foretoldJobs)}
	var all sync.WaitGroup
	defer all.Wait()
	for _, p := range parts {
		for {
			piece := p
			piece.Len = min(p.Len, foretoldMost)
			for until := time.Now().Add(fillYield); p.When == Later && !fs.fill.demand.quiet() && time.Now().Before(until); {
				if sleep(ctx, fillQuiet/4) != nil {
					return
				}
			}
			slot := slots[p.When]
			select {
			case slot <- struct{}{}:
			case <-ctx.Done():
				return
			}
			all.Go(func() {
				defer func() { <-slot }()
				if err := fs.bringForetold(ctx, piece); err != nil && ctx.Err() == nil {
					fs.log.Debug("not fetched ahead", "path", string(piece.Path), "cause", err)
				}
			})
			if p.Off, p.Len = p.Off+foretoldMost, p.Len-foretoldMost; p.Len <= 0 {
				break
			}
		}
	}
}

// bringForetold fetches one piece of what the highest lower has at its path, if that is
// a regular file on another host and the upper has no such name.
func (fs *FS) bringForetold(ctx context.Context, p Foretold) error {
	if fs.upper != nil {
		if _, err := fs.upper.Stat(ctx, p.Path); err == nil {
			return nil
		}
	}
	for _, l := range fs.lowers {
		attr, err := l.Stat(ctx, p.Path)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			continue
		case err != nil:
			return err
		case l.isLocal(), !attr.IsRegular(), !attr.Has(layers.KnownSize | layers.KnownTimes):
			return nil
		case p.Beside:
			return fs.bringBeside(ctx, l, p.Path)
		}
		return fs.fillForetold(ctx, &lowerRef{layer: l, path: p.Path, attr: &attr}, p)
	}
	return nil
}

func (fs *FS) fillForetold(ctx context.Context, r *lowerRef, p Foretold) error {
	if p.When == Now {
		ctx = fs.ahead.waited
	}
	n := min(p.Len, r.attr.Size-p.Off)
	if p.Off < 0 || n <= 0 && p.Len > 0 {
		return nil
	}
	var src *source
	if p.When != Later {
		src = fs.early.source(r, &fs.fill.demand)
	}
	if src == nil {
		src = newSource(r.layer.Layer, r.path, r.attr)
		defer src.close()
	}
	if n <= 0 {
		_, err := src.open(ctx)
		return err
	}
	obj, err := fs.cache().Cached(cacheSource(r))
	if err != nil {
		return err
	}
	defer obj.Close()
	if obj.PresentRange(p.Off, n) {
		return nil
	}
	return obj.Fill(ctx, src, p.Off, n)
}

// bringBeside has as many of the small files beside p fetched as when the first of them is
// opened.
func (fs *FS) bringBeside(ctx context.Context, l *layer, p layers.Path) error {
	dir, _ := p.Split()
	if _, ok := l.Layer.(layers.BulkReader); !ok {
		return nil
	}
	if a, err := l.Stat(ctx, dir); err != nil || a.Size > foretoldDir {
		return err
	}
	es, err := l.ReadDir(ctx, dir)
	if err != nil {
		return err
	}
	f := fs.ahead.listedAs(familyKey{l.Layer, dir}, l.ID(), es)
	f.begin()
	fs.bringSiblings(f, fs.ahead.link(l.Layer))
	return nil
}
