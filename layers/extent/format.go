package extent

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// The layout of a map file; FORMAT.md is the reference.
const (
	mapMagic   = "mfsextmp"
	mapVersion = 2
	mapNoSums  = 1 // the version before, which had no pieces

	recordLen   = 32
	fixedHeader = 64 // before the layer ID
	maxLayerID  = 4096
	maxPath     = 1 << 16
	maxMap      = 1 << 30 // bytes; compaction keeps maps far below
	maxSize     = 1<<63 - 1
)

// Source names the one version of the one file that an object holds parts of.
// A pending object keeps the source of its creation, whatever it is called now.
type Source struct {
	LayerID string
	Path    layers.Path
	Version layers.Version
	Mode    uint32 // as the source has it; st_mode with the file type
}

// Attr returns what the file must still be when it is opened to fetch from it:
// the want of layers.Layer.Open.
func (s *Source) Attr() layers.Attr {
	return layers.Attr{
		Known: layers.KnownSize | layers.KnownTimes,
		Mode:  s.Mode,
		Size:  s.Version.Size,
		Atime: s.Version.Mtime,
		Mtime: s.Version.Mtime,
	}
}

func (s *Source) check() error {
	switch {
	case len(s.LayerID) > maxLayerID, len(s.Path) > maxPath:
		return unix.ENAMETOOLONG
	case !s.Path.Valid(), s.Version.Size < 0, s.Version.Mtime.Nsec >= 1e9:
		return unix.EINVAL
	case s.Mode&unix.S_IFMT != unix.S_IFREG:
		return layers.ErrNotRegular
	}
	return nil
}

// kind says what a record means.
type kind uint8

const (
	kindFetched kind = 1 + iota // [a, a+b) came from the source
	kindWritten                 // [a, a+b) was written or zeroed here
	kindShrink                  // the limit is a; the data file is about to be cut to a
	kindShrunk                  // the last shrink's cut was made
	kindCancel                  // the last shrink will not be made
	kindBarrier                 // the data of all records before index a is durable
	kindSession                 // the boot id, in a and b, of the records that follow
	kindEpoch                   // they belong to epoch a; ranges recorded from index b to here are void
	kindPiece                   // [a, a+n) came from the source; b is its sum
	kindCleared                 // no sum speaks of [a, a+b) any more
	kindDropped                 // what is clean of [a, a+b) is missing again
	kindKept                    // as kindPiece, but nobody has vouched for it in this boot
	kindEnd
)

func (k kind) isPiece() bool { return k == kindPiece || k == kindKept }

// A record is one entry of the log. Its crc covers its index, the map's salt and
// its predecessor's crc, so that it can stand nowhere else.
type record struct {
	kind    kind
	a, b    int64
	durable uint32 // records before this index were durable when this was written
	n       uint32 // of a piece: 1 to 1<<24
	crc     uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A chain is where the next record goes.
type chain struct {
	salt  uint32
	index uint32
	prev  uint32 // crc of the last record, of the header for the first
}

// put appends r to b and moves on.
func (c *chain) put(b []byte, r record) []byte {
	var e [recordLen]byte
	// The bytes 1 to 3 are n-1, which others have not.
	n := r.n
	if r.kind.isPiece() {
		n--
	}
	binary.LittleEndian.PutUint32(e[:], uint32(r.kind)|n<<8)
	binary.LittleEndian.PutUint32(e[4:], c.prev)
	binary.LittleEndian.PutUint64(e[8:], uint64(r.a))
	binary.LittleEndian.PutUint64(e[16:], uint64(r.b))
	binary.LittleEndian.PutUint32(e[24:], r.durable)
	sum := recordSum(e[:28], c.salt, c.index)
	binary.LittleEndian.PutUint32(e[28:], sum)
	c.prev = sum
	c.index++
	return append(b, e[:]...)
}

func recordSum(e []byte, salt, index uint32) uint32 {
	var s [8]byte
	binary.LittleEndian.PutUint32(s[:], salt)
	binary.LittleEndian.PutUint32(s[4:], index)
	return crc32.Update(crc32.Checksum(s[:], castagnoli), castagnoli, e)
}

// decodeRecord reads the record of the given index. ok says that it is one that
// was written there; prev is the crc that its predecessor must have.
func decodeRecord(e []byte, salt, index uint32) (r record, prev uint32, ok bool) {
	r = record{
		kind:    kind(e[0]),
		n:       binary.LittleEndian.Uint32(e) >> 8,
		a:       int64(binary.LittleEndian.Uint64(e[8:])),
		b:       int64(binary.LittleEndian.Uint64(e[16:])),
		durable: binary.LittleEndian.Uint32(e[24:]),
		crc:     binary.LittleEndian.Uint32(e[28:]),
	}
	prev = binary.LittleEndian.Uint32(e[4:])
	ok = r.crc == recordSum(e[:28], salt, index) && r.kind != 0 && r.kind < kindEnd
	if r.kind.isPiece() {
		r.n++
	} else {
		ok = ok && r.n == 0
	}
	return r, prev, ok
}

// encodeHeader returns the header of a map for src, and its crc.
func encodeHeader(src *Source, salt uint32) ([]byte, uint32) {
	n := fixedHeader + len(src.LayerID) + len(src.Path) + 4
	n = (n + recordLen - 1) / recordLen * recordLen
	b := make([]byte, n)
	copy(b, mapMagic)
	binary.LittleEndian.PutUint32(b[8:], mapVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(n))
	binary.LittleEndian.PutUint32(b[16:], 0) // flags: none yet
	binary.LittleEndian.PutUint32(b[20:], salt)
	binary.LittleEndian.PutUint64(b[24:], uint64(src.Version.Size))
	binary.LittleEndian.PutUint64(b[32:], uint64(src.Version.Mtime.Sec))
	binary.LittleEndian.PutUint32(b[40:], src.Version.Mtime.Nsec)
	binary.LittleEndian.PutUint32(b[44:], src.Mode)
	binary.LittleEndian.PutUint32(b[48:], uint32(len(src.LayerID)))
	binary.LittleEndian.PutUint32(b[52:], uint32(len(src.Path)))
	copy(b[fixedHeader:], src.LayerID)
	copy(b[fixedHeader+len(src.LayerID):], src.Path)
	sum := crc32.Checksum(b[:n-4], castagnoli)
	binary.LittleEndian.PutUint32(b[n-4:], sum)
	return b, sum
}

// A header is what stands before the records.
type header struct {
	version uint32
	src     Source
	first   chain
	n       int // its length
}

// decodeHeader reads the header at the beginning of a map file.
func decodeHeader(b []byte) (header, error) {
	bad := func(what string) (header, error) {
		return header{}, fmt.Errorf("extent map header: %s: %w", what, layers.ErrCorrupt)
	}
	if len(b) < fixedHeader || string(b[:8]) != mapMagic {
		return bad("not an extent map")
	}
	v := binary.LittleEndian.Uint32(b[8:])
	if v != mapVersion && v != mapNoSums {
		return bad(fmt.Sprintf("format %d, this program knows %d", v, mapVersion))
	}
	size := binary.LittleEndian.Uint32(b[12:])
	if size < fixedHeader+4 || size%recordLen != 0 || int64(size) > int64(len(b)) {
		return bad("length")
	}
	n := int(size)
	sum := binary.LittleEndian.Uint32(b[n-4:])
	if sum != crc32.Checksum(b[:n-4], castagnoli) {
		return bad("checksum")
	}
	idLen, pathLen := binary.LittleEndian.Uint32(b[48:]), binary.LittleEndian.Uint32(b[52:])
	if binary.LittleEndian.Uint32(b[16:]) != 0 || idLen > maxLayerID || pathLen > maxPath ||
		fixedHeader+int(idLen)+int(pathLen)+4 > n {
		return bad("fields")
	}
	src := Source{
		LayerID: string(b[fixedHeader : fixedHeader+idLen]),
		Path:    layers.Path(b[fixedHeader+idLen : fixedHeader+idLen+pathLen]),
		Version: layers.Version{
			Size: int64(binary.LittleEndian.Uint64(b[24:])),
			Mtime: layers.Time{
				Sec:  int64(binary.LittleEndian.Uint64(b[32:])),
				Nsec: binary.LittleEndian.Uint32(b[40:]),
			},
		},
		Mode: binary.LittleEndian.Uint32(b[44:]),
	}
	if src.check() != nil {
		return bad("source")
	}
	return header{v, src, chain{salt: binary.LittleEndian.Uint32(b[20:]), prev: sum}, n}, nil
}
