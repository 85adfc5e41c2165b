package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A drain is a process of its own, and needs no mount. While it runs it tells the
// mounts of its host that have one of its lowers how far it is, over their control
// sockets: one request whose body goes on for as long as the drain does, a DrainReport
// a line. So what is told of it goes with it, however it ends.

// drainMoving is the phase of a Drain that moves files.
const drainMoving = "moving"

// Drain is how far one is.
type Drain struct {
	PID      int      `json:"pid,omitempty"`   // in the daemon's pid namespace, if it is there
	Shard    string   `json:"shard,omitempty"` // I/N
	Phase    string   `json:"phase"`           // counting, moving
	Seconds  float64  `json:"seconds"`         // in this phase
	Files    int64    `json:"files"`           // that have moved, or are counted
	Bytes    int64    `json:"bytes"`           // in them
	AllFiles *int64   `json:"all_files,omitempty"`
	AllBytes *int64   `json:"all_bytes,omitempty"`
	Stay     int64    `json:"stay"` // names that cannot move
	Rate     float64  `json:"bytes_per_second"`
	Left     *float64 `json:"seconds_left,omitempty"`
	Guessed  bool     `json:"guessed,omitempty"` // Left: of what is in use on the filesystem
}

// FileID tells files of a host apart.
type FileID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// IDOf is that of the file path leads to.
func IDOf(path string) (FileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return FileID{}, err
	}
	return FileID{st.Dev, st.Ino}, nil
}

// DrainReport is what a drain tells.
type DrainReport struct {
	Lowers []FileID `json:"lowers"` // their roots
	Drain
}

// ErrNotOurs: the mount has none of the lowers.
var ErrNotOurs = errors.New("no lower of this mount is drained")

const (
	drainsMost   = 64               // that are told of
	drainSilence = 30 * time.Second // so long without a report it is as good as dead

	drainLastWord = 5 * time.Second // how long a drain that has ended waits for somebody to hear it
)

// drains are those that tell of themselves.
type drains struct {
	mu  sync.Mutex
	all []*atomic.Pointer[Drain] // the one that came first first
}

func (d *drains) enter() *atomic.Pointer[Drain] {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.all) >= drainsMost {
		return nil
	}
	p := new(atomic.Pointer[Drain])
	d.all = append(d.all, p)
	return p
}

func (d *drains) leave(p *atomic.Pointer[Drain]) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = slices.DeleteFunc(d.all, func(q *atomic.Pointer[Drain]) bool { return p == q })
}

func (d *drains) read() (all []Drain) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.all {
		if now := p.Load(); now != nil {
			all = append(all, *now)
		}
	}
	return all
}

func (m *Mount) hasLower(any []FileID) bool {
	return slices.ContainsFunc(m.Layers, func(l LayerSpec) bool {
		return !l.Upper && l.Root != FileID{} && slices.Contains(any, l.Root)
	})
}

// serveDrain reads what a drain tells, until it ends.
func (s *Server) serveDrain(w http.ResponseWriter, r *http.Request) {
	who, _ := r.Context().Value(peerKey{}).(peer)
	limit := http.NewResponseController(w)
	in := bufio.NewScanner(r.Body)
	in.Buffer(nil, requestMost)
	var seat *atomic.Pointer[Drain]
	for {
		_ = limit.SetReadDeadline(time.Now().Add(drainSilence))
		if !in.Scan() {
			break
		}
		var d DrainReport
		if err := json.Unmarshal(in.Bytes(), &d); err != nil {
			answer(w, nil, refused{err})
			return
		}
		if seat == nil {
			if !s.m.hasLower(d.Lowers) {
				tell(w, http.StatusNotFound, ErrNotOurs.Error())
				return
			}
			if seat = s.m.drains.enter(); seat == nil {
				tell(w, http.StatusServiceUnavailable, fmt.Sprintf("%d drains tell of themselves already", drainsMost))
				return
			}
			defer s.m.drains.leave(seat)
		}
		d.PID = who.pid
		s.m.drained.add(seat.Swap(&d.Drain), &d.Drain)
	}
	answer(w, struct{}{}, nil)
}

// ReportDrain tells the daemon how far a drain is, at once and again every so often,
// until ctx ends, and how far it was then. It returns before that if the daemon ends, or
// wants to know nothing of it.
func (c *Client) ReportDrain(ctx context.Context, every time.Duration, now func() *DrainReport) error {
	asked, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { // a daemon that does not listen holds nobody up
		time.AfterFunc(drainLastWord, cancel)
	})()
	body, in := io.Pipe()
	defer body.Close()
	go func() {
		defer in.Close()
		tick := time.NewTicker(every)
		defer tick.Stop()
		for lines := json.NewEncoder(in); lines.Encode(now()) == nil; {
			select {
			case <-tick.C:
			case <-ctx.Done():
				_ = lines.Encode(now())
				return
			}
		}
	}()
	req, err := http.NewRequestWithContext(asked, http.MethodPost, "http://migratefs/v1/drain", body)
	if err != nil {
		return err
	}
	resp, err := c.client().Do(req)
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return ErrNotOurs
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, requestMost))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = refusal(resp.StatusCode, b)
	}
	return errors.Join(ctx.Err(), err)
}
