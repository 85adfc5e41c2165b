package sys

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AsWriter runs f on a thread that has the filesystem id uid and no CAP_FSETID,
// then restores the thread: what the kernel does later with these rights is done
// on uid's account, and takes suid and sgid bits off like a write of anybody's. f
// runs only if the switch succeeded; a thread that cannot be restored is never
// used again.
func AsWriter(uid uint32, f func() error) error {
	runtime.LockOSThread()
	healthy := false
	defer func() {
		if healthy {
			runtime.UnlockOSThread()
		}
	}()
	var old [2]unix.CapUserData
	if err := capability(unix.SYS_CAPGET, &old); err != nil {
		return err
	}
	less := old
	less[0].Effective &^= 1 << unix.CAP_FSETID
	err := capability(unix.SYS_CAPSET, &less)
	if err == nil && uid != self.UID {
		err = setfsid(unix.SYS_SETFSUID, uid)
	}
	if err == nil {
		err = f()
	}
	// On the way back to zero setfsuid(2) gives filesystem capabilities back, so the
	// set as it was comes last.
	if uid != self.UID {
		if rerr := setfsid(unix.SYS_SETFSUID, self.UID); rerr != nil {
			return rerr
		}
	}
	if rerr := capability(unix.SYS_CAPSET, &old); rerr != nil {
		return rerr
	}
	healthy = true
	return err
}

// capability calls capget or capset for the calling thread alone.
func capability(nr uintptr, data *[2]unix.CapUserData) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if _, _, errno := unix.RawSyscall(nr, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(data)), 0); errno != 0 {
		return errno
	}
	return nil
}
