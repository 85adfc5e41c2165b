package main

import (
	"context"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A restore is made by processes that outlive the command: the view's daemon and
// the helper. Until the process runs, and that is written down, both are on a leash:
// the read end of one pipe, whose write end only the command has. If the command
// dies, whatever way, both see the end of the pipe and undo what they have done. When
// all is well it writes a byte for each of them, in one write(2), and they go on by
// themselves: there is no moment at which one of them is free and the other is not.

// leashEnv names the descriptor of the leash for a daemon.
const leashEnv = "MIGRATEFS_LEASH_FD"

// leashed is how many processes are on one leash.
const leashed = 2

// leash is the end of who is on it. A nil leash holds nobody.
type leash struct {
	free chan struct{} // closed when it was let go
	lost chan struct{} // closed when the command has died
}

// leashFromEnv returns the leash that this daemon is on, or nil.
func leashFromEnv() *leash {
	fd, err := strconv.Atoi(os.Getenv(leashEnv))
	if err != nil {
		return nil
	}
	os.Unsetenv(leashEnv)
	return newLeash(fd)
}

func newLeash(fd int) *leash {
	unix.CloseOnExec(fd)
	l := &leash{free: make(chan struct{}), lost: make(chan struct{})}
	go func() {
		f := os.NewFile(uintptr(fd), "leash")
		defer f.Close()
		var b [1]byte // and not the other's
		if n, _ := f.Read(b[:]); n == 1 {
			close(l.free)
		} else {
			close(l.lost)
		}
	}()
	return l
}

// context is ctx until the command dies.
func (l *leash) context(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if l != nil {
		go func() {
			select {
			case <-l.lost:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return ctx, cancel
}

// orElse calls f, once, if the command dies.
func (l *leash) orElse(f func()) {
	if l == nil {
		return
	}
	go func() {
		select {
		case <-l.lost:
			f()
		case <-l.free:
		}
	}()
}

// isLost reports whether the command has died.
func (l *leash) isLost() bool {
	if l == nil {
		return false
	}
	select {
	case <-l.lost:
		return true
	default:
		return false
	}
}
