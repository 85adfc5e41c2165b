package lazypages

import (
	"slices"
	"sort"

	"github.com/migratefs/migratefs/criu"
)

// missing are the parts of an address space that are not there yet, in order and apart.
type missing []criu.LazyRange

// after returns the index of the first range that ends after addr.
func (m missing) after(addr uint64) int {
	return sort.Search(len(m), func(i int) bool { return m[i].End > addr })
}

// at returns the part from addr on, no longer than most; false if nothing is missing there.
func (m missing) at(addr, most uint64) (r criu.LazyRange, ok bool) {
	i := m.after(addr)
	if i == len(m) || m[i].Start > addr {
		return r, false
	}
	return clip(m[i], addr, min(m[i].End, addr+most)), true
}

// clip is the part of r from start to end, both within it.
func clip(r criu.LazyRange, start, end uint64) criu.LazyRange {
	return criu.LazyRange{Start: start, End: end, Off: r.Off + int64(start-r.Start), Wiped: r.Wiped}
}

// cut takes out what is between start and end, and returns it.
func (m *missing) cut(start, end uint64) (out missing) {
	i := m.after(start)
	j := i
	var keep missing
	for ; j < len(*m) && (*m)[j].Start < end; j++ {
		r := (*m)[j]
		if r.Start < start {
			keep = append(keep, clip(r, r.Start, start))
		}
		out = append(out, clip(r, max(r.Start, start), min(r.End, end)))
		if r.End > end {
			keep = append(keep, clip(r, end, r.End))
		}
	}
	if j > i {
		*m = slices.Replace(*m, i, j, keep...)
	}
	return out
}

// move has what was missing between start and end missing at to. The two are apart.
func (m *missing) move(start, end, to uint64) {
	m.cut(to, to+(end-start)) // nothing is: it was unmapped first
	moved := m.cut(start, end)
	for i := range moved {
		moved[i].Start += to - start
		moved[i].End += to - start
	}
	*m = slices.Insert(*m, m.after(to), moved...)
}

// forked is what a child misses: the kernel has emptied the rest.
func (m missing) forked() missing {
	return slices.DeleteFunc(slices.Clone(m), func(r criu.LazyRange) bool { return r.Wiped })
}

func (m missing) bytes() (n int64) {
	for _, r := range m {
		n += int64(r.End - r.Start)
	}
	return n
}
