package remote

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/migratefs/migratefs/layers"
)

// behind is what a demand read waits for at the server, in bytes of answers, while so
// many reads are under way in the background; and whether it came although none of them did.
func behind(t *testing.T, connections, background int) (queued int, came bool) {
	f := newSlots()
	gate := make(chan struct{})
	l := f.open(t, func(c *Config) { c.Connections, c.far = connections, -1 })
	if connections > 2 {
		withLanes(t, l)
	}
	file, err := l.Open(soon(t), "f", nil)
	must(t, err)
	defer file.Close()
	var under sync.WaitGroup
	f.set(func() {
		f.lie = func(q *query) ([]byte, bool) {
			if q.typ != fxpRead {
				return nil, false
			}
			n := q.rest.U64()
			q.rest = decode(cat(u64(n), q.rest.B))
			if n >= 200_000 {
				<-gate // others are served meanwhile
			}
			return nil, false
		}
	})
	for range background {
		under.Go(func() {
			b := make([]byte, 150_000)
			if _, err := file.ReadAt(layers.Background(soon(t)), b, 200_000); err != nil || !bytes.Equal(b, f.files["/src/f"].data[200_000:350_000]) {
				t.Error(err)
			}
		})
	}
	// Until as much is asked for as will be.
	l.mu.Lock()
	main := l.cur
	l.mu.Unlock()
	weight := func() (sum int) {
		main.mu.Lock()
		defer main.mu.Unlock()
		for _, s := range main.pending {
			sum += s.weight
		}
		return sum
	}
	for same, last := 0, int64(0); same < 20 || connections == 1 && weight() == 0; same++ {
		time.Sleep(5 * time.Millisecond)
		if now := l.Stats().Requests; now != last {
			same, last = 0, now
		}
	}
	queued = weight()
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1000)
		if _, err := file.ReadAt(soon(t), b, 1000); err != nil || !bytes.Equal(b, f.files["/src/f"].data[1000:2000]) {
			t.Error(err)
		}
	}()
	if connections > 1 {
		select {
		case <-done:
			came = true
		case <-soon(t).Done():
		}
	}
	close(gate)
	<-done
	under.Wait()
	return queued, came
}

// What somebody waits for does not wait for what is fetched ahead, however much that is:
// nothing of it stands before it; or no more than sshd sends at once anyway, where there
// is one connection only.
func TestDemandDoesNotWait(t *testing.T) {
	for _, background := range []int{5, 300} {
		if queued, came := behind(t, 6, background); queued != 0 || !came {
			t.Errorf("%d in the background: %d bytes before what somebody waits for, came is %v", background, queued, came)
		}
		if queued, _ := behind(t, 1, background); queued == 0 || queued > 2<<20 {
			t.Errorf("%d in the background, one connection: %d bytes before what somebody waits for", background, queued)
		}
	}
}
