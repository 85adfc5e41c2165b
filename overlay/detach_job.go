package overlay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// A job goes through the scope while the mount is served. There is one at a time.

// What a job does.
const (
	opLook   = "look"
	opDrain  = "drain"
	opDetach = "detach"
)

// How a job ended.
const (
	JobWhole   = "whole"   // nothing of the scope is missing; of a detach: it is detached
	JobMissing = "missing" // something is
	JobStopped = "stopped"
	JobFailed  = "failed"
)

// JobState is what was last asked for, and what came of it.
type JobState struct {
	ID     int64  `json:"id"` // 0: nothing was
	Op     string `json:"op,omitempty"`
	Result string `json:"result,omitempty"` // empty: it is under way
	Error  string `json:"error,omitempty"`
}

type job struct {
	id   int64
	op   string
	stop context.CancelFunc
	now  *look // under way
	done bool
	end  JobState
}

func (j *job) running() bool { return j != nil && !j.done }

func (j *job) state() JobState {
	switch {
	case j == nil:
		return JobState{}
	case j.done:
		return j.end
	}
	return JobState{ID: j.id, Op: j.op}
}

// Why a job cannot be.
var (
	ErrNoSource = fmt.Errorf("every layer is on this host: %w", unix.ENODATA)
	ErrBusyJob  = fmt.Errorf("another is under way: %w", unix.EBUSY)
)

// errMissing: something of the scope is not here.
var errMissing = errors.New("something of it is missing here")

// startJob starts a job. A look gives way to what comes after it.
func (fs *FS) startJob(op string, scope *Scope, force bool) (JobState, error) {
	e := &fs.ending
	if len(fs.sources()) == 0 {
		return JobState{}, ErrNoSource
	}
	if fs.ReadOnly() {
		return JobState{}, unix.EROFS
	}
	if fs.Detached() {
		return JobState{}, ErrDetached
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return JobState{}, unix.ENOTCONN
	}
	if e.job.running() && e.job.op != opLook {
		return JobState{}, ErrBusyJob
	}
	if e.job.running() {
		e.job.stop()
	}
	if scope != nil {
		e.scope = *scope
		e.scope.Names = e.names(fs)
	}
	j := &job{op: op, id: time.Now().UnixNano()}
	var ctx context.Context
	ctx, j.stop = context.WithCancel(e.ctx)
	e.job = j
	want := e.scope
	want.Opened = len(e.touched.names)
	e.jobs.Add(1)
	go func() {
		defer e.jobs.Done()
		defer j.stop()
		err := fs.runJob(ctx, j, want, force)
		e.mu.Lock()
		defer e.mu.Unlock()
		j.now, j.done = nil, true
		j.end = JobState{ID: j.id, Op: j.op, Result: JobWhole}
		switch {
		case err == nil:
		case errors.Is(err, errMissing):
			j.end.Result = JobMissing
		case ctx.Err() != nil:
			j.end.Result = JobStopped
		default:
			j.end.Result, j.end.Error = JobFailed, err.Error()
		}
	}()
	return j.state(), nil
}

// endJob stops the job that is under way.
func (fs *FS) endJob() {
	e := &fs.ending
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.job.running() {
		e.job.stop()
	}
}

// names is how many names the mount was made for.
func (e *ending) names(fs *FS) (n int) {
	for _, l := range fs.sources() {
		n += len(l.seed)
	}
	return n
}

func (fs *FS) runJob(ctx context.Context, j *job, scope Scope, force bool) error {
	switch j.op {
	case opDrain:
		return fs.drainSource(ctx, j, scope)
	case opDetach:
		return fs.detach(ctx, j, scope, force)
	}
	return fs.lookOnce(ctx, j, &look{fs: fs, scope: scope})
}

// lookOnce runs k, which is what State tells of meanwhile, and afterwards.
func (fs *FS) lookOnce(ctx context.Context, j *job, k *look) error {
	e := &fs.ending
	e.mu.Lock()
	seq := e.touched.seq
	if e.last == nil || k.bring {
		j.now = k
	}
	e.mu.Unlock()
	if err := k.run(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	j.now, e.last, e.lastSeq = nil, k, seq
	e.mu.Unlock()
	if !k.whole() || fs.fill.count() > 0 {
		return errMissing
	}
	return nil
}

// drainSource brings up all of the scope, and makes ordinary files of it.
func (fs *FS) drainSource(ctx context.Context, j *job, scope Scope) error {
	ctx = layers.Background(ctx)
	release := fs.fill.demandAll()
	defer release()
	for {
		brings := &look{fs: fs, scope: scope, bring: true}
		if err := fs.lookOnce(ctx, j, brings); err != nil && !errors.Is(err, errMissing) {
			return err
		}
		if err := fs.fill.settled(ctx); err != nil {
			return err
		}
		// What is true is what a look finds that changes nothing.
		finds := &look{fs: fs, scope: scope, why: brings.whys()}
		err := fs.lookOnce(ctx, j, finds)
		if err == nil || !errors.Is(err, errMissing) || finds.stuck() {
			return err
		}
		if err := sleep(ctx, fillAgain); err != nil {
			return err
		}
	}
}
