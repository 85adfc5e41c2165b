package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DropCapability takes a capability out of the effective and permitted sets of
// every thread of the process. It fails in programs built with cgo, where
// threads are not the Go runtime's alone.
func DropCapability(capability uint) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	word, bit := capability/32, uint32(1)<<(capability%32)
	if data[word].Effective&bit == 0 && data[word].Permitted&bit == 0 {
		return nil
	}
	data[word].Effective &^= bit
	data[word].Permitted &^= bit
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
