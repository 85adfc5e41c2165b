package sys

import "golang.org/x/sys/unix"

// SetLock locks, converts or unlocks (F_RDLCK, F_WRLCK, F_UNLCK) the bytes from
// start to end, both included, for the open file description of fd, without
// waiting: EAGAIN if somebody else has them. Closing other descriptors of the
// file does not let go of it, as it would of a process's lock.
func SetLock(fd int, typ int16, start, end uint64) error {
	err := Retry(func() error {
		l := flockOf(typ, start, end)
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &l)
	})
	if err == unix.EACCES { // POSIX lets a system choose between the two
		return unix.EAGAIN
	}
	return err
}

// GetLock returns a lock that keeps the open file description of fd from getting
// one of typ, or one whose Type is F_UNLCK. Pid is that of a process of this host,
// or no positive number.
func GetLock(fd int, typ int16, start, end uint64) (l unix.Flock_t, err error) {
	err = Retry(func() error {
		l = flockOf(typ, start, end)
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l)
	})
	return l, err
}

// toEnd is the last byte a lock can have; the kernel takes a length of zero for
// that.
const toEnd = 1<<63 - 1

func flockOf(typ int16, start, end uint64) unix.Flock_t {
	l := unix.Flock_t{Type: typ, Start: int64(start)}
	if end < toEnd {
		l.Len = int64(end - start + 1)
	}
	return l
}

// Flock is flock(2) without waiting: EAGAIN if somebody else has the file.
func Flock(fd int, how int) error {
	return Retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
}
