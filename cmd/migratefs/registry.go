package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// register notes that this process serves the mount on point, for as long as it
// lives. What it returns takes the name of the note away, not the lock: that goes
// with the process, and so after everything else that holds a layer. It fails in
// silence: only waiting depends on it.
func register(point string, dirs []namedDir) (end func()) {
	m, ok := mountAt(point)
	name := registryFile(m)
	if !ok || name == "" || os.MkdirAll(filepath.Dir(name), 0o700) != nil {
		return func() {}
	}
	// The number is this mount's now: what stands there is of a daemon whose mount
	// is gone, and which may still be locking it.
	_ = os.Remove(name)
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return func() {}
	}
	var own unix.Stat_t
	if unix.Fstat(fd, &own) != nil || unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil {
		unix.Close(fd)
		return func() {}
	}
	note := fmt.Appendf(nil, "%d %s %s\n", os.Getpid(), pidNamespace(), point)
	for _, d := range dirs {
		note = fmt.Appendf(note, "%s %q\n", d.what, d.real)
	}
	_, _ = unix.Write(fd, note)
	return func() {
		var now unix.Stat_t
		if unix.Lstat(name, &now) == nil && now.Ino == own.Ino {
			_ = os.Remove(name)
		}
	}
}

// layersOf returns the local layers of the mount m, as its daemon has noted them.
func layersOf(m mountInfo) (upper string, lowers []string, err error) {
	b, err := os.ReadFile(registryFile(m))
	if err != nil {
		return "", nil, fmt.Errorf("the layers of the mount on %q are not known: give them with -o lowerdir=A,upperdir=B", m.point)
	}
	for line := range strings.Lines(string(b)) {
		what, quoted, _ := strings.Cut(strings.TrimSpace(line), " ")
		dir, err := strconv.Unquote(quoted)
		switch {
		case err != nil:
		case what == "upper":
			upper = dir
		case what == "lower":
			lowers = append(lowers, dir)
		}
	}
	return upper, lowers, nil
}

// pidNamespace names the namespace that a pid of this process is from.
func pidNamespace() string {
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "?"
	}
	return ns
}

// ending returns a function that waits until the daemon of m, which is still
// mounted, has ended: then nothing holds the layers any more. What it waits for
// is over in a moment, but for a daemon that still writes.
func ending(m mountInfo) (wait func() error) {
	f, err := os.Open(registryFile(m))
	if err != nil {
		return func() error { return nil }
	}
	process := daemonOf(f)
	return func() error {
		defer f.Close()
		end := time.Now().Add(writing)
		for errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK) {
			if time.Now().After(end) {
				return fmt.Errorf("%q is unmounted, but after %v its daemon is still writing, or serving those who have files open in it: its layers are in use: wait for its end (fuser -vm says who has files open)", m.point, writing)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if process >= 0 {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
			unix.Close(process)
		}
		return nil
	}
}

// daemonOf returns a pidfd of the process whose note f is; -1 if it has ended, or
// lives in another pid namespace, where its pid is not what it says.
func daemonOf(f *os.File) int {
	var pid int
	var ns string
	if _, err := fmt.Fscan(f, &pid, &ns); err != nil || ns != pidNamespace() {
		return -1
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	if !errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK) {
		unix.Close(fd) // the lock is free, so the pid may be another's by now
		return -1
	}
	return fd
}

// otherView returns where else the filesystem of m, which is unmounted, is
// mounted: there its daemon goes on. "" if nowhere that can be seen.
func otherView(m mountInfo) string {
	seen := map[string]bool{}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range append([]string{"/proc/self"}, all...) {
		ns, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		ms, _ := mountsOf(proc + "/mountinfo")
		for _, x := range ms {
			if x.dev == m.dev && x.fsType == fsType {
				return fmt.Sprintf("%q, as %s/mountinfo shows", x.point, proc)
			}
		}
	}
	return ""
}
