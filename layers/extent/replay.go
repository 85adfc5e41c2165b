package extent

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/migratefs/migratefs/layers"
)

// bootID is /proc/sys/kernel/random/boot_id.
type bootID [16]byte

func (b bootID) halves() (int64, int64) {
	return int64(binary.LittleEndian.Uint64(b[:8])), int64(binary.LittleEndian.Uint64(b[8:]))
}

func bootOf(a, b int64) (id bootID) {
	binary.LittleEndian.PutUint64(id[:8], uint64(a))
	binary.LittleEndian.PutUint64(id[8:], uint64(b))
	return id
}

// A state is what a map file says.
type state struct {
	src            Source
	limit          int64
	present, dirty rangeSet // both below limit
	pieces         pieceSet // of what is present and not dirty; all doubted
	sums           bool     // pieces may be recorded
	cleared        int64    // the first cleared record of the present boot, -1 if none

	// redo: the data file may be longer than limit by what a truncate meant to
	// cut off, and has to be cut to limit before anything is read from it.
	redo bool

	sameBoot bool   // the last session was in this boot
	epoch    int64  // of that session's last records
	covered  uint32 // records before this index are vouched for on disk
	durable  uint32 // records before this index cannot be torn

	chain chain // where the next record goes
	end   int64 // bytes of the file up to there
	torn  bool  // there are more, which are not records
}

// A log is the records of a map file that can be read one after the other.
type log struct {
	recs []record
	next chain
	end  int64
}

// replay reads the whole map file b. The boot is the present one; durable
// returns the last epoch of a boot that is known to be on disk, 0 if none is.
// The error wraps layers.ErrCorrupt.
func replay(b []byte, boot bootID, durable func(bootID) int64) (*state, error) {
	h, err := decodeHeader(b)
	if err != nil {
		return nil, err
	}
	l := readLog(b, h.first, h.n)
	st := &state{
		src: h.src, limit: h.src.Version.Size, sums: h.version != mapNoSums, cleared: -1,
		chain: l.next, end: l.end, torn: l.end < int64(len(b)),
	}
	if err := st.sessions(l.recs, boot, durable); err != nil {
		return nil, err
	}
	if err := checkTail(b[l.end:], l.next, st.sameBoot, boot); err != nil {
		return nil, err
	}
	return st, st.apply(l.recs)
}

// readLog collects records up to the first that does not continue the chain.
func readLog(b []byte, c chain, n int) log {
	var l log
	for ; n+recordLen <= len(b); n += recordLen {
		r, prev, ok := decodeRecord(b[n:n+recordLen], c.salt, c.index)
		if !ok || prev != c.prev {
			break
		}
		l.recs = append(l.recs, r)
		c.prev = r.crc
		c.index++
	}
	l.next, l.end = c, int64(n)
	return l
}

// checkTail decides whether what follows the last good record can be the work of
// a crash. A killed daemon leaves at most a piece of a record. A power loss may
// leave anything, but not in front of a record that was written when the place
// of the damage was already durable.
func checkTail(tail []byte, next chain, sameBoot bool, boot bootID) error {
	if len(tail) < recordLen {
		return nil
	}
	damaged := fmt.Errorf("extent map record %d: %w", next.index, layers.ErrCorrupt)
	if sameBoot {
		return damaged
	}
	for i := 0; i+recordLen <= len(tail); i += recordLen {
		r, _, ok := decodeRecord(tail[i:i+recordLen], next.salt, next.index+uint32(i/recordLen))
		if !ok {
			continue
		}
		if r.durable > next.index || r.kind == kindSession && bootOf(r.a, r.b) == boot {
			return damaged
		}
	}
	return nil
}

// sessions finds out which records count: all of this boot's, and of others
// those that a barrier or a durable epoch covers.
func (st *state) sessions(recs []record, boot bootID, durable func(bootID) int64) error {
	var (
		cur   bootID
		known bool
		last  int64 // durable epoch of cur
	)
	for i, r := range recs {
		bad := r.durable > uint32(i)
		switch r.kind {
		case kindSession:
			cur, known, st.epoch = bootOf(r.a, r.b), true, 0
			last = durable(cur)
		case kindEpoch:
			bad = bad || !known || r.a < 1 || r.b < 0 || r.b > int64(i)
			st.epoch = r.a
		case kindBarrier:
			bad = bad || r.a < 0 || r.a > int64(i)
			st.covered = max(st.covered, uint32(r.a))
		default:
			bad = bad || st.epoch == 0
		}
		if bad {
			return fmt.Errorf("extent map record %d: %w", i, layers.ErrCorrupt)
		}
		st.durable = max(st.durable, r.durable)
		if known && st.epoch != 0 && st.epoch <= last {
			st.covered = uint32(i) + 1
		}
	}
	st.sameBoot = known && cur == boot
	if !st.sameBoot {
		st.epoch = 0
		// It was read from disk after a restart, so it is there.
		st.durable = uint32(len(recs))
	}
	return nil
}

// apply computes the ranges and the limit.
func (st *state) apply(recs []record) error {
	void := st.voids(recs)
	// cut is where the last shrink that was not cancelled was answered: where
	// its shrunk stands, unanswered, or before all records if there was none.
	const unanswered = math.MaxInt64
	cut := int64(-1)
	var before struct{ limit, cut int64 } // the last shrink
	for i, r := range recs {
		ok, pending := true, cut == unanswered
		switch r.kind {
		case kindFetched, kindWritten:
			if ok = !pending && st.within(r.a, r.b); ok && !void(i) {
				st.add(&r)
			}
		case kindPiece, kindKept:
			if ok = !pending && st.within(r.a, int64(r.n)) && r.a/groupSize == (r.a+int64(r.n)-1)/groupSize; ok && !void(i) {
				st.addPiece(&r)
			}
		case kindCleared:
			if ok = r.a >= 0 && r.b >= 0 && r.b <= maxSize-r.a; ok {
				st.pieces.remove(r.a, r.a+r.b)
				if st.cleared < 0 {
					st.cleared = int64(i)
				}
			}
		case kindDropped:
			if ok = r.a >= 0 && r.b > 0 && r.b <= maxSize-r.a; ok {
				st.drop(r.a, r.a+r.b)
			}
		case kindSession:
			st.anotherBoot()
		case kindShrink:
			ok = !pending && r.a >= 0 && r.a < st.limit
			before.limit, before.cut = st.limit, cut
			st.limit, cut = r.a, unanswered
		case kindCancel:
			ok = pending
			st.limit, cut = before.limit, before.cut
		case kindShrunk:
			cut = int64(i)
		}
		if !ok {
			return fmt.Errorf("extent map record %d: %w", i, layers.ErrCorrupt)
		}
	}
	if !st.sameBoot {
		st.anotherBoot()
	}
	st.present.remove(st.limit, maxSize)
	st.dirty.remove(st.limit, maxSize)
	st.pieces.remove(st.limit, maxSize)
	st.redo = cut == unanswered || !st.sameBoot && cut >= int64(st.covered)
	return nil
}

func (st *state) within(from, n int64) bool {
	return from >= 0 && n > 0 && from <= st.limit && n <= st.limit-from
}

func (st *state) add(r *record) {
	st.present.add(r.a, r.a+r.b)
	if r.kind == kindWritten {
		st.dirty.add(r.a, r.a+r.b)
		st.pieces.remove(r.a, r.a+r.b)
	}
}

// addPiece adds a piece. Where it meets what was written, and it should not, that
// wins; where it meets another, which it should not either, only one can be proved.
func (st *state) addPiece(r *record) {
	p := piece{from: r.a, n: r.n, sum: uint64(r.b), doubted: true, old: r.kind == kindKept}
	if st.dirty.overlaps(p.from, p.to()) {
		return
	}
	st.pieces.each(p.from, p.to(), func(old *piece) bool {
		st.present.remove(old.from, old.to())
		return true
	})
	st.pieces.remove(p.from, p.to())
	st.pieces.put(p)
	st.present.add(p.from, p.to())
}

// drop makes what is clean of [from, to) missing.
func (st *state) drop(from, to int64) {
	st.pieces.remove(from, to)
	for _, c := range st.dirty.missing(from, to) {
		st.present.remove(c.from, c.to)
	}
}

// anotherBoot is for where the records of one boot end and another begins: what
// was written into a piece of that boot may be on disk, and the record of it not.
func (st *state) anotherBoot() {
	var sealed pieceSet
	st.pieces.each(0, maxSize, func(p *piece) bool {
		if p.old || st.cleared < 0 {
			p.old = true
			sealed.put(*p)
		}
		return true
	})
	st.pieces, st.cleared = sealed, -1
}

// voids returns whether the range record i does not count: the first session
// after a restart voids what was not covered then.
func (st *state) voids(recs []record) func(i int) bool {
	// from[i] would be the least b of all epoch records after i; it changes only
	// at epoch records, so remember those, last first.
	type step struct {
		at   int
		from int64
	}
	var steps []step
	least := int64(math.MaxInt64)
	if !st.sameBoot {
		least = int64(st.covered)
	}
	steps = append(steps, step{len(recs), least})
	for i := len(recs) - 1; i >= 0; i-- {
		if recs[i].kind == kindEpoch && recs[i].b < least {
			least = recs[i].b
			steps = append(steps, step{i, least})
		}
	}
	return func(i int) bool {
		for len(steps) > 0 && steps[len(steps)-1].at <= i {
			steps = steps[:len(steps)-1]
		}
		return len(steps) > 0 && int64(i) >= steps[len(steps)-1].from
	}
}
