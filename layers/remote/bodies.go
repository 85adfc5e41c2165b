package remote

import "sync"

// Bodies of large DATA packets are used again: a gigabyte that is read would be as
// much that is cleared and collected. Only who has copied what is in one gives it
// back; of all others the collector takes care.

const (
	bodyLeast = 96 << 10
	bodySize  = maxChunk + 64
)

var bodies = sync.Pool{New: func() any { return new([bodySize]byte) }}

// newBody returns n bytes, which hold anything.
func newBody(n int) []byte {
	if n < bodyLeast || n > bodySize {
		return make([]byte, n)
	}
	return bodies.Get().(*[bodySize]byte)[:n]
}

// recycle gives the bodies of replies back, which nobody looks at again.
func recycle(replies []reply) {
	for i := range replies {
		if b := replies[i].body; cap(b) == bodySize {
			replies[i].body = nil
			bodies.Put((*[bodySize]byte)(b[:bodySize]))
		}
	}
}
