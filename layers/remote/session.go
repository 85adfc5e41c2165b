package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// keepConnected is the connector: it alone starts connections, one at a time,
// until the layer is closed. Its thread is the parent of every ssh (see dial).
// The outcome of the first attempt goes to first.
func (l *Layer) keepConnected(ctx context.Context, s *ssh, first chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with us
	defer close(l.done)
	defer l.closeLanes()
	c, err := l.connectFirst(ctx, s)
	if err == nil {
		if l.id, err = l.identity(ctx, s); err != nil {
			c.close(errClosed)
		}
	}
	if err != nil {
		l.closeState(err)
		first <- err
		return
	}
	l.use(c, nil)
	first <- nil
	delay := l.cfg.pace.first
	for {
		up := time.Now()
		if !l.tend(c) {
			l.closeState(errClosed)
			c.close(errClosed)
			return
		}
		c.close(errLost)
		l.lost(c.err)
		if time.Since(up) >= l.cfg.pace.healthy {
			delay = l.cfg.pace.first
		}
		delay = min(delay, l.cfg.pace.again)
		if c = l.reconnect(&delay); c == nil {
			l.closeState(errClosed)
			return
		}
	}
}

// reconnect tries until there is a connection. It returns nil if the layer is
// closed. Delay is what to wait before the next attempt; it doubles.
func (l *Layer) reconnect(delay *time.Duration) *conn {
	pace := l.cfg.pace
	refusal := pace.refusal
	for wait := max(jitter(*delay)/2, l.sinceRefusal()); ; wait = jitter(*delay) {
		if !l.pause(wait) {
			return nil
		}
		*delay = min(*delay*2, pace.most)
		for {
			c, err := l.connect(l.ctx, mainAgain)
			if err == nil || errors.Is(err, layers.ErrReplaced) {
				l.use(c, err)
				return c
			}
			if l.ctx.Err() != nil {
				return nil
			}
			v, at := verdictOf(err), time.Now()
			l.refuse(err, v == verdictDenied)
			if v == verdictLost {
				break
			}
			if v == verdictDenied {
				refusal = pace.refusal // a person has looked after it
				if !l.wakened() {
					return nil
				}
			}
			if !l.pause(refusal + jitter(refusal)/2 - time.Since(at)) {
				return nil
			}
			refusal = min(2*refusal, pace.mostRefusal)
		}
	}
}

// jitter spreads d over half to three halves of it, so that many nodes that lost
// one server do not come back in step.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }

// pause waits for d, or until a person has logged in. It is false if the layer is
// closed instead.
func (l *Layer) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	return l.await(t.C)
}

// wakened is pause without an end, but for Reconnect.
func (l *Layer) wakened() bool { return l.await(nil) }

func (l *Layer) await(end <-chan time.Time) bool {
	tick := time.NewTicker(l.cfg.pace.look)
	defer tick.Stop()
	for {
		if l.masterCame() {
			l.mu.Lock()
			l.resumeLocked()
			l.mu.Unlock()
			return true // without regard to refusals: it is that login that is used
		}
		select {
		case <-l.ctx.Done():
			return false
		case <-end:
			return true
		case <-l.unpark:
			if end == nil {
				return true
			}
		case <-tick.C:
		}
	}
}

// masterCame reports whether a person has logged in since the last attempt.
func (l *Layer) masterCame() bool {
	id := l.cfg.master()
	return id != "" && id != l.tried
}

// Reconnect lets a layer whose login was refused try again; it does nothing
// otherwise. The attempt comes at the earliest 15 s after the refusal, since
// servers bar hosts that try too fast.
func (l *Layer) Reconnect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.parked {
		return
	}
	l.resumeLocked()
	select {
	case l.unpark <- struct{}{}:
	default:
	}
}

// resumeLocked has requests wait for the outcome of a login again. The caller holds mu.
func (l *Layer) resumeLocked() {
	l.parked, l.lostAt = false, time.Now()
	l.announce()
}

func verdictOf(err error) verdict {
	var e *connectError
	switch {
	case errors.As(err, &e):
		return e.verdict
	case broken(err):
		return verdictRefused
	}
	return verdictLost
}

// kind is what a connection is made for.
type kind int

const (
	mainFirst kind = iota // the layer's first
	mainAgain             // in place of one that was lost
	besides               // a lane
)

// connect makes one channel and looks at the root. The first time it records
// what it sees; later a root that is another one is ErrReplaced, and the channel
// is returned all the same: what was mounted may come back.
func (l *Layer) connect(ctx context.Context, what kind) (*conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*l.cfg.ConnectTimeout, os.ErrDeadlineExceeded)
	defer cancel()
	l.tried = l.cfg.master()
	t, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := newConn(t, l.cfg.Timeout/2, &l.count)
	// Nobody's read is under way on it yet: a source that is slow to begin is not lost, and
	// would be called again and again.
	c.first = l.cfg.ConnectTimeout
	c.trace, c.number = &l.trace, l.trace.channel()
	if c.main = what != besides; !c.main {
		c.window = newWindow(bulkWindow)
	}
	probe := l.cfg.Target.Path
	if what != mainFirst {
		probe = l.root.path
	}
	if err = c.handshake(ctx, probe); err == nil {
		if l.erratic.Load() {
			c.serial.Store(false)
		}
		err = l.meetServer(ctx, c, what)
	}
	switch {
	case err == nil || errors.Is(err, layers.ErrReplaced):
		l.count.connects.Add(1)
		c.met.Store(true)
		return c, err
	case ctx.Err() != nil && context.Cause(ctx) == os.ErrDeadlineExceeded:
		// Each attempt may ring somebody's telephone.
		err = &connectError{verdict: verdictRefused,
			what: fmt.Sprintf("%s has not let us in after %v", l.cfg.Target.Host, 2*l.cfg.ConnectTimeout), remedy: "does the login wait for something?"}
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	if errors.Is(err, errLost) {
		err = fmt.Errorf("%w: %w", layers.ErrOffline, err)
	}
	c.close(errLost)
	return nil, err
}

// announce tells everybody who waits that the state has changed. The caller
// holds mu.
func (l *Layer) announce() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// use makes c the connection. Why is nil or ErrReplaced.
func (l *Layer) use(c *conn, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cur, l.why, l.parked = c, why, false
	l.lanes.renew(l.cfg.pace.lane, !c.serial.Load())
	l.announce()
	if why != nil {
		l.cfg.Logger.Error("connected, but not to what was mounted", "layer", l.name, "err", why)
	} else {
		l.cfg.Logger.Info("connected", "layer", l.name)
	}
}

// lost notes that the connection has ended.
func (l *Layer) lost(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cur, l.why, l.lostAt = nil, why, time.Now()
	l.announce()
	l.cfg.Logger.Warn("connection lost", "layer", l.name, "err", why)
}

// refuse notes that an attempt to connect has failed.
func (l *Layer) refuse(why error, park bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why, l.parked = why, park
	l.announce()
	l.cfg.Logger.Warn("connecting failed", "layer", l.name, "err", why, "parked", park)
}

func (l *Layer) closeState(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cur, l.why, l.isClosed = nil, why, true
	l.announce()
}

// Offline returns nil while there is a connection to the source that was
// mounted, else what keeps it away.
func (l *Layer) Offline() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.cur == nil:
		return offline(l.why)
	case l.why != nil:
		return l.why
	}
	return nil
}

// offline makes an error that wraps ErrOffline of why there is no connection,
// unless it is one that somebody decides on already.
func offline(why error) error {
	for _, e := range []error{layers.ErrOffline, layers.ErrDenied, layers.ErrReplaced, errClosed} {
		if errors.Is(why, e) {
			return why
		}
	}
	if why == nil {
		return layers.ErrOffline
	}
	return fmt.Errorf("%w: %w", layers.ErrOffline, why)
}

// session waits for a connection other than old: in a soft layer until the
// deadline of ctx or until the source has been away for the timeout, in a hard
// one as long as ctx lets it. A refused login is waited out only by a hard one. A
// dead connection that the connector has not taken away yet is none.
func (l *Layer) session(ctx context.Context, old *conn) (*conn, error) {
	for {
		l.mu.Lock()
		c, why, changed := l.cur, l.why, l.changed
		parked, closed, away := l.parked, l.isClosed, time.Since(l.lostAt)
		l.mu.Unlock()
		switch {
		case closed:
			return nil, errClosed
		case c != nil && c != old && c.alive():
			return c, nil
		case parked && !l.cfg.Hard:
			return nil, why
		case c == nil && !l.cfg.Hard && away >= l.cfg.Timeout:
			return nil, offline(why)
		}
		var expired <-chan time.Time
		if c == nil && !l.cfg.Hard {
			t := time.NewTimer(l.cfg.Timeout - away)
			defer t.Stop()
			expired = t.C
		}
		select {
		case <-changed:
		case <-expired:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// patience ends the context it is the value of when the source makes no progress.
type patience struct {
	timer *time.Timer
	whole time.Duration
}

type patienceKey struct{}

func patienceOf(ctx context.Context) *patience {
	p, _ := ctx.Value(patienceKey{}).(*patience)
	return p
}

// progress notes that the source has answered a part of what p is about: a
// listing of a million names may take longer than the timeout, a silence may not.
// Once the timer has run, the context has ended, and nothing brings it back.
func (p *patience) progress() {
	if p != nil {
		p.timer.Reset(p.whole)
	}
}

// An operation is what is to be done on a connection; it has no lasting effects.
type operation func(context.Context, *conn) error

// exchange runs op on the main connection, or on one for the background.
func (l *Layer) exchange(ctx context.Context, op operation) error {
	if !layers.IsBackground(ctx) {
		return l.exchangeOn(ctx, l.demand, op)
	}
	return l.exchangeOn(ctx, l.background, l.narrowly(op))
}

// exchangeOn runs op on a connection that pick returns, and again on the next one
// when the connection is lost under it; pick gets the one that was. Nothing but
// the caller's context, the timeout of a soft layer and errors that another
// attempt would not change end it. The timeout starts anew with each answer.
func (l *Layer) exchangeOn(ctx context.Context, pick func(context.Context, *conn) (*conn, error), op operation) error {
	caller := ctx
	if !l.cfg.Hard {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		left := l.cfg.Timeout - layers.Waited(ctx)
		if left <= 0 {
			cancel() // a timer may come after a part of the answer, and be set anew
		}
		p := &patience{timer: time.AfterFunc(left, cancel), whole: l.cfg.Timeout}
		defer p.timer.Stop()
		ctx = context.WithValue(ctx, patienceKey{}, p)
	}
	var last *conn
	var lastErr error
	for {
		if err := caller.Err(); err != nil {
			return err
		}
		c, err := pick(ctx, last)
		if err == nil {
			err = op(ctx, c)
			if errors.Is(err, errNames) {
				if err = l.learn(ctx, c); err == nil {
					continue
				}
			}
			if broken(err) {
				c.fail(err, nil)
			}
			if errors.Is(err, errLost) && !broken(err) {
				last, lastErr = c, err
				continue
			}
		}
		switch {
		case err == nil:
			return nil
		case caller.Err() != nil && isContext(err):
			return caller.Err()
		case isContext(err):
			err := fmt.Errorf("%w: no answer within %v (%w)", layers.ErrOffline, l.cfg.Timeout, os.ErrDeadlineExceeded)
			if lastErr != nil {
				err = fmt.Errorf("%w: %w", err, lastErr)
			}
			return err
		}
		return errnoOf(err)
	}
}

// concernsAll reports whether err ends an operation, and not only what it was to do
// with one of many files.
func concernsAll(err error) bool {
	return errors.Is(err, errLost) || isContext(err) || broken(err) || errors.Is(err, errNames)
}

func isContext(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// errnoOf keeps an end of file that nobody expected from looking like one.
func errnoOf(err error) error {
	if isStatus(err, fxEOF) {
		return fmt.Errorf("unexpected end: %w", unix.EIO)
	}
	return err
}
