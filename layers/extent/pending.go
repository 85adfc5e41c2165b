package extent

import "github.com/migratefs/migratefs/internal/sys"

// Clean returns how many of the bytes that are here came from the source, and
// could be fetched again.
func (o *Object) Clean() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.present.sum - o.dirty.sum
}

// Gaps returns the missing ranges from off on, in order, at most most of them.
func (o *Object) Gaps(off int64, most int) []Range {
	o.mu.RLock()
	defer o.mu.RUnlock()
	var out []Range
	o.present.gaps(max(off, 0), o.limit, func(from, to int64) bool {
		out = append(out, Range{Off: from, Len: to - from})
		return len(out) < most
	})
	return out
}

// SyncFile makes the data file durable, with its metadata and without the map: for
// who is about to give it a name of its own, and needs the map no more. If it fails
// once, no Sync can promise anything until the object is opened anew.
func (o *Object) SyncFile() error {
	o.syncMu.Lock()
	defer o.syncMu.Unlock()
	o.wmu.Lock()
	err := o.failed
	o.wmu.Unlock()
	if err != nil {
		return err
	}
	if err := sys.Fsync(o.data); err != nil {
		return o.fail("data", err)
	}
	return nil
}
