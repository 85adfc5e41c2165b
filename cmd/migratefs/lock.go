package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/overlay"
)

// A mount that has its upper alone (overlay mode, hosts=single) has the directory
// locked, and UPPER/.migratefs/id if there is one. Mounts that share their upper
// (hosts=many) share a lock on that file. Whoever wants to be alone takes the
// directory first and then the file; who shares takes the file, and then looks
// whether somebody has the directory: of two that exclude each other, one at least
// sees the other. (Locks on files reach all hosts on more filesystems than those on
// directories do.)
//
// umount(8) returns when the mount is out of sight, before its daemon has written
// everything, and whoever mounts again next must wait for that daemon rather than
// be told that the upper is in use. So the daemon keeps its lock on the directory,
// but shares it, from when its mount is gone: who can share it too knows that its
// end is near.

const (
	// noticing is how long a daemon may take to see that its mount is gone.
	noticing = 3 * time.Second
	// writing is how long it may then write.
	writing = time.Minute
)

// lockUpper makes sure that no other mount has the upper or, with hosts=many, has
// it alone. One that is ending is waited for.
func (st *stack) lockUpper(context.Context, string) (err error) {
	if st.upper == "" {
		return nil
	}
	if st.lock, err = os.Open(st.upper); err != nil {
		return fmt.Errorf("upper: %w", err)
	}
	switch {
	case st.o.mode != "migrate":
		return st.lockOverlay()
	case st.o.hosts == "single":
		return st.lockSingle()
	}
	// Nothing is made on the disk for a mount that is refused.
	if err := lockWithin(st.lock, unix.LOCK_SH, noticing); errors.Is(err, unix.EWOULDBLOCK) {
		return st.inUse("")
	}
	_ = unix.Flock(int(st.lock.Fd()), unix.LOCK_UN)
	if st.hosts, err = st.chooseHosts(); err != nil {
		return err
	}
	if st.hosts == overlay.Single {
		return st.lockSingle()
	}
	return st.lockMany()
}

func (st *stack) lockSingle() (err error) {
	if err := st.lockDirectory(); err != nil {
		return err
	}
	if st.private, err = identify(st.upper, st.o.asCaller); err != nil {
		return mountErrorf("upper %q: %v", st.o.upper, err)
	}
	return st.lockPrivate(unix.LOCK_EX, " with hosts=many")
}

func (st *stack) lockMany() (err error) {
	if st.private, err = identify(st.upper, st.o.asCaller); err != nil {
		return mountErrorf("upper %q: %v", st.o.upper, err)
	}
	if err := st.lockPrivate(unix.LOCK_SH, " with hosts=single"); err != nil {
		return err
	}
	// A thousand hosts may come here at once: each has it for a moment.
	if err := lockWithin(st.lock, unix.LOCK_EX, writing); errors.Is(err, unix.EWOULDBLOCK) {
		return st.inUse("")
	}
	st.lock.Close()
	st.lock = nil
	return nil
}

// lockOverlay locks the upper of a mount in overlay mode, which leaves no id there
// but may find one.
func (st *stack) lockOverlay() error {
	if err := st.lockDirectory(); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(st.upper, overlay.Reserved, "id"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("upper: %w", err)
	}
	st.private = f
	return st.lockPrivate(unix.LOCK_EX, " with mode=migrate")
}

// chooseHosts says whether others may use the layers, too. Where the daemon has no
// rights to leave an id in a lower, its files have no names that all agree on.
func (st *stack) chooseHosts() (overlay.Hosts, error) {
	if st.o.hosts == "single" {
		return overlay.Single, nil
	}
	for _, d := range st.dirs {
		if d.what != "lower" {
			continue
		}
		f, err := identify(d.real, st.o.asCaller)
		if err == nil {
			f.Close()
			continue
		}
		denied := errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS)
		switch {
		case !denied:
			return 0, mountErrorf("lower %q: %v", d.text, err)
		case st.o.hosts == "many":
			return 0, mountErrorf("lower %q: %v: hosts=many needs rights to its .migratefs: give them, or hosts=single", d.text, err)
		}
		st.log.Warn("hosts=single: no other mount may use the upper, since there are no rights to .migratefs in the lower", "lower", d.text, "cause", err)
		return overlay.Single, nil
	}
	return overlay.Many, nil
}

// identify returns the file of the layer dir that says which one it is.
func identify(dir string, anyOwner bool) (*os.File, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, bare(err)
	}
	defer root.Close()
	_, f, err := overlay.Identify(int(root.Fd()), anyOwner)
	return f, err
}

// lockPrivate locks UPPER/.migratefs/id; others are those whom that keeps out.
func (st *stack) lockPrivate(how int, others string) error {
	err := lockWithin(st.private, how, noticing)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return st.inUse(others)
	}
	if err != nil {
		st.unlockable(err)
	}
	return nil
}

// lockDirectory locks the upper for this mount alone.
func (st *stack) lockDirectory() error {
	err := lockAlone(st.lock)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return st.inUse("")
	}
	if err != nil {
		st.unlockable(err)
	}
	return nil
}

func (st *stack) inUse(others string) error {
	return mountErrorf("upper %q is in use by another mount%s: unmount that, or name another upper", st.o.upper, others)
}

func (st *stack) unlockable(err error) {
	st.log.Warn("the upper cannot be locked: make sure that no other mount uses it, but with hosts=many", "upper", st.upper, "cause", err)
}

// lockWithin locks f as soon as others let it, within limit: EWOULDBLOCK then.
func lockWithin(f *os.File, how int, limit time.Duration) error {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Since(began) > limit {
			return err
		}
	}
}

// lockAlone locks f, after a mount that is ending. It fails with EWOULDBLOCK if
// f is another mount's.
func lockAlone(f *os.File) error {
	fd := int(f.Fd())
	seen := time.Now()
	ending := false
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if !ending && unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) == nil {
			ending = true
			// Others may wait as well, and take a share for an ending mount's.
			_ = unix.Flock(fd, unix.LOCK_UN)
		}
		if waited := time.Since(seen); waited > writing || waited > noticing && !ending {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// shareLock says to who waits in lockAlone that f's mount is gone.
func shareLock(f *os.File) {
	if f != nil {
		_ = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	}
}
