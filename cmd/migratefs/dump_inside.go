package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
)

// From outside CRIU refuses to dump what migratefs restore has restored: it wants to be
// in the same mount and pid namespaces. So the command starts a helper in them, which
// starts CRIU and speaks with it. As in a restore, CRIU is loaded from this host's root,
// and gets the view as its root only then: what the source has is not executed by it.
//
// Pid 1 in there ends, and everything with it, when it has no children any more. CRIU
// ends the process before it has said all it has to say: so the helper is a child of pid
// 1, too, and the last of them. It becomes one by its parent's end.

// dumpPlan is what `dump` tells its helper, as JSON on descriptor planFd.
type dumpPlan struct {
	Pid      int // as CRIU sees it
	Criu     string
	State    string // directory
	Options  string // lines for CRIU's configuration
	LogLevel int32
	Enter    bool         // the namespaces of mntNsFd
	Origin   *criu.Origin // written beside the images; nil: none

	ShellJob, FileLocks, LeaveRunning bool
}

// dumpReport is the helper's answer, as JSON on descriptor reportFd.
type dumpReport struct {
	Error   string // empty: it is dumped
	Refused bool   // CRIU did not dump, and its log says why
}

// Descriptors of the helper besides planFd, reportFd and hostNsFd.
const (
	imagesFd = 6
	stateFd  = 7
	mntNsFd  = 8 // with Enter

	dumpLog = "dump.log" // CRIU's, beside the images
)

// newDumpInsideCommand is the helper behind `dump`.
func newDumpInsideCommand() *cobra.Command {
	var adopted bool
	c := &cobra.Command{
		Use:    "dump-inside",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if adopted {
				return leaveToInit()
			}
			return dumpInside()
		},
	}
	c.Flags().BoolVar(&adopted, "adopted", false, "be a child of pid 1")
	return c
}

// leaveToInit starts the helper that does it, and ends.
func leaveToInit() error {
	cmd := exec.Command("/proc/self/exe", "dump-inside")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	for fd := planFd; fd <= mntNsFd; fd++ {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), ""))
	}
	return cmd.Start()
}

// dumpInside dumps, and reports.
func dumpInside() error {
	for fd := planFd; fd <= mntNsFd; fd++ {
		unix.CloseOnExec(fd)
	}
	failed := &codeError{exitFailure, errors.New("")}
	var plan dumpPlan
	f := os.NewFile(planFd, "plan")
	err := json.NewDecoder(f).Decode(&plan)
	_ = f.Close()
	if err != nil {
		return failed // the command has died
	}
	var rep dumpReport
	if err := plan.dump(); err != nil {
		var de *criu.DumpError
		rep.Error, rep.Refused = oneLine(err.Error()), errors.As(err, &de)
	}
	if err := json.NewEncoder(os.NewFile(reportFd, "report")).Encode(&rep); err != nil {
		return failed
	}
	return nil
}

// dump starts CRIU, has it dump, and waits for its end.
func (p *dumpPlan) dump() error {
	// Where this thread is, no other is ever to be.
	runtime.LockOSThread()
	images := os.NewFile(imagesFd, "images")
	self := os.Getpid()
	var env []string
	if p.Enter {
		// The paths are those that lead there once CRIU has its root.
		there := fmt.Sprintf("/proc/%d/fd/%d", self, stateFd)
		if _, err := makeHostTools(p.State, self); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(p.State, pluginsDir), 0o700); err != nil {
			return err
		}
		env = append(hostToolsEnv(filepath.Join(there, toolsDir), self), "CRIU_LIBS_DIR="+filepath.Join(there, pluginsDir))
	}
	if err := os.WriteFile(filepath.Join(p.State, criuConf), []byte(p.Options), 0o600); err != nil {
		return err
	}
	root := -1
	if p.Enter {
		var err error
		if root, err = enterMounts(); err != nil {
			return fmt.Errorf("enter the mounts of the process: %w", err)
		}
		defer unix.Close(root)
	}
	w, err := criu.StartWorker(p.Criu, env, os.Stdin, os.Stderr, p.Enter)
	if err != nil {
		return err
	}
	defer func() {
		_ = w.Close()
		_ = w.Wait()
	}()
	if _, err := w.Version(); err != nil {
		return fmt.Errorf("%q: %w", p.Criu, err)
	}
	if p.Enter {
		if err := changeRoot(root); err != nil {
			return fmt.Errorf("make the root of the process CRIU's: %w", err)
		}
	}
	return w.Dump(criu.DumpRequest{
		Pid: p.Pid, Images: images, Work: images, Log: dumpLog, LogLevel: p.LogLevel,
		ShellJob: p.ShellJob, FileLocks: p.FileLocks, LeaveRunning: p.LeaveRunning,
		ConfigFile: fmt.Sprintf("/proc/%d/fd/%d/%s", self, stateFd, criuConf),
		Written:    func() error { return p.written(images) },
	})
}

// enterMounts moves this thread into the process's mount namespace, where it keeps this
// host's root, and returns a descriptor of the root there.
func enterMounts() (root int, err error) {
	host, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(host)
	// setns(2) wants a thread that shares its root with nobody.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return -1, err
	}
	if err := unix.Setns(mntNsFd, unix.CLONE_NEWNS); err != nil {
		return -1, err
	}
	if root, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	if err := errors.Join(unix.Fchdir(host), unix.Chroot(".")); err != nil {
		unix.Close(root)
		return -1, err
	}
	return root, nil
}

// changeRoot gives the thread another root, and CRIU with it; then they go apart.
func changeRoot(root int) error {
	return errors.Join(unix.Fchdir(root), unix.Chroot("."), unix.Unshare(unix.CLONE_FS))
}

// written makes the images durable, and says beside them where the files are.
func (p *dumpPlan) written(images *os.File) error {
	dir := int(images.Fd())
	if p.Origin != nil {
		b, err := p.Origin.JSON()
		if err != nil {
			return err
		}
		fd, err := unix.Openat(dir, criu.OriginFile, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return fmt.Errorf("write %q beside the images: %w", criu.OriginFile, err)
		}
		f := os.NewFile(uintptr(fd), criu.OriginFile)
		_, err = f.Write(b)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("write %q beside the images: %w", criu.OriginFile, bare(err))
		}
	}
	names, err := images.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list of images: %w", bare(err))
	}
	for _, name := range names {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Fsync(fd)
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("image %q could not be made durable: %w", name, err)
		}
	}
	if err := images.Sync(); err != nil {
		return fmt.Errorf("the images could not be made durable: %w", bare(err))
	}
	// CRIU ends the process next: whatever happens then, nobody removes the images.
	fd, err := unix.Openat(stateFd, wholeMark, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("note that the images are whole: %w", err)
	}
	return unix.Close(fd)
}

// dump starts the helper, and waits for its answer and its end.
func (d *dumpCommand) dump() (*dumpReport, error) {
	plan, err := json.Marshal(&d.plan)
	if err != nil {
		return nil, err
	}
	files, answer, err := d.helperFiles(plan)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	started := make(chan error)
	go func() { started <- d.startHelper(files) }() // on a thread that ends with it
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the helper that dumps: %w", err)
	}
	for _, f := range files {
		_ = f.Close() // or we would not see the helper's end
	}
	files = nil
	var rep dumpReport
	if err := json.NewDecoder(answer).Decode(&rep); err != nil {
		return nil, fmt.Errorf("the helper that dumps ended without a word: somebody has killed it; see %s", filepath.Join(d.dir, dumpLog))
	}
	_, _ = io.Copy(io.Discard, answer) // until it has ended
	return &rep, nil
}

// helperFiles returns the descriptors that the helper gets from planFd on; the plan
// can be read from the first.
func (d *dumpCommand) helperFiles(plan []byte) (files []*os.File, answer *os.File, err error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	files = append(files, pr)
	go func() {
		_, _ = pw.Write(plan) // a helper that dies before that says so by its end
		_ = pw.Close()
	}()
	answer, aw, err := os.Pipe()
	if err != nil {
		return files, nil, err
	}
	files = append(files, aw)
	mounts := os.DevNull
	if d.restored != nil {
		mounts = fmt.Sprintf("/proc/%d/ns/mnt", d.restored.Init)
	}
	for _, open := range []func() (*os.File, error){
		func() (*os.File, error) { return os.Open("/proc/self/ns/mnt") },
		func() (*os.File, error) { return duplicate(d.images) }, // with its lock
		func() (*os.File, error) { return os.Open(d.state) },
		func() (*os.File, error) { return os.Open(mounts) },
	} {
		f, err := open()
		if err != nil {
			answer.Close()
			return files, nil, err
		}
		files = append(files, f)
	}
	return files, answer, nil
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// startHelper starts the helper, in the namespaces of a restored process but for its
// mounts.
func (d *dumpCommand) startHelper(files []*os.File) error {
	runtime.LockOSThread() // for good: nobody else is to have this thread
	args := []string{"dump-inside"}
	if d.restored != nil {
		args = append(args, "--adopted")
		for _, kind := range []string{"net", "ipc", "uts", "cgroup", "pid"} {
			if err := d.enter(kind); err != nil {
				return fmt.Errorf("enter the %s namespace of the process: %w", kind, err)
			}
		}
	}
	log, err := os.Create(filepath.Join(d.state, helperLog))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(ownProgram(), args...)
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if d.restored == nil {
		return cmd.Process.Release()
	}
	return cmd.Wait() // it has left all to another
}

func (d *dumpCommand) enter(kind string) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", d.restored.Init, kind), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, 0)
}
