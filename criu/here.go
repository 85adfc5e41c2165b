package criu

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckHost says what this host lacks of what the tasks had where they were:
// files in the directories that every host has of its own and in binds, which are
// taken from this one as well; addresses, confinement, CRIU's helpers.
func (c *Checkpoint) CheckHost(binds []string) []Obstacle {
	var out []Obstacle
	if !c.MountNS { // else CRIU mounts its own
		for i := range c.Files {
			f := &c.Files[i]
			if !f.ofHost(binds) {
				continue
			}
			if o := f.checkHere(); o != nil {
				out = append(out, *o)
			}
		}
	}
	out = append(out, c.checkMountpoints()...)
	out = append(out, c.checkAddresses()...)
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		out = append(out, c.checkProcessor(string(b))...)
	}
	if c.LSM != "" {
		b, err := os.ReadFile("/sys/kernel/security/lsm") // nobody knows where it is not mounted
		if err == nil && !slices.Contains(strings.Split(strings.TrimSpace(string(b)), ","), c.LSM) {
			out = append(out, Obstacle{
				Level: Blocker, What: "confinement",
				Why: fmt.Sprintf("a process is confined by %s, which this kernel does not use", c.LSM), Remedy: "boot with it, or dump an unconfined process",
				Options: []string{"lsm-profile"},
			})
		}
	}
	for _, tool := range slices.Compact(slices.Sorted(slices.Values(c.tools))) {
		if !installed(tool) {
			out = append(out, Obstacle{
				Level: Blocker, What: "program", Path: tool,
				Why: "CRIU starts it for what is in the images, and it is not installed here", Remedy: "install it",
			})
		}
	}
	return out
}

// checkMountpoints: what was mounted on a directory of the root filesystem that every host
// has of its own (/run/netns, where /run is no tmpfs) is mounted on this host's.
func (c *Checkpoint) checkMountpoints() (out []Obstacle) {
	if !c.MountNS || c.ByRuntime || !c.RootIsHost() {
		return nil
	}
	for i := range c.Mounts {
		m := &c.Mounts[i]
		if m.Parent != c.rootMount || !underHostDir(m.Point) {
			continue
		}
		if err := unix.Access(m.Point, unix.F_OK); err == unix.ENOENT || err == unix.ENOTDIR {
			out = append(out, Obstacle{
				Level: Blocker, What: "mountpoint", Path: m.Point,
				Why: "it is taken from this host, which does not have it", Remedy: "make that directory",
			})
		}
	}
	return out
}

func installed(tool string) bool {
	if _, err := exec.LookPath(tool); err == nil {
		return true
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if _, err := os.Stat(filepath.Join(dir, tool)); err == nil {
			return true
		}
	}
	return false
}

// ofHost reports whether f is taken as it is from the host that restores.
func (f *File) ofHost(binds []string) bool {
	// What the dump has left to whoever restores is not opened by its name.
	if f.Deleted || f.Place == InImages || f.TTY == "external" || slices.ContainsFunc(f.Refs, func(r Ref) bool { return r.Kind == Bound }) {
		return false
	}
	for _, dir := range binds {
		if _, ok := strip(f.Path, dir); ok {
			return true
		}
	}
	// Terminals are made anew, and /proc is a fresh one.
	_, pts := strip(f.Path, "/dev/pts")
	_, proc := strip(f.Path, "/proc")
	return f.Place == OnHost && underHostDir(f.Path) && !pts && !proc
}

// checkHere compares f with what this host has of that name.
func (f *File) checkHere() *Obstacle {
	o := &Obstacle{Level: Blocker, What: "file", Path: f.Path, PID: f.pid(), Remedy: "copy it here from the source, to the same path"}
	if isDevice(f.Mode) {
		o.What, o.Remedy = "device", "restore on a host that has it"
	}
	var st unix.Stat_t
	err := unix.Lstat(f.Path, &st)
	typ := f.Mode & unix.S_IFMT
	switch {
	case err == unix.ENOENT || err == unix.ENOTDIR:
		o.Why = "it is taken from this host, which does not have it"
		if typ == unix.S_IFDIR {
			o.What, o.Remedy = "directory", "make it"
		}
	case err != nil:
		o.Why = fmt.Sprintf("it is taken from this host, and cannot be looked at: %v", err)
		o.Remedy = "run this as root"
	case typ != 0 && st.Mode&unix.S_IFMT != typ:
		o.Why = "it is taken from this host, where it is of another kind"
	case typ == unix.S_IFREG && f.SizeKnown && st.Size != f.Size:
		o.Why = fmt.Sprintf("it is taken from this host, where it has %d bytes and not %d", st.Size, f.Size)
	default:
		return nil
	}
	return o
}

// registers are the parts of a processor's state that not every x86 has (bits of
// XSTATE_BV, Intel's manual volume 1, chapter 13), and the flag in /proc/cpuinfo of
// those that have it.
var registers = []struct {
	bits       uint64
	name, flag string
}{
	{1 << 2, "AVX", "avx"}, {7 << 5, "AVX-512", "avx512f"}, {1 << 9, "protection key", "ospke"}, {3 << 17, "AMX", "amx_tile"},
}

// checkProcessor: CRIU leaves out the registers that a processor does not have, and
// the process is killed when it uses them.
func (c *Checkpoint) checkProcessor(cpuinfo string) (out []Obstacle) {
	_, flags, ok := strings.Cut(cpuinfo, "\nflags")
	if !ok {
		return nil // no x86
	}
	flags, _, _ = strings.Cut(flags, "\n")
	has := strings.Fields(flags)
	for _, r := range registers {
		if c.xstate&r.bits != 0 && !slices.Contains(has, r.flag) {
			out = append(out, Obstacle{
				Level: Blocker, What: "processor", Why: fmt.Sprintf("a process has something in %s registers, which this host's processor does not have", r.name),
				Remedy: "restore on a host with a processor as the other's",
			})
		}
	}
	return out
}

// checkAddresses: CRIU binds sockets to the addresses they had. Whether that can be done
// is tried, since more than what the interfaces have may be this host's (routes of type
// local, net.ipv4.ip_nonlocal_bind).
func (c *Checkpoint) checkAddresses() (out []Obstacle) {
	if c.NetNS {
		return nil
	}
	said := make(map[netip.Addr]bool)
	for _, a := range c.addresses {
		// A link-local address says nothing without its interface.
		if said[a] || a.IsMulticast() || a.IsLinkLocalUnicast() {
			continue
		}
		said[a] = true
		s, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			continue
		}
		out = append(out, Obstacle{
			Level: Blocker, What: "address",
			Why: fmt.Sprintf("a socket is bound to %v, which is none of this host's", a), Remedy: "move the address here first",
		})
	}
	return out
}
