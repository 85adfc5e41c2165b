package overlay

import (
	"slices"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers/extent"
)

// Counts is what a mount has done since it was made, and holds now.
type Counts struct {
	Since         time.Time
	Requests      map[string]Histogram // by kind; those that there were
	Errors        map[string]uint64    // requests that failed, by errno; ENOENT is one, too
	Failures      map[string]uint64    // those that their callers had not caused, by reason
	Read, Written int64                // bytes that did not go by passthrough

	CopyUps       Histogram
	CopyUpsFailed int64
	Copied        int64 // bytes, by copy-ups that somebody waited for

	Fetches     Histogram // from sources, that somebody waited for
	Fetched     int64     // bytes in them
	FetchedIdle int64     // bytes that were fetched in the background

	Slow []SlowFile // those that took longest first

	Nodes   int // inodes that the kernel knows
	Handles int // open files and directories

	LeftOut map[string]uint64 // extended attributes that did not come up, by name
	Removal int               // lower copies that wait for their removal
}

// Counts tells what was counted.
func (fs *FS) Counts() Counts {
	m := &fs.meter
	c := Counts{
		Since: m.born, Requests: map[string]Histogram{}, Errors: map[string]uint64{}, Failures: map[string]uint64{},
		Read: m.read.Load(), Written: m.written.Load(),
		CopyUps: m.copies.read(), CopyUpsFailed: m.copiesLost.Load(), Copied: m.copied.Load(),
		Fetches: m.fetches.read(), Fetched: m.fetched.Load(), FetchedIdle: m.fetchedIdle.Load(),
		LeftOut: fs.LeftOut(),
	}
	for i := range m.ops {
		if h := m.ops[i].read(); h.Count() > 0 {
			c.Requests[opNames[i]] = h
		}
	}
	for i := range m.errnos {
		if n := m.errnos[i].Load(); n > 0 {
			c.Errors[nameOfErrno(fuse.Status(i))] = n
		}
	}
	for i := range m.fails {
		c.Failures[failNames[i]] = m.fails[i].Load()
	}
	m.slow.mu.Lock()
	c.Slow = slices.Clone(m.slow.all)
	m.slow.mu.Unlock()
	slices.SortFunc(c.Slow, func(a, b SlowFile) int { return int(b.Took - a.Took) })

	fs.table.mu.Lock()
	c.Nodes = len(fs.table.byID)
	fs.table.mu.Unlock()
	fs.handles.mu.RLock()
	c.Handles = len(fs.handles.m)
	fs.handles.mu.RUnlock()
	c.Removal = fs.removals.waiting()
	return c
}

func nameOfErrno(s fuse.Status) string {
	if name := unix.ErrnoName(unix.Errno(s)); name != "" {
		return name
	}
	return strconv.Itoa(int(s))
}

// CacheStats tells what the cache of what was fetched holds and did; ok is false if
// nothing is kept.
func (fs *FS) CacheStats() (s extent.Stats, ok bool) {
	store := fs.cache()
	if store == nil {
		return s, false
	}
	return store.Stats(), true
}

// SetPrefetch says whether something is fetched before somebody asks for it. It is
// false if this mount cannot: there is no place for it, or it was mounted without.
func (fs *FS) SetPrefetch(on bool) bool {
	if fs.ahead.off {
		return !on
	}
	fs.ahead.paused.Store(!on)
	return true
}

// Prefetches reports whether something is fetched before somebody asks for it.
func (fs *FS) Prefetches() bool { return !fs.ahead.off && !fs.ahead.paused.Load() }

// SetFillRate says how many bytes a second are fetched in the background at most;
// 0: as many as come.
func (fs *FS) SetFillRate(rate int64) { fs.fill.setRate(rate) }

// Pends reports whether files may be pending: there is an upper, and a lower on another
// host.
func (fs *FS) Pends() bool { return fs.store != nil && !fs.LocalOnly() }

// SetFill says whether what pending files miss is fetched in the background.
func (fs *FS) SetFill(on bool) { fs.fill.setFetch(on) }

// Fills reports whether it is.
func (fs *FS) Fills() bool { return fs.fill.fetch.Load() }

// Keeps reports whether what is fetched is kept on a disk.
func (fs *FS) Keeps() bool { return (fs.store != nil || fs.cfg.Cache.Dir != nil) && !fs.LocalOnly() }

// SetCacheLimit changes CacheConfig.Limit and Percent.
func (fs *FS) SetCacheLimit(limit int64, percent float64) error {
	return fs.cache().SetLimit(limit, percent)
}

// FillRate is what SetFillRate set.
func (fs *FS) FillRate() int64 { return fs.fill.rate.Load() }
