package lazypages

import (
	"math/rand/v2"
	"testing"

	"github.com/migratefs/migratefs/criu"
)

// TestMissing compares it with a table that has an entry for each page.
func TestMissing(t *testing.T) {
	const pages, page = 64, 1 << 12
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		var m missing
		table := map[uint64]int64{} // by address
		off := int64(0)
		for at := uint64(0); at < pages; at++ {
			if random.IntN(3) == 0 {
				continue
			}
			off += int64(random.IntN(2)) * page
			if n := len(m); n > 0 && m[n-1].End == at*page && m[n-1].Off+int64(at*page-m[n-1].Start) == off {
				m[n-1].End += page
			} else {
				m = append(m, criu.LazyRange{Start: at * page, End: (at + 1) * page, Off: off})
			}
			table[at*page] = off
			off += page
		}
		for range 30 {
			n := 1 + random.Uint64N(9)
			from := random.Uint64N(pages-n) * page
			end := from + n*page
			if random.IntN(2) == 0 {
				for _, r := range m.cut(from, end) {
					for at := r.Start; at < r.End; at += page {
						if o, ok := table[at]; !ok || at < from || at >= end || o != r.Off+int64(at-r.Start) {
							t.Fatalf("cut %#x to %#x gives %#x", from, end, at)
						}
						delete(table, at)
					}
				}
			} else {
				to := (pages + random.Uint64N(pages)) * page
				if random.IntN(2) == 0 && from >= n*page {
					to = from - n*page
				}
				for at := to; at < to+n*page; at += page {
					delete(table, at)
				}
				for at := from; at < end; at += page {
					if o, ok := table[at]; ok {
						table[at+to-from] = o
						delete(table, at)
					}
				}
				m.move(from, end, to)
			}
			left := int64(0)
			for i, r := range m {
				if r.Start >= r.End || i > 0 && r.Start < m[i-1].End {
					t.Fatalf("out of order: %v", m)
				}
				left += int64(r.End - r.Start)
			}
			if left != int64(len(table))*page || m.bytes() != left {
				t.Fatalf("%d bytes, %d in the table: %v", left, len(table)*page, m)
			}
			for at := uint64(0); at < 2*pages*page; at += page {
				r, ok := m.at(at, page)
				o, want := table[at]
				if ok != want || ok && (r.Off != o || r.Start != at || r.End != at+page) {
					t.Fatalf("at %#x: %v, %v; in the table %#x, %v", at, r, ok, o, want)
				}
			}
		}
	}
}
