package main

import (
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"
)

// What waits in pools to be used again goes when it has become much, with one collection; what is
// in use is not collected for again and again.
func TestHeapIsKeptSmall(t *testing.T) {
	keepHeapSmall()
	var pool sync.Pool
	percent := debug.SetGCPercent(-1)
	for range 4 * heapSlack >> 20 {
		b := make([]byte, 1<<20)
		pool.Put(&b)
	}
	debug.SetGCPercent(percent)
	runtime.GC()
	for end := time.Now().Add(time.Minute); heapInUse() > 2*heapSlack; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d MiB are in use", heapInUse()>>20)
		}
	}
	runtime.KeepAlive(&pool)

	var used [][]byte
	for range 4 * heapSlack >> 20 {
		used = append(used, make([]byte, 1<<20))
	}
	var before, after runtime.MemStats
	runtime.GC()
	time.Sleep(100 * time.Millisecond)
	runtime.ReadMemStats(&before)
	for range 5 {
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
	}
	runtime.ReadMemStats(&after)
	if n := after.NumGC - before.NumGC; n > 6 {
		t.Errorf("%d collections for 5 that were asked for", n)
	}
	runtime.KeepAlive(used)
}
