package remote

import (
	"context"
	"errors"
	"sort"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote/extension"
)

const (
	// holeMin is how much of a file must take no space for it to be asked where its
	// holes are, and the shortest hole that is worth reading around.
	holeMin = 64 << 10

	// mostPieces is how many pieces a read is divided into: each takes an exchange.
	mostPieces = 8
)

// extents is where a part of a file, [from, end), has data. It holds for the version
// that was opened.
type extents struct {
	from, end int64
	data      []span // in order, not empty, within the part
}

type span struct{ from, to int64 }

// sparse reports whether f may have holes that can be asked for.
func (f *File) sparse() bool {
	return f.l.ours.extents && f.attr.Has(layers.KnownAlloc) && f.attr.Blocks*512+holeMin <= f.attr.Size
}

// readSparse is readDense, but for what is known to be a hole. It takes one exchange
// more for the first read, and then for each 4096 ranges of data.
func (f *File) readSparse(ctx context.Context, b []byte, off int64) error {
	for len(b) > 0 {
		e, err := f.extentsAt(ctx, off)
		if err != nil {
			var said *statusError
			if errors.As(err, &said) {
				return f.readDense(ctx, b, off) // a filesystem may not tell
			}
			return err
		}
		n := min(int64(len(b)), e.end-off)
		part := b[:n]
		clear(part)
		for _, s := range e.pieces(off, off+n) {
			if err := f.readDense(ctx, part[s.from-off:s.to-off], s.from); err != nil {
				return err
			}
		}
		b, off = b[n:], off+n
	}
	return nil
}

// pieces returns what is to be read of [from, to).
func (e *extents) pieces(from, to int64) (all []span) {
	i := sort.Search(len(e.data), func(i int) bool { return e.data[i].to > from })
	for _, s := range e.data[i:] {
		if s.from >= to {
			break
		}
		s = span{max(s.from, from), min(s.to, to)}
		if last := len(all) - 1; last >= 0 && s.from-all[last].to < holeMin {
			all[last].to = s.to
		} else {
			all = append(all, s)
		}
	}
	if len(all) > mostPieces {
		all = []span{{all[0].from, all[len(all)-1].to}}
	}
	return all
}

// extentsAt returns a part of the file that off is in.
func (f *File) extentsAt(ctx context.Context, off int64) (*extents, error) {
	f.mu.Lock()
	e := f.extents
	f.mu.Unlock()
	if e != nil && e.from <= off && off < e.end {
		return e, nil
	}
	err := f.l.exchangeOn(ctx, f.l.session, func(ctx context.Context, c *conn) error {
		handle, err := f.acquire(ctx, c)
		if err != nil {
			return err
		}
		defer f.release(c, handle)
		f.l.handles.add(f, c.caps.handles)
		ask := askOurs(extension.Extents, handle, uint64(off))
		ask.weight = extension.MaxExtents * 16
		replies, err := c.do(ctx, ask, askHandle(fxpFstat, handle))
		if err != nil {
			return err
		}
		if err := f.sameVersion(&replies[1]); err != nil {
			return err
		}
		e, err = replies[0].extents(off)
		return err
	})
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.extents = e
	f.mu.Unlock()
	return e, nil
}

// extents decodes the answer to extents@migratefs for off.
func (r *reply) extents(off int64) (*extents, error) {
	d, err := r.expect(fxpExtendedReply)
	if err != nil {
		return nil, err
	}
	end, n := d.U64(), d.U32()
	if d.Bad || end <= uint64(off) || end > extension.End || uint64(n)*16 != uint64(len(d.B)) {
		return nil, corrupt("a malformed list of extents")
	}
	e := &extents{from: off, end: int64(end)}
	at := uint64(off)
	for range n {
		from, length := d.U64(), d.U64()
		if from < at || length == 0 || from > end || length > end-from {
			return nil, corrupt("extents that are in no order")
		}
		at = from + length
		e.data = append(e.data, span{int64(from), int64(at)})
	}
	return e, nil
}
