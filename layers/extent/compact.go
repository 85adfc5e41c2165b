package extent

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// compactIfLong rewrites the map if it has many more records than it needs. A
// failure is not the caller's: the long map is as good. o.wmu is held.
func (o *Object) compactIfLong() {
	if o.chain.index < o.compactAt || o.name == "" || o.failed != nil || !o.syncMu.TryLock() {
		return
	}
	defer o.syncMu.Unlock()
	if err := o.compact(); err != nil {
		o.store.logOnce(err, "extent map cannot be compacted", o.src.Path)
		o.compactAt = 2 * o.chain.index
		return
	}
	o.compactAt = max(compactMin, 2*o.chain.index)
}

// compact replaces the map by one that says the same in fewer records, with all
// data synced. o.syncMu and o.wmu are held.
func (o *Object) compact() (err error) {
	s := o.store
	// The new map ends in a barrier that vouches for all of it.
	if err := sys.Fdatasync(o.data); err != nil {
		o.failed = err
		return err
	}
	b, c, epoch := o.encode()
	tmp := o.name + tmpSuffix
	fd, err := sys.Create(s.dir, tmp, unix.O_RDWR|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = sys.Pwrite(fd, b, 0); err == nil {
		err = sys.Fdatasync(fd)
	}
	if err == nil {
		err = sys.Rename(s.dir, tmp, s.dir, o.name+mapSuffix, 0)
	}
	if err != nil {
		unix.Close(fd)
		_ = sys.Unlink(s.dir, tmp) // or the next OpenStore
		return err
	}
	unix.Close(o.mapFd)
	o.mapFd, o.chain, o.mapEnd, o.torn = fd, c, int64(len(b)), false
	o.session, o.epoch, o.owed = true, epoch, nil
	o.covered, o.durable, o.sums = c.index, c.index, true
	if o.clearedAt >= 0 {
		o.clearedAt = 0 // it is durable wherever it stands
	}
	s.unsynced.Store(true)
	if err := sys.Fsync(s.dir); err != nil {
		// The old map may be what a power loss leaves: barriers in the new one
		// prove nothing.
		o.failed = err
		return err
	}
	return nil
}

// encode returns a map file that says what o says, where its log goes on, and
// the epoch of its records.
func (o *Object) encode() (b []byte, c chain, epoch int64) {
	s := o.store
	s.gate.RLock()
	epoch = s.epoch
	s.gate.RUnlock()
	b, c = newHeader(&o.src)
	lo, hi := s.boot.halves()
	b = c.put(b, record{kind: kindSession, a: lo, b: hi})
	b = c.put(b, record{kind: kindEpoch, a: epoch, b: int64(c.index)})
	o.mu.RLock()
	if o.limit < o.src.Version.Size {
		b = c.put(b, record{kind: kindShrink, a: o.limit})
		b = c.put(b, record{kind: kindShrunk})
	}
	if o.clearedAt >= 0 {
		b = c.put(b, record{kind: kindCleared}) // of this boot
	}
	// What has no sum: it includes what is dirty.
	for p := range o.present.all {
		at := p.from
		o.pieces.each(p.from, p.to, func(s *piece) bool {
			if at < s.from {
				b = c.put(b, record{kind: kindFetched, a: at, b: s.from - at})
			}
			at = s.to()
			return true
		})
		if at < p.to {
			b = c.put(b, record{kind: kindFetched, a: at, b: p.to - at})
		}
	}
	o.pieces.each(0, maxSize, func(s *piece) bool {
		b = c.put(b, s.record())
		return true
	})
	for d := range o.dirty.all {
		b = c.put(b, record{kind: kindWritten, a: d.from, b: d.to - d.from})
	}
	o.mu.RUnlock()
	b = c.put(b, record{kind: kindBarrier, a: int64(c.index)})
	return b, c, epoch
}
