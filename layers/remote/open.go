package remote

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

// settleTime is how old an mtime must be for a later change to show in it: it
// has whole seconds, and clocks of filesystems tick coarsely.
const settleTime = 2

// File is one version of a file on the source. See layers.File.
type File struct {
	l       *Layer
	path    layers.Path // immutable; as it was when the file was opened
	attr    layers.Attr // immutable
	settled bool        // when it was opened; immutable

	opening chan struct{} // holds one token: who has it may open the file anew
	astray  atomic.Bool   // its path does not lead to it any more: lanes are not asked

	mu     sync.Mutex
	conn   *conn  // the channel that handle belongs to
	handle string // "" when there is none
	users  int    // reads that use handle now
	whole  []byte // the content, if it came along when the file was opened
	gated  bool   // the last OPEN did not return

	extents *extents // where a part of it has data, once that was asked for
	closed  bool
}

// Attr returns the attributes the file had when it was opened.
func (f *File) Attr() layers.Attr { return f.attr }

// Settled reports whether the file's mtime lies at least two seconds back, by this
// host's clock. If not, a change within that time may leave size and mtime as they
// are, and what is read now is to be looked at again. What came along when the
// file was opened is as old as that.
func (f *File) Settled() bool {
	return f.settled || f.l.carried.get(f) == nil && isSettled(&f.attr, time.Now())
}

// Open takes one exchange if want is given: OPEN, and behind it the proof that
// the path still leads, through no symlink, to what want describes. The handle
// itself is looked at together with the first read, before any byte of it is
// handed out. Without want there is a Stat first.
//
// The content of a small file comes along in that exchange where handles can be
// predicted; see openWhole.
//
// Nothing but what LSTAT called a regular file is opened. If it was replaced by
// a FIFO since, OPEN does not return; then the channel is given up, and the path
// looked at before it is opened again.
func (l *Layer) Open(ctx context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	f, err := l.open(ctx, p, want)
	if err != nil {
		return nil, l.fail("open", p, err)
	}
	return f, nil
}

func (l *Layer) open(ctx context.Context, p layers.Path, want *layers.Attr) (*File, error) {
	if err := l.check(p); err != nil {
		return nil, err
	}
	if want != nil && !want.IsRegular() {
		return nil, layers.ErrNotRegular
	}
	var f *File
	gated := false
	// Its handle stays open on the main connection, the background's as well.
	err := l.exchangeOn(ctx, l.session, func(ctx context.Context, c *conn) error {
		expect := want
		if want == nil {
			a, err := l.lstat(ctx, c, p)
			if err != nil {
				return err
			}
			if !a.IsRegular() {
				return layers.ErrNotRegular
			}
			expect = &a
		}
		var err error
		if f, err = l.openWhole(ctx, p, expect); f != nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		gated = gated || errors.Is(err, errStalled)
		handle, a, err := l.openHandle(ctx, c, p, expect, gated)
		if err != nil {
			gated = errors.Is(err, errStalled)
			return err
		}
		f = l.newFile(p, a, isSettled(&a, time.Now()))
		f.conn, f.handle = c, handle
		return nil
	})
	if err != nil {
		return nil, err
	}
	if f.conn != nil {
		l.handles.add(f, f.conn.caps.handles)
	}
	return f, nil
}

// newFile returns the File for p, which is a's version; settled is so before any of it
// is read.
func (l *Layer) newFile(p layers.Path, a layers.Attr, settled bool) *File {
	return &File{l: l, path: p, attr: a, settled: settled, opening: make(chan struct{}, 1)}
}

// isSettled reports whether a change after the moment at shows in a's version.
func isSettled(a *layers.Attr, at time.Time) bool {
	last := a.Mtime.Sec
	if a.Has(layers.KnownCtime) {
		// The server knows by its own clock. What it doubts now settles as well.
		if a.Has(layers.KnownSettled) {
			return true
		}
		last = max(last, a.Ctime.Sec) + 1
	}
	return a.Has(layers.KnownTimes) && last+settleTime <= at.Unix()
}

// wasSettled is isSettled for what was read between the moment at, when it was asked for,
// and a: what the server knew when it gave want, it did before.
func wasSettled(want, a *layers.Attr, at time.Time) bool {
	if want.Has(layers.KnownCtime | layers.KnownSettled) {
		return true
	}
	b := *a
	b.Known &^= layers.KnownSettled
	return isSettled(&b, at)
}

// openHandle opens p, which must be what want describes, and returns the
// attributes that the path has after the OPEN. Gated means to look before.
func (l *Layer) openHandle(ctx context.Context, c *conn, p layers.Path, want *layers.Attr, gated bool) (string, layers.Attr, error) {
	var a layers.Attr
	if gated {
		a, err := l.lstat(ctx, c, p)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || err == nil && !same(&a, want) {
			return "", a, layers.ErrStale
		}
		if err != nil {
			return "", a, err
		}
	}
	full := l.path(p)
	reqs := []request{askOpen(full), askPath(fxpLstat, full), askPath(fxpRealpath, full), l.askRoot(c)}
	replies, err := c.do(ctx, reqs...)
	if err != nil {
		return "", a, err
	}
	handle, openErr := replies[0].handle()
	a, err = l.vouch(replies[1:], full, want)
	if err == nil {
		err = openErr
		if isStatus(err, fxNoSuchFile) {
			err = fmt.Errorf("%w: it was replaced while it was opened", layers.ErrStale)
		}
	}
	if err != nil {
		if openErr == nil {
			c.post(askHandle(fxpClose, handle))
		}
		return "", a, l.stands(ctx, c, err)
	}
	return handle, a, nil
}

// vouch reads the answers to LSTAT, REALPATH and askRoot behind an OPEN.
func (l *Layer) vouch(replies []reply, full string, want *layers.Attr) (layers.Attr, error) {
	if err := l.sameRoot(&replies[2]); err != nil {
		return layers.Attr{}, err
	}
	return l.vouchFor(&replies[0], &replies[1], full, want)
}

// vouchFor reads the answers to LSTAT of a file and to REALPATH of path, which is
// the file's or its directory's.
func (l *Layer) vouchFor(lstat, real *reply, path string, want *layers.Attr) (layers.Attr, error) {
	a, err := l.attrs(lstat)
	if isStatus(err, fxNoSuchFile) || leadsOut(err) {
		return a, fmt.Errorf("%w: it is gone", layers.ErrStale)
	}
	if err != nil {
		return a, err
	}
	name, err := real.name()
	if isStatus(err, fxNoSuchFile) || leadsOut(err) || err == nil && name != path {
		return a, fmt.Errorf("%w: its path leads elsewhere", layers.ErrStale)
	}
	if err != nil {
		return a, err
	}
	if !a.Has(layers.KnownSize | layers.KnownTimes) {
		return a, corrupt("no size or time for a file")
	}
	if !same(&a, want) {
		return a, layers.ErrStale
	}
	return a, nil
}

// acquire returns a handle on the channel c and keeps it from being closed until
// release. A handle of another channel is gone with it: the file is opened
// anew by its path, and if that is another version now, or the name is gone, the
// answer is ErrStale.
func (f *File) acquire(ctx context.Context, c *conn) (string, error) {
	select {
	case f.opening <- struct{}{}:
		defer func() { <-f.opening }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	f.mu.Lock()
	gated := f.gated
	switch {
	case f.closed:
		f.mu.Unlock()
		return "", errClosed
	case f.conn == c && f.handle != "":
		f.users++
		handle := f.handle
		f.mu.Unlock()
		return handle, nil
	}
	f.mu.Unlock()

	handle, _, err := f.l.openHandle(ctx, c, f.path, &f.attr, gated)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gated = errors.Is(err, errStalled)
	if err != nil {
		return "", err
	}
	if f.closed {
		c.post(askHandle(fxpClose, handle))
		return "", errClosed
	}
	f.conn, f.handle, f.users = c, handle, 1 // who used the old handle has lost it
	return handle, nil
}

// release ends what acquire began.
func (f *File) release(c *conn, handle string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != c || f.handle != handle {
		return // the file has a newer handle, this one died with its channel
	}
	f.users--
	if f.closed && f.users == 0 {
		f.dropLocked()
	}
}

// dropLocked closes the handle on the server. The caller holds mu, and nobody
// uses the handle.
func (f *File) dropLocked() {
	if f.handle != "" {
		f.conn.post(askHandle(fxpClose, f.handle))
		f.handle = ""
	}
}

// Close gives the handle back. Reads that are under way end by themselves.
func (f *File) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return f.l.fail("close", f.path, errClosed)
	}
	f.closed = true
	f.whole = nil
	if f.users == 0 {
		f.dropLocked()
	}
	f.mu.Unlock()
	f.l.handles.remove(f)
	f.l.carried.remove(f)
	return nil
}
