package criu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// Worker is a running `criu swrk`: CRIU's RPC server for one client, over a
// socket that it inherits (criu/cr-service.c, images/rpc.proto). go-criu's own
// client starts CRIU in the same breath as it sends a request; here the world
// changes between the two.
type Worker struct {
	proc *os.Process
	sock int
}

// maxReply is the size of the largest message that swrk sends, in bytes.
const maxReply = 64 << 10

// StartWorker starts the CRIU at path. Its standard output and error go to out.
// Env is added to this process's environment; CRIU_LIBS_DIR and PATH in it decide
// where CRIU finds plugins to load and programs to execute, which by default is
// in the root directory it finds itself in, and that is not this host's by then.
// With shareRoot its root and working directories are those of the calling thread,
// whatever that makes of them, until the thread unshares them (CLONE_FS of clone(2)).
// The caller reaps the process.
func StartWorker(path string, env []string, stdin, out *os.File, shareRoot bool) (*Worker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "swrk")
	defer theirs.Close()
	sys := new(syscall.SysProcAttr)
	if shareRoot {
		sys.Cloneflags = unix.CLONE_FS
	}
	// Not exec.Cmd: its Wait would compete with a caller that reaps everything.
	proc, err := os.StartProcess(path, []string{path, "swrk", "3"}, &os.ProcAttr{
		Dir:   "/",
		Env:   withEnv(env),
		Files: []*os.File{stdin, out, out, theirs},
		Sys:   sys,
	})
	if err != nil {
		_ = unix.Close(pair[0])
		return nil, fmt.Errorf("start criu: %w", err)
	}
	return &Worker{proc: proc, sock: pair[0]}, nil
}

// withEnv is this process's environment with what more says in place of its own.
func withEnv(more []string) []string {
	env := slices.Clone(more)
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(more, func(m string) bool { return strings.HasPrefix(m, name+"=") }) {
			env = append(env, e)
		}
	}
	return env
}

// Wait waits until CRIU has ended.
func (w *Worker) Wait() error {
	_, err := w.proc.Wait()
	return err
}

// Pid is CRIU's process id, as this process sees it.
func (w *Worker) Pid() int { return w.proc.Pid }

// Version asks CRIU for its version ("4.1.1"). The answer also means that it is
// up and needs nothing more of the root directory it was started in.
func (w *Worker) Version() (string, error) {
	typ, keep := rpc.CriuReqType_VERSION, true
	resp, err := w.exchange(&rpc.CriuReq{Type: &typ, KeepOpen: &keep})
	if err != nil {
		return "", err
	}
	v := resp.GetVersion()
	if !resp.GetSuccess() || v == nil {
		return "", errors.New("criu does not tell its version")
	}
	s := fmt.Sprintf("%d.%d", v.GetMajorNumber(), v.GetMinorNumber())
	if v.GetSublevel() != 0 {
		s += fmt.Sprintf(".%d", v.GetSublevel())
	}
	return s, nil
}

// RestoreRequest is what a restore needs to know.
type RestoreRequest struct {
	Images *os.File // directory
	Work   *os.File // directory for CRIU's log and whatever else it writes
	Log    string   // file name in Work

	LogLevel   int32  // 1 errors to 4 debug
	ShellJob   bool   // see Checkpoint
	ConfigFile string // more options, as ConfigLines makes them; "" is none

	// Of tasks with mounts of their own: the mount point that becomes their root, and
	// external mounts, each "mnt[KEY]:DIR".
	Root     string
	External []string
}

// RestoreError: CRIU could not restore. Its log says why.
type RestoreError struct {
	Errno unix.Errno // as CRIU has it, or 0
	Msg   string     // likewise, or ""
}

func (e *RestoreError) Error() string {
	switch {
	case e.Msg != "":
		return "criu could not restore the process: " + strings.TrimSpace(e.Msg)
	case e.Errno != 0:
		return "criu could not restore the process: " + e.Errno.Error()
	}
	return "criu could not restore the process"
}

func (e *RestoreError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Restore restores, and returns the pid of the root task as CRIU sees it when
// the tasks run. The root task is then a child of the thread that called
// StartWorker. If CRIU says no it is a *RestoreError.
func (w *Worker) Restore(r RestoreRequest) (pid int, err error) {
	typ := rpc.CriuReqType_RESTORE
	imagesFd, workFd := int32(r.Images.Fd()), int32(r.Work.Fd())
	// The root task becomes our child and not CRIU's, whose end would kill a
	// task that had asked for a signal at its parent's (PR_SET_PDEATHSIG).
	sibling := true
	opts := &rpc.CriuOpts{
		ImagesDirFd: &imagesFd, // CRIU opens both through /proc, as fds of its peer
		WorkDirFd:   &workFd,
		LogFile:     &r.Log,
		LogLevel:    &r.LogLevel,
		ShellJob:    &r.ShellJob,
		RstSibling:  &sibling,
	}
	if r.ConfigFile != "" {
		opts.ConfigFile = &r.ConfigFile
	}
	if r.Root != "" {
		opts.Root, opts.External = &r.Root, r.External
	}
	resp, err := w.exchange(&rpc.CriuReq{Type: &typ, Opts: opts})
	if err != nil {
		return 0, err
	}
	if !resp.GetSuccess() {
		return 0, &RestoreError{Errno: unix.Errno(resp.GetCrErrno()), Msg: resp.GetCrErrmsg()}
	}
	if resp.GetType() != typ || resp.GetRestore().GetPid() <= 0 {
		return 0, fmt.Errorf("criu answered a restore with %v, pid %d", resp.GetType(), resp.GetRestore().GetPid())
	}
	return int(resp.GetRestore().GetPid()), nil
}

// exchange sends one request and waits for the answer, or for CRIU's end.
func (w *Worker) exchange(req *rpc.CriuReq) (*rpc.CriuResp, error) {
	b, err := req.MarshalVT()
	if err != nil {
		return nil, err
	}
	if err := ignoreEINTR(func() error { return unix.Send(w.sock, b, unix.MSG_NOSIGNAL) }); err != nil {
		return nil, ended("send to criu", err)
	}
	buf := make([]byte, maxReply)
	var n int
	err = ignoreEINTR(func() (err error) { n, err = unix.Read(w.sock, buf); return err })
	if err != nil {
		return nil, ended("receive from criu", err)
	}
	if n == 0 {
		return nil, errEnded
	}
	resp := new(rpc.CriuResp)
	if err := resp.UnmarshalVT(buf[:n]); err != nil {
		return nil, fmt.Errorf("criu's answer makes no sense: %w", err)
	}
	return resp, nil
}

var errEnded = errors.New("criu ended without an answer: somebody has killed it, or it crashed")

// ended is errEnded if err says that there is nobody at the other end.
func ended(what string, err error) error {
	if err == unix.EPIPE || err == unix.ECONNRESET {
		return errEnded
	}
	return fmt.Errorf("%s: %w", what, err)
}

func ignoreEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// Close ends the conversation; CRIU then ends, whatever it restored goes on.
func (w *Worker) Close() error { return unix.Close(w.sock) }

// Find returns the absolute path of the CRIU to run: given, if it is not empty,
// else the one in PATH.
func Find(given string) (string, error) {
	name := given
	if name == "" {
		name = "criu"
	}
	path, err := exec.LookPath(name)
	if err != nil && given == "" {
		// Root's tools are not in everybody's PATH.
		if path, err = exec.LookPath("/usr/sbin/criu"); err != nil {
			return "", errors.New("criu is not installed: install it, or name one with --criu PATH")
		}
	}
	if err != nil {
		return "", fmt.Errorf("--criu %q: %w", given, bareExec(err))
	}
	if path[0] != '/' {
		wd, err := os.Getwd()
		if err != nil {
			return "", err
		}
		path = wd + "/" + path
	}
	return path, nil
}

func bareExec(err error) error {
	var ee *exec.Error
	if errors.As(err, &ee) {
		return bare(ee.Err)
	}
	return bare(err)
}
