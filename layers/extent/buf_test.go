package extent

import (
	"bytes"
	"context"
	"math/rand"
	"sync"
	"testing"
	"time"
)

// Buffers that are used again never show one reader what another has fetched: readers
// join and leave fetches, of which nothing can be kept.
func TestBuffersAreNobodyElses(t *testing.T) {
	content := noise(8*window, 1)
	_, o := newPending(t, content)
	src := unsettled{&source{content: content}}
	slow := fetchFunc(func(ctx context.Context, b []byte, off int64) (int, error) {
		time.Sleep(time.Duration(off/page%3) * time.Millisecond)
		return src.ReadAt(ctx, b, off)
	})
	var wg sync.WaitGroup
	for seed := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewSource(int64(seed)))
			b := make([]byte, 2*window)
			for range 40 {
				off, n := rng.Intn(7*window), 1+rng.Intn(window)
				ctx, cancel := context.WithCancel(ctx)
				if rng.Intn(4) == 0 {
					time.AfterFunc(time.Millisecond, cancel)
				}
				got, err := o.ReadAt(ctx, neverKept{slow}, b[:n], int64(off))
				if err == nil && (got != n || !bytes.Equal(b[:n], content[off:off+n])) {
					t.Errorf("%d bytes at %d are others", n, off)
				}
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if o.Missing() != int64(len(content)) {
		t.Error("something was kept")
	}
}

type neverKept struct{ Fetcher }

func (neverKept) Settled() bool { return false }

func TestBufSizes(t *testing.T) {
	for _, n := range []int{1, page, 64 << 10, 64<<10 + 1, 128 << 10, 128<<10 + 1, window - 1, window, window + 1} {
		for range 2 {
			b := newBuf(n)
			if len(b) != n {
				t.Errorf("%d bytes where %d were asked for", len(b), n)
			}
			if c := cap(b); c > 2*n {
				t.Errorf("%d bytes are held for %d", c, n)
			}
			freeBuf(b)
		}
	}
}
