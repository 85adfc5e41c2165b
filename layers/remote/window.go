package remote

import (
	"context"
	"sync"
)

// window bounds how many bytes of answers a channel has asked for and not yet
// got: memory on both sides, and the time a small request waits behind large
// ones. Waiters are served in order.
type window struct {
	size int // immutable

	mu      sync.Mutex
	free    int
	waiters []*waiter
}

type waiter struct {
	weight int
	ready  chan struct{} // closed with the weight taken
}

func newWindow(size int) *window { return &window{size: size, free: size} }

// clamp makes a weight that is larger than the window the whole window.
func (w *window) clamp(weight int) int { return min(weight, w.size) }

// room is how much is free.
func (w *window) room() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.free
}

// try takes weight if it is free and nobody waits.
func (w *window) try(weight int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiters) > 0 || w.free < weight {
		return false
	}
	w.free -= weight
	return true
}

// take waits until weight is free and takes it. Dead ends the wait as well.
func (w *window) take(ctx context.Context, dead <-chan struct{}, weight int) error {
	w.mu.Lock()
	if len(w.waiters) == 0 && w.free >= weight {
		w.free -= weight
		w.mu.Unlock()
		return nil
	}
	me := &waiter{weight: weight, ready: make(chan struct{})}
	w.waiters = append(w.waiters, me)
	w.mu.Unlock()

	var err error
	select {
	case <-me.ready:
		return nil
	case <-dead:
		err = errLost
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, other := range w.waiters {
		if other == me {
			w.waiters = append(w.waiters[:i], w.waiters[i+1:]...)
			w.serve()
			return err
		}
	}
	w.free += weight // it was granted in the meantime
	w.serve()
	return err
}

// give puts weight back.
func (w *window) give(weight int) {
	if weight == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.free += weight
	w.serve()
}

// serve grants what fits to the waiters in order. The caller holds mu.
func (w *window) serve() {
	for len(w.waiters) > 0 && w.free >= w.waiters[0].weight {
		w.free -= w.waiters[0].weight
		close(w.waiters[0].ready)
		w.waiters = w.waiters[1:]
	}
}
