package main

import (
	"runtime"
	"runtime/metrics"
)

// heapSlack is how much more than before may be in use before it is looked at again.
const heapSlack = 64 << 20

// keepHeapSmall has the garbage collected once more whenever much more is in use after a
// collection than was. Buffers that requests have used wait for others of the same length: with
// reads of all lengths that is a gigabyte, one of each length for each of eight threads. The
// collector lets go of those that nobody wanted between two of its runs. But it runs when the heap
// has doubled, they count, and so they only ever become more.
func keepHeapSmall() {
	much := uint64(heapSlack)
	collected := make(chan struct{}, 1)
	go func() {
		for range collected {
			if heapInUse() <= much {
				continue
			}
			runtime.GC()
			live := heapInUse()
			much = live + max(heapSlack, live/2) // as where many files are known: not each time
		}
	}()
	afterEachCollection(func() {
		select {
		case collected <- struct{}{}:
		default:
		}
	})
}

// afterEachCollection calls f, which must not wait, after each garbage collection.
func afterEachCollection(f func()) {
	type garbage struct{ _ [16]byte }
	runtime.AddCleanup(new(garbage), func(f func()) {
		f()
		afterEachCollection(f)
	}, f)
}

// heapInUse is what the last collection found in use, in bytes.
func heapInUse() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
