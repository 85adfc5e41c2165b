package extent

import "sort"

// Range is the bytes Off <= i < Off+Len of an object.
type Range struct {
	Off int64
	Len int64
}

func (r Range) end() int64 { return r.Off + r.Len }

// A rangeSet is a set of byte offsets, kept as sorted spans that neither touch
// nor overlap. The zero value is empty.
type rangeSet struct {
	spans []span
	sum   int64 // bytes in all spans
}

type span struct{ from, to int64 }

// at returns the index of the first span that ends after off.
func (s *rangeSet) at(off int64) int {
	lo, hi := 0, len(s.spans)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if s.spans[m].to > off {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo
}

// has reports whether all of [from, to) is in s. The empty range always is.
func (s *rangeSet) has(from, to int64) bool {
	if from >= to {
		return true
	}
	i := s.at(from)
	return i < len(s.spans) && s.spans[i].from <= from && to <= s.spans[i].to
}

// add puts [from, to) into s.
func (s *rangeSet) add(from, to int64) {
	if from >= to || s.has(from, to) {
		return
	}
	// Spans i..j-1 overlap or touch [from, to).
	i := sort.Search(len(s.spans), func(k int) bool { return s.spans[k].to >= from })
	j := i
	for ; j < len(s.spans) && s.spans[j].from <= to; j++ {
		from, to = min(from, s.spans[j].from), max(to, s.spans[j].to)
		s.sum -= s.spans[j].to - s.spans[j].from
	}
	s.sum += to - from
	s.replace(i, j, span{from, to})
}

// remove takes [from, to) out of s.
func (s *rangeSet) remove(from, to int64) {
	if from >= to {
		return
	}
	i := s.at(from)
	j := i
	var rest []span
	for ; j < len(s.spans) && s.spans[j].from < to; j++ {
		v := s.spans[j]
		s.sum -= v.to - v.from
		if v.from < from {
			rest = append(rest, span{v.from, from})
		}
		if v.to > to {
			rest = append(rest, span{to, v.to})
		}
	}
	for _, v := range rest {
		s.sum += v.to - v.from
	}
	s.replace(i, j, rest...)
}

// replace puts with in place of the spans i..j-1.
func (s *rangeSet) replace(i, j int, with ...span) {
	if len(with) == j-i {
		copy(s.spans[i:j], with)
		return
	}
	if len(with) > j-i {
		n := len(with) - (j - i)
		s.spans = append(s.spans, make([]span, n)...)
		copy(s.spans[j+n:], s.spans[j:len(s.spans)-n])
	} else {
		n := (j - i) - len(with)
		copy(s.spans[j-n:], s.spans[j:])
		s.spans = s.spans[:len(s.spans)-n]
	}
	copy(s.spans[i:], with)
}

// gaps calls f for each longest run of [from, to) that is not in s, in order,
// until f returns false.
func (s *rangeSet) gaps(from, to int64, f func(from, to int64) bool) {
	for i := s.at(from); from < to; i++ {
		if i == len(s.spans) || s.spans[i].from >= to {
			f(from, to)
			return
		}
		if from < s.spans[i].from && !f(from, s.spans[i].from) {
			return
		}
		from = s.spans[i].to
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

func (s *rangeSet) clone() rangeSet {
	return rangeSet{spans: append([]span(nil), s.spans...), sum: s.sum}
}
