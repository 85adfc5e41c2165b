package seed

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// Go's linker makes a note segment of its own note, and lays the GNU note behind it.
func TestBuildIDBehindTheSegment(t *testing.T) {
	note := func(owner string, typ uint32, desc string) []byte {
		b := binary.LittleEndian.AppendUint32(nil, 4)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(desc)))
		b = binary.LittleEndian.AppendUint32(b, typ)
		b = append(b, owner...)
		b = append(b, desc...)
		return append(b, make([]byte, -len(desc)&3)...)
	}
	const at = 64 + 56
	want := strings.Repeat("i", 20)
	own := note("Go\x00\x00", 4, strings.Repeat("g", 83))
	elf := make([]byte, at)
	copy(elf, "\x7fELF\x02\x01")
	binary.LittleEndian.PutUint64(elf[32:], 64) // program headers
	binary.LittleEndian.PutUint16(elf[54:], 56)
	binary.LittleEndian.PutUint16(elf[56:], 1)
	binary.LittleEndian.PutUint32(elf[64:], 4) // a note segment
	binary.LittleEndian.PutUint64(elf[64+8:], at)
	binary.LittleEndian.PutUint64(elf[64+32:], uint64(len(own)))
	binary.LittleEndian.PutUint64(elf[64+48:], 4)
	elf = append(append(elf, own...), note("GNU\x00", 3, want)...)
	for _, more := range []int{0, 100, 10000} {
		file := append(bytes.Clone(elf), make([]byte, more)...)
		if id, err := buildID(bytes.NewReader(file).ReadAt); string(id) != want || err != nil {
			t.Errorf("with %d bytes behind: %q, %v", more, id, err)
		}
	}
	if id, err := buildID(bytes.NewReader(elf[:len(elf)-1]).ReadAt); err != errNoBuildID {
		t.Errorf("of a note that is cut off: %q, %v", id, err)
	}
}
