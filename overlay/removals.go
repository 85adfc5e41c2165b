package overlay

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// In migrate mode the lower copy goes when the name of the upper one is durable. To
// make one name durable costs as much as a thousand: a worker does it for all that
// came up meanwhile, and then removes their lower copies. Nothing waits for it. A
// crash leaves the name in both layers, with the same file: the upper one shows, and
// whatever takes the name from there takes it from below first.

const (
	// removalsMax is how many lower copies may be left to remove before a copy-up waits.
	removalsMax = 8192
	// removalsBatch is how many are made durable at once.
	removalsBatch = 1024
	// removalsGather is how long the worker waits for more.
	removalsGather = 100 * time.Millisecond
	// removalsDirs is in how many directories a batch may lie for each to be synced by
	// itself rather than the whole filesystem.
	removalsDirs = 8
	// removalsAtEnd is how long a mount that ends removes lower copies. Those that are
	// left are in both layers, as after a crash.
	removalsAtEnd = time.Minute
	// removalsTell is how often it says how many are left.
	removalsTell = 5 * time.Second
)

// removal is a lower file whose copy is published.
type removal struct {
	n    *node // with a lookup of its own
	d    dentry
	r    lowerRef
	was  layers.Attr
	upID fileID
}

// removals is what the worker has to do.
type removals struct {
	now     atomic.Bool // nothing waits: a lower copy goes before its copy-up returns
	gather  time.Duration
	mu      sync.Mutex
	queue   []removal
	busy    int           // of them, what is being done
	running bool          // there is a worker
	hurry   chan struct{} // closed: it does not wait for more
	done    chan struct{} // closed when a batch is done

	atEnd   time.Duration
	until   atomic.Int64 // when to stop: Unix time, ns; 0: never
	skipped atomic.Int64 // since
}

// waiting is how many lower copies are still to be removed.
func (q *removals) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queue) + q.busy
}

func (q *removals) late() bool {
	until := q.until.Load()
	return until != 0 && time.Now().UnixNano() > until
}

func (q *removals) init(gather time.Duration) {
	q.atEnd = removalsAtEnd
	q.now.Store(gather < 0)
	if q.gather = gather; gather <= 0 {
		q.gather = removalsGather
	}
}

// mayRemoveLater reports whether the removal of the lower copy of src can wait. That
// of a hard-linked file cannot: its names in the lower are counted. Nor where the
// daemon may have no rights.
func (fs *FS) mayRemoveLater(src *copyup.Source) bool {
	return !fs.removals.now.Load() && !fs.cfg.AsCaller && src.Attr.Nlink <= 1
}

// newRemoval is that of the lower copy of n, which src describes. The caller holds
// n.mu.
func (fs *FS) newRemoval(n *node, src *copyup.Source, d dentry) removal {
	fs.table.ref(n)
	return removal{n: n, d: d, r: n.lowers[0], was: src.Attr, upID: n.upID}
}

// removeLater has the lower copy of n removed, which src describes. The caller holds
// n.mu.
func (fs *FS) removeLater(n *node, src *copyup.Source, d dentry) {
	m := fs.newRemoval(n, src, d)
	q := &fs.removals
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, m)
	if !q.running {
		q.running = true
		q.hurry, q.done = make(chan struct{}), make(chan struct{})
		go fs.removeQueued()
	}
}

// roomForRemoval waits while there is too much to remove.
func (fs *FS) roomForRemoval(ctx context.Context) error {
	q := &fs.removals
	for {
		q.mu.Lock()
		left, done := len(q.queue)+q.busy, q.done
		q.mu.Unlock()
		if left < removalsMax {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// finishRemovals returns when nothing is left to remove of what came up before.
func (fs *FS) finishRemovals() {
	q := &fs.removals
	for {
		q.mu.Lock()
		running, hurry, done := q.running, q.hurry, q.done
		if !running {
			q.mu.Unlock()
			return
		}
		select {
		case <-hurry:
		default:
			close(hurry)
		}
		q.mu.Unlock()
		<-done
	}
}

// endRemovals is finishRemovals for a mount that ends, which does not take all the time
// that a slow lower may need.
func (fs *FS) endRemovals() {
	q := &fs.removals
	q.until.Store(time.Now().Add(q.atEnd).UnixNano())
	done := make(chan struct{})
	go func() {
		defer close(done)
		fs.finishRemovals()
	}()
	tell := time.NewTicker(removalsTell)
	defer tell.Stop()
	for {
		select {
		case <-tell.C:
			q.mu.Lock()
			left := len(q.queue) + q.busy
			q.mu.Unlock()
			fs.log.Info("lower copies are removed before the mount ends", "left", left)
			continue
		case <-done:
		}
		break
	}
	if n := q.skipped.Load(); n > 0 {
		fs.log.Warn("lower copies left: the lower is slow; they are hidden, and 'migratefs drain' removes them", "files", n)
	}
}

// removeQueued is the worker. It ends when nothing is left.
func (fs *FS) removeQueued() {
	q := &fs.removals
	for {
		q.mu.Lock()
		hurry := q.hurry
		q.mu.Unlock()
		select {
		case <-hurry:
		case <-time.After(q.gather):
		}
		q.mu.Lock()
		n := min(len(q.queue), removalsBatch)
		batch := q.queue[:n:n]
		q.queue, q.busy = q.queue[n:], n
		q.mu.Unlock()
		fs.removeBatch(batch)
		q.mu.Lock()
		q.busy = 0
		close(q.done)
		q.done = make(chan struct{})
		if len(q.queue) == 0 {
			q.queue, q.running = nil, false
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
	}
}

func (fs *FS) removeBatch(batch []removal) {
	late := fs.removals.late()
	err := error(nil)
	if !late {
		err = fs.syncBatch(batch)
	}
	for i := range batch {
		m := &batch[i]
		late = late || fs.removals.late()
		if late {
			fs.removals.skipped.Add(1)
		} else if err == nil {
			m.n.mu.Lock()
			if rerr := fs.removeOne(m); rerr != nil {
				fs.lowerCopyLeft(m.n, rerr)
			}
			m.n.mu.Unlock()
		} else if i == 0 {
			fs.log.Warn("lower copies left: their successors could not be made durable", "files", len(batch), "cause", err)
		}
		fs.Forget(m.n.id, 1)
	}
}

func (fs *FS) lowerCopyLeft(n *node, err error) {
	path, _ := n.path()
	fs.log.Warn("lower copy left", "path", string(path), "cause", err)
}

// removeOne removes the lower copy of m if the upper one is still at its place: who
// has taken it from there has taken the lower one first. The caller holds m.n.mu.
func (fs *FS) removeOne(m *removal) error {
	if m.n.dead != nil || !m.n.upper || !m.n.upID.is(m.upID) {
		return nil
	}
	up, err := fs.upperDir(m.d.parent)
	if err != nil {
		return err
	}
	defer fs.dirs.release(up)
	if is, err := idAt(up.fd, m.d.name); err != nil || !is.is(m.upID) {
		return ignoreNotThere(err)
	}
	path, ok := m.d.parent.path()
	if !ok {
		return nil
	}
	return ignoreNotThere(fs.removeFrom(m.d, &m.r, &m.was, path.Join(m.d.name)))
}

// syncBatch makes the names of the upper copies durable, and those of the directories
// above them that came up.
func (fs *FS) syncBatch(batch []removal) error {
	dirs, fresh := map[*node]bool{}, []*node{}
	for i := range batch {
		m := &batch[i]
		if m.n.fresh.Load() {
			dirs[m.d.parent], fresh = true, append(fresh, m.n)
		}
		for n := m.d.parent; n != fs.root; {
			d, ok := n.dentry()
			if !ok {
				break
			}
			if n.fresh.Load() {
				dirs[d.parent], fresh = true, append(fresh, n)
			}
			n = d.parent
		}
	}
	if len(dirs) > removalsDirs && fs.upper.syncsAsOne() {
		if err := syncLayer(fs.upper); err != nil {
			return err
		}
	} else {
		for dir := range dirs {
			if err := fs.syncNameIn(dir); err != nil {
				return err
			}
		}
	}
	for _, n := range fresh {
		n.fresh.Store(false)
	}
	return nil
}

// syncsAsOne reports whether one call makes all of l's filesystem durable, and soon:
// a journal is written as a whole, but a server is asked for each directory.
func (l *layer) syncsAsOne() bool {
	var st unix.Statfs_t
	if unix.Fstatfs(l.root, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return true
	}
	return false
}

// idAt is the identity of name in dirfd, or of dirfd if name is empty.
func idAt(dirfd int, name string) (fileID, error) {
	var stx unix.Statx_t
	if err := sys.Statx(dirfd, name, &stx); err != nil {
		return fileID{}, err
	}
	return idOf(ptr(local.AttrOf(&stx))), nil
}
