package overlay

import (
	"hash/fnv"
	"time"

	"github.com/migratefs/migratefs/layers"
)

// Clock says which of a file's times counts.
type Clock int

// The times of a file.
const (
	Mtime Clock = iota
	Atime
	Ctime
)

// Selection says which files are meant; the zero value means all. Directories are
// no matter of it: they go when they are empty.
type Selection struct {
	Clock        Clock
	Newer, Older time.Time // not before, and before; zero: no bound
	MinSize      int64     // of regular files; others have size 0
	MaxSize      int64     // 0: no bound; below 0: empty files
	UIDs, GIDs   []uint32  // nil: any
}

// All reports whether every file is meant.
func (s *Selection) All() bool {
	return s.Newer.IsZero() && s.Older.IsZero() && s.MinSize == 0 && s.MaxSize == 0 && s.UIDs == nil && s.GIDs == nil
}

func (s *Selection) wants(a *layers.Attr) bool {
	t := a.Mtime
	switch s.Clock {
	case Atime:
		t = a.Atime
	case Ctime:
		t = a.Ctime
	}
	size := sizeOf(a)
	when := time.Unix(t.Sec, int64(t.Nsec))
	return (s.Newer.IsZero() || !when.Before(s.Newer)) &&
		(s.Older.IsZero() || when.Before(s.Older)) &&
		size >= s.MinSize && (s.MaxSize == 0 || size <= max(s.MaxSize, 0)) &&
		among(s.UIDs, a.UID) && among(s.GIDs, a.GID)
}

func among(ids []uint32, id uint32) bool {
	if ids == nil {
		return true
	}
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}

// sizeOf is the size of a regular file, and 0 of anything else.
func sizeOf(a *layers.Attr) int64 {
	if !a.IsRegular() {
		return 0
	}
	return a.Size
}

// mine reports whether the names in the directory p are this shard's. Shards do not
// share a directory: they would wait for each other's changes of it.
func (d *drain) mine(p layers.Path) bool {
	if d.cfg.Shards <= 1 {
		return true
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(p))
	return int(h.Sum64()%uint64(d.cfg.Shards)) == d.cfg.Shard
}
