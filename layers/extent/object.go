package extent

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Object is a file of which parts may be missing. However often it is opened,
// there is one Object in memory; every open is paired with one Close. It is safe
// for concurrent use.
type Object struct {
	store *Store
	entry *entry
	src   Source // immutable
	data  int    // descriptor of the data file; immutable

	guest atomic.Bool // another process has it; see inherit

	// Held by whoever makes the map durable or replaces it; before wmu.
	syncMu sync.Mutex

	// wmu serialises mutations, as the kernel's inode lock would anyway.
	wmu       sync.Mutex
	name      string // without suffix; "" once it has none. All below: by wmu
	pending   bool   // it may be written to
	mapFd     int    // replaced under syncMu as well
	chain     chain
	mapEnd    int64    // where the next record goes in the file
	torn      bool     // the file goes on after mapEnd and has to be cut first
	session   bool     // the log's last session is of this boot
	voidFrom  uint32   // before that: what the next session declares void
	epoch     int64    // the epoch of the last record
	covered   uint32   // records before this one are covered by a barrier
	durable   uint32   // records before this one are durable
	owed      []record // what has to be appended before anything else
	compactAt uint32   // number of records at which to try a compaction
	failed    error    // why Sync can no longer promise anything
	sums      bool     // the map's format has pieces
	clearedAt int64    // the first cleared record of this boot, -1 if there is none
	pins      int      // how many need what is present to stay

	// Of a cached object: when each region of so many bytes was last used.
	region int64
	ages   []atomic.Int64
	used   atomic.Int64 // the latest of these

	stamped int64 // when that was noted on disk; by who opens or closes it

	mu      sync.RWMutex
	size    int64 // all below: by mu
	limit   int64
	cuts    uint64   // how often size became less
	present rangeSet // below limit
	dirty   rangeSet // subset of present
	pieces  pieceSet // of present, but for those that are doubted; none is dirty. Changed with wmu held as well
	flights []*flight

	// drops counts how often present ranges became missing: before their bytes go.
	// Who has read a range that was present looks whether it has moved on.
	drops atomic.Uint64
}

// Source returns what the missing bytes have to be fetched from.
func (o *Object) Source() Source { return o.src }

// Size returns the present size in bytes.
func (o *Object) Size() int64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.size
}

// Missing returns how many bytes have to be fetched still, provided that what was
// kept before the store was opened is what it was. What another process has keeps
// nothing for us, and misses nothing.
func (o *Object) Missing() int64 {
	if o.guest.Load() {
		return 0
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.limit - o.present.sum - o.pieces.unsure
}

// Whole reports whether nothing is missing, and all that is here was compared with
// its sums since the store was opened: Fill sees to both.
func (o *Object) Whole() bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.limit == o.present.sum
}

// PresentRange reports whether no byte of [off, off+n) is missing: it can be
// read from DataFd, up to Size. What was kept before the store was opened is
// compared with its sums first. A present range of a pending object stays present.
func (o *Object) PresentRange(off, n int64) bool {
	o.prove(off, off+min(n, maxSize-off))
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.presentLocked(off, off+min(n, maxSize-off))
}

func (o *Object) presentLocked(from, to int64) bool {
	return o.present.has(from, min(to, o.limit))
}

// Present returns the ranges that need no fetching, in order.
func (o *Object) Present() []Range { return o.ranges(&o.present) }

// Dirty returns the ranges that the source does not have: what was written or
// zeroed here, and everything at or beyond the smallest size the file had.
func (o *Object) Dirty() []Range { return o.ranges(&o.dirty) }

func (o *Object) ranges(set *rangeSet) []Range {
	o.mu.RLock()
	defer o.mu.RUnlock()
	var out []Range
	set.all(func(s span) bool {
		out = append(out, Range{Off: s.from, Len: s.to - s.from})
		return true
	})
	if n := len(out); n > 0 && set.end() == o.limit {
		out[n-1].Len += o.size - o.limit
	} else if o.limit < o.size {
		out = append(out, Range{Off: o.limit, Len: o.size - o.limit})
	}
	return out
}

// DataFd returns a descriptor of the data file, which stays the Object's. Only
// present ranges may be read from it; owner and mode of the file may be changed
// through it, its bytes and size may not.
func (o *Object) DataFd() int { return o.data }

// Hold keeps the object open until release is called, for who uses it while those
// who opened it may close it. The caller knows that it is open now.
func (o *Object) Hold() (release func()) {
	o.retain()
	return o.release
}

// retain adds a reference, for a fetch that may outlive its readers.
func (o *Object) retain() {
	o.store.mu.Lock()
	o.entry.refs++
	o.store.mu.Unlock()
}

// Close drops one reference. It syncs nothing.
func (o *Object) Close() error {
	o.wmu.Lock()
	err := o.settleDebt()
	o.wmu.Unlock()
	o.release()
	return err
}

// release drops one reference.
func (o *Object) release() {
	s := o.store
	s.mu.Lock()
	o.entry.refs--
	last := o.entry.refs == 0
	if last && s.objs[o.entry.name] == o.entry {
		delete(s.objs, o.entry.name)
		s.noteProved(o)
	}
	s.mu.Unlock()
	if last {
		o.stamp(true)
		o.closeFds()
	}
}

func (o *Object) closeFds() {
	unix.Close(o.data)
	unix.Close(o.mapFd)
}

// append writes records to the map: what is owed first, and where they are the
// first of a session or of an epoch, what says so. On an error none of them
// counts. o.wmu is held.
func (o *Object) append(recs ...record) error {
	s := o.store
	s.gate.RLock()
	defer s.gate.RUnlock()
	if o.torn {
		if err := sys.Truncate(o.mapFd, o.mapEnd); err != nil {
			return err
		}
		o.torn = false
	}
	c := o.chain
	var space [4 * recordLen]byte
	b := space[:0]
	put := func(r record) {
		r.durable = o.durable
		b = c.put(b, r)
	}
	if !o.session {
		lo, hi := s.boot.halves()
		put(record{kind: kindSession, a: lo, b: hi})
		put(record{kind: kindEpoch, a: s.epoch, b: int64(o.voidFrom)})
	} else if o.epoch != s.epoch {
		put(record{kind: kindEpoch, a: s.epoch, b: int64(c.index)})
	}
	for _, r := range o.owed {
		put(r)
	}
	for _, r := range recs {
		put(r)
	}
	s.unsynced.Store(true)
	if _, err := sys.Pwrite(o.mapFd, b, o.mapEnd); err != nil {
		o.torn = true
		return err
	}
	o.mapEnd += int64(len(b))
	o.chain, o.session, o.epoch, o.owed = c, true, s.epoch, nil
	return nil
}

// mayChange is what every mutation asks first: a cached object may be thrown
// away at any time, and what is owed comes before anything else. o.wmu is held.
func (o *Object) mayChange() error {
	if !o.pending {
		return fmt.Errorf("cached object of %q is not adopted: %w", o.src.Path, unix.EROFS)
	}
	return o.settleDebt()
}

// settleDebt appends what is owed. o.wmu is held.
func (o *Object) settleDebt() error {
	if len(o.owed) == 0 {
		return nil
	}
	return o.append()
}
