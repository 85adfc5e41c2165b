package overlay

import (
	"sync"
	"time"
)

// link is what is known of the way to a source, by what was fetched over it: how much
// has to be under way to fill it, and how much it carries in a moment.
type link struct {
	mu    sync.Mutex
	rate  float64       // bytes per second while something was under way; 0: not known
	delay time.Duration // the shortest time that a fetch has taken, slowly forgotten
	under int           // fetches under way
	since time.Time     // up to when busy was counted, while under is not 0
	busy  time.Duration // for how long something was under way, since the last rate
	came  int64         // and what came in it, in bytes
}

const (
	rateOver   = 50 * time.Millisecond  // what a rate is measured over, at least
	queueDelay = 250 * time.Millisecond // what may lie before somebody else's request, by time
	windowKnow = 4 << 20                // a window while no rate is known
)

// sent notes that a fetch begins.
func (l *link) sent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.under == 0 {
		l.since = time.Now()
	}
	l.under++
}

// landed notes that a fetch that began at the given time has brought n bytes; none
// if it failed.
func (l *link) landed(n int64, began time.Time) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.under--
	l.busy += now.Sub(l.since)
	l.since = now
	if n == 0 {
		return
	}
	if took := now.Sub(began); l.delay == 0 || took < l.delay {
		l.delay = took
	} else {
		l.delay += l.delay / 64
	}
	l.came += n
	if l.busy >= rateOver {
		rate := float64(l.came) / l.busy.Seconds()
		l.rate = max(rate, l.rate*3/4+rate/4)
		l.busy, l.came = 0, 0
	}
}

// window is how much is to be under way, so that the link is full and has no long
// queue: what it carries in two round trips and a moment.
func (l *link) window() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return windowKnow
	}
	return int64(l.rate * (2*l.delay + queueDelay).Seconds())
}

// within is how much the link carries in d; unknown, if that is not known yet.
func (l *link) within(d time.Duration, unknown int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return unknown
	}
	return int64(l.rate * d.Seconds())
}

// patience is how long who waits for what was fetched ahead does so before it asks
// itself.
func (l *link) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return 4*l.delay + 2*queueDelay
}
