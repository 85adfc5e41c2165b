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
	src, first, n, err := decodeHeader(b)
	if err != nil {
		return nil, err
	}
	l := readLog(b, first, n)
	st := &state{src: src, limit: src.Version.Size, chain: l.next, end: l.end, torn: l.end < int64(len(b))}
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
			ok = !pending && r.a >= 0 && r.b > 0 && r.a <= st.limit && r.b <= st.limit-r.a
			if ok && !void(i) {
				st.present.add(r.a, r.a+r.b)
				if r.kind == kindWritten {
					st.dirty.add(r.a, r.a+r.b)
				}
			}
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
	st.present.remove(st.limit, maxSize)
	st.dirty.remove(st.limit, maxSize)
	st.redo = cut == unanswered || !st.sameBoot && cut >= int64(st.covered)
	return nil
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
