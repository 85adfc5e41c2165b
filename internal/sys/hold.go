package sys

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HoldFiles starts a process that has this one's table of descriptors, the very same:
// what is opened here, or made here by a read (UffdRead), is open there in the same
// instant, and stays so when this process dies, whatever way. It does nothing but wait
// for that. Then it kills the process of the pidfd victim, writes last to standard error,
// and goes when that process has ended, which lets go of the descriptors; self is a pidfd of
// this process. It shares nothing but the table, and is called name, its command line too: who
// kills by a name (pkill -f) means this process, and not what is left when that is gone. The
// caller reaps it.
//
// This process must never execute another program, which would give it a table of its
// own. What it starts may.
func HoldFiles(self, victim int, name, last string) (pid int, err error) {
	// All that it needs is made here: nothing after the fork may allocate or grow the stack,
	// and no signal may have it do something. The copy of this thread is all that it has of
	// the runtime.
	h := &holder{
		own:   holdPoll{fd: int32(self), events: unix.POLLIN},
		other: holdPoll{fd: int32(victim), events: unix.POLLIN},
		name:  append([]byte(name), 0),
		last:  []byte(last),
		args:  arguments(),
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return 0, err
	}
	pid, errno := h.start()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return pid, err
	}
	if errno != 0 {
		return 0, errno
	}
	return pid, nil
}

// holder is what that process is told.
type holder struct {
	own, other holdPoll
	name, last []byte
	args       []byte // where the copy has its command line
}

// arguments is where the kernel finds what it shows as the command line of this process; nil if
// somebody has put something else in the place of os.Args.
func arguments() []byte {
	n := 0
	for _, a := range os.Args {
		if n > 0 && uintptr(unsafe.Pointer(unsafe.StringData(a))) != uintptr(unsafe.Pointer(unsafe.StringData(os.Args[0])))+uintptr(n) {
			return nil
		}
		n += len(a) + 1
	}
	if n == 0 || len(os.Args[0]) == 0 {
		return nil
	}
	return unsafe.Slice(unsafe.StringData(os.Args[0]), n)
}

// holdPoll is a struct pollfd (poll(2)).
type holdPoll struct {
	fd              int32
	events, revents int16
}

// start forks, and in the copy does all of it.
//
//go:nosplit
//go:norace
func (h *holder) start() (pid int, errno unix.Errno) {
	// With nothing but flags it makes no difference in which order a machine takes the others
	// of clone(2); s390x takes the flags second.
	first, second := uintptr(unix.CLONE_FILES|unix.SIGCHLD), uintptr(0)
	if runtime.GOARCH == "s390x" {
		first, second = second, first
	}
	r, _, e := unix.RawSyscall6(unix.SYS_CLONE, first, second, 0, 0, 0, 0)
	if r != 0 || e != 0 {
		return int(r), e
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.SliceData(h.name))), 0, 0, 0, 0)
	for i := range h.args {
		if h.args[i] = 0; i < len(h.name)-1 && i < len(h.args)-1 {
			h.args[i] = h.name[i]
		}
	}
	h.own.wait()
	_, _, _ = unix.RawSyscall6(unix.SYS_PIDFD_SEND_SIGNAL, uintptr(h.other.fd), uintptr(unix.SIGKILL), 0, 0, 0, 0)
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, 2, uintptr(unsafe.Pointer(unsafe.SliceData(h.last))), uintptr(len(h.last)))
	h.other.wait()
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// wait waits until the process of a pidfd has ended, all of it. Whatever else happens,
// nothing is let go of.
//
//go:nosplit
//go:norace
func (p *holdPoll) wait() {
	for p.revents&unix.POLLIN == 0 {
		_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(p)), 1, 0, 0, 0, 0)
	}
}
