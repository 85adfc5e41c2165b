package extent

import (
	"math/bits"
	"sync"
)

// Buffers of fetches are used again: a gigabyte that is fetched would be as much that
// is cleared and collected.

const (
	bufLeast = 17 // log2 of the smallest that is kept: 128 KiB
	bufMost  = 20 // and of the largest: window
)

var bufs [bufMost - bufLeast + 1]sync.Pool // of *[]byte

// newBuf returns n bytes, which hold anything.
func newBuf(n int) []byte {
	i := bits.Len(uint(n-1)) - bufLeast
	if n <= 1<<(bufLeast-1) || i > bufMost-bufLeast {
		return make([]byte, n)
	}
	if b, _ := bufs[i].Get().(*[]byte); b != nil {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<(i+bufLeast))
}

// freeBuf takes back what newBuf returned, which nobody looks at any more.
func freeBuf(b []byte) {
	c := cap(b)
	if i := bits.Len(uint(c)) - 1 - bufLeast; c&(c-1) == 0 && i >= 0 && i <= bufMost-bufLeast {
		b = b[:c]
		bufs[i].Put(&b)
	}
}
