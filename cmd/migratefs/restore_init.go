package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
)

// restorePlan is what `restore` tells its helper, as JSON on descriptor
// planFd.
type restorePlan struct {
	View     string   // the mounted overlay that becomes the root
	Binds    []string // of this host, besides hostBinds
	Images   string
	State    string // directory for CRIU's log and the helper's own
	Criu     string
	ShellJob bool
	Options  string // lines for CRIU's configuration
	LogLevel int32
	Wait     bool // the command wants to know how the process ends
	Lazy     bool // memory comes later, and memoryFd is of those who have it

	InPlace bool     // --view=paths: this host's root stays, and the view covers Paths
	Paths   []string //

	// If NewRoot is not "" the processes had mounts of their own: this host's root stays
	// CRIU's, which makes the mounts anew.
	NewRoot  string   // their root directory as CRIU finds it
	Root     string   // in the view: what is bound there; "" if it is the view itself
	External []string // for CRIU's --external
}

// restoreReport is the helper's answer, as JSON on descriptor reportFd; with Wait a
// restoreEnd follows.
type restoreReport struct {
	Error   string // empty: the process runs
	Criu    string // version
	Pid     int    // of the restored root task, in its pid namespace
	Refused bool   // CRIU did not restore, and its log says why
}

const (
	planFd   = 3
	reportFd = 4
	leashFd  = 6 // after hostNsFd
	memoryFd = 7

	criuLog    = "restore.log" // CRIU's, in the state directory
	helperLog  = "helper.log"  // what CRIU and the helper print
	criuConf   = "criu.conf"
	pluginsDir = "plugins" // empty: CRIU must not load any out of the view
)

// hostBinds are the directories that the restored process shares with this
// host, whatever the view has at their place: sockets and FIFOs in them meet.
var hostBinds = []string{"/sys", "/dev", "/run"}

// newRestoreInitCommand is the helper behind `restore`: pid 1 of the pid
// namespace that the restored process lives in.
func newRestoreInitCommand() *cobra.Command {
	var above uint32
	c := &cobra.Command{
		Use:    "restore-init",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if os.Getpid() != 1 {
				return usageErrorf("restore-init is started by migratefs restore only")
			}
			if above != 0 {
				return moveAbove(above)
			}
			return restoreInit()
		},
	}
	c.Flags().Uint32Var(&above, "above", 0, "take pids above this one first")
	return c
}

// moveAbove executes this program anew, after asking for pids above the given
// one: the threads of pid 1 would else take the low pids, which processes from
// another pid namespace have.
func moveAbove(pid uint32) error {
	// Where /proc/sys is read-only it stays as it is: that is rarely fatal.
	_ = os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.FormatUint(uint64(pid), 10)), 0)
	err := unix.Exec(ownProgram(), []string{"migratefs", "restore-init"}, os.Environ())
	return fmt.Errorf("restore-init: execute anew: %w", err)
}

// restoreInit restores, reports, and stays as init until the tree has ended.
func restoreInit() error {
	report := os.NewFile(reportFd, "report")
	unix.CloseOnExec(planFd)
	unix.CloseOnExec(reportFd)
	unix.CloseOnExec(hostNsFd)
	// As pid 1 goes, so does everything else in here.
	failed := &codeError{exitFailure, errors.New("")}
	l := newLeash(leashFd)
	l.orElse(func() { os.Exit(exitFailure) })
	var plan restorePlan
	f := os.NewFile(planFd, "plan")
	err := json.NewDecoder(f).Decode(&plan)
	_ = f.Close()
	if err != nil {
		return failed // the command has died
	}
	if plan.Lazy {
		watchMemory()
	}
	r, err := restoreInside(&plan)
	if err != nil {
		r.Error = oneLine(err.Error())
	}
	answer := json.NewEncoder(report)
	if werr := answer.Encode(r); err != nil || werr != nil {
		return failed
	}
	<-l.free
	if !plan.Wait {
		_ = report.Close()
	}
	reapAll(func(pid int, status unix.WaitStatus) {
		if pid == r.Pid && plan.Wait {
			_ = answer.Encode(restoreEnd{Status: int(status)}) // if anybody still waits
			_ = report.Close()
		}
	})
	return nil
}

// watchMemory ends everything in here when nobody is left who has the memory that did not come
// yet (restore_pages.go): from then on it is zeros. A byte says that all has come.
func watchMemory() {
	unix.CloseOnExec(memoryFd)
	f := os.NewFile(memoryFd, "memory")
	go func() {
		defer f.Close()
		if n, _ := f.Read(make([]byte, 1)); n == 0 {
			_, _ = os.Stderr.WriteString(bothKilled)
			os.Exit(exitFailure)
		}
	}()
}

// restoreInside restores, and closes what would lead the process out again.
func restoreInside(plan *restorePlan) (r restoreReport, err error) {
	// The thread that starts CRIU is the parent of what it restores; it must
	// last as long as that (PR_SET_PDEATHSIG goes by threads).
	runtime.LockOSThread()
	defer unix.Close(hostNsFd)
	// Both are opened while this host's root is still ours; CRIU gets at them
	// through our descriptors.
	images, err := os.Open(plan.Images)
	if err != nil {
		return r, err
	}
	defer images.Close()
	work, err := os.Open(plan.State)
	if err != nil {
		return r, err
	}
	defer work.Close()
	if err := furnish(plan); err != nil {
		return r, err
	}
	w, err := startCriu(plan)
	if err != nil {
		return r, err
	}
	defer w.Close()
	if r.Criu, err = w.Version(); err != nil {
		return r, fmt.Errorf("%q: %w: see %s", plan.Criu, err, filepath.Join(plan.State, helperLog))
	}
	if !plan.InPlace && plan.NewRoot == "" {
		if err := enter(plan.View); err != nil {
			return r, err
		}
	}
	r.Pid, err = w.Restore(criu.RestoreRequest{
		Images:     images,
		Work:       work,
		Log:        criuLog,
		LogLevel:   plan.LogLevel,
		ShellJob:   plan.ShellJob,
		Root:       plan.NewRoot,
		External:   plan.External,
		ConfigFile: filepath.Join(plan.State, criuConf), // this host's /run is in the view as well
	})
	var re *criu.RestoreError
	r.Refused = errors.As(err, &re)
	return r, err
}

// startCriu starts CRIU from this host's root. Nothing that it executes or loads
// may come out of the view, where the source's files are.
func startCriu(plan *restorePlan) (*criu.Worker, error) {
	plugins := filepath.Join(plan.State, pluginsDir)
	if err := os.Mkdir(plugins, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(plan.State, criuConf), []byte(plan.Options), 0o600); err != nil {
		return nil, err
	}
	env := []string{"CRIU_LIBS_DIR=" + plugins}
	if plan.NewRoot != "" {
		// This host's root is CRIU's as long as it executes anything, and its tar is to fill
		// filesystems that are mounted in the new mount namespace only.
		env = append(env, "PATH="+hostPath())
	} else {
		tools, err := makeHostTools(plan.State, 1)
		if err != nil {
			return nil, err
		}
		env = append(env, hostToolsEnv(tools, 1)...)
	}
	return criu.StartWorker(plan.Criu, env, os.Stdin, os.Stderr, false)
}

// furnish gives this mount namespace, which is a copy of the host's, what the
// restored process needs: its own /proc, and the host's directories in the
// view. Nothing of it is seen outside.
func furnish(plan *restorePlan) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	const procFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// CRIU looks around before the root is changed.
	if err := unix.Mount("proc", "/proc", "proc", procFlags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	switch {
	case plan.InPlace:
		return coverPaths(plan)
	case plan.NewRoot != "":
		return furnishOwn(plan)
	}
	if err := mountInView(plan.View, "/proc", func(at string) error {
		return unix.Mount("proc", at, "proc", procFlags, "")
	}); err != nil {
		return err
	}
	for _, dir := range slices.Concat(hostBinds, plan.Binds) {
		if err := mountInView(plan.View, dir, func(at string) error {
			return unix.Mount(dir, at, "", unix.MS_BIND|unix.MS_REC, "")
		}); err != nil {
			return err
		}
	}
	return dropOurMounts(plan.View)
}

// mountInView calls mount with a path that leads to dir in the view and nowhere
// else, whatever symlinks the source has there.
func mountInView(view, dir string, mount func(at string) error) error {
	root, err := unix.Open(view, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("view %q: %w", view, err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimPrefix(dir, "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("%q in the view: %w: neither this host nor the source has it", dir, err)
	}
	defer unix.Close(fd)
	if err := mount(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
		return fmt.Errorf("mount this host's %q in the view: %w", dir, err)
	}
	return nil
}

// dropOurMounts takes mounts of ours out of the view, which came with /run: they
// would show the view inside itself, and keep other mounts from ending.
func dropOurMounts(view string) error {
	ms, err := mounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(ms) {
		if m.fsType != fsType || !strings.HasPrefix(m.point, view+"/") {
			continue
		}
		if err := unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("take %q out of the view: %w", m.point, err)
		}
	}
	return nil
}

// enter makes the view the root of everything in this mount namespace, CRIU
// included, and lets go of the host's root (pivot_root(2), "." over ".").
func enter(view string) error {
	if err := os.Chdir(view); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("make %q the root: %w", view, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of this host's root: %w", err)
	}
	return os.Chdir("/")
}

// reapAll waits for all processes of this pid namespace: those whose parents
// died are our children. It returns when none is left.
func reapAll(ended func(pid int, status unix.WaitStatus)) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == nil:
			ended(pid, status)
		case !errors.Is(err, unix.EINTR):
			return // ECHILD
		}
	}
}
