package overlay

import (
	"sync"
	"sync/atomic"
)

// swaps are the moments in which a pending file turns into an ordinary one: the stub
// and its mark are gone, and a look that took a part of what it saw before and a part
// after has seen a file of no bytes. Who looks by name counts them, and looks again.
type swaps struct {
	mu  sync.Mutex // one at a time; calls on the upper that move no data
	seq atomic.Uint64
}

// do runs f, after which a pending file is an ordinary one, or nothing has changed.
func (s *swaps) do(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq.Add(1)
	defer s.seq.Add(1)
	return f()
}

// begin returns what to give to same. It waits while one turns.
func (s *swaps) begin() uint64 {
	if seq := s.seq.Load(); seq&1 == 0 {
		return seq
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seq.Load()
}

// same reports whether no file turned since begin.
func (s *swaps) same(seq uint64) bool { return s.seq.Load() == seq }

// unswapped runs look, which looks at n, until nothing has turned meanwhile. It never
// waits for a source if n is in the upper, and in a lower nothing turns.
func unswapped[T any](n *node, look func() (T, error)) (v T, err error) {
	for {
		seq := n.fs.swaps.begin()
		v, err = look()
		if n.fs.swaps.same(seq) || !n.isRegular() || !n.isUpper() {
			return v, err
		}
	}
}
