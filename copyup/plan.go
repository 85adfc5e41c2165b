package copyup

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// What a migration would move, and whether it fits. The old storage is only read;
// what the new one can hold is tried out in a directory of our own, which goes
// again.

// PlanConfig says what NewPlan looks at.
type PlanConfig struct {
	Old, New string // directories
	// Workers is how many directories are read at once; 0: as many as suit storage
	// that is far away.
	Workers int
	// Now is what ages are counted from; zero: the present.
	Now time.Time
	// Quota asks for a quota on NEW; nil: the kernel.
	Quota func(fd, kind int, id uint32) (sys.Quota, error)
	// Seen, if not nil, counts names while the walk goes on.
	Seen *atomic.Int64
}

// NewPlan walks the old storage and compares it with what the new one can hold. A
// part of the old that cannot be read is in Plan.Unread, not an error.
func NewPlan(ctx context.Context, cfg PlanConfig) (p *Plan, err error) {
	if cfg.Now.IsZero() {
		cfg.Now = time.Now()
	}
	if cfg.Workers <= 0 {
		cfg.Workers = max(8, 2*runtime.GOMAXPROCS(0))
	}
	if cfg.Quota == nil {
		cfg.Quota = sys.GetQuota
	}
	// A clone of the mount: nothing is written to it, access times included.
	old, err := local.Open(cfg.Old, local.Config{Private: true})
	if err != nil {
		return nil, err
	}
	defer old.Close()
	probe, err := newProbe(cfg.New)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, probe.close()) }()
	w := &planWalk{cfg: cfg, old: old, probe: probe, sum: newTally(cfg.Now), room: make(chan struct{}, cfg.Workers)}
	if err := w.walk(ctx); err != nil {
		return nil, err
	}
	return w.plan()
}

// planWalk is one walk over the old storage.
type planWalk struct {
	cfg   PlanConfig
	old   *local.Layer
	dev   uint64 // of the root: what lies on others is not walked
	probe *probe

	room    chan struct{} // holds a token for each goroutine but the first
	running sync.WaitGroup

	mu  sync.Mutex
	sum *tally // protected by mu
}

func (w *planWalk) walk(ctx context.Context) error {
	var stx unix.Statx_t
	if err := sys.Statx(w.old.Root(), "", &stx); err != nil {
		return err
	}
	root := local.AttrOf(&stx)
	w.dev = root.Dev
	w.sum.add(w.probe, layers.Root, &root, 0)
	w.sum.need = Size{} // NEW has a root
	w.dir(ctx, layers.Root)
	w.running.Wait()
	return ctx.Err()
}

// dir counts what is in the directory p, and below. Subdirectories are walked by
// others as long as there is room for them, then by this one, deepest first: what
// waits is names, one per subdirectory on the way.
func (w *planWalk) dir(ctx context.Context, p layers.Path) {
	fd, err := openQuietly(w.old.Root(), string(p), unix.O_DIRECTORY)
	if err != nil {
		w.unread(p, err)
		return
	}
	var below []layers.Path
	part := newTally(w.cfg.Now)
	err = local.EachPart(ctx, fd, func(es []layers.Entry) error {
		for i := range es {
			if p == layers.Root && es[i].Name == reserved {
				continue
			}
			if w.entry(part, fd, p.Join(es[i].Name), es[i].Name) {
				below = append(below, p.Join(es[i].Name))
			}
		}
		w.merge(part)
		return nil
	})
	unix.Close(fd)
	if err != nil && ctx.Err() == nil {
		w.unread(p, err)
	}
	for _, sub := range below {
		if ctx.Err() != nil {
			return
		}
		select {
		case w.room <- struct{}{}:
			w.running.Add(1)
			go func() {
				defer func() { <-w.room; w.running.Done() }()
				w.dir(ctx, sub)
			}()
		default:
			w.dir(ctx, sub)
		}
	}
}

// reserved is overlay.Reserved: what is ours at the root of a layer.
const reserved = ".migratefs"

// entry counts one name and reports whether it is a directory to walk.
func (w *planWalk) entry(part *tally, dirfd int, p layers.Path, name string) (walk bool) {
	var stx unix.Statx_t
	err := sys.Statx(dirfd, name, &stx)
	if err == unix.ENOENT {
		return false // it went meanwhile
	}
	if err != nil {
		part.unread(p, err)
		return false
	}
	a := local.AttrOf(&stx)
	if a.Dev != w.dev {
		part.mounts = append(part.mounts, Quoted(p))
		return false
	}
	data := a.Size
	if a.IsRegular() && a.Blocks*512+4096 < a.Size {
		data = dataIn(dirfd, name, &a)
	}
	part.add(w.probe, p, &a, data)
	w.probe.name(part, p, name)
	if a.Type() == unix.S_IFLNK {
		if target, err := sys.Readlink(dirfd, name); err == nil {
			w.probe.symlink(part, p, target)
		}
	}
	switch x, err := local.XattrsAt(dirfd, name); {
	case err == nil:
		w.probe.xattrs(part, p, &a, x)
	case err != unix.ENOENT:
		part.unread(p, fmt.Errorf("extended attributes: %w", err))
	}
	return a.IsDir()
}

func (w *planWalk) unread(p layers.Path, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sum.unread(p, err)
}

// merge adds part to the sum and empties it.
func (w *planWalk) merge(part *tally) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cfg.Seen != nil {
		w.cfg.Seen.Add(part.names + part.directories)
	}
	w.sum.merge(part)
	*part = *newTally(w.cfg.Now)
}

// openQuietly opens without leaving an access time, where that is ours to say.
func openQuietly(root int, path string, flags int) (int, error) {
	flags |= unix.O_RDONLY | unix.O_NOFOLLOW
	fd, err := sys.OpenBeneath(root, path, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = sys.OpenBeneath(root, path, flags, 0)
	}
	return fd, err
}

// manySegments is how many pieces of data are counted in one sparse file.
const manySegments = 1 << 16

// dataIn is how many bytes of a sparse file are data, as SEEK_DATA tells: blocks
// that the old storage compresses count in full, holes not.
func dataIn(dirfd int, name string, a *layers.Attr) int64 {
	fd, err := openQuietly(dirfd, name, unix.O_NONBLOCK)
	if err != nil {
		return a.Size
	}
	defer unix.Close(fd)
	var data, off int64
	for range manySegments {
		from, err := sys.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return data
		}
		to, err2 := sys.Seek(fd, from, unix.SEEK_HOLE)
		if err != nil || err2 != nil || to <= from {
			return a.Size
		}
		data, off = data+to-from, to
	}
	return a.Size
}
