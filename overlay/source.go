package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// source is where an object's missing extents come from, opened when the first
// is needed. It is shared by all handles of a node; a fetch may outlive them.
type source struct {
	layer layers.Layer // nil: no lower of this mount
	path  layers.Path
	want  layers.Attr
	turn  chan struct{} // holds a token while nobody opens the file

	busy *demand // told of fetches that somebody waits for; nil: nobody is

	mu      sync.Mutex // protects what follows
	file    layers.File
	closed  bool
	changed func(error) // of a pending file: told when the source has another version
	stale   error       // ... which it had before: it is not asked any more

	shared sharedCopy // of a pending file: what other mounts have of that version

	xattrs    layers.Xattrs // if hasXattrs; see bringXattrs
	hasXattrs bool
}

var _ extent.Fetcher = (*source)(nil)

func newSource(l layers.Layer, path layers.Path, want *layers.Attr) *source {
	s := &source{layer: l, path: path, want: *want, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

func (s *source) opened() (layers.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	return s.file, s.stale
}

// ownedBy makes s the source of the pending object id, whose version nothing can
// bring back once it is known to be gone.
func (s *source) ownedBy(fs *FS, id extent.ID) {
	kind, _, _ := fs.conflictOf(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = func(err error) { fs.noteConflict(id, s.path, err) }
	if s.stale = nil; kind == conflictOpen {
		s.stale = errInConflict
	}
}

// note passes on what the source has said.
func (s *source) note(err error) error {
	if !errors.Is(err, layers.ErrStale) {
		return err
	}
	s.mu.Lock()
	changed, known := s.changed, s.stale
	if changed != nil && known == nil {
		s.stale = errInConflict
	}
	s.mu.Unlock()
	if changed != nil && known == nil {
		changed(err)
	}
	return err
}

func (s *source) open(ctx context.Context) (layers.File, error) {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { s.turn <- struct{}{} }()
	if f, err := s.opened(); f != nil || err != nil {
		return f, err
	}
	if s.layer == nil {
		return nil, fmt.Errorf("the lower that has the rest of %q is not part of this mount: %w", string(s.path), layers.ErrOffline)
	}
	f, err := s.layer.Open(ctx, s.path, &s.want)
	if err != nil {
		return nil, s.note(staleIfGone(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		f.Close()
		return nil, os.ErrClosed
	}
	s.file = f
	return f, nil
}

// ReadAt implements extent.Fetcher.
func (s *source) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	if s.shared.read(ctx, b, off) {
		return len(b), nil
	}
	f, err := s.opened()
	if err == nil && f == nil {
		f, err = s.open(ctx)
	}
	if err != nil {
		return 0, err
	}
	if s.busy != nil && !layers.IsBackground(ctx) {
		defer s.busy.begin()()
	}
	began := time.Now()
	n, err := f.ReadAt(ctx, b, off)
	if s.busy != nil {
		s.busy.meter.fetchedFor(ctx, s.path, n, time.Since(began))
	}
	return n, s.note(err)
}

// Settled implements extent.Settler where the layer's files know.
func (s *source) Settled() bool {
	f, _ := s.opened()
	if k, ok := f.(extent.Settler); ok {
		return k.Settled()
	}
	return time.Since(time.Unix(s.want.Mtime.Sec, 0)) > 2*time.Second
}

func (s *source) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *source) close() {
	s.shared.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// isAway reports whether err says that a source cannot be asked now.
func isAway(err error) bool {
	return errors.Is(err, layers.ErrOffline) || errors.Is(err, layers.ErrDenied)
}
