package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// cacheFormat is the directory in that of cachedir= that holds objects of the format
// that this program writes. Nothing else in there is touched, whatever it is.
const cacheFormat = "extents-2"

// lookAtCache finds what is wrong with the directory of cachedir= before anybody has to
// log in anywhere.
func (st *stack) lookAtCache(context.Context, string) error {
	path := st.o.cacheDir
	if path == "" {
		return nil
	}
	real, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(real); errors.Is(err, os.ErrNotExist) {
		// It is made later.
		dir, err := realDir("the directory of the cache directory", filepath.Dir(real))
		if err != nil {
			return err
		}
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return mountErrorf("cache directory %q: %v: name another with cachedir=", path, err)
		}
		return st.placeCache(filepath.Join(dir, filepath.Base(real)), st.dirs)
	}
	if real, err = realDir("cache directory", path); err != nil {
		return err
	}
	if err := st.placeCache(real, st.dirs); err != nil {
		return err
	}
	fd, err := st.enterCache(real)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// placeCache refuses a cache directory where it would be part of something else.
func (st *stack) placeCache(real string, dirs []namedDir) error {
	path := st.o.cacheDir
	if st.point != "" && (real == st.point || isBelow(real, st.point)) {
		return mountErrorf("cache directory %q is inside the mountpoint %q, which would hide it: name another", path, st.point)
	}
	for _, d := range dirs {
		if real == d.real || isBelow(real, d.real) {
			return mountErrorf("cache directory %q is inside %s %q: name one elsewhere", path, d.what, d.text)
		}
	}
	return nil
}

// enterCache opens a cache directory that is this user's alone. What is judged is what
// was opened: names may change in between.
func (st *stack) enterCache(real string) (fd int, err error) {
	path := st.o.cacheDir
	fd, err = unix.Open(real, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, mountErrorf("cache directory %q: %w", path, err)
	}
	if !private(fd) {
		unix.Close(fd)
		return -1, mountErrorf("cache directory %q must belong to this user and be closed to others: chown and chmod 700 it, or name another", path)
	}
	return fd, nil
}

// openCache opens the directory of cachedir=, which is made if it is not there. It is
// this user's alone: who may write there decides what files hold. While it is locked, no
// mount that fails takes it away.
func (st *stack) openCache(context.Context, string) error {
	for st.o.cacheDir != "" {
		there, err := st.tryCache()
		if gone := errors.Is(err, os.ErrNotExist) && !isSymlink(st.o.cacheDir); there || err != nil && !gone {
			return err
		}
		// It was taken away before it was locked.
		if st.cache != nil {
			st.cache.Close()
			st.cache = nil
		}
	}
	return nil
}

func isSymlink(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.Mode()&os.ModeSymlink != 0
}

// tryCache is openCache, and reports whether what it locked is still in its place.
func (st *stack) tryCache() (there bool, err error) {
	path := st.o.cacheDir
	if err := os.Mkdir(path, 0o700); err == nil {
		st.cacheMade = path
	} else if !errors.Is(err, os.ErrExist) {
		return false, mountErrorf("cache directory %q: %v: name another with cachedir=", path, bare(err))
	}
	real, err := realDir("cache directory", path)
	if err != nil {
		return false, err
	}
	dirs := st.dirs
	if st.work != nil {
		dirs = append(dirs[:len(dirs):len(dirs)], namedDir{"work directory", st.work.Name(), st.work.Name()})
	}
	if err := st.placeCache(real, dirs); err != nil {
		return false, err
	}
	fd, err := st.enterCache(real)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	objects, err := sys.MkdirOpen(fd, cacheFormat)
	if err != nil {
		return false, mountErrorf("cache directory %q: %s: %w", path, cacheFormat, err)
	}
	st.cache = os.NewFile(uintptr(objects), filepath.Join(real, cacheFormat))
	if !private(objects) {
		return false, mountErrorf("%q in the cache directory must belong to this user and be closed to others: remove it", st.cache.Name())
	}
	// Who takes it away has it locked for a moment only. A filesystem without locks:
	// then nobody takes it away.
	_ = sys.Retry(func() error { return unix.Flock(objects, unix.LOCK_SH) })
	var mine, now unix.Stat_t
	there = unix.Fstat(objects, &mine) == nil && unix.Fstatat(fd, cacheFormat, &now, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		mine.Dev == now.Dev && mine.Ino == now.Ino
	return there, nil
}

// dropCache takes away the cache directory that this mount has made, unless another has
// begun to use it.
func (st *stack) dropCache() {
	if st.cacheMade == "" {
		return
	}
	if st.cache != nil {
		if unix.Flock(int(st.cache.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return
		}
		_ = os.RemoveAll(st.cache.Name())
	}
	_ = os.Remove(st.cacheMade) // if nothing else is in it
}

// private reports whether the directory fd is this user's, and nobody else gets in.
func private(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && int(st.Uid) == os.Geteuid() && st.Mode&0o077 == 0
}
