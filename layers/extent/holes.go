package extent

import (
	"bytes"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// holeMin is the shortest run of zeros that is kept as a hole, in bytes.
const holeMin = 64 << 10

// aHole is as many zeros as a page has.
var aHole [page]byte

// putClean writes fetched bytes to the data file. Long runs of zeros become holes, so
// that what is sparse on the source is sparse here, and takes neither room nor time.
// The file's size is set: it does not change. o.wmu is held.
func (o *Object) putClean(b []byte, off int64) error {
	end := off + int64(len(b))
	for at := off; at < end; {
		from, to := zeroRun(b[at-off:], at)
		if to-from < holeMin {
			from, to = end, end
		}
		if at < from {
			if _, err := sys.Pwrite(o.data, b[at-off:from-off], at); err != nil {
				return err
			}
		}
		if from < to {
			// What was under it before has no meaning, but is there.
			if err := sys.Fallocate(o.data, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from); err != nil {
				if _, err := sys.Pwrite(o.data, b[from-off:to-off], from); err != nil {
					return err
				}
			}
		}
		at = to
	}
	return nil
}

// zeroRun returns the first run of whole pages of zeros in b, which lies at off, that
// is long enough; from = to if there is none.
func zeroRun(b []byte, off int64) (from, to int64) {
	end := off + int64(len(b))
	at := (off + page - 1) / page * page
	for ; at+page <= end; at += page {
		switch p := b[at-off : at-off+page]; {
		case p[0] == 0 && bytes.Equal(p, aHole[:]):
			if from == to {
				from = at
			}
			to = at + page
		case to-from >= holeMin:
			return from, to
		default:
			from, to = 0, 0
		}
	}
	return from, to
}
