package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// How a restore tells others, as CRIU's does: --pidfile, --status-fd, --wait.

// restoreTell is what was asked for.
type restoreTell struct {
	pidFile  string
	statusFd int // -1: none
	wait     bool

	pid    *os.File // pidFile, made and still empty
	status *os.File
}

// check finds out whether it can be done. The descriptor is ours from then on: no
// child is to hold it, since its end tells of a failure.
func (t *restoreTell) check() error {
	if t.statusFd < 0 {
		return nil
	}
	flags, err := unix.FcntlInt(uintptr(t.statusFd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_ACCMODE == unix.O_RDONLY || flags&unix.O_PATH != 0 {
		return usageErrorf("--status-fd %d: give the number of a descriptor that is open for writing", t.statusFd)
	}
	unix.CloseOnExec(t.statusFd)
	t.status = os.NewFile(uintptr(t.statusFd), "status")
	return nil
}

// prepare makes the pid file, so that one that cannot be written is known before
// anything runs. As with CRIU it must not be there.
func (t *restoreTell) prepare() (undo func(), err error) {
	if t.pidFile == "" {
		return func() {}, nil
	}
	if t.pidFile, err = filepath.Abs(t.pidFile); err != nil {
		return nil, err
	}
	t.pid, err = os.OpenFile(t.pidFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("pid file %q: it is there already: remove it, or name another", t.pidFile)
	}
	if err != nil {
		return nil, fmt.Errorf("pid file %q: %w", t.pidFile, bare(err))
	}
	return func() {
		_ = t.pid.Close()
		_ = os.Remove(t.pidFile)
	}, nil
}

// writePid writes the pid that the process has outside, as CRIU does: nothing but
// its digits.
func (t *restoreTell) writePid(pid int) error {
	if t.pid == nil {
		return nil
	}
	_, err := t.pid.WriteString(strconv.Itoa(pid))
	if err == nil {
		err = t.pid.Close()
	}
	if err != nil {
		return fmt.Errorf("pid file %q: %w", t.pidFile, bare(err))
	}
	return nil
}

// ready writes a NUL byte to the descriptor and closes it.
func (t *restoreTell) ready() {
	if t.status != nil {
		_, _ = t.status.Write([]byte{0})
		_ = t.status.Close()
	}
}

// passOn takes the signals that are for the process, with --wait. It comes before anybody
// is told that there is one.
func (t *restoreTell) passOn() <-chan os.Signal {
	signals := make(chan os.Signal, 8)
	if t.wait {
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	}
	return signals
}

// restoreEnd is the helper's second message, with --wait: how the root task ended.
type restoreEnd struct {
	Status int // as wait(2) has it
}

// awaitEnd waits for the end of the restored process, to which it passes signals on,
// and returns an error that carries its exit code: 128 and the signal's number if one
// killed it.
func awaitEnd(answer *json.Decoder, pid int, signals <-chan os.Signal) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(process)
		go func() {
			for s := range signals {
				_ = unix.PidfdSendSignal(process, s.(unix.Signal), nil, 0)
			}
		}()
	}
	var end restoreEnd
	if err := answer.Decode(&end); errors.Is(err, io.EOF) {
		return errors.New("the process ended, and so did its helper: somebody has killed that, and with it all that was restored")
	} else if err != nil {
		return err
	}
	status := unix.WaitStatus(end.Status)
	switch {
	case status.Signaled():
		return &codeError{128 + int(status.Signal()), errors.New("")}
	case status.ExitStatus() != 0:
		return &codeError{status.ExitStatus(), errors.New("")}
	}
	return nil
}
