package overlay

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// CacheConfig says where what is fetched of files that are not ours is kept, and how
// much of it.
type CacheConfig struct {
	// Dir is a directory that several mounts use at once, of one user. nil: it is
	// kept in the work directory, if there is one.
	Dir *os.File

	// Limit is so many bytes; 0: what leaves the filesystem a reserve; negative:
	// nothing. Percent, unless 0, says it as a part of the filesystem.
	Limit   int64
	Percent float64
}

// storeConfig is for the objects in the work directory.
func (fs *FS) storeConfig() extent.Config {
	c := &fs.cfg.Cache
	if c.Dir != nil {
		return extent.Config{Logger: fs.log, Limit: -1} // what was cached here before is not used
	}
	return extent.Config{Logger: fs.log, Limit: c.Limit, Percent: c.Percent}
}

func (fs *FS) openCache() (err error) {
	if c := &fs.cfg.Cache; c.Dir != nil {
		fs.shared, err = extent.OpenStore(int(c.Dir.Fd()),
			extent.Config{Logger: fs.log, Limit: c.Limit, Percent: c.Percent, Shared: true})
	} else if fs.upper == nil && !fs.cfg.NoPrefetch && !fs.LocalOnly() {
		fs.shared = fs.openMemory()
	}
	return err
}

// memoryLimit is how much of what is fetched ahead is kept in memory where there is
// no other place for it.
const memoryLimit = 64 << 20

// openMemory opens a store that nobody else sees and that leaves nothing; nil if we
// may not: then nothing is kept, and nothing fetched ahead.
func (fs *FS) openMemory() *extent.Store {
	fd, err := sys.Memory(memoryLimit + memoryLimit/4)
	if err != nil {
		fs.log.Debug("nothing is fetched ahead, as there is no place for it", "cause", err)
		return nil
	}
	defer unix.Close(fd)
	store, err := extent.OpenStore(fd, extent.Config{Logger: fs.log, Limit: memoryLimit})
	if err != nil {
		fs.log.Warn("nothing is fetched ahead", "cause", err)
		return nil
	}
	return store
}

// cache is the store of cached objects; nil if nothing is kept.
func (fs *FS) cache() *extent.Store {
	if fs.shared != nil {
		return fs.shared
	}
	return fs.store
}

// charge gives the data of the pending object id to the owner of its file, whose
// quota is charged with what is fetched and written.
func (fs *FS) charge(id extent.ID, a *layers.Attr) error {
	obj, err := fs.store.Pending(id)
	if err != nil {
		return err
	}
	defer obj.Close()
	return sys.Fchown(obj.DataFd(), int(a.UID), int(a.GID))
}

// sharedCopy is what lies in the shared store of a file that is ours by now. It is
// asked before the source, where not all of it could be cloned when the file came up.
type sharedCopy struct {
	store *extent.Store // nil: there is none
	of    extent.Source

	once   sync.Once
	mu     sync.RWMutex // protects obj against close
	obj    *extent.Object
	closed bool
}

// read fills b if all of it is there.
func (c *sharedCopy) read(ctx context.Context, b []byte, off int64) bool {
	if c.store == nil {
		return false
	}
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.closed {
			c.obj, _ = c.store.Existing(c.of)
		}
	})
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.obj == nil {
		return false
	}
	n, _ := c.obj.ReadAt(ctx, nil, b, off)
	return n == len(b)
}

func (c *sharedCopy) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.obj != nil {
		_ = c.obj.Close()
		c.obj = nil
	}
}
