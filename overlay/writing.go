package overlay

import (
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The kernel puts what is written into its page and lets go of the page before the
// write reaches us. An open that does not keep what was read drops the page, and a
// read that then asks for it anew comes behind the write: answered before the write is
// done, which may have to copy the file first, it would put the old bytes back, and
// who has written them would read them. So such a read waits for the write.

// writes are the ranges that are being written.
type writes struct {
	n  atomic.Int32 // how many there are
	mu sync.Mutex
	of map[*node][]*written
}

// written is the range from off to before end. Who waits for it makes done.
type written struct {
	off, end int64
	done     chan struct{}
}

// begin notes that size bytes of n at off are being written.
func (w *writes) begin(n *node, off int64, size int) *written {
	r := &written{off: off, end: off + int64(size)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = make(map[*node][]*written)
	}
	w.of[n] = append(w.of[n], r)
	w.n.Add(1)
	return r
}

func (w *writes) end(n *node, r *written) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n.Add(-1)
	if rest := slices.DeleteFunc(w.of[n], func(o *written) bool { return o == r }); len(rest) > 0 {
		w.of[n] = rest
	} else {
		delete(w.of, n)
	}
	if r.done != nil {
		close(r.done)
	}
}

// met returns what is closed when a write to the size bytes of n at off is done; nil
// if there is no such write.
func (w *writes) met(n *node, off int64, size int) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.of[n] {
		if r.off < off+int64(size) && off < r.end {
			if r.done == nil {
				r.done = make(chan struct{})
			}
			return r.done
		}
	}
	return nil
}

// afterWrites waits until nobody writes any of the size bytes of n at off that came
// before. It fails with EINTR if the caller is interrupted.
func (fs *FS) afterWrites(cancel <-chan struct{}, pid uint32, n *node, off int64, size int) error {
	if fs.writes.n.Load() == 0 {
		return nil
	}
	for {
		done := fs.writes.met(n, off, size)
		if done == nil {
			return nil
		}
		ctx := begin(cancel, pid)
		select {
		case <-done:
			ctx.end()
		case <-ctx.Done():
			ctx.end()
			return unix.EINTR
		}
	}
}
