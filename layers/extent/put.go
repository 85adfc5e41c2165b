package extent

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Put stores b at off: bytes of the object's version that came by another way than
// its Fetcher, and were settled when they were read (see Settler). They are kept
// where bytes are missing and nowhere else. An error says that they are not kept
// (ENOSPC, also when the room that is left is kept for writes).
func (o *Object) Put(off int64, b []byte) error {
	if off < 0 || off > maxSize-int64(len(b)) {
		return errInvalid
	}
	if len(b) == 0 {
		return nil
	}
	return o.keep(off, b)
}

// Limit is how many bytes cached objects may take; 0: as many as there is room for;
// negative: nothing is kept.
func (s *Store) Limit() int64 { return s.limit.Load() }

// SetLimit changes that, as Config.Limit and Config.Percent say it. What is too much
// then goes in the background.
func (s *Store) SetLimit(limit int64, percent float64) error {
	if percent > 0 {
		var st unix.Statfs_t
		if err := unix.Fstatfs(s.dir, &st); err != nil {
			return err
		}
		limit = max(1, int64(float64(st.Blocks)*float64(st.Bsize)*percent/100))
	}
	s.limit.Store(limit)
	s.reclaimSoon()
	return nil
}

// Existing returns the object that caches src, as Cached does, but makes none:
// ENOENT.
func (s *Store) Existing(src Source) (*Object, error) {
	if err := src.check(); err != nil {
		return nil, err
	}
	name := src.key()
	return s.get(name, func() (*Object, error) {
		o, err := s.reopen(name)
		if err == nil && (!o.src.same(&src) || !o.sums) {
			o.closeFds()
			return nil, fmt.Errorf("cached object is of %q: %w", o.src.Path, layers.ErrCorrupt)
		}
		return o, err
	})
}

// Holds reports whether all of src is here, in a cached object, as Missing
// has it. It makes none.
func (s *Store) Holds(src Source) bool {
	var st unix.Stat_t
	if unix.Fstatat(s.dir, src.key()+dataSuffix, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	o, err := s.Cached(src)
	if err != nil {
		return false
	}
	defer o.Close()
	return o.Missing() == 0
}
