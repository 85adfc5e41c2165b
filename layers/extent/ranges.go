package extent

import "slices"

// Range is the bytes Off <= i < Off+Len of an object.
type Range struct {
	Off int64
	Len int64
}

// A rangeSet is a set of byte offsets, kept as sorted spans that neither touch
// nor overlap, in chunks, so that a change moves a few kilobytes and not all of
// a badly fragmented file's spans. The zero value is empty.
type rangeSet struct {
	chunks [][]span // none is empty
	sum    int64    // bytes in all spans
}

type span struct{ from, to int64 }

const chunkMax = 256 // spans in a chunk

// seek returns where the first span is that ends after off. ci is len(s.chunks)
// if there is none.
func (s *rangeSet) seek(off int64) (ci, si int) {
	lo, hi := 0, len(s.chunks)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if c := s.chunks[m]; c[len(c)-1].to > off {
			hi = m
		} else {
			lo = m + 1
		}
	}
	if ci = lo; ci == len(s.chunks) {
		return ci, 0
	}
	c := s.chunks[ci]
	lo, hi = 0, len(c)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if c[m].to > off {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return ci, lo
}

// after returns the place behind (ci, si).
func (s *rangeSet) after(ci, si int) (int, int) {
	if si++; si == len(s.chunks[ci]) {
		return ci + 1, 0
	}
	return ci, si
}

// has reports whether all of [from, to) is in s. The empty range always is.
func (s *rangeSet) has(from, to int64) bool {
	if from >= to {
		return true
	}
	ci, si := s.seek(from)
	return ci < len(s.chunks) && s.chunks[ci][si].from <= from && to <= s.chunks[ci][si].to
}

// overlaps reports whether any of [from, to) is in s.
func (s *rangeSet) overlaps(from, to int64) bool {
	ci, si := s.seek(from)
	return from < to && ci < len(s.chunks) && s.chunks[ci][si].from < to
}

// absent returns how many bytes of [from, to) are not in s.
func (s *rangeSet) absent(from, to int64) (n int64) {
	s.gaps(from, to, func(from, to int64) bool {
		n += to - from
		return true
	})
	return n
}

// add puts [from, to) into s.
func (s *rangeSet) add(from, to int64) {
	if s.has(from, to) {
		return
	}
	ci, si := s.seek(from - 1) // a span that ends at from touches it
	cj, sj := ci, si
	for cj < len(s.chunks) && s.chunks[cj][sj].from <= to {
		v := s.chunks[cj][sj]
		from, to = min(from, v.from), max(to, v.to)
		s.sum -= v.to - v.from
		cj, sj = s.after(cj, sj)
	}
	s.sum += to - from
	s.splice(ci, si, cj, sj, span{from, to})
}

// remove takes [from, to) out of s.
func (s *rangeSet) remove(from, to int64) {
	if from >= to {
		return
	}
	ci, si := s.seek(from)
	cj, sj := ci, si
	var rest []span
	for cj < len(s.chunks) && s.chunks[cj][sj].from < to {
		v := s.chunks[cj][sj]
		s.sum -= v.to - v.from
		if v.from < from {
			rest = append(rest, span{v.from, from})
		}
		if v.to > to {
			rest = append(rest, span{to, v.to})
		}
		cj, sj = s.after(cj, sj)
	}
	for _, v := range rest {
		s.sum += v.to - v.from
	}
	s.splice(ci, si, cj, sj, rest...)
}

// splice puts with, of two spans at most, in place of the spans from (ci, si) up
// to (cj, sj).
func (s *rangeSet) splice(ci, si, cj, sj int, with ...span) {
	if ci == len(s.chunks) {
		if ci == 0 {
			if len(with) > 0 {
				s.chunks = [][]span{slices.Clone(with)}
			}
			return
		}
		// At the end: grow the last chunk.
		ci, si = ci-1, len(s.chunks[ci-1])
		cj, sj = ci, si
	}
	if cj > ci {
		// Move what stays of the last chunk into the first, drop those between.
		head := append(s.chunks[ci][:si], with...)
		if cj < len(s.chunks) {
			head = append(head, s.chunks[cj][sj:]...)
			cj++
		}
		s.chunks[ci] = head
		s.chunks = slices.Delete(s.chunks, ci+1, cj)
	} else {
		s.chunks[ci] = slices.Replace(s.chunks[ci], si, sj, with...)
	}
	switch c := s.chunks[ci]; {
	case len(c) == 0:
		s.chunks = slices.Delete(s.chunks, ci, ci+1)
	case len(c) > chunkMax:
		half := len(c) / 2
		s.chunks = slices.Insert(s.chunks, ci+1, slices.Clone(c[half:]))
		s.chunks[ci] = slices.Clone(c[:half])
	case len(c) < chunkMax/8 && ci+1 < len(s.chunks) && len(s.chunks[ci+1]) < chunkMax/8:
		s.chunks[ci] = append(c, s.chunks[ci+1]...)
		s.chunks = slices.Delete(s.chunks, ci+1, ci+2)
	}
}

// all calls yield for each span, in order.
func (s *rangeSet) all(yield func(span) bool) {
	for _, c := range s.chunks {
		for _, v := range c {
			if !yield(v) {
				return
			}
		}
	}
}

// end returns the end of the last span, 0 if there is none.
func (s *rangeSet) end() int64 {
	if len(s.chunks) == 0 {
		return 0
	}
	c := s.chunks[len(s.chunks)-1]
	return c[len(c)-1].to
}

// gaps calls f for each longest run of [from, to) that is not in s, in order,
// until f returns false.
func (s *rangeSet) gaps(from, to int64, f func(from, to int64) bool) {
	for ci, si := s.seek(from); from < to; ci, si = s.after(ci, si) {
		if ci == len(s.chunks) || s.chunks[ci][si].from >= to {
			f(from, to)
			return
		}
		v := s.chunks[ci][si]
		if from < v.from && !f(from, v.from) {
			return
		}
		from = v.to
	}
}

// missing returns what gaps calls back, as a slice.
func (s *rangeSet) missing(from, to int64) []span {
	var out []span
	s.gaps(from, to, func(from, to int64) bool {
		out = append(out, span{from, to})
		return true
	})
	return out
}
