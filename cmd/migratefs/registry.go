package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A daemon holds a lock on a file named by its mount's device number for as long
// as it lives, so that who unmounts can wait until everything is written: the
// mount is gone before the daemon is.

// registryDir is where those files are; "" where there is no place for them.
func registryDir() string {
	if isRoot() {
		return filepath.Join(runDir, "mounts")
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "migratefs", "mounts")
	}
	return ""
}

func registryFile(m mountInfo) string {
	dir := registryDir()
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, strings.ReplaceAll(m.dev, ":", "-"))
}

// register notes that this process serves the mount on point. What it returns
// ends the note. It fails in silence: only waiting depends on it.
func register(point string) (end func()) {
	m, ok := mountAt(point)
	name := registryFile(m)
	if !ok || name == "" || os.MkdirAll(filepath.Dir(name), 0o700) != nil {
		return func() {}
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return func() {}
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return func() {}
	}
	_ = f.Truncate(0)
	fmt.Fprintf(f, "%d %s\n", os.Getpid(), point)
	return func() {
		_ = os.Remove(name)
		f.Close()
	}
}

// ending returns a function that waits until the daemon of m, which is still
// mounted, has ended.
func ending(m mountInfo) (wait func() error) {
	f, err := os.Open(registryFile(m))
	if err != nil {
		return func() error { return nil }
	}
	return func() error {
		defer f.Close()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
			if !errors.Is(err, unix.EWOULDBLOCK) {
				return nil
			}
		}
		return fmt.Errorf("%q is unmounted, but its daemon is still writing or serving other views of it", m.point)
	}
}
