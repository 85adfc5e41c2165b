package overlay

import (
	"sync"
	"sync/atomic"
)

// window is open while a directory has moved in some layers and not in others. What is
// looked for by a path meanwhile is looked for again when it has closed. Who holds it
// open waits for nobody, so it may be waited for with any lock held.
type window struct {
	mu sync.RWMutex
	n  atomic.Uint64 // odd while it is open
}

func (w *window) open() {
	w.mu.Lock()
	w.n.Add(1)
}

func (w *window) close() {
	w.n.Add(1)
	w.mu.Unlock()
}

// closed waits until it is, and returns how often it was open before, so to speak.
func (w *window) closed() uint64 {
	for {
		n := w.n.Load()
		if n%2 == 0 {
			return n
		}
		w.mu.RLock()
		w.mu.RUnlock() //nolint:staticcheck // nothing is done: it was waited for
	}
}

// outside runs f, which fails if what it looks for is not where it was, and again if the
// window was open meanwhile.
func outside[T any](w *window, f func() (T, error)) (v T, err error) {
	for {
		before := w.closed()
		if v, err = f(); err == nil || w.closed() == before {
			return v, err
		}
	}
}
