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
	Off, Len int64 // bytes
}

const (
	foretoldJobs = 4       // at once
	foretoldMost = 1 << 20 // bytes that are fetched with one call
)

// Foretell fetches parts of files of sources into the cache, in the order given, as far
// as they are unchanged here and nobody has fetched them yet. It returns at once. Unless
// they are read in a moment (soon), it lets everybody go first who waits for a source.
// Whatever fails is not fetched ahead: who reads it will ask.
func (fs *FS) Foretell(parts []Foretold, soon bool) {
	a := &fs.ahead
	if a.off || len(parts) == 0 || fs.cache() == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	a.work.Go(func() { fs.foretell(a.ctx, parts, soon) })
}

func (fs *FS) foretell(ctx context.Context, parts []Foretold, soon bool) {
	slots := make(chan struct{}, foretoldJobs)
	var all sync.WaitGroup
	defer all.Wait()
	for _, p := range parts {
		for ; p.Len > 0; p.Off, p.Len = p.Off+foretoldMost, p.Len-foretoldMost {
			piece := Foretold{p.Path, p.Off, min(p.Len, foretoldMost)}
			for until := time.Now().Add(fillYield); !soon && !fs.fill.demand.quiet() && time.Now().Before(until); {
				if sleep(ctx, fillQuiet/4) != nil {
					return
				}
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			all.Go(func() {
				defer func() { <-slots }()
				if err := fs.bringForetold(ctx, piece); err != nil && ctx.Err() == nil {
					fs.log.Debug("not fetched ahead", "path", string(piece.Path), "cause", err)
				}
			})
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
		}
		return fs.fillForetold(ctx, &lowerRef{layer: l, path: p.Path, attr: &attr}, p)
	}
	return nil
}

func (fs *FS) fillForetold(ctx context.Context, r *lowerRef, p Foretold) error {
	n := min(p.Len, r.attr.Size-p.Off)
	if p.Off < 0 || n <= 0 {
		return nil
	}
	obj, err := fs.cache().Cached(cacheSource(r))
	if err != nil {
		return err
	}
	defer obj.Close()
	if obj.PresentRange(p.Off, n) {
		return nil
	}
	src := newSource(r.layer.Layer, r.path, r.attr)
	defer src.close()
	return obj.Fill(ctx, src, p.Off, n)
}
