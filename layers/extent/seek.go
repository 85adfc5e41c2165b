package extent

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// SeekData returns where the next data lies at or after off, as SEEK_DATA does;
// a missing range is data. ENXIO: there is none.
func (o *Object) SeekData(off int64) (int64, error) {
	size, limit, missing := o.seekView(off)
	if off < 0 || off >= size {
		return 0, unix.ENXIO
	}
	at, err := sys.Seek(o.data, off, unix.SEEK_DATA)
	if err != nil && err != unix.ENXIO {
		return 0, err
	}
	if err == unix.ENXIO || at > missing && missing < limit {
		at = missing
	}
	if at >= size || err == unix.ENXIO && missing >= limit {
		return 0, unix.ENXIO
	}
	return at, nil
}

// SeekHole returns where the next hole lies at or after off, as SEEK_HOLE does:
// the end of the file if nowhere else. A missing range is no hole.
func (o *Object) SeekHole(off int64) (int64, error) {
	for {
		size, limit, _ := o.seekView(off)
		if off < 0 || off >= size {
			return 0, unix.ENXIO
		}
		at, err := sys.Seek(o.data, off, unix.SEEK_HOLE)
		if err != nil {
			return 0, err
		}
		if at >= size {
			return size, nil
		}
		if _, _, missing := o.seekView(at); missing != at || at >= limit {
			return at, nil
		}
		// A hole in the data file that the source has not filled yet.
		o.mu.RLock()
		next := limit
		if ci, si := o.present.seek(at); ci < len(o.present.chunks) {
			next = o.present.chunks[ci][si].from
		}
		o.mu.RUnlock()
		if off = next; off >= size {
			return size, nil
		}
	}
}

// seekView returns size and limit, and the first missing byte at or after off:
// limit or more if there is none.
func (o *Object) seekView(off int64) (size, limit, missing int64) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	missing = max(o.limit, off)
	o.present.gaps(max(off, 0), o.limit, func(from, _ int64) bool {
		missing = from
		return false
	})
	return o.size, o.limit, missing
}
