package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/layers"
)

// A detach lets go of the sources. A last look finds the scope whole and, on its way,
// writes down what each directory has that is not here: every directory on the way to
// the scope, and every one that the kernel knows. Then one rename makes that WORK/detached,
// and from that moment on the lowers answer from it: a name that was left can be listed,
// looked at, removed and replaced, and reading it is EIO; a name that was not there is
// not there; below a directory of which nothing is known everything is EIO. It never
// leads to a file of a lower underneath.

// detachTries is how often a look is made anew because the scope has grown meanwhile.
const detachTries = 8

var errRestlessScope = fmt.Errorf("files are opened or changed faster than they can be looked through: %w", unix.EBUSY)

// detach is the job. force lets go of what is missing.
func (fs *FS) detach(ctx context.Context, j *job, scope Scope, force bool) error {
	for range detachTries {
		e := &fs.ending
		e.mu.Lock()
		seq := e.touched.seq
		e.mu.Unlock()
		k := &look{fs: fs, scope: scope}
		for _, l := range fs.sources() {
			k.notes = append(k.notes, &departed{id: l.ID(), dirs: map[layers.Path]*departedDir{}})
		}
		if err := fs.lookOnce(ctx, j, k); err != nil && (!force || !errors.Is(err, errMissing)) {
			return err
		}
		// What came is to be on the disk before nobody else has it, also empty directories
		// and the like, which nobody has synced, and with volatile.
		if err := syncLayer(fs.upper); err != nil {
			return err
		}
		d := &Departure{When: time.Now(), Scope: scope.String(), sources: k.notes}
		if err := d.prepare(fs.work); err != nil {
			return err
		}
		gone, err := fs.depart(d, seq, force)
		if err != nil || gone {
			return err
		}
	}
	return errRestlessScope
}

// depart makes d what the sources are from now on, unless something has come to the
// scope since seq.
func (fs *FS) depart(d *Departure, seq uint64, force bool) (gone bool, err error) {
	e := &fs.ending
	e.coming.Lock()
	e.mu.Lock()
	gone = e.touched.seq == seq && (force || fs.fill.count() == 0)
	if gone {
		if err = d.publish(fs.work); err == nil {
			for i, l := range fs.sources() {
				l.leave.gone.Store(d.sources[i])
			}
		}
	}
	e.mu.Unlock()
	e.coming.Unlock()
	if err != nil || !gone {
		return false, err
	}
	fs.log.Info("detached: no source is asked any more", "scope", d.Scope, "left", d.Left())
	for _, l := range fs.sources() {
		if err := l.leave.Close(); err != nil {
			fs.log.Debug("connection to a source that was left", "cause", err)
		}
	}
	fs.giveUp()
	if err := copyup.SyncDir(fs.work, copyup.Config{}); err != nil {
		return true, fmt.Errorf("it is detached, and may not be after a crash of this host: %w", err)
	}
	return true, nil
}

// giveUp notes of the pending files that miss something, which is lost, that the
// operator decides what becomes of them.
func (fs *FS) giveUp() {
	for _, id := range fs.fill.all() {
		obj, err := fs.store.Pending(id)
		if err != nil {
			continue
		}
		missing := obj.Missing()
		obj.Close()
		if kind, _, err := fs.conflictOf(id); err != nil || kind != conflictNone || missing == 0 {
			continue
		}
		if err := fs.setConflict(id, conflictOpen, "left on the source"); err != nil {
			fs.log.Error("a file whose rest was left could not be noted", "object", id.String(), "cause", err)
		}
		fs.fill.inConflict(id, true)
	}
	fs.fill.wake()
}

// beginLeft has the lowers on other hosts be what was written down when the mount was
// detached, if it was.
func (fs *FS) beginLeft() error {
	d, err := ReadDeparture(fs.work)
	if d == nil || err != nil {
		return err
	}
	from := fs.sources()
	if d.Settling { // nothing but the upper counts
		for _, l := range from {
			l.leave.gone.Store(d.sources[0])
		}
		return nil
	}
	if len(from) != len(d.sources) {
		return fmt.Errorf("the mount was detached with %d lowers on other hosts, and is given %d: mount it as it was, or turn it into plain directories with 'migratefs settle'", len(d.sources), len(from))
	}
	for i, l := range from {
		l.leave.gone.Store(d.sources[i])
	}
	return nil
}

// LeftBehind is what to give as Lower.Layer for a source of a mount that was detached
// from it (WORK/detached is there).
func LeftBehind() layers.Layer { return &leaving{} }

// Everything that the scope of the last look misses, that is pending, or in conflict.

// MissingNow returns what is missing of the scope, as far as it is known by name.
func (fs *FS) MissingNow(ctx context.Context) ([]Missing, error) {
	e := &fs.ending
	e.mu.Lock()
	k := e.last
	e.mu.Unlock()
	var all []Missing
	if k != nil {
		k.mu.Lock()
		all = append(all, k.list...)
		k.mu.Unlock()
	}
	for _, id := range fs.fill.all() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		obj, err := fs.store.Pending(id)
		if err != nil {
			continue // it became an ordinary file
		}
		m := Missing{Path: fs.fill.pathOf(id), Bytes: obj.Missing(), Why: fs.fill.why(id)}
		if m.Path == "" {
			m.Path = obj.Source().Path
		}
		obj.Close()
		all = append(all, m)
	}
	return all, nil
}

// lostMost is how many reads that failed are remembered.
const lostMost = 100

// lostRead notes that a read failed because its bytes are not here and cannot be had,
// and says in the log which file of which process that was.
func (fs *FS) lostRead(n *node, pid uint32, err error) {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, unix.EINTR), !isLost(err):
		return
	}
	e := &fs.ending
	path, _ := n.path()
	r := LostRead{Path: path, When: time.Now(), Pid: pid, Process: processName(pid), Err: err}
	e.mu.Lock()
	e.losts++
	if len(e.lost) == lostMost {
		e.lost = e.lost[1:]
	}
	e.lost = append(e.lost, r)
	e.mu.Unlock()
	now := time.Now().UnixNano()
	if last := fs.ending.said.Load(); now-last > int64(time.Second) && fs.ending.said.CompareAndSwap(last, now) {
		fs.log.Error("a process has not got what it reads: its bytes are on the source alone",
			"path", string(path), "pid", pid, "process", r.Process, "cause", err)
	}
}

// isLost reports whether err is of bytes that only a source has.
func isLost(err error) bool {
	for _, of := range []error{layers.ErrOffline, layers.ErrDenied, layers.ErrReplaced, layers.ErrStale, ErrDetached, context.DeadlineExceeded} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// processName is what the thread calls itself; empty if it is not known.
func processName(pid uint32) string {
	if pid == 0 {
		return ""
	}
	b, _ := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/comm")
	return strings.TrimSuffix(string(b), "\n")
}
