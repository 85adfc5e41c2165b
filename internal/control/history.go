package control

import (
	"context"
	"sync"
	"time"

	"github.com/migratefs/migratefs/overlay"
)

// progress asks how far pending files are, which opens each of them: what it costs
// bounds how often.
type progress struct {
	mu   sync.Mutex // held while it asks: who comes meanwhile waits for the same answer
	last howFar
	at   time.Time
	cost time.Duration
}

// howFar is how far a mount is.
type howFar struct {
	overlay.Progress
	state overlay.State
	rate  float64 // bytes a second
}

const (
	progressFresh = 500 * time.Millisecond
	progressShare = 20 // of so much time one part is spent asking
)

// get returns an answer, and how old it is.
func (p *progress) get(ctx context.Context, fs *overlay.FS) (howFar, time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	age := time.Since(p.at)
	same := fs.Detached() == (p.last.state.Phase == overlay.Detached)
	if !p.at.IsZero() && same && age < max(progressFresh, progressShare*p.cost) {
		return p.last, age, nil
	}
	began := time.Now()
	now := howFar{rate: p.last.rate}
	var err error
	if now.Progress, err = fs.Progress(ctx); err == nil {
		now.state, err = fs.State(ctx)
	}
	if err != nil {
		return now, 0, err
	}
	if took := began.Sub(p.at).Seconds(); !p.at.IsZero() && took > 0 {
		rate := float64(now.Fetched-p.last.Fetched) / took
		// What came in the last seconds counts, not one lucky moment; but from rest there
		// is nothing else to go by.
		weight := min(took/5, 1)
		if now.rate == 0 {
			weight = 1
		}
		now.rate += weight * (rate - now.rate)
		if now.rate < 1 {
			now.rate = 0
		}
	}
	p.last, p.at, p.cost = now, began, time.Since(began)
	return p.last, 0, nil
}

// history is samples over the whole life of a mount: when there are too many, every
// other one goes, and further ones come half as often. All of it is 720 samples of 120
// bytes: 86,400 bytes at most.
type history struct {
	mu      sync.Mutex
	every   time.Duration
	samples []Sample
}

const (
	historyEvery = 5 * time.Second
	historyMost  = 720 // an hour to begin with
)

func (h *history) add(s *Sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.every == 0 {
		h.every = historyEvery
	}
	if len(h.samples) >= historyMost {
		half := h.samples[:0]
		for i, s := range h.samples {
			if i%2 == 0 {
				half = append(half, s)
			}
		}
		h.samples, h.every = half, 2*h.every
	}
	h.samples = append(h.samples, *s)
}

func (h *history) wait() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(h.every, historyEvery)
}

func (h *history) read() *History {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &History{Every: max(h.every, historyEvery).Seconds(), Samples: append([]Sample{}, h.samples...)}
}

// watch takes samples until ctx ends.
func (m *Mount) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if s, err := m.sample(ctx); err == nil {
			m.history.add(s)
		}
		t := time.NewTimer(m.history.wait())
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

func (m *Mount) sample(ctx context.Context) (*Sample, error) {
	p, _, err := m.progress.get(ctx, m.FS)
	if err != nil {
		return nil, err
	}
	c := m.FS.Counts()
	s := &Sample{
		When: time.Now(), State: string(p.state.Phase), Here: p.Size - p.Missing, Missing: p.Missing, Files: p.Files,
		Fetched: c.Fetched + c.FetchedIdle, CopyUps: c.CopyUps.Count(), Copied: c.Copied,
	}
	for _, h := range c.Requests {
		s.Requests += h.Count()
	}
	for _, n := range c.Failures {
		s.Failures += n
	}
	if d := m.drained.read(); d != nil {
		s.Drained = d.Bytes
	}
	for i := range m.Layers {
		if r := m.Layers[i].Remote; r != nil && r.Offline() != nil {
			s.Away++
		}
	}
	return s, nil
}
