package sys

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
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
// then restores the thread. f runs only if all three were switched.
//
// The calls are made raw: the wrappers of package syscall would change every
// thread of the process. setfsuid(2) to a non-zero id takes the filesystem
// capabilities out of the thread's effective set, and gives them back on the
// way to zero.
func As(c Cred, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := current()
	if err != nil {
		return err
	}
	if err := announce("switch"); err != nil { // no change of a disk, but tests make it fail
		return err
	}
	if err := setgroups(c.Groups); err != nil {
		return err // and nothing was switched
	}
	// Whatever happens, the goroutine does not go on with somebody else's rights:
	// it has other requests to serve. Who could leave may come back, but for want
	// of memory.
	defer func() {
		for become(own) != nil {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if err := setIDs(c); err != nil {
		return err
	}
	return f()
}

// AsSelf runs f with the rights of the process, which the thread may not have: f
// may be called within As.
func AsSelf(f func() error) error { return As(self, f) }

// self is who the process is; what it has at its start.
var self, _ = current()

// current returns the rights of the thread.
func current() (Cred, error) {
	uid, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0)
	gid, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, ^uintptr(0), 0, 0)
	c := Cred{UID: uint32(uid), GID: uint32(gid)}
	groups, err := unix.Getgroups()
	for _, g := range groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c, err
}

// become switches groups and gid before uid on the way out of root, and on the
// way back: setgroups and setfsgid need root's capabilities, which setfsuid does
// not touch (they are not filesystem capabilities), so one order serves both.
func become(c Cred) error {
	if err := setgroups(c.Groups); err != nil {
		return err
	}
	return setIDs(c)
}

func setIDs(c Cred) error {
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

// GroupsOf returns the supplementary groups of the process (or thread) pid, which
// makes a request with the filesystem ids uid and gid. There are none for a pid of
// zero, which requests from other pid namespaces carry, nor where the thread has
// other ids: then it makes the request for somebody else, as nfsd does, whose
// groups are not to be had.
func GroupsOf(pid, uid, gid uint32) []uint32 {
	if pid == 0 {
		return nil
	}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return nil
	}
	status := string(b)
	if fsID(status, "\nUid:") != uid || fsID(status, "\nGid:") != gid {
		return nil
	}
	var groups []uint32
	for _, f := range statusLine(status, "\nGroups:") {
		g, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return nil
		}
		groups = append(groups, uint32(g))
	}
	return groups
}

// statusLine returns the fields of a line of proc_pid_status(5).
func statusLine(status, name string) []string {
	_, rest, _ := strings.Cut(status, name)
	line, _, _ := strings.Cut(rest, "\n")
	return strings.Fields(line)
}

// fsID returns the filesystem id of a line of real, effective, saved and
// filesystem ids, or an id that nobody has.
func fsID(status, name string) uint32 {
	ids := statusLine(status, name)
	if len(ids) != 4 {
		return ^uint32(0)
	}
	id, err := strconv.ParseUint(ids[3], 10, 32)
	if err != nil {
		return ^uint32(0)
	}
	return uint32(id)
}
