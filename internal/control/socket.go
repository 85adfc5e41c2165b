package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

const (
	suffix = ".sock"
	// newSuffix is of a socket that nobody listens on yet.
	newSuffix = ".new"
	lockName  = ".lock"
)

// Name is what the socket of the mount with that device number (MAJOR:MINOR) is called.
func Name(device string) string { return strings.ReplaceAll(device, ":", "-") + suffix }

// Device is the inverse of Name; "" if it is not the name of a socket.
func Device(name string) string {
	base, ok := strings.CutSuffix(filepath.Base(name), suffix)
	major, minor, both := strings.Cut(base, "-")
	_, err1 := strconv.ParseUint(major, 10, 32)
	_, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || !both || err1 != nil || err2 != nil {
		return ""
	}
	return major + ":" + minor
}

// place is the directory that sockets are in, locked against others that put or take
// away some.
type place struct{ dir, lock int }

// openPlace opens dir, which must be ours alone.
func openPlace(dir string) (*place, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (int(st.Uid) != unix.Geteuid() || st.Mode&0o077 != 0) {
		err = errors.New("it is not closed to others")
	}
	lock := -1
	if err == nil {
		lock, err = unix.Openat(fd, lockName, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	}
	if err == nil {
		err = sys.Retry(func() error { return unix.Flock(lock, unix.LOCK_EX) })
	}
	p := &place{fd, lock}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *place) close() {
	for _, fd := range []int{p.lock, p.dir} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// at is how name is reached whatever the path of the directory is: that of a socket
// has 107 bytes at most (unix(7)).
func (p *place) at(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", p.dir, name) }

// listen makes the socket of a device, and takes away those that nobody listens on.
func listen(dir, device string) (*net.UnixListener, *unix.Stat_t, error) {
	p, err := openPlace(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("%q: %w", dir, err)
	}
	defer p.close()
	p.sweep()
	name := Name(device)
	temp := "." + name + newSuffix
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.at(temp), Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	l.SetUnlinkOnClose(false)
	var st unix.Stat_t
	if err = unix.Fstatat(p.dir, temp, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		err = sys.Chmod(p.dir, temp, 0o600)
	}
	if err == nil {
		err = sys.Rename(p.dir, temp, p.dir, name, 0)
	}
	if err != nil {
		l.Close()
		_ = sys.Unlink(p.dir, temp)
		return nil, nil, err
	}
	return l, &st, nil
}

// remove takes the socket of a device away if it is still the one that st is of.
func remove(dir, device string, st *unix.Stat_t) {
	p, err := openPlace(dir)
	if err != nil {
		return
	}
	defer p.close()
	var now unix.Stat_t
	if unix.Fstatat(p.dir, Name(device), &now, unix.AT_SYMLINK_NOFOLLOW) == nil && now.Ino == st.Ino {
		_ = sys.Unlink(p.dir, Name(device))
	}
}

// sweep takes away what crashes left. Who makes a socket has the lock, so one that
// is not ready is nobody's.
func (p *place) sweep() {
	for _, name := range names(p.at("")) {
		stale := strings.HasSuffix(name, newSuffix)
		if Device(name) != "" {
			c, err := net.Dial("unix", p.at(name))
			if err == nil {
				c.Close()
			}
			stale = errors.Is(err, unix.ECONNREFUSED)
		}
		if stale {
			_ = sys.Unlink(p.dir, name)
		}
	}
}

// errNotTheirs: who listens is not who should.
var errNotTheirs = errors.New("another user listens on that socket")

// dial connects to a socket that a process of the user uid must listen on.
func dial(ctx context.Context, dir, device string, uid int) (net.Conn, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p := &place{dir: fd, lock: -1}
	defer p.close()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", p.at(Name(device)))
	if err != nil {
		return nil, err
	}
	peer, err := peerOf(c)
	if err == nil && int(peer.Uid) != uid {
		err = errNotTheirs
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// peerOf is who is at the other end: for a client, who called listen(2).
func peerOf(c net.Conn) (*unix.Ucred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, unix.ENOTSOCK
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return cred, cerr
}
