package extent

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Truncate sets the size. What it cuts off of the source never comes back; what
// it adds is a hole. Cutting below the limit syncs the map, not the data.
func (o *Object) Truncate(size int64) error {
	if size < 0 {
		return unix.EINVAL
	}
	o.mu.RLock()
	below := size < o.limit
	o.mu.RUnlock()
	// The limit only ever falls: who is not below it now will not be later.
	if below {
		o.syncMu.Lock()
		defer o.syncMu.Unlock()
	}
	o.wmu.Lock()
	defer o.wmu.Unlock()
	if err := o.mayChange(); err != nil {
		return err
	}
	if below {
		o.mu.RLock()
		below = size < o.limit
		o.mu.RUnlock()
	}
	if !below {
		return o.resize(size)
	}
	// The piece that is cut in two has no sum any more.
	o.proveHeld(size, min(size+1, o.limit))
	if err := o.settleDebt(); err != nil {
		return err
	}
	if err := o.announceShrink(size); err != nil {
		return fmt.Errorf("extent map: %w", err)
	}
	if err := o.resize(size); err != nil {
		o.owed = []record{{kind: kindCancel}}
		_ = o.settleDebt() // or before the next mutation
		return err
	}
	o.owed = []record{{kind: kindShrunk}}
	// The cut is made. If this fails, reopening makes it again, and nothing
	// else is done to the object before it has succeeded.
	if err := o.settleDebt(); err != nil {
		o.store.logOnce(err, "extent map cannot be extended", o.src.Path)
	}
	o.compactIfLong()
	return nil
}

// announceShrink makes it durable that the limit is about to become size.
func (o *Object) announceShrink(size int64) error {
	if err := o.append(record{kind: kindShrink, a: size}); err != nil {
		return err
	}
	upto := o.chain.index
	if err := sys.Fdatasync(o.mapFd); err != nil {
		o.owed = []record{{kind: kindCancel}}
		_ = o.settleDebt() // as above
		return err
	}
	o.durable = max(o.durable, upto)
	return nil
}

// resize sets the size of the data file, and limit and ranges with it.
func (o *Object) resize(size int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := sys.Truncate(o.data, size); err != nil {
		return err
	}
	if size < o.size {
		o.cuts++
	}
	o.size = size
	if size < o.limit {
		o.limit = size
		o.present.remove(size, maxSize)
		o.dirty.remove(size, maxSize)
		o.pieces.remove(size, maxSize)
	}
	return nil
}
