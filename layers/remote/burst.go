package remote

import (
	"context"
	"slices"
	"time"
)

// burst is a number of requests that were sent together.
type burst struct {
	c       *conn
	done    chan struct{} // closed when replies or err are complete
	replies []reply
	first   uint64 // sequence number of the first request

	patience *patience // nil, or of the context it was sent under
	own      bool      // it closes slot0 by itself

	// protected by c.mu until done is closed
	left      int
	err       error
	abandoned bool
}

// start sends reqs as one burst, after waiting for room in the window.
func (c *conn) start(ctx context.Context, reqs ...request) (*burst, error) {
	if err := c.window.take(ctx, c.dead, c.weigh(reqs)); err != nil {
		return nil, err
	}
	return c.enqueue(ctx, reqs)
}

// tryStart is start where there is room in the window now, else nil, nil.
func (c *conn) tryStart(ctx context.Context, reqs ...request) (*burst, error) {
	if !c.window.try(c.weigh(reqs)) {
		return nil, nil
	}
	return c.enqueue(ctx, reqs)
}

func (c *conn) weigh(reqs []request) int {
	sum := 0
	for i := range reqs {
		sum += reqs[i].weight
	}
	return c.window.clamp(sum)
}

func (c *conn) enqueue(ctx context.Context, reqs []request) (*burst, error) {
	b := &burst{c: c, done: make(chan struct{}), replies: make([]reply, len(reqs)), left: len(reqs), patience: patienceOf(ctx)}
	budget := c.weigh(reqs) // what was taken is given back, clamped or not
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		c.window.give(budget)
		return nil, err
	}
	b.first = c.nextSeq
	c.lastOut = time.Since(c.born)
	if len(c.pending) == 0 {
		c.owing = c.lastOut
	}
	for i := range reqs {
		b.own = b.own || reqs[i].closed
		w := min(reqs[i].weight, budget)
		budget -= w
		if i == len(reqs)-1 {
			w += budget
		}
		c.put(&reqs[i], &slot{b: b, i: int32(i), weight: w})
	}
	c.mu.Unlock()
	c.count.bursts.Add(1)
	c.wake()
	return b, nil
}

// post sends a request whose answer interests nobody.
func (c *conn) post(r request) {
	c.mu.Lock()
	if c.err == nil {
		c.put(&r, &slot{})
	}
	c.mu.Unlock()
	c.wake()
}

// put encodes a request and remembers its slot. The caller holds mu.
func (c *conn) put(r *request, s *slot) {
	for c.pending[c.nextID] != nil {
		c.nextID++
	}
	s.seq, s.sent, s.most = c.nextSeq, time.Since(c.born), int32(r.most())
	if c.trace.on() {
		s.asked = &request{typ: r.typ, body: r.body}
	}
	c.pending[c.nextID] = s
	c.out = r.appendTo(c.out, c.nextID)
	c.nextID++
	c.nextSeq++
	c.count.requests.Add(1)
}

func (c *conn) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// do is start and wait.
func (c *conn) do(ctx context.Context, reqs ...request) ([]reply, error) {
	b, err := c.start(ctx, reqs...)
	if err != nil {
		return nil, err
	}
	return b.wait(ctx)
}

// wait returns the answers, each at the index of its request.
func (b *burst) wait(ctx context.Context) ([]reply, error) {
	select {
	case <-b.done:
		return b.replies, b.err
	default:
	}
	select {
	case <-b.done:
		return b.replies, b.err
	case <-ctx.Done():
		b.abandon()
		return nil, ctx.Err()
	}
}

// abandon gives up the burst. Handles that the server opens or has opened for it
// are closed.
func (b *burst) abandon() {
	b.c.mu.Lock()
	b.abandoned = true // what is still to come is dropped on arrival
	came := slices.Clone(b.replies)
	b.c.mu.Unlock()
	for i := range came {
		b.drop(came[i])
	}
}

// drop closes the handle that r brings, if it does and b does not.
func (b *burst) drop(r reply) {
	if r.typ != fxpHandle {
		return
	}
	h, err := r.handle()
	if err != nil || b.own && h == slot0 {
		return
	}
	if b.own {
		b.c.serial.Store(false)
	}
	b.c.post(askHandle(fxpClose, h))
}
