package sys

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Userfaultfd(2): memory whose missing pages somebody else gives. Here is the side of
// who gives them (include/uapi/linux/userfaultfd.h).
const (
	uffdioWake     = 0x8010aa02
	uffdioCopy     = 0xc028aa03
	uffdioZeropage = 0xc020aa04
	uffdioContinue = 0xc020aa07

	uffdioAPI = 0xc018aa3f

	uffdAPI      = 0xaa
	uffdFeatures = 1<<1 | 1<<2 | 1<<3 | 1<<6 // fork, mremap, madvise and munmap are events
	uffdMsgSize  = 32
)

// What a UffdEvent says has happened.
const (
	UffdFault  = 0x12 // a thread waits for the page at Start
	UffdFork   = 0x13 // the memory was copied, and Fd is the copy's
	UffdRemap  = 0x14 // Start to End is at To now
	UffdRemove = 0x15 // Start to End is empty: what is touched there is zeros
	UffdUnmap  = 0x16 // Start to End is no memory any more
)

// UffdEvent is one message. Addresses are the process's; End is not included.
type UffdEvent struct {
	Kind           uint8
	Start, End, To uint64
	Fd             int
}

// UffdUsable finds out whether memory of other processes can be given by this one. ENOSYS or
// EINVAL: the kernel cannot do that. EPERM: this process may not.
func UffdUsable() error {
	switch runtime.GOARCH {
	case "amd64", "arm64", "arm", "386", "riscv64", "s390x", "loong64":
	default:
		return unix.ENOSYS // the numbers above are others there
	}
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if e != 0 {
		return e
	}
	defer unix.Close(int(fd))
	arg := struct{ api, features, ioctls uint64 }{api: uffdAPI, features: uffdFeatures}
	return ioctl(int(fd), uffdioAPI, unsafe.Pointer(&arg))
}

// UffdRead reads the next event; EAGAIN if there is none. With a UffdFork the copy's
// descriptor is made: it is in the table before the process goes on.
func UffdRead(fd int) (e UffdEvent, err error) {
	var b [uffdMsgSize]byte
	var n int
	err = Retry(func() (err error) { n, err = unix.Read(fd, b[:]); return err })
	if err != nil {
		return e, err
	}
	if n != len(b) {
		return e, unix.EIO
	}
	word := func(i int) uint64 { return binary.NativeEndian.Uint64(b[8+8*i:]) }
	switch e.Kind = b[0]; e.Kind {
	case UffdFault: // flags, address
		e.Start = word(1)
	case UffdFork:
		e.Fd = int(binary.NativeEndian.Uint32(b[8:]))
	case UffdRemap: // from, to, length
		e.Start, e.To, e.End = word(0), word(1), word(0)+word(2)
	case UffdRemove, UffdUnmap:
		e.Start, e.End = word(0), word(1)
	}
	return e, nil
}

// UffdCopy puts data at the address at, where nothing must be, and wakes who waits for it.
// It returns how many bytes of it are there now, with what came in the way:
// EEXIST: the next page is there already. ENOENT: not all is in one mapping of that
// descriptor. EAGAIN: an event has to be read first. ESRCH: the process has ended.
func UffdCopy(fd int, at uint64, data []byte) (n int, err error) {
	var pin runtime.Pinner // the kernel gets an address that the runtime does not see as one
	defer pin.Unpin()
	pin.Pin(unsafe.SliceData(data))
	arg := struct {
		dst, src, len, mode uint64
		done                int64
	}{dst: at, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(data)))), len: uint64(len(data))}
	err = ioctl(fd, uffdioCopy, unsafe.Pointer(&arg))
	if err == nil {
		return len(data), nil
	}
	return int(max(arg.done, 0)), err
}

// UffdZero puts zeros at an address, as UffdCopy does data.
func UffdZero(fd int, at, size uint64) error {
	arg := struct {
		start, len, mode uint64
		done             int64
	}{start: at, len: size}
	return ioctl(fd, uffdioZeropage, unsafe.Pointer(&arg))
}

// UffdEnded reports whether the process is known to have ended. At is a page of private
// anonymous memory, for which what is asked here is never done.
func UffdEnded(fd int, at, size uint64) bool {
	arg := struct {
		start, len, mode uint64
		done             int64
	}{start: at, len: size}
	return ioctl(fd, uffdioContinue, unsafe.Pointer(&arg)) == unix.ESRCH // before Linux 5.13 EINVAL
}

// UffdWake has those who wait for a page from start to end look again.
func UffdWake(fd int, start, end uint64) error {
	arg := struct{ start, len uint64 }{start, end - start}
	return ioctl(fd, uffdioWake, unsafe.Pointer(&arg))
}
