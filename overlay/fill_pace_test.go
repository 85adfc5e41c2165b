package overlay

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// paced is a filler that fetches nothing, of which the clock is the test's.
func paced(rate int64) *fill {
	q := &fill{cfg: FillConfig{Fetch: true}, pieces: make(chan struct{}, fillPieces)}
	q.rate.Store(rate)
	return q
}

// What fill_rate= allows is not exceeded, from the first second on, by several files at
// once, whatever the sizes of what they miss; and it is used.
func TestFillRate(t *testing.T) {
	const rate = 2 << 20
	for _, n := range []int64{4 << 10, fillPiece, 4 << 20} {
		synctest.Test(t, func(t *testing.T) {
			q := paced(rate)
			began := time.Now()
			var mu sync.Mutex
			sum := int64(0)
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			var files sync.WaitGroup
			for range fillFiles {
				files.Go(func() {
					for q.enter(ctx, n) == nil {
						mu.Lock()
						sum += n
						if allowed := int64(rate*time.Since(began).Seconds()) + rate/1000; sum > allowed {
							t.Errorf("pieces of %d: %d bytes after %v", n, sum, time.Since(began))
						}
						mu.Unlock()
						<-q.pieces
					}
				})
			}
			files.Wait()
			if least := rate*20 - fillFiles*n; sum < least {
				t.Errorf("pieces of %d: %d bytes in 20 s", n, sum)
			}
		})
	}
}

// A rate that is changed holds for a piece that waits already: at the old one that would
// be for minutes.
func TestFillRateChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := paced(1 << 10)
		for _, rate := range []int64{0, fillPiece} {
			q.setRate(1 << 10)
			time.AfterFunc(time.Second, func() { q.setRate(rate) })
			for range 3 {
				began := time.Now()
				if err := q.enter(t.Context(), fillPiece); err != nil {
					t.Fatal(err)
				}
				<-q.pieces
				if d := time.Since(began); d > time.Second+fillQuiet {
					t.Errorf("at %d bytes a second it began after %v", rate, d)
				}
			}
		}
	})
}

// The filler begins nothing while somebody waits for a source, nor in the moment after
// that; and does not stand still for good where somebody always does.
func TestFillGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := paced(0)
		enter := func() time.Duration {
			began := time.Now()
			if err := q.enter(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			<-q.pieces
			return time.Since(began)
		}
		if d := enter(); d != 0 {
			t.Errorf("nobody waits, and it does, for %v", d)
		}
		end := q.demand.begin()
		time.AfterFunc(fillYield/2, end)
		if d := enter(); d < fillYield/2+fillQuiet || d >= fillYield {
			t.Errorf("somebody waited for %v, and it began after %v", fillYield/2, d)
		}
		end = q.demand.begin()
		if d := enter(); d < fillYield || d > fillYield+fillQuiet {
			t.Errorf("somebody waits for good, and it began after %v", d)
		}
		end()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := q.enter(ctx, 1); err == nil {
			t.Error("it began although it was ended")
		}
	})
}
