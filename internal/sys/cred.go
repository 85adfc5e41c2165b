package sys

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Cred is who a request acts for.
type Cred struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
}

// As runs f on a thread whose filesystem ids and supplementary groups are c's,
// then restores the thread. f runs only if all three were switched; a thread
// that cannot be restored is never used again.
//
// The calls are made raw: the wrappers of package syscall would change every
// thread of the process. setfsuid(2) to a non-zero id takes the filesystem
// capabilities out of the thread's effective set, and gives them back on the
// way to zero.
func As(c Cred, f func() error) error {
	runtime.LockOSThread()
	healthy := false
	defer func() {
		// A goroutine that ends locked takes its thread with it.
		if healthy {
			runtime.UnlockOSThread()
		}
	}()
	old, err := unix.Getgroups()
	if err != nil {
		return err
	}
	restore := Cred{UID: uint32(unix.Geteuid()), GID: uint32(unix.Getegid())}
	for _, g := range old {
		restore.Groups = append(restore.Groups, uint32(g))
	}
	err = become(c)
	if err == nil {
		err = f()
	}
	if rerr := become(restore); rerr != nil {
		return rerr
	}
	healthy = true
	return err
}

// become switches groups and gid before uid on the way out of root, and the
// other way round on the way back: setgroups and setfsgid need root's
// capabilities, which setfsuid does not touch (they are not filesystem
// capabilities), so one order serves both.
func become(c Cred) error {
	if err := setgroups(c.Groups); err != nil {
		return err
	}
	if err := setfsid(unix.SYS_SETFSGID, c.GID); err != nil {
		return err
	}
	return setfsid(unix.SYS_SETFSUID, c.UID)
}

func setgroups(groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); errno != 0 {
		return errno
	}
	return nil
}

// setfsid calls setfsuid or setfsgid, which report no error: the id is read
// back by a call with an id that is never valid.
func setfsid(nr uintptr, id uint32) error {
	_, _, _ = unix.RawSyscall(nr, uintptr(id), 0, 0)
	now, _, _ := unix.RawSyscall(nr, ^uintptr(0), 0, 0)
	if uint32(now) != id {
		return unix.EPERM
	}
	return nil
}

// GroupsOf returns the supplementary groups of process (or thread) pid. A pid
// of zero, which requests from other pid namespaces carry, has none.
func GroupsOf(pid uint32) []uint32 {
	if pid == 0 {
		return nil
	}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return nil
	}
	_, rest, ok := strings.Cut(string(b), "\nGroups:")
	if !ok {
		return nil
	}
	line, _, _ := strings.Cut(rest, "\n")
	var groups []uint32
	for _, f := range strings.Fields(line) {
		g, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return nil
		}
		groups = append(groups, uint32(g))
	}
	return groups
}
