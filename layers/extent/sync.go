package extent

import (
	"fmt"

	"github.com/migratefs/migratefs/internal/sys"
)

// Sync makes everything durable that was written, fetched, zeroed or cut off
// before it was called. If it fails once, it fails until the object is opened
// anew: the kernel forgets pages that it could not write.
func (o *Object) Sync(dataOnly bool) error {
	o.syncMu.Lock()
	defer o.syncMu.Unlock()

	o.wmu.Lock()
	err := o.failed
	if err == nil {
		err = o.settleDebt()
	}
	upto := o.chain.index // the data of all records before this one is written
	o.wmu.Unlock()
	if err != nil {
		return err
	}

	if dataOnly {
		err = sys.Fdatasync(o.data)
	} else {
		err = sys.Fsync(o.data)
	}
	if err != nil {
		return o.fail("data", err)
	}
	if upto <= o.covered {
		return nil
	}

	o.wmu.Lock()
	err = o.append(record{kind: kindBarrier, a: int64(upto)})
	end := o.chain.index
	o.wmu.Unlock()
	if err != nil {
		return fmt.Errorf("extent map: %w", err)
	}
	if err := sys.Fdatasync(o.mapFd); err != nil {
		return o.fail("extent map", err)
	}
	o.wmu.Lock()
	o.durable = max(o.durable, end)
	// The barrier itself, and what says which session it is of, need no other.
	// Records that came in between do.
	if o.covered = upto; end == upto+1 {
		o.covered = end
	}
	o.wmu.Unlock()
	return nil
}

func (o *Object) fail(what string, err error) error {
	o.wmu.Lock()
	defer o.wmu.Unlock()
	o.failed = fmt.Errorf("sync of %s: %w", what, err)
	return o.failed
}
