package whiteout

import "encoding/binary"

// Handle names a file of a layer whatever becomes of its names: the value of
// overlay.origin and overlay.upper, and, in hexadecimal, the names in the index
// directory (struct ovl_fb in fs/overlayfs/overlayfs.h).
type Handle struct {
	UUID  [16]byte // of the filesystem
	Type  int32    // of Bytes, as name_to_handle_at(2) gives both
	Bytes []byte
	Upper bool // the file is in the upper
}

// The header: version, magic, length of all, flags, type, UUID.
const (
	handleMagic  = 0xfb
	handleHeader = 21

	flagBigEndian = 1
	flagAnyEndian = 2
	flagUpper     = 4
	flagsKnown    = flagBigEndian | flagAnyEndian | flagUpper
)

// byteOrder is the flag that handles made on this machine have.
func byteOrder() byte {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return 0
	}
	return flagBigEndian
}

// Encode returns h as it stands on disk; ok is false if it has no such form.
func (h Handle) Encode() (b []byte, ok bool) {
	if len(h.Bytes) == 0 || len(h.Bytes) > 255-handleHeader || h.Type <= 0 || h.Type > 254 {
		return nil, false
	}
	flags := byteOrder()
	if h.Upper {
		flags |= flagUpper
	}
	b = append(b, 0, handleMagic, byte(handleHeader+len(h.Bytes)), flags, byte(h.Type))
	b = append(b, h.UUID[:]...)
	return append(b, h.Bytes...), true
}

// ParseHandle is the inverse of Encode. ok is false for an empty value, by which
// the kernel says that a file is a copy of one it cannot name, and for what a newer
// kernel or a machine of another byte order wrote.
func ParseHandle(b []byte) (h Handle, ok bool) {
	if len(b) <= handleHeader || b[0] != 0 || b[1] != handleMagic || int(b[2]) != len(b) {
		return h, false
	}
	flags := b[3]
	if flags&^flagsKnown != 0 || flags&flagAnyEndian == 0 && flags&flagBigEndian != byteOrder() {
		return h, false
	}
	h.Type, h.Bytes, h.Upper = int32(b[4]), b[handleHeader:], flags&flagUpper != 0
	copy(h.UUID[:], b[5:handleHeader])
	return h, true
}
