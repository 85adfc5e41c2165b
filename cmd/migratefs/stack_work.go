package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/overlay"
)

// openWork opens the work directory, which is made if it is not there. It must
// lie on the mount of the upper: what is prepared in it is renamed over.
func (st *stack) openWork(context.Context, string) error {
	if st.upper == "" || st.o.mode == "migrate" {
		return nil
	}
	path := st.o.work
	if path == "" {
		// Nobody named it, so whoever may write beside the upper could have.
		path = defaultWork(st.upper)
		if fi, err := os.Lstat(path); err == nil && !fi.IsDir() {
			return mountErrorf("%q, where the work directory would be, is no directory: remove it, or name another with workdir=", path)
		}
	}
	made := true
	if err := os.Mkdir(path, 0o700); errors.Is(err, os.ErrExist) {
		made = false
	} else if err != nil {
		return mountErrorf("work directory %q: %v: name another with workdir=", path, bare(err))
	}
	if err := st.enterWork(path); err != nil {
		if made {
			_ = os.Remove(path)
		}
		return err
	}
	if made {
		st.workMade = path
	}
	return nil
}

// enterWork opens the work directory and locks it.
func (st *stack) enterWork(path string) error {
	real, err := realDir("work directory", path)
	if err != nil {
		return err
	}
	switch {
	case !sameMount(st.upper, real):
		return mountErrorf("work directory %q is not on the filesystem of the upper %q: name one that is", path, st.o.upper)
	case real == st.upper, isBelow(st.upper, real):
		return mountErrorf("upper %q is inside the work directory %q: name another", st.o.upper, path)
	case isBelow(real, st.upper) && !strings.HasPrefix(real, filepath.Join(st.upper, overlay.Reserved)):
		return mountErrorf("work directory %q is inside the upper %q: name one beside it", path, st.o.upper)
	}
	// What is judged is what was opened: names may change in between.
	fd, err := unix.Open(real, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	st.work = os.NewFile(uintptr(fd), real)
	var fst unix.Stat_t
	if err := unix.Fstat(fd, &fst); err != nil || int(fst.Uid) != os.Geteuid() && !st.o.asCaller || fst.Mode&0o022 != 0 {
		return mountErrorf("work directory %q must belong to this user and be closed to others: chown and chmod 700 it", path)
	}
	if err := unix.Flock(int(st.work.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return mountErrorf("work directory %q is in use by another mount: name another", path)
	}
	return nil
}

// defaultWork is beside the upper where that is the same filesystem, else in it.
func defaultWork(upper string) string {
	dir, name := filepath.Split(upper)
	if name != "" && sameMount(dir, upper) {
		return filepath.Join(dir, "."+name+".migratefs")
	}
	return filepath.Join(upper, overlay.Reserved)
}

// sameMount reports whether two paths lie on one mount of one filesystem.
func sameMount(a, b string) bool {
	var x, y unix.Statx_t
	ok := unix.Statx(unix.AT_FDCWD, a, 0, unix.STATX_MNT_ID, &x) == nil &&
		unix.Statx(unix.AT_FDCWD, b, 0, unix.STATX_MNT_ID, &y) == nil
	return ok && x.Mnt_id == y.Mnt_id && x.Dev_major == y.Dev_major && x.Dev_minor == y.Dev_minor
}
