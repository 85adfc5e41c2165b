package sys

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AsWriter runs f on a thread that has the filesystem id uid and no CAP_FSETID,
// then restores the thread: what the kernel does later with these rights is done
// on uid's account, and takes suid and sgid bits off like a write of anybody's. f
// runs only if the switch succeeded.
func AsWriter(uid uint32, f func() error) error {
	return withoutFSETID(func() (restored bool, err error) {
		if uid == self.UID {
			return true, f()
		}
		if err = setfsid(unix.SYS_SETFSUID, uid); err == nil {
			err = f()
		}
		// On the way back to zero setfsuid(2) gives filesystem capabilities back, so the
		// set as it was comes after it.
		if rerr := setfsid(unix.SYS_SETFSUID, self.UID); rerr != nil {
			return false, rerr
		}
		return true, err
	})
}

// AsStranger runs f on a thread that has the groups of c (nil: those it has), but
// not its user, and no CAP_FSETID: what f changes loses suid and sgid as if c had
// done it, in one step with the change. f runs only if the switch succeeded.
func AsStranger(c *Cred, f func() error) error {
	return withoutFSETID(func() (restored bool, err error) {
		if c == nil {
			return true, f()
		}
		own, err := current()
		if err != nil {
			return true, err
		}
		if err := announce("switch"); err != nil {
			return true, err
		}
		if err = become(Cred{UID: own.UID, GID: c.GID, Groups: c.Groups}); err == nil {
			err = f()
		}
		if rerr := become(own); rerr != nil {
			return false, rerr
		}
		return true, err
	})
}

// withoutFSETID runs f on a thread without CAP_FSETID. A thread that cannot be
// restored is never used again.
func withoutFSETID(f func() (restored bool, err error)) error {
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
	if err := capability(unix.SYS_CAPSET, &less); err != nil {
		return err
	}
	restored, err := f()
	if rerr := capability(unix.SYS_CAPSET, &old); rerr != nil {
		return rerr
	}
	healthy = restored
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
