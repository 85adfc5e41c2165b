package overlay

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
)

// unsynced remembers which directories of lowers have changed and may be as before
// after a power loss. What hides a name that is gone from one, its successor above,
// must not lose the name before that is durable, or the older version would show
// again: the two are on different filesystems, whose journals know nothing of each
// other.
type unsynced struct {
	mu    sync.Mutex
	count uint64                 // of changes
	dirs  map[unsyncedDir]uint64 // the last change of each; without births: what has the number next is synced once more
	all   map[*layer]uint64      // too many to tell them apart

	// settled holds the change times of directories of lowers up to which all is
	// durable, whoever changed them; isGone of those that are removed, durably.
	settled map[unsyncedDir]unix.Timespec
}

// isGone is what settled has of a directory that is removed.
var isGone = unix.Timespec{Nsec: -1}

type unsyncedDir struct {
	layer *layer
	id    fileID
}

func (k unsyncedDir) unborn() unsyncedDir {
	k.id.birth = 0
	return k
}

// unsyncedMax bounds what is remembered of one layer after another.
const unsyncedMax = 4096

// changed notes that the directory d of a lower has lost or got a name. It is called
// after that, and before what hides the name can go: a note from before could be
// taken for settled by a sync that came in between.
func (u *unsynced) changed(l *layer, d *dirFD) {
	if l.index == 0 {
		return
	}
	if d.key.n != nil {
		d.key.n.losses.Add(1)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dirs == nil {
		u.dirs, u.all = make(map[unsyncedDir]uint64), make(map[*layer]uint64)
	}
	u.count++
	if len(u.dirs) >= unsyncedMax {
		for k := range u.dirs {
			u.all[k.layer] = u.count
		}
		clear(u.dirs)
	}
	u.dirs[unsyncedDir{l, d.id}.unborn()] = u.count
}

// last returns the last change of the directory k that may not be durable, and the
// last of any in its layer where they are not told apart; 0 for none.
func (u *unsynced) last(k unsyncedDir) (dir, all uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.dirs[k.unborn()], u.all[k.layer]
}

// synced notes that these changes are durable. Until then others that need them
// sync, too.
func (u *unsynced) synced(k unsyncedDir, dir, all uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if k = k.unborn(); u.dirs[k] == dir {
		delete(u.dirs, k)
	}
	if u.all[k.layer] == all {
		delete(u.all, k.layer)
	}
}

// settle makes durable which names the parts of dir in lowers have: before a name in
// dir goes from a layer above them, and when an application asks for it.
func (fs *FS) settle(dir *node) error {
	dir.mu.RLock()
	lowers := dir.lowers
	dir.mu.RUnlock()
	for i := range lowers {
		r := &lowers[i]
		if !r.layer.writable {
			continue
		}
		k := unsyncedDir{r.layer, r.id()}
		one, all := fs.unsynced.last(k)
		err := error(nil)
		switch {
		case all > 0:
			err = syncLayer(r.layer)
		case one > 0:
			err = fs.syncPart(dir, r)
		default:
			continue
		}
		if err != nil {
			return err
		}
		fs.unsynced.synced(k, one, all)
	}
	return nil
}

// settleOthers is settle for what other daemons may have removed: what the upper has
// at the name in dir, p, was brought up, or renamed over it, and who did that, or drained
// the lower, may not have made the loss below durable yet. A directory that has not changed since it
// was synced is not synced again.
func (fs *FS) settleOthers(dir *node, p *part, name string) error {
	if !fs.many() || p.layer != fs.upper {
		return nil
	}
	origin, err := copyup.ReadOrigin(p.d.fd, name)
	var over []copyup.Origin
	if err == nil && origin == "" {
		over, err = copyup.ReadOver(p.d.fd, name)
	}
	if err != nil || origin == "" && len(over) == 0 {
		return ignoreGone(err)
	}
	dir.mu.RLock()
	lowers := dir.lowers
	dir.mu.RUnlock()
	for i := range lowers {
		if r := &lowers[i]; r.layer.writable {
			if err := fs.settlePart(dir, r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (fs *FS) settlePart(dir *node, r *lowerRef) error {
	k, changed, now := unsyncedDir{r.layer, r.id()}, isGone, time.Now()
	d, err := fs.lowerDir(dir, r)
	switch {
	case err == nil:
		defer fs.dirs.release(d)
		var st unix.Stat_t
		if err := unix.Fstat(d.fd, &st); err != nil {
			return err
		}
		if st.Nlink > 0 {
			changed = st.Ctim
		}
	case !nothing(err) && !errors.Is(err, errMoved): // as EMFILE: that says nothing
		return err
	}
	switch is := fs.unsynced.isSettled(k, changed); {
	case is:
		return nil
	case changed == isGone:
		err = syncLayer(r.layer)
	default:
		err = fs.syncDir(d.fd, fs.copies)
	}
	// A change in the same tick of the clock leaves the time as it is.
	if err == nil && (changed == isGone || now.Sub(time.Unix(changed.Unix())) > time.Second) {
		fs.unsynced.settle(k, changed)
	}
	return err
}

func (u *unsynced) isSettled(k unsyncedDir, changed unix.Timespec) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	at, ok := u.settled[k]
	return ok && at == changed
}

func (u *unsynced) settle(k unsyncedDir, changed unix.Timespec) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.settled == nil || len(u.settled) >= unsyncedMax {
		u.settled = make(map[unsyncedDir]unix.Timespec)
	}
	u.settled[k] = changed
}

// syncPart is settle for the part r of the directory n, which may be gone itself.
func (fs *FS) syncPart(n *node, r *lowerRef) error {
	d, err := fs.lowerDir(n, r)
	if err != nil {
		return syncLayer(r.layer)
	}
	defer fs.dirs.release(d)
	return fs.syncDir(d.fd, fs.copies)
}

// settleAll is settle for all directories: mounts before this one may have ended
// before they could.
func (fs *FS) settleAll() error {
	for _, l := range fs.lowers {
		if !l.writable {
			continue
		}
		if err := syncLayer(l); err != nil {
			return fmt.Errorf("lower %s: sync: %w", l.ID(), err)
		}
	}
	return nil
}

func syncLayer(l *layer) error {
	fd, err := sys.OpenBeneath(l.root, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := sys.Syncfs(fd); err != nil {
		return err
	}
	// Of a filesystem that an error made read-only, or that was shut down, older
	// kernels' syncfs says nothing; fsync does.
	return ignoreUnsupported(sys.Fsync(fd))
}

// syncNames makes durable that n and the directories above it are in the upper, as
// far as copy-ups have brought them there: an application has synced a file that was
// there before, and does not know that its name is new. The lower copy of that name
// goes no earlier, either.
func (fs *FS) syncNames(n *node) error {
	if n == fs.root {
		return nil
	}
	fs.tree.RLock()
	names := slices.Clone(n.names)
	fs.tree.RUnlock()
	for _, d := range names {
		if n.fresh.Load() && d.parent.isUpper() { // another of its names may stand in a lower
			err := fs.syncNameIn(d.parent)
			gone := nothing(err) || errors.Is(err, errMoved)
			if gone && n.isCalled(d.parent, d.name) {
				err, gone = syncLayer(fs.upper), false // another host has moved the directory
			}
			if err != nil && !gone {
				return err
			}
		}
		if err := fs.syncNames(d.parent); err != nil {
			return err
		}
	}
	n.fresh.Store(false)
	return nil
}

func (fs *FS) syncNameIn(dir *node) error {
	d, err := fs.upperDir(dir)
	if err != nil {
		return err
	}
	defer fs.dirs.release(d)
	return fs.syncDir(d.fd, fs.copies)
}
