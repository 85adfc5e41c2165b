package overlay

import "slices"

// lockKind is what a byte range is locked for.
type lockKind uint8

const (
	unlocked lockKind = iota
	shared
	exclusive
)

// conflicts reports whether two owners cannot both have a and b.
func (a lockKind) conflicts(b lockKind) bool {
	return a == exclusive && b != unlocked || b == exclusive && a != unlocked
}

// span is a locked range of bytes, both ends included.
type span struct {
	start, end uint64
	kind       lockKind
}

func (s *span) overlaps(t *span) bool { return s.start <= t.end && t.start <= s.end }

// spans are what one owner holds: sorted, disjoint, and as few as can be.
type spans []span

// with returns what is held after new was set, which takes the place of
// whatever was held in its range (fcntl(2): locks of one owner never conflict,
// they are converted, split and merged).
func (s spans) with(set span) spans {
	held := make(spans, 0, len(s)+2)
	for _, old := range s {
		if !old.overlaps(&set) {
			held = append(held, old)
			continue
		}
		if old.start < set.start {
			held = append(held, span{old.start, set.start - 1, old.kind})
		}
		if old.end > set.end {
			held = append(held, span{set.end + 1, old.end, old.kind})
		}
	}
	if set.kind != unlocked {
		held = append(held, set)
	}
	slices.SortFunc(held, func(a, b span) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	merged := held[:0]
	for _, next := range held {
		last := len(merged) - 1
		if last >= 0 && merged[last].kind == next.kind && merged[last].end+1 == next.start {
			merged[last].end = next.end
			continue
		}
		merged = append(merged, next)
	}
	return merged
}

// within returns what is held in the range of r, piece by piece and the gaps as
// unlocked: what to set to have it again.
func (s spans) within(r *span) []span {
	var parts []span
	at := r.start
	for i := range s {
		if !s[i].overlaps(r) {
			continue
		}
		from, to := max(s[i].start, r.start), min(s[i].end, r.end)
		if from > at {
			parts = append(parts, span{at, from - 1, unlocked})
		}
		parts = append(parts, span{from, to, s[i].kind})
		if to == r.end {
			return parts
		}
		at = to + 1
	}
	return append(parts, span{at, r.end, unlocked})
}

// conflict returns the first of s that nobody else may have beside r.
func (s spans) conflict(r *span) *span {
	for i := range s {
		if s[i].overlaps(r) && s[i].kind.conflicts(r.kind) {
			return &s[i]
		}
	}
	return nil
}
