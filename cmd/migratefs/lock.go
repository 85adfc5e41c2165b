package main

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A mount holds a lock on its upper. umount(8) returns when the mount is out of
// sight, before its daemon has written everything, and whoever mounts again next
// must wait for that daemon rather than be told that the upper is in use. So the
// daemon keeps its lock, but shares it, from when its mount is gone: who can
// share it too knows that its end is near.

const (
	// noticing is how long a daemon may take to see that its mount is gone.
	noticing = 3 * time.Second
	// writing is how long it may then write.
	writing = time.Minute
)

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
