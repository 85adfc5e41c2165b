package extent

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// Surveyed is what Survey says of one pending object.
type Surveyed struct {
	ID      ID
	Source  Source
	Size    int64
	Missing int64 // bytes that the source has alone
	// Err is why the object cannot be trusted (layers.ErrCorrupt) or read.
	Err error
}

// Survey looks at the store in the directory dirfd without changing anything, as
// OpenStore would. It calls each for every pending object and returns the names of
// what the next OpenStore will sweep. Nobody may have the store open.
func Survey(dirfd int, each func(Surveyed) error) (leftovers []string, err error) {
	s := &Store{log: slog.New(slog.DiscardHandler), dir: dirfd}
	if s.boot, err = readBootID(); err != nil {
		s.boot = bootID{}
	}
	if err := s.loadEpochs(); err != nil {
		return nil, err
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	half := map[string]string{}
	for _, name := range names {
		base, suffix := splitName(name)
		if suffix == tmpSuffix {
			leftovers = append(leftovers, name)
		} else if suffix != "" && base != "" && base[0] == 'c' {
			if _, whole := half[base]; whole {
				delete(half, base)
			} else {
				half[base] = name
			}
		}
	}
	for _, name := range half {
		leftovers = append(leftovers, name)
	}
	slices.Sort(leftovers)
	ids, err := s.Pendings()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if err := each(s.survey(id)); err != nil {
			return nil, err
		}
	}
	return leftovers, nil
}

// survey is open without a hand on the files.
func (s *Store) survey(id ID) (v Surveyed) {
	v.ID = id
	b, err := readWhole(s.dir, id.name()+mapSuffix, maxMap)
	var stx unix.Statx_t
	if err == nil {
		err = sys.Statx(s.dir, id.DataName(), &stx)
	}
	var st *state
	if err == nil {
		st, err = replay(b, s.boot, s.durableEpoch)
	}
	if errors.Is(err, unix.ENOENT) {
		err = fmt.Errorf("half of it is missing: %w", layers.ErrCorrupt)
	}
	if err != nil {
		v.Err = err
		return v
	}
	v.Source, v.Size = st.src, int64(stx.Size)
	if uint32(stx.Mode)&unix.S_IFMT != unix.S_IFREG || v.Size < 0 {
		v.Err = fmt.Errorf("data file: %w", layers.ErrCorrupt)
		return v
	}
	if st.redo {
		v.Size = min(v.Size, st.limit)
	}
	if v.Size < st.limit {
		if st.sameBoot || st.dirty.end() > v.Size {
			v.Err = fmt.Errorf("data file has %d bytes, the map speaks of %d: %w", v.Size, st.limit, layers.ErrCorrupt)
			return v
		}
		st.present.remove(v.Size, maxSize)
		v.Size = st.limit
	}
	v.Missing = st.limit - st.present.sum
	return v
}

// Discard removes the pending object id from the store in the directory dirfd,
// which nobody has open.
func Discard(dirfd int, id ID) error {
	s := &Store{dir: dirfd}
	return s.unlink(id.name())
}
