package overlay

import (
	"sync"

	"github.com/migratefs/migratefs/layers"
)

// Who restores a process opens its files one after the other, and each open of a file of a
// source is an exchange. So Foretell opens them before, all at once, and who opens one then
// has what was opened (needObject): a handle to the file that the path led to, which every
// read proves to be the version that is wanted, as of any other handle.

// earlyFiles bounds how many are open; the server's limit on handles is shared.
const earlyFiles = 256

// early holds the files that were opened before anybody did.
type early struct {
	mu      sync.Mutex
	sources map[earlyKey]*earlySource
}

type earlySource struct {
	*source
	taken bool // it is a node's, and closed by that
}

type earlyKey struct {
	layer   *layer
	path    layers.Path
	version layers.Version
}

func earlyKeyOf(r *lowerRef) earlyKey { return earlyKey{r.layer, r.path, r.attr.Version()} }

// source returns the one of r, also if somebody has taken it, a new one if there is none; nil
// if there are too many. Who takes it closes it, at any time.
func (e *early) source(r *lowerRef, busy *demand) *source {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := earlyKeyOf(r)
	if s := e.sources[key]; s != nil && !s.isClosed() {
		return s.source
	}
	if len(e.sources) >= earlyFiles {
		return nil
	}
	if e.sources == nil {
		e.sources = make(map[earlyKey]*earlySource)
	}
	s := newSource(r.layer.Layer, r.path, r.attr)
	s.busy = busy
	e.sources[key] = &earlySource{source: s}
	return s
}

// take returns the source of r, which is the caller's from now on; nil if none is held.
func (e *early) take(r *lowerRef) *source {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.sources[earlyKeyOf(r)]
	if s == nil || s.taken {
		return nil
	}
	s.taken = true
	return s.source
}

// drop closes those that nobody has taken.
func (e *early) drop() {
	e.mu.Lock()
	all := e.sources
	e.sources = nil
	e.mu.Unlock()
	for _, s := range all {
		if !s.taken {
			s.close()
		}
	}
}
