package extension

import "encoding/binary"

// Decoder takes a packet apart, as SFTP puts it together. The first read past the end sets
// Bad and makes every later one return zero.
type Decoder struct {
	B   []byte // what is left
	Bad bool
}

func (d *Decoder) take(n uint64) []byte {
	if d.Bad || n > uint64(len(d.B)) {
		d.Bad = true
		return nil
	}
	v := d.B[:n]
	d.B = d.B[n:]
	return v
}

// U32 takes a 32-bit number.
func (d *Decoder) U32() uint32 {
	if v := d.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// U64 takes a 64-bit number.
func (d *Decoder) U64() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Bytes takes a string. It is a part of B.
func (d *Decoder) Bytes() []byte { return d.take(uint64(d.U32())) }

// Str is Bytes as a string.
func (d *Decoder) Str() string { return string(d.Bytes()) }
