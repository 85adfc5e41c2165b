package extent

import (
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"sync"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// What was fetched is kept in pieces, each with a checksum in the map: a disk that
// rots, a cache that a power loss has torn or a program that wrote into our files
// shows in them. They are no defence against who may write to the store.
//
// A piece is what one fetch brought of one chunk, so it may be shorter than that
// and have neighbours in it. Small files' chunks are small, so that the first read
// after a restart checks little more than it wants; big files' are large, so that
// their maps stay short.
const (
	chunkLeast = 64 << 10
	chunkMost  = 1 << 20

	// groupSize is how pieces are kept in memory: it is a multiple of every chunk,
	// and no piece reaches from one group into another.
	groupSize = 4 << 20
)

// chunkOf returns the size of chunks in a file of that size: 64 KiB up to 4 GiB, 1
// MiB from 64 GiB on.
func chunkOf(size int64) int64 {
	c := int64(chunkLeast)
	for c < chunkMost && (size-1)/c >= 1<<16 {
		c *= 2
	}
	return c
}

// sumOf is two CRCs whose polynomials have no factor in common, which is as good
// as one of 64 bits, and which processors and the standard library are fast at.
func sumOf(b []byte) uint64 {
	return uint64(crc32.ChecksumIEEE(b))<<32 | uint64(crc32.Checksum(b, castagnoli))
}

// A piece is clean bytes and their sum.
type piece struct {
	from int64
	sum  uint64
	n    uint32

	// old: it is of a former boot, or a copy of another store's. It keeps its sum
	// whatever is written to others.
	old bool

	// doubted: nobody has compared the bytes with the sum since the store was
	// opened. They do not count as present.
	doubted bool
}

func (p *piece) to() int64 { return p.from + int64(p.n) }

func (p *piece) record() record {
	r := record{kind: kindPiece, a: p.from, b: int64(p.sum), n: p.n}
	if p.old {
		r.kind = kindKept
	}
	return r
}

// A pieceSet is pieces that do not overlap. The zero value is empty.
type pieceSet struct {
	groups map[int64][]piece // by from / groupSize, each in order
	doubts int               // how many are doubted
	unsure int64             // bytes in these
}

// keys returns which groups have pieces that reach into [from, to), in order.
func (s *pieceSet) keys(from, to int64) (keys []int64) {
	if from >= to || len(s.groups) == 0 {
		return nil
	}
	first, last := from/groupSize, (to-1)/groupSize
	if last-first < int64(len(s.groups)) {
		for k := first; k <= last; k++ {
			if s.groups[k] != nil {
				keys = append(keys, k)
			}
		}
		return keys
	}
	for k := range maps.Keys(s.groups) {
		if first <= k && k <= last {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// each calls f for each piece that reaches into [from, to), in order, until f
// returns false.
func (s *pieceSet) each(from, to int64, f func(p *piece) bool) {
	for _, k := range s.keys(from, to) {
		g := s.groups[k]
		for i := firstAfter(g, from); i < len(g) && g[i].from < to; i++ {
			if !f(&g[i]) {
				return
			}
		}
	}
}

// firstAfter returns the index of the first piece of g that ends after off.
func firstAfter(g []piece, off int64) int {
	i, _ := slices.BinarySearchFunc(g, off, func(p piece, off int64) int {
		if p.to() > off {
			return 1
		}
		return -1
	})
	return i
}

// any reports whether a piece reaches into [from, to).
func (s *pieceSet) any(from, to int64) (found bool) {
	s.each(from, to, func(*piece) bool { found = true; return false })
	return found
}

// doubtful returns the first piece in [from, to) that is doubted, nil if there is
// none.
func (s *pieceSet) doubtful(from, to int64) (first *piece) {
	if s.doubts == 0 {
		return nil
	}
	s.each(from, to, func(p *piece) bool {
		if p.doubted {
			first = p
		}
		return first == nil
	})
	return first
}

// put adds p, where no piece is.
func (s *pieceSet) put(p piece) {
	if s.groups == nil {
		s.groups = make(map[int64][]piece)
	}
	k := p.from / groupSize
	g := s.groups[k]
	s.groups[k] = slices.Insert(g, firstAfter(g, p.from), p)
	s.count(&p, 1)
}

// trust takes the doubt off p, which is in s.
func (s *pieceSet) trust(p *piece) {
	s.count(p, -1)
	p.doubted = false
}

func (s *pieceSet) count(p *piece, sign int) {
	if p.doubted {
		s.doubts += sign
		s.unsure += int64(sign) * int64(p.n)
	}
}

// remove takes out whole every piece that reaches into [from, to).
func (s *pieceSet) remove(from, to int64) {
	for _, k := range s.keys(from, to) {
		g := s.groups[k]
		i := firstAfter(g, from)
		j := i
		for ; j < len(g) && g[j].from < to; j++ {
			s.count(&g[j], -1)
		}
		if g = slices.Delete(g, i, j); len(g) == 0 {
			delete(s.groups, k)
		} else {
			s.groups[k] = g
		}
	}
}

// cut returns b, the source's bytes at off, as pieces.
func (o *Object) cut(off int64, b []byte) (all []piece) {
	chunk := chunkOf(o.src.Version.Size)
	for len(b) > 0 {
		n := min(int64(len(b)), chunk-off%chunk)
		all = append(all, piece{from: off, n: uint32(n), sum: sumOf(b[:n])})
		off, b = off+n, b[n:]
	}
	return all
}

// doubts reports whether [from, to) has bytes that may be present, and that have
// to be proved first.
func (o *Object) doubts(from, to int64) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.pieces.doubtful(from, to) != nil
}

// prove compares what is doubted in [from, to) with its sums: it is present
// afterwards, or missing.
func (o *Object) prove(from, to int64) {
	for !o.guest.Load() && o.doubts(from, to) {
		o.wmu.Lock() // one piece at a time: others have things to do, too
		o.mu.RLock()
		p := o.pieces.doubtful(from, to)
		o.mu.RUnlock()
		if p != nil {
			o.proveOne(p)
		}
		o.wmu.Unlock()
	}
}

// proveHeld is prove for who holds o.wmu.
func (o *Object) proveHeld(from, to int64) {
	for {
		p := o.pieces.doubtful(from, to)
		if p == nil {
			return
		}
		o.proveOne(p)
	}
}

var proofBuffers = sync.Pool{New: func() any { b := make([]byte, chunkLeast); return &b }}

// proveOne proves the piece p. o.wmu is held.
func (o *Object) proveOne(p *piece) {
	buf := proofBuffers.Get().(*[]byte)
	defer proofBuffers.Put(buf)
	err := o.readPiece(buf, p)
	if err == nil {
		o.mu.Lock()
		o.pieces.trust(p)
		o.present.add(p.from, p.to())
		o.mu.Unlock()
		return
	}
	o.store.logOnce(err, "kept data is damaged: it will be fetched again", o.src.Path)
	if errors.Is(err, layers.ErrCorrupt) {
		o.drop(p.from, p.to())
		return
	}
	// A disk that cannot read it now may read it when it is opened again.
	o.mu.Lock()
	o.forget(p.from, p.to())
	o.mu.Unlock()
}

// readPiece reads p to the beginning of buf, which may become larger, and compares
// it with its sum.
func (o *Object) readPiece(buf *[]byte, p *piece) error {
	if len(*buf) < int(p.n) {
		*buf = make([]byte, p.n)
	}
	b := (*buf)[:p.n]
	n, err := sys.Pread(o.data, b, p.from)
	if err == nil && (n < len(b) || sumOf(b) != p.sum) {
		err = fmt.Errorf("%d bytes at %d are not what was fetched: %w", p.n, p.from, layers.ErrCorrupt)
	}
	return err
}

// drop makes clean bytes missing again, with the pieces that they are in. o.wmu is
// held.
func (o *Object) drop(from, to int64) {
	// If it cannot be recorded now it is owed: until it is, reopening finds the
	// same.
	o.owed = append(o.owed, record{kind: kindDropped, a: from, b: to - from})
	if err := o.append(); err == nil && o.clearedAt >= 0 {
		// After a power loss there may be no sum left that says so (unseal).
		_ = o.syncMap() // Sync tells
	}
	o.mu.Lock()
	o.forget(from, to)
	o.mu.Unlock()
}

// forget is what a drop does to the ranges. o.mu is held.
func (o *Object) forget(from, to int64) {
	o.drops.Add(1)
	o.pieces.remove(from, to)
	for _, c := range o.dirty.missing(from, to) {
		o.present.remove(c.from, c.to)
	}
}

// unseal takes the sums off the pieces in [from, to) before something is put there
// that they do not speak of. What comes next may be half done when the daemon is
// killed: the record comes first. The host may lose power: then the data may be on
// disk and the record not. So the first such record of a boot is made durable, and
// in another boot it says that no sum of that boot counts. What was fetched in that
// boot was right then; old pieces may be anything, and keep their sums. So for those
// each record is made durable, and to have fewer of them, it is for all pieces around
// that lie together. o.wmu is held.
func (o *Object) unseal(from, to int64) error {
	if to = min(to, o.limit); !o.pieces.any(from, to) {
		return nil
	}
	old := false
	o.pieces.each(from, to, func(p *piece) bool { old = old || p.old; return !old })
	if old {
		from, to = from/groupSize*groupSize, min(o.limit, (to-1)/groupSize*groupSize+groupSize)
	}
	o.proveHeld(from, to)
	if !o.pieces.any(from, to) {
		return o.settleDebt()
	}
	if err := o.append(record{kind: kindCleared, a: from, b: to - from}); err != nil {
		return fmt.Errorf("extent map: %w", err)
	}
	at := o.clearedAt
	if at < 0 {
		at = int64(o.chain.index) - 1
	}
	if (old || int64(o.durable) <= at) && o.failed == nil {
		if err := o.syncMap(); err != nil {
			return err
		}
	}
	o.mu.Lock()
	o.clearedAt = at
	o.pieces.remove(from, to)
	o.mu.Unlock()
	return nil
}

// syncMap makes all records durable. o.wmu is held.
func (o *Object) syncMap() error {
	upto := o.chain.index
	if err := sys.Fdatasync(o.mapFd); err != nil {
		o.failed = fmt.Errorf("sync of extent map: %w", err)
		return o.failed
	}
	o.durable = max(o.durable, upto)
	return nil
}
