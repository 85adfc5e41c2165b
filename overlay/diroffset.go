package overlay

import (
	"cmp"
	"math"
	"slices"
	"sort"

	"github.com/migratefs/migratefs/layers"
)

// Offsets in a directory. A directory is listed in the order of a hash of the
// names, and the hash is the offset, as ext4 has it: an offset then means the same
// after any change of the directory, in another handle, and in another run of the
// daemon, which is what NFS servers and seekdir(3) need.

const (
	offDot    = 1
	offDotDot = 2
	offFirst  = 3
)

// listing is a directory as it was read, in the order of offsets.
type listing struct {
	entries []layers.Entry
	offsets []uint64 // of what comes after the entry; ascending, no two are equal
}

func newListing(es []layers.Entry) listing {
	type place struct {
		off uint64
		i   int
	}
	places := make([]place, len(es))
	for i := range es {
		places[i] = place{nameOffset(es[i].Name), i}
	}
	slices.SortFunc(places, func(a, b place) int {
		if c := cmp.Compare(a.off, b.off); c != 0 {
			return c
		}
		return cmp.Compare(es[a.i].Name, es[b.i].Name)
	})
	l := listing{make([]layers.Entry, len(es)), make([]uint64, len(es))}
	for i, p := range places {
		l.entries[i], l.offsets[i] = es[p.i], p.off
		if i > 0 && p.off <= l.offsets[i-1] {
			l.offsets[i] = l.offsets[i-1] + 1 // two names of one hash
		}
	}
	return l
}

// from returns what comes after offset off; 0 is the beginning.
func (l listing) from(off uint64) listing {
	i := sort.Search(len(l.offsets), func(i int) bool { return l.offsets[i] > off })
	return listing{l.entries[i:], l.offsets[i:]}
}

// foreign returns what an offset means that may be another filesystem's: a process
// that CRIU restores goes on in a directory where it stood on the filesystem that
// it had. Where that was nobody can tell, but at the end; so it begins anew, and
// sees names twice rather than not at all.
func (l listing) foreign(off uint64) uint64 {
	if off == math.MaxInt32 || off >= math.MaxInt64 { // the ends of btrfs, and of ext4 and tmpfs
		return math.MaxInt64
	}
	if _, ours := slices.BinarySearch(l.offsets, off); ours {
		return off
	}
	return 0
}

// ListedAt is the order in which programs get the names of a directory, by ascending
// value.
func ListedAt(name string) uint64 { return nameOffset(name) }

// nameOffset is the offset of a name: 61 bits of FNV-1a, mixed, since the kernel
// and programs take offsets for signed numbers. It is stable: clients of an NFS
// server keep offsets over a remount.
func nameOffset(name string) uint64 {
	switch name {
	case ".":
		return offDot
	case "..":
		return offDotDot
	}
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	h ^= h >> 32
	h *= 0x9e3779b97f4a7c15
	return max(h>>3, offFirst)
}
