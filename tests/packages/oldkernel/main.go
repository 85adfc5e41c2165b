// Oldkernel runs a program as if on Linux 5.4: no system call that came later is
// there. They have the numbers from 436 on (close_range, 5.9).
//
//	oldkernel PROGRAM ARGUMENT...
package main

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// firstNew is the number of the first system call that Linux 5.4 has not. Since 424
// the numbers are the same on every architecture.
const firstNew = 436

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "oldkernel:", err)
		os.Exit(125)
	}
}

func run() error {
	if len(os.Args) < 2 {
		return fmt.Errorf("give a program")
	}
	// A filter is one thread's, and what that executes has it.
	runtime.LockOSThread()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: firstNew},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("seccomp: %w: it needs root", errno)
	}
	return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
}
