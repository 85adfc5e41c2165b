package extension

import (
	"encoding/binary"

	"github.com/migratefs/migratefs/layers"
)

// The extensions, as VERSION has them and as requests are called.
const (
	Attrs   = "attrs@migratefs"
	Xattrs  = "xattrs@migratefs"
	Extents = "extents@migratefs"
	Get     = "get@migratefs"
	Tree    = "tree@migratefs"
	Hash    = "hash@migratefs"

	// Version is that of each of them.
	Version = "1"

	// StatPair is the extended pair in ATTRS.
	StatPair = "statx@migratefs"

	// SHA256 is the one algorithm of Hash.
	SHA256 = "sha256"
)

const (
	// MaxData is the most that Get returns at once, in bytes: a packet of 256 KiB
	// holds it with all that goes before.
	MaxData = 255 << 10

	// MaxHash is the most that Hash reads at once, in bytes: a second or so.
	MaxHash = 256 << 20

	// MaxExtents is how many ranges one answer of Extents holds.
	MaxExtents = 4096

	// End is the end of what Extents tells when it has reached the file's.
	End = 1<<63 - 1
)

// All are the extensions that VERSION names.
func All() []string { return []string{Attrs, Xattrs, Extents, Get, Tree, Hash} }

const (
	flagBtime = 1 << iota
	flagSettled
	flagBare

	statLen = 2*4 + 4*8 + 4 + 4*12
)

// AppendStat encodes what a knows that ATTRS has no room for.
func AppendStat(b []byte, a *layers.Attr) []byte {
	var flags uint32
	for _, f := range []struct {
		set bool
		bit uint32
	}{
		{a.Has(layers.KnownBtime), flagBtime},
		{a.Has(layers.KnownSettled), flagSettled},
		{a.Has(layers.KnownBare), flagBare},
	} {
		if f.set {
			flags |= f.bit
		}
	}
	b = binary.BigEndian.AppendUint32(b, flags)
	b = binary.BigEndian.AppendUint32(b, a.Nlink)
	for _, v := range []uint64{a.Dev, a.Ino, a.Rdev, uint64(a.Blocks)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, a.Blksize)
	for _, t := range []layers.Time{a.Atime, a.Mtime, a.Ctime, a.Btime} {
		b = AppendTime(b, t)
	}
	return b
}

// AppendTime encodes t.
func AppendTime(b []byte, t layers.Time) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(t.Sec))
	return binary.BigEndian.AppendUint32(b, t.Nsec)
}

// DecodeStat puts what AppendStat has encoded into a, which has what ATTRS says.
// It is false, and a as it was, if that is not what b holds or cannot be true.
func DecodeStat(b []byte, a *layers.Attr) bool {
	if len(b) < statLen {
		return false // more is what a later server knows
	}
	s := *a
	flags := binary.BigEndian.Uint32(b)
	s.Nlink = binary.BigEndian.Uint32(b[4:])
	s.Dev, s.Ino = binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	s.Rdev = binary.BigEndian.Uint64(b[24:])
	blocks := binary.BigEndian.Uint64(b[32:])
	s.Blksize = binary.BigEndian.Uint32(b[40:])
	if blocks > 1<<54 {
		return false
	}
	s.Blocks = int64(blocks)
	for i, t := range []*layers.Time{&s.Atime, &s.Mtime, &s.Ctime, &s.Btime} {
		var ok bool
		if *t, ok = DecodeTime(b[44+12*i:]); !ok {
			return false
		}
	}
	s.Known |= layers.KnownTimes | layers.KnownCtime | layers.KnownAlloc
	if s.Ino != 0 {
		s.Known |= layers.KnownIno
	}
	if s.Nlink != 0 {
		s.Known |= layers.KnownNlink
	}
	for _, f := range []struct {
		bit   uint32
		known layers.Known
	}{{flagBtime, layers.KnownBtime}, {flagSettled, layers.KnownSettled}, {flagBare, layers.KnownBare}} {
		if flags&f.bit != 0 {
			s.Known |= f.known
		}
	}
	*a = s
	return true
}

// DecodeTime decodes what AppendTime has encoded.
func DecodeTime(b []byte) (t layers.Time, ok bool) {
	if len(b) < 12 {
		return t, false
	}
	t.Sec, t.Nsec = int64(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint32(b[8:])
	return t, t.Nsec < 1e9
}
