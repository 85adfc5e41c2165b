package extent

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

var errInvalid error = unix.EINVAL

// WriteAt writes all of b at off, at the granularity of bytes and without ever
// fetching. If an error says that the map could not be extended, the bytes may
// or may not be there, as after any failed write, and the next mutation fails
// before it touches anything until the map can be.
func (o *Object) WriteAt(b []byte, off int64) (n int, err error) {
	n, err = o.write(b, off)
	if err == unix.ENOSPC && o.store.giveWay(int64(len(b)-n)) {
		m, err := o.write(b[n:], off+int64(n))
		return n + m, err
	}
	return n, err
}

func (o *Object) write(b []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errInvalid
	}
	if off > maxSize-int64(len(b)) {
		return 0, unix.EFBIG
	}
	if len(b) == 0 {
		return 0, nil
	}
	o.wmu.Lock()
	defer o.wmu.Unlock()
	if err := o.mayChange(); err != nil {
		return 0, err
	}
	// The size that a crash leaves is the data file's. So what reaches beyond the
	// limit comes after what does not: a crash leaves the beginning of a write, not
	// its end without the beginning.
	if below := o.limit - off; 0 < below && below < int64(len(b)) {
		if n, err = o.writeOne(b[:below], off); err != nil {
			return n, err
		}
	}
	m, err := o.writeOne(b[n:], off+int64(n))
	return n + m, err
}

// writeOne writes b, which lies on one side of the limit. o.wmu is held.
func (o *Object) writeOne(b []byte, off int64) (n int, err error) {
	if err := o.unseal(off, off+int64(len(b))); err != nil {
		return 0, err
	}
	n, err = sys.Pwrite(o.data, b, off)
	if n > 0 {
		if e := o.wrote(off, off+int64(n)); e != nil {
			return 0, e
		}
	}
	return n, err
}

// wrote records that [from, to) was written in the data file and makes it
// visible. o.wmu is held.
func (o *Object) wrote(from, to int64) error {
	o.mu.RLock()
	end := min(to, o.limit)
	known := o.dirty.has(from, end)
	o.mu.RUnlock()
	var err error
	if !known {
		// Before readers see it: what was once shown is not unshown by a kill.
		r := record{kind: kindWritten, a: from, b: end - from}
		if err = o.append(r); err != nil {
			o.owed = append(o.owed, r)
			err = fmt.Errorf("extent map: %w", err)
		}
	}
	o.mu.Lock()
	o.size = max(o.size, to)
	if from < end {
		o.present.add(from, end)
		o.dirty.add(from, end)
	}
	o.mu.Unlock()
	o.compactIfLong()
	return err
}

// Fallocate is fallocate(2) with mode 0 or KEEP_SIZE (space only: what is
// missing stays missing), PUNCH_HOLE with KEEP_SIZE, or ZERO_RANGE with or
// without it. Other modes are EOPNOTSUPP.
func (o *Object) Fallocate(mode uint32, off, n int64) error {
	if off < 0 || n <= 0 {
		return errInvalid
	}
	if off > maxSize-n {
		return unix.EFBIG
	}
	const keep = unix.FALLOC_FL_KEEP_SIZE
	switch mode {
	case 0, keep:
		return o.allocate(mode, off, n)
	case unix.FALLOC_FL_PUNCH_HOLE | keep:
		return o.Punch(off, n)
	case unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | keep:
		if err := o.Punch(off, n); err != nil {
			return err
		}
		return o.allocate(mode&keep, off, n)
	}
	return unix.EOPNOTSUPP
}

// Allocate reserves space, and unless keepSize extends the file to off+n.
func (o *Object) Allocate(off, n int64, keepSize bool) error {
	mode := uint32(0)
	if keepSize {
		mode = unix.FALLOC_FL_KEEP_SIZE
	}
	return o.Fallocate(mode, off, n)
}

func (o *Object) allocate(mode uint32, off, n int64) error {
	o.wmu.Lock()
	defer o.wmu.Unlock()
	if err := o.mayChange(); err != nil {
		return err
	}
	if err := sys.Fallocate(o.data, mode, off, n); err != nil {
		return err
	}
	if mode == 0 {
		o.mu.Lock()
		o.size = max(o.size, off+n)
		o.mu.Unlock()
	}
	return nil
}

// Punch turns [off, off+n), as far as it lies within the file, into zeros that
// take no space where the filesystem can do that. The size stays.
func (o *Object) Punch(off, n int64) error {
	if off < 0 || n <= 0 {
		return errInvalid
	}
	if off > maxSize-n {
		return unix.EFBIG
	}
	o.wmu.Lock()
	defer o.wmu.Unlock()
	if err := o.mayChange(); err != nil {
		return err
	}
	o.mu.RLock()
	end := min(off+n, o.size)
	o.mu.RUnlock()
	if err := o.unseal(off, end); err != nil {
		return err
	}
	err := sys.Fallocate(o.data, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		err = o.writeZeros(off, end)
	}
	if err != nil || off >= end {
		return err
	}
	return o.wrote(off, end)
}

func (o *Object) writeZeros(from, to int64) error {
	zeros := make([]byte, min(64<<10, max(0, to-from)))
	for from < to {
		n, err := sys.Pwrite(o.data, zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}
