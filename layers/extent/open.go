package extent

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// compactMin is the least number of records that is worth a compaction: a map of
// 512 KiB.
const compactMin = 16384

// create makes an empty object for src: if durable a pending one, of which a
// crash leaves all or nothing. What fails leaves nothing.
func (s *Store) create(name string, src Source, durable bool) (o *Object, err error) {
	o = &Object{
		store: s, src: src, name: name, pending: durable, data: -1, mapFd: -1,
		size: src.Version.Size, limit: src.Version.Size, compactAt: compactMin, sums: true, clearedAt: -1,
	}
	defer func() {
		if err != nil {
			o.closeFds()
			// What cannot be removed now is swept, or an orphan that Pendings lists.
			_ = s.unlink(name)
			_ = sys.Unlink(s.dir, name+tmpSuffix)
			err = fmt.Errorf("new object: %w", err)
			o = nil
		}
	}()
	if !durable {
		o.watch()
		o.stamped = time.Now().UnixNano()
	}
	if o.data, err = sys.Create(s.dir, name+dataSuffix, unix.O_RDWR|unix.O_EXCL, 0o600); err != nil {
		return o, err
	}
	if s.shared {
		if err = sys.Flock(o.data, unix.LOCK_EX); err != nil {
			return o, err
		}
	}
	if err = sys.Truncate(o.data, o.size); err != nil {
		return o, err
	}
	first := name + mapSuffix
	if durable {
		if err = sys.Fsync(o.data); err != nil {
			return o, err
		}
		first = name + tmpSuffix
	}
	if o.mapFd, err = sys.Create(s.dir, first, unix.O_RDWR|unix.O_EXCL, 0o600); err != nil {
		return o, err
	}
	header, c := newHeader(&src)
	if _, err = sys.Pwrite(o.mapFd, header, 0); err != nil {
		return o, err
	}
	o.chain, o.mapEnd = c, int64(len(header))
	if !durable {
		return o, nil
	}
	if err = sys.Fsync(o.mapFd); err != nil {
		return o, err
	}
	if err = sys.Rename(s.dir, first, s.dir, name+mapSuffix, 0); err != nil {
		return o, err
	}
	err = sys.Fsync(s.dir)
	return o, err
}

func newHeader(src *Source) ([]byte, chain) {
	var b [4]byte
	rand.Read(b[:])
	salt := binary.LittleEndian.Uint32(b[:])
	header, sum := encodeHeader(src, salt)
	return header, chain{salt: salt, prev: sum}
}

// open opens an object that exists. ENOENT: neither of its files does;
// layers.ErrCorrupt: it contradicts itself.
func (s *Store) open(name string) (*Object, error) {
	data, err := sys.OpenAt(s.dir, name+dataSuffix, unix.O_RDWR)
	mapFd, mapErr := sys.OpenAt(s.dir, name+mapSuffix, unix.O_RDWR)
	o := &Object{store: s, name: name, pending: name[0] == 'p', data: data, mapFd: mapFd}
	o.guest.Store(s.shared && err == nil && sys.Flock(data, unix.LOCK_EX) != nil)
	switch {
	case err == unix.ENOENT && mapErr == unix.ENOENT:
		return nil, unix.ENOENT
	case err == unix.ENOENT || mapErr == unix.ENOENT:
		err = fmt.Errorf("half of it is missing (data: %v, map: %v): %w", err, mapErr, layers.ErrCorrupt)
	default:
		if err = errors.Join(err, mapErr); err == nil {
			err = o.load()
		}
	}
	if err != nil {
		o.closeFds()
		if o.guest.Load() {
			err = errInUse // and its business
		}
		return nil, err
	}
	return o, nil
}

// load reads the map and compares it with the data file.
func (o *Object) load() error {
	b, err := readAll(o.mapFd, maxMap)
	if err != nil {
		return err
	}
	st, err := replay(b, o.store.boot, o.store.durableEpoch)
	if err != nil {
		return err
	}
	var stx unix.Statx_t
	if err := sys.Statx(o.data, "", &stx); err != nil {
		return err
	}
	size := int64(stx.Size)
	if uint32(stx.Mode)&unix.S_IFMT != unix.S_IFREG || size < 0 {
		return fmt.Errorf("data file: %w", layers.ErrCorrupt)
	}
	if st.redo && size > st.limit {
		if err := sys.Truncate(o.data, st.limit); err != nil {
			return err
		}
		size = st.limit
	}
	if !o.pending && size > st.src.Version.Size {
		return fmt.Errorf("data file has %d bytes, its source %d: %w", size, st.src.Version.Size, layers.ErrCorrupt)
	}
	short := size
	if size < st.limit {
		if size, err = st.regrow(o.data, size); err != nil {
			return err
		}
	}
	o.src, o.size, o.limit = st.src, size, st.limit
	o.take(st)
	o.believe()
	if !o.pending {
		o.watch()
		o.stamp(false)
	}
	o.compactAt = max(compactMin, 2*o.chain.index)
	if st.redo {
		o.owed = []record{{kind: kindShrunk}}
	}
	if short < size {
		// The next to open it finds the size right.
		o.owed = append(o.owed, record{kind: kindDropped, a: short, b: size - short})
	}
	return nil
}

// take goes on where the map st ends. wmu is held, and mu, once others know o.
func (o *Object) take(st *state) {
	o.present, o.dirty = st.present, st.dirty
	o.chain, o.mapEnd, o.torn = st.chain, st.end, st.torn
	o.session, o.epoch = st.sameBoot, st.epoch
	o.voidFrom, o.covered, o.durable = st.covered, st.covered, st.durable
	o.pieces, o.sums, o.clearedAt = st.pieces, st.sums, st.cleared
}

// believe takes what is doubted out of what is present, unless nothing has changed
// since it was proved in this opening of the store.
func (o *Object) believe() {
	if o.store.shared {
		o.present = rangeSet{} // but for pieces nothing proves it
	}
	proved := o.store.provedUpTo(o.name)
	o.pieces.each(0, maxSize, func(p *piece) bool {
		if proved == o.chain && !o.guest.Load() {
			o.pieces.trust(p)
			o.present.add(p.from, p.to())
		} else {
			o.present.remove(p.from, p.to())
		}
		return true
	})
}

// regrow repairs a data file that is shorter than the limit. Only a power loss
// explains that: the size that the file was given when it was made, and that
// nobody synced. What was written here cannot have been beyond it.
func (st *state) regrow(data int, size int64) (int64, error) {
	if st.sameBoot || st.dirty.end() > size {
		return 0, fmt.Errorf("data file has %d bytes, the map speaks of %d: %w", size, st.limit, layers.ErrCorrupt)
	}
	st.present.remove(size, maxSize)
	st.pieces.remove(size, maxSize)
	return st.limit, sys.Truncate(data, st.limit)
}

// readWhole reads the file name in dir, which may have at most most bytes.
func readWhole(dir int, name string, most int64) ([]byte, error) {
	fd, err := sys.OpenAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK) // of a FIFO there is nothing to wait for
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readAll(fd, most)
}

func readAll(fd int, most int64) ([]byte, error) {
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		return nil, err
	}
	if stx.Size > uint64(most) || uint32(stx.Mode)&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("a file of %d bytes: %w", stx.Size, layers.ErrCorrupt)
	}
	b := make([]byte, stx.Size)
	n, err := sys.Pread(fd, b, 0)
	return b[:n], err
}
