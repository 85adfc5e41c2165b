package testbed

import (
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
)

// Loopback returns an address of this machine on which nobody listens but this
// process: tests of other packages run beside it, and take any port of 127.0.0.1 that
// is free for a moment, as when a server starts anew.
func Loopback() string {
	pid := os.Getpid() // of 22 bits at most
	return net.IPv4(127, byte(1+pid>>16), byte(pid>>8), byte(pid)).String()
}

var given = struct {
	sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// FreePort returns a TCP port of Loopback that is free, and that no other call gets.
func FreePort(tb testing.TB) int {
	tb.Helper()
	given.Lock()
	defer given.Unlock()
	for {
		l, err := net.Listen("tcp", net.JoinHostPort(Loopback(), "0"))
		if err != nil {
			tb.Fatalf("finding a free port: %v", err)
		}
		port := portOf(l)
		l.Close()
		if !given.ports[port] {
			given.ports[port] = true
			return port
		}
	}
}

// loopback is an address that nobody listens on: of the host, or of this process's.
func (h *Host) loopback(tb testing.TB) string {
	if h != nil {
		return "127.0.0.1:0"
	}
	return net.JoinHostPort(Loopback(), strconv.Itoa(FreePort(tb)))
}
