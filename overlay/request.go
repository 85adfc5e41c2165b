package overlay

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/migratefs/migratefs/layers"
)

// The kernel tells a FUSE server of any signal to a process that waits for it,
// once, and does not say which. On a disk filesystem only a signal that kills
// ends a read or write: programs with timers, and every Go program, get others
// all the time and do not expect EINTR of a file. So a signal that kills ends a
// wait at once; another one ends a wait for a source after a grace, so that ^C
// works in programs that handle it, and a copy-up never.

// grace is how long a wait for a source goes on after a signal that does not
// kill. What is on its way usually arrives within it.
const grace = 2 * time.Second

// request is a FUSE request's context. Done is closed when its caller will be
// answered with EINTR.
type request struct {
	cancel <-chan struct{} // closed by go-fuse on FUSE_INTERRUPT
	pid    uint32          // of the calling thread; 0 if it has none that we see
	asOf   layers.AsOf     // how old what sources were said to have is

	mu      sync.Mutex    // protects the making of what follows
	watched bool          // somebody looks at cancel
	over    chan struct{} // closed by end
	soft    chan struct{} // closed when a wait for a source is to end
	killed  chan struct{} // closed when the caller dies
}

func begin(cancel <-chan struct{}, pid uint32) *request {
	return &request{cancel: cancel, pid: pid}
}

// end ends the watch, if there is one.
func (r *request) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watched {
		close(r.over)
	}
}

func (r *request) watch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watched {
		return
	}
	r.watched = true
	r.over, r.soft, r.killed = make(chan struct{}), make(chan struct{}), make(chan struct{})
	go r.wait(r.over, r.soft, r.killed)
}

func (r *request) wait(over <-chan struct{}, soft, killed chan<- struct{}) {
	select {
	case <-r.cancel:
	case <-over:
		return
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	late := time.After(grace)
	for ended := false; ; {
		if dies(r.pid) {
			if !ended {
				close(soft)
			}
			close(killed)
			return
		}
		select {
		case <-over:
			return
		case <-late:
			ended = true
			close(soft)
			late = nil
		case <-tick.C:
		}
	}
}

// dies reports whether thread tid has SIGKILL pending, as every thread of a
// process has once a signal kills it (proc_pid_status(5)).
func dies(tid uint32) bool {
	if tid == 0 {
		return false
	}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return true // gone already
	}
	for _, field := range []string{"\nSigPnd:", "\nShdPnd:"} {
		_, rest, _ := strings.Cut(string(b), field)
		line, _, _ := strings.Cut(rest, "\n")
		set, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
		if err == nil && set&(1<<(9-1)) != 0 {
			return true
		}
	}
	return false
}

// Deadline implements context.Context.
func (r *request) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (r *request) Value(key any) any {
	switch key {
	case layers.AsOfKey:
		return &r.asOf
	case whoAsks{}:
		return r.pid
	}
	return nil
}

// left is what is left of d for what a source is said to have: how long it is believed
// counts from when the source was asked, however many memories it went through.
func (r *request) left(d time.Duration) time.Duration { return max(d-r.asOf.Age(), 0) }

// shorten has the kernel believe what out tells for what is left.
func (r *request) shorten(out *fuse.EntryOut) {
	if r.asOf.Age() > 0 {
		out.SetEntryTimeout(r.left(out.EntryTimeout()))
		out.SetAttrTimeout(r.left(out.AttrTimeout()))
	}
}

// Done implements context.Context.
func (r *request) Done() <-chan struct{} {
	r.watch()
	return r.soft
}

// Err implements context.Context.
func (r *request) Err() error {
	select {
	case <-r.cancel: // cheap, and rarely so
		return closedErr(r.Done())
	default:
		return nil
	}
}

func closedErr(done <-chan struct{}) error {
	select {
	case <-done:
		return context.Canceled
	default:
		return nil
	}
}

// killable is a request of which only the death of its caller ends a wait.
type killable struct{ *request }

// Done implements context.Context.
func (k killable) Done() <-chan struct{} {
	k.watch()
	return k.killed
}

// Err implements context.Context.
func (k killable) Err() error {
	select {
	case <-k.cancel:
		return closedErr(k.Done())
	default:
		return nil
	}
}

// untilKilled returns ctx as what a copy-up waits with.
func untilKilled(ctx context.Context) context.Context {
	if r, ok := ctx.(*request); ok {
		return killable{r}
	}
	return ctx
}
