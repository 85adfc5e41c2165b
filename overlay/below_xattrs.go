package overlay

import (
	"context"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Extended attributes of files on another host, where they are to be had. The kernel
// asks for one at the first write, a copy-up needs all, and a write does not wait for
// the network: so they come along when a file that has some is opened for writing.

// bringXattrs asks for the extended attributes of s, if it has any. What it returns
// waits for them, whether they came or not.
func (s *source) bringXattrs(ctx context.Context, h *handle) (wait func()) {
	toldOf := s.want.Has(layers.KnownCtime) && !s.want.Has(layers.KnownBare)
	if s.layer == nil || !toldOf || h.flags&unix.O_ACCMODE == unix.O_RDONLY {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		x, err := s.layer.Xattrs(ctx, s.path)
		if err != nil {
			return // who needs them asks again
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.xattrs, s.hasXattrs = x, true
	}()
	return func() { <-done }
}

// xattrsAt are those of n's part r, which lies at p: as they came along, else as
// they are. The caller may change the map.
func (fs *FS) xattrsAt(ctx context.Context, n *node, r *lowerRef, p layers.Path) (layers.Xattrs, error) {
	n.mu.RLock()
	src := n.src
	n.mu.RUnlock()
	if src != nil {
		src.mu.Lock()
		x, ok := maps.Clone(src.xattrs), src.hasXattrs
		src.mu.Unlock()
		if ok {
			return x, nil
		}
	}
	return r.layer.Xattrs(ctx, p)
}
