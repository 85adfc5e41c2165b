package remote

import (
	"context"
	"errors"
	"time"

	"github.com/migratefs/migratefs/layers"
)

// A lane is a connection besides the main one. Nothing depends on it: there is
// one when it is of use, if the server grants it; what is lost with it is asked
// again elsewhere, and what it says is wrong the main connection says again.
//
// The swift lane is for small files and listings that somebody waits for, where
// handles can be predicted. The bulk lanes are for the background, so that it
// never stands before demand; reads are striped over them.
//
// No handle stays open on a lane: a File's handle is on the main connection.
type lane struct {
	conn  *conn // nil while there is none
	asked bool  // the connector is to make it
}

// lanes is all of a layer's, protected by Layer.mu.
type lanes struct {
	swift  []lane // one, or none
	bulk   []lane
	plain  bool          // the server's handles cannot be predicted: no swift lane
	after  time.Time     // before that none is made
	pause  time.Duration // how long none is made after one was refused; doubles
	turned time.Time     // when the server turned one away
}

const (
	defaultConnections = 6

	// laneIdle is how long a lane stays that nobody uses.
	laneIdle = 5 * time.Minute

	// mostLanePause bounds the doubling of lanes.pause.
	mostLanePause = time.Hour

	// slow is how long a server may keep others waiting, with a file that it
	// cannot open or read, before they are asked for on another connection.
	slow = 2 * time.Second

	// bulkWindow is the window of a bulk lane: twice what sshd has under way.
	bulkWindow = 4 << 20

	// farAway is the round trip from which on one channel cannot fill a fast
	// link: sshd sends at most 2 MiB ahead.
	farAway = 3 * time.Millisecond

	// manyCPUs is how many there must be for several ssh to do more than one on a
	// link without delay: each encrypts on one.
	manyCPUs = 4
)

var errIdle = lost(errors.New("not used"))

// newLanes has room for all connections but the main one. The background comes
// first.
func newLanes(connections int, pause time.Duration) (ls lanes) {
	ls.pause = pause
	if connections > 2 {
		ls.swift = make([]lane, 1)
	}
	ls.bulk = make([]lane, max(0, connections-1-len(ls.swift)))
	return ls
}

// renew is called for a new main connection: what was refused may be granted now.
func (ls *lanes) renew(pause time.Duration, plain bool) {
	ls.after, ls.pause, ls.plain = time.Time{}, pause, plain
}

func (ls *lanes) each(f func(*lane)) {
	for i := range ls.swift {
		f(&ls.swift[i])
	}
	for i := range ls.bulk {
		f(&ls.bulk[i])
	}
}

// use returns the lane's connection if there is one that can be used.
func (ln *lane) use(old *conn) *conn {
	if ln.conn != nil && ln.conn != old && ln.conn.alive() {
		return ln.conn
	}
	return nil
}

// ask has the lane made, unless that is to wait. The caller holds mu.
func (l *Layer) ask(ln *lane) {
	if ln.conn != nil || ln.asked || l.cur == nil || time.Now().Before(l.lanes.after) {
		return
	}
	ln.asked = true
	select {
	case l.want <- struct{}{}:
	default:
	}
}

// swift returns a connection on which handles can be predicted, or nil. If there
// is none yet it comes, for next time.
func (l *Layer) swift() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lanes.plain || len(l.lanes.swift) == 0 {
		return nil
	}
	ln := &l.lanes.swift[0]
	c := ln.use(nil)
	switch {
	case c != nil && c.predicts() && c.silent() >= slow:
		return nil
	case c != nil && c.predicts():
		return c
	case c != nil:
		l.lanes.plain = true // the main connection's server could, or this one did before
		go c.fail(errIdle, nil)
		return nil
	}
	l.ask(ln)
	return nil
}

// demand returns the main connection; or the swift lane's while the main one is held
// up, or is old and there is no other yet.
func (l *Layer) demand(ctx context.Context, old *conn) (*conn, error) {
	l.mu.Lock()
	c := l.cur
	l.mu.Unlock()
	if c != nil && c != old && c.alive() && c.silent() < slow {
		return c, nil
	}
	if s := l.swift(); s != nil && s != old {
		return s, nil
	}
	return l.session(ctx, old)
}

// isHeldUp reports whether the main connection's server keeps others waiting.
func (l *Layer) isHeldUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cur != nil && l.cur.silent() >= slow
}

// bulk returns the bulk lane's connection with the most room, other than old, or nil.
// If there is none yet it comes, for next time; so does one more if all are busy and
// the link is such that one alone cannot fill it.
func (l *Layer) bulk(old *conn) (best *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var spare *lane
	room := -1
	for i := range l.lanes.bulk {
		ln := &l.lanes.bulk[i]
		if c := ln.use(old); c == nil {
			spare = ln
		} else if r := c.window.room(); r > room {
			best, room = c, r
		}
	}
	if spare != nil && (best == nil || room < best.window.size/2 && best.rtt >= l.cfg.far) {
		l.ask(spare)
	}
	return best
}

// background returns a bulk lane's connection other than old, or the main one while
// there is none: a login may take long, and somebody may have come to wait for what is
// done ahead.
func (l *Layer) background(ctx context.Context, old *conn) (*conn, error) {
	if c := l.bulk(old); c != nil {
		return c, nil
	}
	return l.session(ctx, old)
}

// narrowly makes op, which is background work, wait for its turn if it is to run
// on the main connection: there only two such bursts are under way, which is what
// sshd has under way as well.
func (l *Layer) narrowly(op operation) operation {
	return func(ctx context.Context, c *conn) error {
		if !c.main || !layers.IsBackground(ctx) {
			return op(ctx, c)
		}
		select {
		case l.narrow <- struct{}{}:
			defer func() { <-l.narrow }()
		case <-c.dead:
			return errLost
		case <-ctx.Done():
			return ctx.Err()
		}
		return op(ctx, c)
	}
}

// isShared reports whether what is asked on c under ctx stands before demand.
func isShared(ctx context.Context, c *conn) bool { return c.main && layers.IsBackground(ctx) }

// connections counts what there is.
func (l *Layer) connections() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur != nil {
		n++
	}
	l.lanes.each(func(ln *lane) {
		if ln.conn != nil {
			n++
		}
	})
	return n
}

// tend makes the lanes that are asked for, until the main connection is lost. It
// is false if the layer is closed instead.
func (l *Layer) tend(c *conn) bool {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	go func() {
		select {
		case <-c.dead:
			cancel() // an attempt under way must not keep the connector
		case <-ctx.Done():
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return l.ctx.Err() == nil
		case <-l.want:
			l.makeLanes(ctx)
		}
	}
}

// makeLanes makes all lanes that were asked for, one after the other.
func (l *Layer) makeLanes(ctx context.Context) {
	for ctx.Err() == nil {
		var next *lane
		l.mu.Lock()
		l.lanes.each(func(ln *lane) {
			if ln.asked && next == nil {
				next = ln
			}
		})
		l.mu.Unlock()
		if next == nil {
			return
		}
		c, err := l.connect(ctx, besides)
		if err != nil && c != nil {
			c.close(errLost) // it leads to another root
		}
		l.made(ctx, next, c, err)
	}
}

// made notes the outcome of an attempt to make ln.
func (l *Layer) made(ctx context.Context, ln *lane, c *conn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.asked = false
	switch {
	case err == nil:
		ln.conn = c
		l.watched.Add(1)
		go l.watchLane(ln, c)
	case ctx.Err() == nil:
		l.putOff(err)
	}
	l.announce()
}

// putOff lets no lane be made for a while. A refused login is not tried again
// before the main connection has made it. The caller holds mu.
func (l *Layer) putOff(why error) {
	ls, now := &l.lanes, time.Now()
	ls.after = now.Add(jitter(ls.pause))
	ls.pause = min(2*ls.pause, mostLanePause)
	switch verdictOf(why) {
	case verdictDenied:
		ls.turned, ls.after = now, now.Add(1000*time.Hour)
	case verdictRefused:
		ls.turned = now
	}
	ls.each(func(ln *lane) { ln.asked = false })
	l.cfg.Logger.Info("no further connection", "layer", l.name, "err", why)
}

// sinceRefusal is how long no login may be tried because one for a lane was
// turned away.
func (l *Layer) sinceRefusal() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lanes.turned.IsZero() {
		return 0
	}
	return l.cfg.pace.refusal - time.Since(l.lanes.turned)
}

// watchLane ends a lane that nobody uses, and takes one away that has ended.
func (l *Layer) watchLane(ln *lane, c *conn) {
	defer l.watched.Done()
	up := time.Now()
	tick := time.NewTicker(l.cfg.idle / 4)
	defer tick.Stop()
	for c.alive() {
		select {
		case <-c.dead:
		case <-tick.C:
			if c.idle() >= l.cfg.idle {
				c.fail(errIdle, nil)
			}
		}
	}
	c.close(errLost)
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.conn = nil
	if !errors.Is(c.err, errIdle) && !l.isClosed && l.cur != nil && l.cur.alive() && time.Since(up) < l.cfg.pace.healthy {
		l.putOff(c.err) // the server does not like it
	}
	l.announce()
}

// closeLanes ends all lanes and waits until nothing of them is left.
func (l *Layer) closeLanes() {
	l.mu.Lock()
	var open []*conn
	l.lanes.each(func(ln *lane) {
		if ln.conn != nil {
			open = append(open, ln.conn)
		}
	})
	l.mu.Unlock()
	for _, c := range open {
		c.fail(errClosed, nil)
	}
	l.watched.Wait()
}
