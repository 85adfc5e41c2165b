package overlay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// The end of a migration from another host. What is to be here before the source may be
// switched off is the scope. A look (detach_look.go) goes through it and says what is
// missing; a drain (detach_bring.go) brings that up; a detach (detach.go) is a last look
// that also writes down what the source has besides, after which it is never asked again.

// Phase is how far that is.
type Phase string

const (
	// Local: no layer is on another host.
	Local Phase = ""
	// Lazy: what the source has comes when it is asked for.
	Lazy Phase = "lazy"
	// Filling: what the scope misses, or what was changed here, is being brought.
	Filling Phase = "filling"
	// Complete: nothing of the scope is missing, as of State.Looked. It is lazy again
	// when the scope grows, by a file that is opened, say.
	Complete Phase = "complete"
	// Detached: the source is not asked for anything any more, for good.
	Detached Phase = "detached"
)

// Amount is a number of files, directories and everything else included, and of bytes
// of content in them.
type Amount struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

func (a *Amount) add(bytes int64) {
	a.Files++
	a.Bytes += bytes
}

// State is how far the end of the migration is. Before anybody has looked through the
// scope (Looked is zero), Here and Missing are of what was changed here alone.
type State struct {
	Phase  Phase
	Scope  Scope     // what has to be here
	Looked time.Time // when it was last looked through

	// Of the scope: Here + Missing is all of it. Of a file that is partly here, Missing
	// has the file, and the bytes that are not here.
	Here, Missing Amount

	// AtRisk is the files, part of Missing, that were changed here and are not whole:
	// without the source, what was changed is lost with the rest. Bytes are those that
	// the source has.
	AtRisk Amount

	// Left is the names that a detached mount has left on the source, in directories
	// that are here: they are listed, and reading them is EIO.
	Left int64

	// Away is why a source cannot be asked now; nil while all can be.
	Away error

	// Lost are the last reads that failed for want of the source, the newest last, and
	// LostReads is how many there were since the mount.
	Lost      []LostRead
	LostReads int64

	// Job is what was last asked for: a look, a drain or a detach.
	Job JobState
}

// LostRead is a read that failed because the source could not be asked, or had
// something else by then.
type LostRead struct {
	Path    layers.Path // from the root of the mount; empty if the file has no name any more
	When    time.Time
	Pid     uint32 // of the thread that asked, as this daemon sees it; 0: unknown
	Process string // what it calls itself
	Err     error
}

// ending is what an FS knows of the end of its migration.
type ending struct {
	ctx  context.Context // of jobs
	stop context.CancelFunc
	jobs sync.WaitGroup

	seeded bool         // the lowers have names that the migration is about; immutable
	said   atomic.Int64 // when that a read has failed was last logged: Unix time, ns

	// coming is held shared while a file of a source becomes pending, and to depart.
	coming sync.RWMutex

	mu      sync.Mutex // after every node's; memory only, but for the one rename of a detach
	scope   Scope
	touched touched
	last    *look // the last that went through all of the scope
	lastSeq uint64
	job     *job
	lost    []LostRead
	losts   int64
}

// init is for after the layers are known.
func (e *ending) init(fs *FS) {
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.touched.fd = -1
	e.seeded = e.names(fs) > 0
	e.scope = e.usual()
	e.scope.Names = e.names(fs)
}

// usual is the scope where nobody has said another.
func (e *ending) usual() Scope {
	if e.seeded {
		return Scope{What: ScopeNamed}
	}
	return Scope{What: ScopeAll}
}

// close ends what runs.
func (e *ending) close() {
	e.stop()
	e.jobs.Wait()
	if e.touched.fd >= 0 {
		unix.Close(e.touched.fd)
		e.touched.fd = -1
	}
}

// sources returns the lowers that are on other hosts.
func (fs *FS) sources() (ls []*layer) {
	for _, l := range fs.lowers {
		if l.leave != nil {
			ls = append(ls, l)
		}
	}
	return ls
}

// Detached reports whether the mount was detached from its source.
func (fs *FS) Detached() bool {
	for _, l := range fs.lowers {
		if l.leave != nil && l.leave.gone.Load() != nil {
			return true
		}
	}
	return false
}

// State tells how far the end of the migration is. It asks no source.
func (fs *FS) State(ctx context.Context) (State, error) {
	e := &fs.ending
	var s State
	from := fs.sources()
	if len(from) == 0 {
		return s, nil
	}
	p, err := fs.Progress(ctx)
	if err != nil {
		return s, err
	}
	for _, l := range from {
		if gone := l.leave.gone.Load(); gone != nil {
			s.Left += gone.left()
		} else if err := l.leave.Offline(); err != nil {
			s.Away = errors.Join(s.Away, fmt.Errorf("%s: %w", l.ID(), err))
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Scope, s.Job = e.scope, e.job.state()
	s.Scope.Opened = len(e.touched.names)
	s.Lost, s.LostReads = append(s.Lost, e.lost...), e.losts
	here := p.Size - p.Missing // of what is pending
	s.Here.Bytes = here
	s.Missing = Amount{int64(p.Files), p.Missing}
	s.AtRisk = Amount{int64(p.Incomplete), p.Missing}
	l := e.last
	if e.job != nil && e.job.now != nil {
		l = e.job.now
	}
	if l != nil {
		total, below, when := l.counted()
		s.Here = Amount{total.Files - below.Files, total.Bytes - below.Bytes + here}
		s.Missing = Amount{s.Missing.Files + below.Files, s.Missing.Bytes + below.Bytes}
		s.Looked = when
	}
	switch {
	case fs.Detached():
		s.Phase = Detached
	case e.job.running() && e.job.op == opDrain:
		s.Phase = Filling
	case e.completeLocked() && p.Files == 0:
		s.Phase = Complete
	case p.Fetching && p.Files > p.Conflicts:
		s.Phase = Filling
	default:
		s.Phase = Lazy
	}
	return s, nil
}

// filled notes that a file of so many bytes is whole: of a drain, under way or the last
// thing that was done, it is here by now. While it was pending, no look counted it.
func (e *ending) filled(bytes int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	k := e.last
	if e.job.running() && e.job.now != nil {
		k = e.job.now
	}
	if k != nil && k.bring {
		k.found(bytes)
	}
}

// completeLocked reports whether the last look found everything, and nothing has come
// to the scope since. The caller holds e.mu.
func (e *ending) completeLocked() bool {
	return e.last != nil && e.last.whole() && (e.lastSeq == e.touched.seq || e.last.scope.What != ScopeNamed)
}
