package lazypages

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/internal/sys"
)

// memory is the memory of one task of the checkpoint, and what has become of it: the task's,
// and those of children that it has made since.
type memory struct {
	*criu.LazyMemory
	handed bool     // over to us, protected by Server.mu
	spaces []*space // that are not known to be of no use any more, likewise
}

// space is one address space.
type space struct {
	s  *Server
	of *memory

	mu      sync.Mutex
	fd      int      // its userfaultfd
	file    *os.File // of fd, to wait for it
	missing missing
	left    int64 // bytes of that
	closed  bool
}

// newSpace takes over fd. It is served from the call of serve on.
func newSpace(s *Server, of *memory, fd int, what missing) *space {
	return &space{s: s, of: of, fd: fd, file: os.NewFile(uintptr(fd), "userfaultfd"), missing: what, left: what.bytes()}
}

// serve reads events until the space is closed.
func (p *space) serve() {
	conn, err := p.file.SyscallConn()
	if err == nil {
		err = conn.Read(func(uintptr) bool {
			err := p.event()
			for ; err != unix.EAGAIN; err = p.event() {
				if err == os.ErrClosed {
					return true
				}
				if err != nil { // too many descriptors, say, for one more: it is read again
					p.s.complain("an event of a process's memory cannot be read", err)
					time.Sleep(patience)
				}
			}
			return false
		})
	}
	if err != nil && !p.isClosed() {
		// Its process waits; nothing it could go on with is right.
		p.s.complain("events of a process's memory cannot be read", err)
	}
}

func (p *space) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// event reads one event and does what it means. EAGAIN: there is none.
func (p *space) event() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	e, err := sys.UffdRead(p.fd)
	if err != nil {
		return err
	}
	switch e.Kind {
	case sys.UffdFault:
		go p.fault(e.Start &^ (pageSize - 1))
	case sys.UffdFork:
		p.s.add(newSpace(p.s, p.of, e.Fd, p.missing.forked()))
		go p.s.sweep(p.of)
	case sys.UffdRemap:
		p.missing.move(e.Start, e.End, e.To)
	case sys.UffdRemove, sys.UffdUnmap:
		p.missing.cut(e.Start, e.End)
	}
	if e.Kind != sys.UffdFault {
		p.left = p.missing.bytes()
	}
	switch e.Kind {
	case sys.UffdRemap, sys.UffdRemove, sys.UffdUnmap:
		_ = sys.UffdWake(p.fd, e.Start, e.End) // what waits there finds out what is there now
	}
	return nil
}

// fault gives the page at addr, for which a thread waits, and some after it.
func (p *space) fault(addr uint64) {
	for !p.s.over() {
		want, ok := p.want(addr)
		if !ok {
			if p.settled(p.zero(addr)) {
				return
			}
			continue
		}
		p.s.hurry(1)
		data, err := p.s.read(p.of, want)
		p.s.hurry(-1)
		if err != nil {
			return // it is over
		}
		if p.settled(p.put(want, data)) && !p.misses(addr) {
			return
		}
	}
}

// want is what is fetched for who waits for addr: what lies in one unit with it.
func (p *space) want(addr uint64) (criu.LazyRange, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.missing.at(addr, unit-addr%unit)
	if !ok {
		return r, false
	}
	// What is missing in the unit before it is as likely to be next.
	whole := p.missing[p.missing.after(addr)]
	return clip(whole, max(whole.Start, addr-addr%unit), r.End), true
}

func (p *space) misses(addr uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.missing.at(addr, pageSize)
	return ok && !p.closed
}

// settled reports whether that was all. If not it waits a moment.
func (p *space) settled(err error) bool {
	switch {
	case err == nil:
		return true
	case err == unix.EAGAIN: // until the event is read
		time.Sleep(100 * time.Microsecond)
	default:
		p.s.complain("memory cannot be given to its process", err)
		time.Sleep(patience)
	}
	return false
}

// zero gives a page of zeros, unless it is missing by now.
func (p *space) zero(addr uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	if _, ok := p.missing.at(addr, pageSize); ok {
		return unix.EAGAIN
	}
	switch err := sys.UffdZero(p.fd, addr, pageSize); err {
	case unix.ESRCH:
		p.closeLocked()
		return nil
	case unix.EEXIST, unix.ENOENT: // it is there already, or no memory any more
		_ = sys.UffdWake(p.fd, addr, addr+pageSize)
		return nil
	default:
		return err
	}
}

// put gives what is still missing of r, whose content is data. EAGAIN: an event comes first.
func (p *space) put(r criu.LazyRange, data []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := r.Start; at < r.End && !p.closed; {
		i := p.missing.after(at)
		if i == len(p.missing) || p.missing[i].Start >= r.End {
			return nil
		}
		m := p.missing[i]
		m = clip(m, max(m.Start, at), min(m.End, r.End))
		at = m.End
		if m.Off != r.Off+int64(m.Start-r.Start) {
			continue // something else was moved here
		}
		if err := p.copyLocked(m, data[m.Start-r.Start:m.End-r.Start]); err != nil {
			return err
		}
	}
	return nil
}

// copyLocked gives all of r, which is missing.
func (p *space) copyLocked(r criu.LazyRange, data []byte) error {
	most := len(data)
	for len(data) > 0 {
		n, err := sys.UffdCopy(p.fd, r.Start, data[:min(most, len(data))])
		switch {
		case n > 0 || err == nil:
		case err == unix.ESRCH:
			p.closeLocked()
			return nil
		case err == unix.ENOENT && min(most, len(data)) > int(pageSize):
			// More than one mapping: mprotect(2) makes two of one. Smaller parts are in one.
			most = max(min(most, len(data))/2&^int(pageSize-1), int(pageSize))
			continue
		case err == unix.EEXIST, err == unix.ENOENT: // it is there already, or no memory any more
			_ = sys.UffdWake(p.fd, r.Start, r.Start+pageSize)
			n = int(pageSize)
		default:
			return err
		}
		p.missing.cut(r.Start, r.Start+uint64(n))
		p.left -= int64(n)
		r.Start += uint64(n)
		data = data[n:]
	}
	return nil
}

// next is what the background brings next; false if nothing is missing.
func (p *space) next() (criu.LazyRange, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.missing) == 0 {
		return criu.LazyRange{}, false
	}
	r := p.missing[0]
	return clip(r, r.Start, min(r.End, r.Start+chunk)), true
}

// finish lets go of the space if nothing is missing in it, or its process has ended, of which
// nothing tells. It reports whether that is so.
func (p *space) finish() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.missing) == 0 || !p.closed && sys.UffdEnded(p.fd, p.missing[0].Start, pageSize) {
		p.closeLocked()
	}
	return p.closed
}

func (p *space) bytesLeft() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left
}

// closeLocked lets go of the space: all is there, or its process has ended.
func (p *space) closeLocked() {
	if p.closed {
		return
	}
	p.closed, p.missing, p.left = true, nil, 0
	p.s.closing.Go(func() { _ = p.file.Close() }) // which waits for serve, and that for our lock
}
