package testbed

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Host is one of two hosts on this machine: network, mount and UTS namespaces
// of its own, on the machine's root filesystem.
//
// What differs between hosts: /srv (Srv, the other host cannot see it), /run and
// /var/lib, and the network, where they reach each other and nothing else.
type Host struct {
	Name string
	Addr string // in the network of the two
	Srv  string // the directory behind this host's /srv, as the test sees it

	tb     testing.TB
	keeper *Process // holds the namespaces
}

// LetGo is what a shell does first in a new mount namespace: that began as a copy of
// this one, with what other tests have mounted, whose daemons do not end, and whose
// layers stay in use, until it lets go of them.
const LetGo = `while read -r _ _ _ _ point rest; do
	case $point$rest in *" - fuse"*|"${TMPDIR:-/tmp}"/*) umount -l "$(printf %b "$point")" || true ;; esac
done </proc/self/mountinfo 2>/dev/null
`

// hostSetup makes a new mount namespace a host: $1 is the directory behind /srv
// and, beside it, /var/lib, $2 what is hidden, $3 the host's name.
const hostSetup = LetGo + `set -e
hostname "$3"
ip link set lo up
mkdir "$1/../varlib"
mount --bind "$1/../varlib" /var/lib
mount --bind "$1" /srv
mount -t tmpfs -o mode=755 run /run
mkdir -m 755 /run/sshd
mount -t tmpfs -o mode=0,size=4k hidden "$2"`

// NewHosts makes two hosts, linked by a network of their own, which end with
// the test. Conventionally a is the source and b the destination.
func NewHosts(tb testing.TB) (a, b *Host) {
	tb.Helper()
	NeedRoot(tb)
	dir := TempDir(tb)
	dirA, dirB := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	a = newHost(tb, "a", "10.77.0.1", dirA, dirB)
	b = newHost(tb, "b", "10.77.0.2", dirB, dirA)
	a.Run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(b.keeper.Pid))
	for _, h := range []*Host{a, b} {
		h.Run("ip", "addr", "add", h.Addr+"/24", "dev", "eth0")
		h.Run("ip", "link", "set", "eth0", "up")
	}
	return a, b
}

// Neighbour makes one more host, on a network of its own with h and no other.
// It reaches h at h.Addr.
func (h *Host) Neighbour(name string) *Host {
	h.tb.Helper()
	n := newHost(h.tb, name, "10.78.0.2", filepath.Join(TempDir(h.tb), name), filepath.Dir(filepath.Dir(h.Srv)))
	h.Run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(n.keeper.Pid))
	h.Run("ip", "addr", "add", "10.78.0.1/24", "dev", "eth1")
	h.Run("ip", "link", "set", "eth1", "up")
	n.Run("ip", "addr", "add", n.Addr+"/24", "dev", "eth0")
	n.Run("ip", "link", "set", "eth0", "up")
	n.Run("ip", "route", "add", h.Addr, "via", "10.78.0.1")
	return n
}

func newHost(tb testing.TB, name, addr, dir, hidden string) *Host {
	tb.Helper()
	h := &Host{Name: name, Addr: addr, Srv: filepath.Join(dir, "srv"), tb: tb}
	for _, d := range []string{h.Srv, hidden} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	// Go makes the new mount namespace private (syscall.forkAndExecInChild).
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS,
	}
	keeper, err := Start(cmd)
	if err != nil {
		tb.Fatalf("host %s: %v", name, err)
	}
	h.keeper = keeper
	tb.Cleanup(h.end)
	h.Run("sh", "-c", hostSetup, "sh", h.Srv, hidden, name)
	return h
}

// end kills whatever still runs in the host's network, whatever mounts it sees;
// the mounts go with the last of it.
func (h *Host) end() {
	if here, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", h.keeper.Pid)); err == nil {
		links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
		for _, link := range links {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			if ns, err := os.Readlink(link); err == nil && ns == here && pid != h.keeper.Pid {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	h.keeper.KillTree()
}

// Command returns a command that will run on the host, in its root directory.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return h.command(append([]string{name}, args...)...)
}

// command is Command, and for no host a command here.
func (h *Host) command(args ...string) *exec.Cmd {
	if h == nil {
		return exec.Command(args[0], args[1:]...)
	}
	enter := []string{"-t", strconv.Itoa(h.keeper.Pid), "--mount", "--net", "--uts", "--"}
	return exec.Command("nsenter", append(enter, args...)...)
}

// Run runs a command on the host to its end and returns what it printed, both
// streams. It fails the test if the command does.
func (h *Host) Run(name string, args ...string) string {
	h.tb.Helper()
	var out bytes.Buffer
	cmd := h.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		h.tb.Fatalf("host %s: %s %s: %v\n%s", h.Name, name, strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// Path returns where the test reaches the absolute path p of the host. On no
// host it is p.
func (h *Host) Path(p string) string {
	if h == nil {
		return p
	}
	return fmt.Sprintf("/proc/%d/root%s", h.keeper.Pid, p)
}

// Knows makes the ssh of the host know the server as "source", by the system's
// own ssh_config, so that whatever runs there finds it.
func (h *Host) Knows(s *SSHD) {
	h.tb.Helper()
	h.Run("mount", "--bind", s.SSHConfig(), "/etc/ssh/ssh_config")
}

// inNet runs f on a thread that is in the network of the host, where the
// sockets it makes stay. On no host it just runs f.
func (h *Host) inNet(f func() error) error {
	if h == nil {
		return f()
	}
	errs := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, since nothing
		// else may run in that network.
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The first thread never ends, and this process would be taken for one
			// of the host's by it: another one, while this is ours.
			errs <- h.inNet(f)
			runtime.UnlockOSThread()
			return
		}
		errs <- func() error {
			ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.keeper.Pid))
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("entering the network of host %s: %w", h.Name, err)
			}
			return f()
		}()
	}()
	return <-errs
}

func (h *Host) listen(addr string) (l net.Listener, err error) {
	err = h.inNet(func() error { l, err = listen(addr); return err })
	return l, err
}

func (h *Host) dial(addr string) (c net.Conn, err error) {
	err = h.inNet(func() error { c, err = net.Dial("tcp", addr); return err })
	return c, err
}
