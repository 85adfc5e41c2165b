package remote

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// transport is one byte stream to an SFTP server, with whoever carries it.
type transport interface {
	io.ReadWriter

	// Close ends the stream at once, waits for whoever carried it, and returns
	// why the stream ended if the carrier told, else nil. It may be called more
	// than once and from several goroutines.
	Close() error
}

var (
	// errLost: the channel ended before the answer came. What was asked may be
	// asked again on the next channel.
	errLost = errors.New("connection lost")

	// errStalled: the same, and the channel was given up because this very
	// request was not answered.
	errStalled = fmt.Errorf("the server does not answer: %w", errLost)
)

const (
	windowSize   = 8 << 20
	defaultChunk = 32 << 10  // what every server must be able to send, by the draft
	maxChunk     = 255 << 10 // OpenSSH's own limit
	leastChunk   = 16 << 10  // a server that reads less at a time is asked for more, and answers in part
)

// conn is one SFTP channel. A burst of requests goes out together and in order;
// answers are matched by id. OpenSSH's server handles one request after the
// other, and the draft demands that order for requests on one file.
//
// Three goroutines serve it: one writes, one reads, one watches for answers that
// do not come. All end when the channel does.
type conn struct {
	t      transport
	in     *bufio.Reader
	stall  time.Duration // immutable; how long the server may be silent
	first  time.Duration // immutable; how long it may be at first, if that is longer
	count  *counters
	window *window
	opens  *window       // bounds the handles that are open for a few exchanges only
	main   bool          // immutable; the layer's main connection, see lane
	trace  *tracing      // immutable
	number int64         // immutable; of the channel, in a trace
	caps   caps          // immutable after handshake
	rtt    time.Duration // immutable after handshake; of one small burst

	// met: all that is asked of a new connection has been answered.
	met atomic.Bool

	// serial: the handle that an OPEN will give is known before, see serial.go.
	serial atomic.Bool

	lastIn atomic.Int64 // nanoseconds since born, when the last bytes came
	born   time.Time

	dead chan struct{} // closed when err is set
	kick chan struct{} // wakes the writer
	wg   sync.WaitGroup

	mu       sync.Mutex
	err      error // why the channel is dead
	nextID   uint32
	pending  map[uint32]*slot
	answered uint64 // sequence number of the latest request that was answered
	nextSeq  uint64
	out      []byte        // encoded, not yet taken by the writer
	lastOut  time.Duration // since born, when the last burst was sent
	owing    time.Duration // since born, when the server began to owe an answer; it may not now
}

// caps is what the server's VERSION packet and limits@openssh.com tell.
type caps struct {
	statvfs bool
	names   bool // users-groups-by-id@openssh.com
	ours    ours
	chunk   int // largest read, in bytes
	handles int // how many handles it can hold; 0 when unknown
}

// slot is one request that waits for its answer.
type slot struct {
	b      *burst // nil: nobody waits, the answer is dropped
	i      int32
	most   int32 // the longest answer that is taken, in bytes
	seq    uint64
	sent   time.Duration // since born
	weight int
	asked  *request // while requests are traced
}

func newConn(t transport, stall time.Duration, count *counters) *conn {
	c := &conn{
		t: t, stall: stall, count: count,
		window:  newWindow(windowSize),
		opens:   newWindow(manyFiles),
		born:    time.Now(),
		dead:    make(chan struct{}),
		kick:    make(chan struct{}, 1),
		pending: make(map[uint32]*slot),
	}
	c.in = bufio.NewReaderSize(arrivals{c}, 64<<10)
	return c
}

// arrivals notes when bytes come in.
type arrivals struct{ c *conn }

func (a arrivals) Read(b []byte) (int, error) {
	n, err := a.c.t.Read(b)
	if n > 0 {
		a.c.lastIn.Store(int64(time.Since(a.c.born)))
		a.c.count.wireIn.Add(int64(n))
	}
	return n, err
}

// run starts the goroutines. The handshake is done.
func (c *conn) run() {
	c.lastIn.Store(int64(time.Since(c.born)))
	c.wg.Add(3)
	go c.write()
	go c.read()
	go c.watch()
}

// close ends the channel and waits for everything that belongs to it.
func (c *conn) close(err error) {
	c.fail(err, nil)
	c.wg.Wait()
	c.t.Close()
}

// alive reports whether c can be used.
func (c *conn) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return true
	}
}

// fail ends the channel: everybody who waits gets err, or culpritErr if the
// oldest request is theirs and culpritErr is not nil.
func (c *conn) fail(err, culpritErr error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	var oldest *slot
	var told []traced
	for id, s := range c.pending {
		if s.asked != nil {
			told = append(told, c.tellLoss(s, id, err))
		}
		if oldest == nil || s.seq < oldest.seq {
			oldest = s
		}
	}
	for _, s := range c.pending {
		if s.b == nil || s.b.err != nil {
			continue
		}
		s.b.err = err
		if culpritErr != nil && oldest.b == s.b {
			s.b.err = culpritErr
		}
		close(s.b.done)
	}
	c.pending = nil
	close(c.dead)
	c.mu.Unlock()
	if len(told) > 0 {
		c.trace.tell(told...)
	}

	// Closing kills and waits; the reader ends with it.
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.t.Close()
	}()
}

// idle returns for how long nothing was asked, 0 while something is under way.
func (c *conn) idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) > 0 {
		return 0
	}
	return time.Since(c.born) - c.lastOut
}

// silent returns for how long nothing has come although the server owes an answer.
func (c *conn) silent() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return 0
	}
	return time.Since(c.born) - max(c.owing, time.Duration(c.lastIn.Load()))
}

func (c *conn) write() {
	defer c.wg.Done()
	var buf []byte
	for {
		select {
		case <-c.kick:
		case <-c.dead:
			return
		}
		c.mu.Lock()
		buf, c.out = c.out, buf[:0]
		c.mu.Unlock()
		if len(buf) == 0 {
			continue
		}
		if _, err := c.t.Write(buf); err != nil {
			c.fail(lost(err), nil)
			return
		}
		if cap(buf) > 1<<20 {
			buf = nil
		}
	}
}

// lost is errLost with a cause.
func lost(cause error) error { return fmt.Errorf("%w: %w", errLost, cause) }

func (c *conn) read() {
	defer c.wg.Done()
	for {
		r, id, err := readPacket(c.in, c.most)
		if err == nil {
			err = c.deliver(id, r)
		}
		if err == nil {
			continue
		}
		var broken *protocolError
		if !errors.As(err, &broken) {
			if why := c.t.Close(); why != nil {
				err = why
			}
			err = lost(err)
		}
		c.fail(err, nil)
		return
	}
}

// most is how long the answer to the request id may be.
func (c *conn) most(id uint32) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.pending[id]; s != nil {
		return int(s.most)
	}
	return 0
}

// readPacket reads one packet that has an id, and no more than most allows for it.
func readPacket(in io.Reader, most func(id uint32) int) (reply, uint32, error) {
	var head [9]byte
	if _, err := io.ReadFull(in, head[:4]); err != nil {
		return reply{}, 0, err
	}
	n := binary.BigEndian.Uint32(head[:4])
	if n < 5 || n > maxPacket {
		return reply{}, 0, corrupt("a packet that claims %d bytes", n)
	}
	if _, err := io.ReadFull(in, head[4:]); err != nil {
		return reply{}, 0, err
	}
	id := binary.BigEndian.Uint32(head[5:])
	if m := most(id); int(n) > m {
		if m == 0 {
			return reply{}, 0, corrupt("an answer to nothing that was asked (id %d)", id)
		}
		return reply{}, 0, corrupt("%d bytes where %d would do", n, m)
	}
	body := newBody(int(n - 5))
	if _, err := io.ReadFull(in, body); err != nil {
		return reply{}, 0, err
	}
	return reply{typ: head[4], body: body}, id, nil
}

// deliver hands r to whoever asked for it.
func (c *conn) deliver(id uint32, r reply) error {
	c.mu.Lock()
	s := c.pending[id]
	if s == nil {
		c.mu.Unlock()
		return corrupt("an answer to nothing that was asked (id %d)", id)
	}
	delete(c.pending, id)
	if s.seq < c.answered {
		c.serial.Store(false) // it does not answer in order
	}
	c.answered = max(c.answered, s.seq)
	var told traced
	if s.asked != nil {
		told = c.tellAnswer(s, id, &r)
	}
	unwanted := false
	if b := s.b; b != nil {
		b.replies[s.i] = r
		if unwanted = b.abandoned; !unwanted {
			b.patience.progress()
		}
		if b.left--; b.left == 0 {
			close(b.done)
		}
	}
	c.mu.Unlock()
	if s.asked != nil {
		c.trace.tell(told)
	}
	c.window.give(s.weight)
	if unwanted {
		s.b.drop(r)
	}
	return nil
}

// watch gives the channel up when the server has been silent for c.stall while
// it owes an answer, or has left out a request for that long and answered later
// ones. A slow link is neither: bytes keep coming, in order.
func (c *conn) watch() {
	defer c.wg.Done()
	tick := time.NewTicker(max(c.stall/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.dead:
			return
		case <-tick.C:
			if c.stuck() {
				c.fail(errLost, errStalled)
				return
			}
		}
	}
}

func (c *conn) stuck() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Since(c.born)
	silent := now - time.Duration(c.lastIn.Load())
	stall := c.stall
	if !c.met.Load() {
		stall = max(stall, c.first)
	}
	for _, s := range c.pending {
		age := now - s.sent
		if age >= stall && (silent >= stall || s.seq < c.answered) {
			return true
		}
	}
	return false
}
