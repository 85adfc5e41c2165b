package overlay

import (
	"runtime/debug"
	"time"
)

// The kernel forgets nodes by the hundred thousand when memory is wanted. They go
// with the next garbage collection, which Go makes when the heap has doubled, or
// after two minutes; and its maps never shrink. So maps that are nearly empty are
// made anew, and when the forgetting is over what is free is given back.

// manyNodes are worth the trouble: some megabytes.
const manyNodes = 8192

// giveBackAfter is how long after a shrinking of the table memory is given back.
const giveBackAfter = time.Second

// shrinkLocked makes the maps anew when an eighth is left of the nodes they had
// most, and reports whether it did. The caller holds t.mu.
func (t *table) shrinkLocked() bool {
	if t.peak < manyNodes || len(t.byID) > t.peak/8 {
		return false
	}
	t.byID, t.byKey, t.byIno = fresh(t.byID), fresh(t.byKey), fresh(t.byIno)
	t.peak = len(t.byID)
	return true
}

func fresh[K comparable, V any](m map[K]V) map[K]V {
	c := make(map[K]V, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// newGiveBack returns a timer that gives free memory back when it is set.
func newGiveBack() *time.Timer {
	t := time.AfterFunc(time.Hour, debug.FreeOSMemory)
	t.Stop()
	return t
}
