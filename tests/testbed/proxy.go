package testbed

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP link that can be slow, stall, break and corrupt: it stands
// before a server, and its clients connect to it. Up is from client to server.
//
// All methods may be called at any time from any goroutine, and hold for the
// connections that are open, too.
type Proxy struct {
	addr string
	host *Host // in whose network it is; nil: this process's
	done chan struct{}

	mu       sync.Mutex
	changed  *sync.Cond   // on stalled, on listener, and on closed
	listener net.Listener // closed while nothing is to listen
	target   string
	delay    time.Duration // one way
	rate     int64         // bytes per second in each direction; 0: no limit
	stalled  bool
	refuse   bool
	closed   bool
	stallAt  int64 // bytes down after which it stalls; -1: never
	cutAt    int64 // bytes down after which everything is cut; -1: never
	flipAt   int64 // the byte down that is inverted; -1: none
	up, down int64 // bytes that passed
	accepted int
	conns    map[net.Conn]struct{}
}

// NewProxy listens on a port of Loopback for clients of target ("addr:port",
// which SetTarget may set later) until the test ends.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	return newProxy(tb, nil, target)
}

// NewProxyOn is NewProxy on a port of 127.0.0.1 of the host, from where it
// connects to target too.
func NewProxyOn(tb testing.TB, host *Host, target string) *Proxy {
	tb.Helper()
	return newProxy(tb, host, target)
}

func newProxy(tb testing.TB, host *Host, target string) *Proxy {
	tb.Helper()
	l, err := host.listen(host.loopback(tb))
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{listener: l, addr: l.Addr().String(), host: host, target: target, done: make(chan struct{}), stallAt: -1, cutAt: -1, flipAt: -1,
		conns: map[net.Conn]struct{}{}}
	p.changed = sync.NewCond(&p.mu)
	go p.serve()
	tb.Cleanup(p.close)
	return p
}

// Addr is where clients connect: "address:port".
func (p *Proxy) Addr() string { return p.addr }

// Host is the address part of Addr.
func (p *Proxy) Host() string {
	host, _, _ := net.SplitHostPort(p.addr)
	return host
}

// Port is the port part of Addr.
func (p *Proxy) Port() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return portOf(p.listener)
}

// SetTarget says where the server is for connections to come.
func (p *Proxy) SetTarget(addr string) { p.set(func() { p.target = addr }) }

// SetRTT makes a round trip take at least d: half of it each way.
func (p *Proxy) SetRTT(d time.Duration) { p.set(func() { p.delay = d / 2 }) }

// SetRate limits every connection, each direction, to bytes per second. 0 is
// without limit.
func (p *Proxy) SetRate(bytes int64) { p.set(func() { p.rate = bytes }) }

// Stall stops all bytes until Resume; connections stay open.
func (p *Proxy) Stall() { p.set(func() { p.stalled = true }) }

// StallAfter stalls once n more bytes have come down, or a few more.
func (p *Proxy) StallAfter(n int64) { p.set(func() { p.stallAt = p.down + n }) }

// Stalled reports whether it stands still.
func (p *Proxy) Stalled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stalled
}

// Resume ends a Stall. Nothing was lost.
func (p *Proxy) Resume() { p.set(func() { p.stalled = false }) }

// Refuse makes connections to come end at once (or no longer).
func (p *Proxy) Refuse(on bool) { p.set(func() { p.refuse = on }) }

// Close takes the port away, as where nothing listens, or opens it again.
// Connections stay.
func (p *Proxy) Close(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.listener.Close()
		return
	}
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var l net.Listener
		if l, err = p.host.listen(p.addr); err == nil {
			p.listener = l
			p.changed.Broadcast()
			return
		}
	}
	panic("the proxy's port is taken: " + err.Error())
}

// Cut closes all connections now.
func (p *Proxy) Cut() { p.set(p.cutLocked) }

// CutAfter closes all connections once n more bytes have come down.
func (p *Proxy) CutAfter(n int64) { p.set(func() { p.cutAt = p.down + n }) }

// CorruptAfter inverts the byte that comes down after n more.
func (p *Proxy) CorruptAfter(n int64) { p.set(func() { p.flipAt = p.down + n }) }

// Bytes returns how many bytes have passed up and down since the start.
func (p *Proxy) Bytes() (up, down int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up, p.down
}

// Accepted returns how many clients have connected since the start, refused
// ones included.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Open returns how many connections are open now.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns) / 2
}

func (p *Proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

func (p *Proxy) close() {
	p.set(func() { p.closed = true; p.listener.Close(); p.cutLocked() })
	<-p.done
}

// cutLocked closes every connection with a reset, as a lost host looks like.
func (p *Proxy) cutLocked() {
	for c := range p.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

func (p *Proxy) serve() {
	var wg sync.WaitGroup
	defer close(p.done)
	defer wg.Wait()
	for l := p.listening(nil); l != nil; {
		client, err := l.Accept()
		if err != nil {
			l = p.listening(l)
			continue
		}
		wg.Go(func() { p.connection(client) })
	}
}

// listening waits for another listener than old, which was closed. It returns nil
// if there will be none.
func (p *Proxy) listening(old net.Listener) net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.listener == old && !p.closed {
		p.changed.Wait()
	}
	if p.closed {
		return nil
	}
	return p.listener
}

// connection carries one client's bytes both ways until either end is closed.
func (p *Proxy) connection(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	p.accepted++
	target, refuse := p.target, p.refuse
	p.mu.Unlock()
	if refuse {
		_ = client.(*net.TCPConn).SetLinger(0)
		return
	}
	server, err := p.host.dial(target)
	if err != nil {
		return
	}
	defer server.Close()
	p.set(func() {
		p.conns[client], p.conns[server] = struct{}{}, struct{}{}
		if p.closed {
			p.cutLocked()
		}
	})
	defer p.set(func() { delete(p.conns, client); delete(p.conns, server) })

	var wg sync.WaitGroup
	wg.Go(func() { p.pump(server, client, true) })
	wg.Go(func() { p.pump(client, server, false) })
	wg.Wait()
}

// piece is bytes on their way, and when the link lets them go.
type piece struct {
	b   []byte
	due time.Time
}

// pump carries the bytes of one direction, in order. When src ends, dst learns
// it after the last byte.
func (p *Proxy) pump(dst, src net.Conn, up bool) {
	way := make(chan piece, 1024) // 32 MiB: what a long, fat link holds
	go func() {
		defer close(way)
		for {
			b := make([]byte, 32<<10)
			n, err := src.Read(b)
			if n > 0 {
				p.mu.Lock()
				due := time.Now().Add(p.delay)
				p.mu.Unlock()
				way <- piece{b[:n], due}
			}
			if err != nil {
				return
			}
		}
	}()
	broken := false
	for x := range way { // to the end, or the reader above stays for ever
		if broken {
			continue
		}
		time.Sleep(time.Until(x.due))
		p.throttle(len(x.b))
		if !p.pass(dst, x.b, up) {
			broken = true
			src.Close()
		}
	}
	if w, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// throttle takes the time that n bytes need at the set rate.
func (p *Proxy) throttle(n int) {
	p.mu.Lock()
	rate := p.rate
	p.mu.Unlock()
	if rate > 0 {
		time.Sleep(time.Duration(int64(n) * int64(time.Second) / rate))
	}
}

// pass writes b to dst, when the link is not stalled, and reports whether the
// connection goes on.
func (p *Proxy) pass(dst io.Writer, b []byte, up bool) bool {
	p.mu.Lock()
	for p.stalled && !p.closed {
		p.changed.Wait()
	}
	cut := false
	if up {
		p.up += int64(len(b))
	} else {
		if i := p.flipAt - p.down; p.flipAt >= 0 && i < int64(len(b)) {
			b[max(i, 0)] ^= 0xff
			p.flipAt = -1
		}
		if i := p.cutAt - p.down; p.cutAt >= 0 && i < int64(len(b)) {
			b, cut = b[:max(i, 0)], true
			p.cutAt = -1
		}
		p.down += int64(len(b))
		if p.stallAt >= 0 && p.down >= p.stallAt {
			p.stalled, p.stallAt = true, -1
		}
	}
	p.mu.Unlock()
	_, err := dst.Write(b)
	if cut {
		p.Cut()
	}
	return err == nil && !cut
}
