package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// CRIU executes a few programs by name (criu's cr_system): iptables to see
// whether it can, tar, ip. When it does, its root is the view, and what it would
// find there may be the source's. So its PATH is one directory of links to this
// program, which is static, and which goes to the host's mount namespace first
// and executes the host's program there.

// hostTools are the names that CRIU executes.
var hostTools = []string{
	"sh", "ip", "tar", "nft",
	"iptables", "iptables-save", "iptables-restore",
	"ip6tables", "ip6tables-save", "ip6tables-restore",
	"iptables-nft", "ip6tables-nft",
}

const (
	toolsDir = "bin" // in the state directory

	// hostPathEnv and hostNsEnv are set for CRIU only: the PATH of the host, and
	// the path of its mount namespace, which is a descriptor of the helper.
	hostPathEnv = "MIGRATEFS_HOST_PATH"
	hostNsEnv   = "MIGRATEFS_HOST_NS"

	// hostNsFd is that descriptor.
	hostNsFd = 5
)

// makeHostTools makes the links, and returns the directory they are in. Helper is the
// pid of the process that has the descriptor, as CRIU sees it.
func makeHostTools(state string, helper int) (dir string, err error) {
	dir = filepath.Join(state, toolsDir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if !isStatic("/proc/self/exe") {
		return dir, nil // its libraries would come out of the view: better no tools at all
	}
	for _, name := range hostTools {
		if err := os.Symlink(fmt.Sprintf("/proc/%d/exe", helper), filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return "", err
		}
	}
	return dir, nil
}

// ownProgram is a path to execute this program by. What CRIU executes is this program
// again, through the links, and a library of ours opens its own program by the path that
// the kernel has for it, before main: that would lead into the view, where the source's
// file of that name would be fetched. So the helper is executed from where no path leads.
func ownProgram() string {
	const self = "/proc/self/exe"
	fd, err := sys.CloneMount(self)
	if err != nil {
		return self // an old kernel: it costs bytes, and nothing else
	}
	// Above those that a child of ours is given.
	if high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64); err == nil {
		unix.Close(fd)
		fd = high
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}

// isStatic reports whether a program needs no loader and no libraries.
func isStatic(program string) bool {
	f, err := elf.Open(program)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// hostPath is where this host's programs are.
func hostPath() string { return os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin" }

// hostToolsEnv is what CRIU's environment needs so that tools are the host's.
func hostToolsEnv(dir string, helper int) []string {
	return []string{
		"PATH=" + dir,
		hostPathEnv + "=" + hostPath(),
		hostNsEnv + "=" + fmt.Sprintf("/proc/%d/fd/%d", helper, hostNsFd),
	}
}

// hostTool executes args as the host's program of that name. It does nothing,
// and returns nil, unless this process was called as one of the links.
func hostTool(args []string) error {
	path, ours := os.LookupEnv(hostPathEnv)
	if !ours || len(args) == 0 {
		return nil
	}
	// setns(2) wants a thread that shares its root and directory with nobody.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("%s on this host: %w", args[0], err)
	}
	ns, err := unix.Open(os.Getenv(hostNsEnv), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%s on this host: %w", args[0], err)
	}
	if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("%s on this host: %w", args[0], err)
	}
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	program, err := exec.LookPath(filepath.Base(args[0]))
	if err != nil {
		return err
	}
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, hostPathEnv+"=") && !strings.HasPrefix(e, hostNsEnv+"=") {
			env = append(env, e)
		}
	}
	return fmt.Errorf("%s on this host: %w", program, unix.Exec(program, args, env))
}
