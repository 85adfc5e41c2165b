package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// TestMayExec: a program that the kernel believes suid is executed only if it still
// is, and no stranger can write to it meanwhile.
func TestMayExec(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	owner := uint32(os.Getuid())
	for _, c := range []struct {
		name      string
		shown, is uint32
		flags     uint32
		io        ioMode
		other     *handle
		want      error
	}{
		{name: "plain", flags: fmodeExec},
		{name: "suid", shown: unix.S_ISUID, is: unix.S_ISUID, flags: fmodeExec},
		{name: "suid that is gone", shown: unix.S_ISUID, flags: fmodeExec, want: layers.ErrStale},
		{name: "suid that is gone, not for execve", shown: unix.S_ISUID},
		{name: "a stranger writes", shown: unix.S_ISUID, is: unix.S_ISUID, flags: fmodeExec, io: ioPassthrough, other: &handle{flags: unix.O_RDWR, uid: owner + 1000}, want: unix.ETXTBSY},
		{name: "a stranger reads", shown: unix.S_ISUID, is: unix.S_ISUID, flags: fmodeExec, io: ioPassthrough, other: &handle{flags: unix.O_RDONLY, uid: owner + 1000}},
		{name: "the owner writes", shown: unix.S_ISUID, is: unix.S_ISUID, flags: fmodeExec, io: ioPassthrough, other: &handle{flags: unix.O_RDWR, uid: owner}},
	} {
		if err := unix.Fchmod(int(f.Fd()), 0o755|c.is); err != nil {
			t.Fatal(err)
		}
		n := &node{io: c.io, open: make(map[uint64]*handle)}
		n.shown.Store(c.shown)
		h := &handle{n: n, flags: c.flags, fd: int(f.Fd())}
		n.open[1] = h
		if c.other != nil {
			n.open[2] = c.other
		}
		if err := n.mayExec(h); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
