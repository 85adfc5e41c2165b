package control

import (
	"math"
	"sync"
	"time"
)

// drained adds up what drains have told: what they tell themselves goes with them.
type drained struct {
	mu  sync.Mutex
	sum Drained
}

// add counts what a drain has moved between two words of it.
func (d *drained) add(before, now *Drain) {
	files, bytes := now.Files, now.Bytes
	if before != nil && before.Phase == now.Phase {
		files, bytes = files-before.Files, bytes-before.Bytes
	}
	if now.Phase != drainMoving || files < 0 || bytes < 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if files > math.MaxInt64-d.sum.Files || bytes > math.MaxInt64-d.sum.Bytes {
		return
	}
	if files > 0 || bytes > 0 {
		d.sum = Drained{d.sum.Files + files, d.sum.Bytes + bytes, time.Now()}
	}
}

// read returns nil if nothing was drained.
func (d *drained) read() *Drained {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sum.When.IsZero() {
		return nil
	}
	sum := d.sum
	return &sum
}
