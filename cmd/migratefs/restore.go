package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/layers/remote"
)

// restoreCommand is `migratefs restore`: mount the view, restore in it.
type restoreCommand struct {
	from      string
	upper     string
	criuPath  string
	sshConfig string
	options   []string
	binds     []string
	verbose   bool
	extra     []string // CRIU's

	images     string // absolute
	checkpoint *criu.Checkpoint
	plan       restorePlan
	id         string
	dir        string // runDir/restore-ID
	daemon     *os.Process

	undo []func()
}

func newRestoreCommand() *cobra.Command {
	var r restoreCommand
	c := &cobra.Command{
		Use:   "restore --from [user@]host [--upperdir DIR] IMAGES [-- criu options]",
		Short: "Restore a checkpointed process here, with its files still on the host it came from",
		Long: strings.TrimSpace(`
Restore a process that CRIU dumped on another host. Its files stay there and are
fetched when it touches them; what it changes is written to the upper directory
here, and nothing on the other host is modified. The command returns when the
process runs.

The process gets mount and pid namespaces of its own. Its root is the view:
the upper, the other host's files, and below both this host's. /proc is fresh;
/sys, /dev, /run and every --bind are this host's.

The view stays mounted when the process has ended, so that its results can be
read there; they are in the upper in any case. End it with migratefs umount.

Exit codes: 0 the process runs, 1 the restore failed, 2 the command line is
wrong, 32 the view could not be mounted. After a failure everything is as it was
before, but for CRIU's log, whose path is printed.`),
		Args: func(c *cobra.Command, args []string) error {
			n := c.ArgsLenAtDash()
			if n < 0 {
				n = len(args)
			}
			if n != 1 {
				return usageErrorf("migratefs restore: want one image directory, got %q", args[:n])
			}
			r.images, r.extra = args[0], args[1:]
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return r.run(c.OutOrStdout()) },
	}
	f := c.Flags()
	f.StringVar(&r.from, "from", "", "the host the process comes from: [user@]host, ssh://[user@]host[:port]")
	f.StringVar(&r.upper, "upperdir", "", "where changes are written (default "+varDir+"/ID/upper)")
	f.StringVar(&r.criuPath, "criu", "", "the criu to use (default: the one in PATH)")
	f.StringVar(&r.sshConfig, "ssh-config", "", "configuration file for ssh")
	f.StringArrayVar(&r.binds, "bind", nil, "take this directory from this host, as /run is (repeatable)")
	f.StringArrayVarP(&r.options, "options", "o", nil, "more mount options for the view")
	f.BoolVarP(&r.verbose, "verbose", "v", false, "say what is done; keep CRIU's log")
	return c
}

func (r *restoreCommand) run(out io.Writer) error {
	if err := r.check(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := r.prepare(); err != nil {
		r.rollBack()
		return err
	}
	if err := r.mountView(ctx); err != nil {
		r.rollBack()
		return err
	}
	state, err := r.restore(ctx)
	if err != nil {
		r.rollBack()
		return err
	}
	r.announce(out, state)
	return nil
}

// check finds everything that is wrong before anything is touched.
func (r *restoreCommand) check() (err error) {
	if r.from == "" {
		return usageErrorf("migratefs restore: --from is missing: name the host that the process's files are on")
	}
	if _, err := remote.ParseTarget(r.source()); err != nil {
		return usageErrorf("--from: %v", err)
	}
	if r.plan.Options, err = criu.ConfigLines(r.extra); err != nil {
		return usageErrorf("%v", err)
	}
	for i, b := range r.binds {
		if !filepath.IsAbs(b) || filepath.Clean(b) == "/" {
			return usageErrorf("--bind %q: give the absolute path of a directory below /", b)
		}
		r.binds[i] = filepath.Clean(b)
	}
	if !isRoot() {
		return errors.New("restoring a process needs root: run migratefs restore as root")
	}
	if r.images, err = filepath.Abs(r.images); err != nil {
		return err
	}
	if r.checkpoint, err = criu.Load(r.images); err != nil {
		return err
	}
	if err := r.checkpoint.CheckPages(); err != nil {
		return err
	}
	if r.checkpoint.MountNS || r.checkpoint.PidNS {
		return fmt.Errorf("checkpoint %q is of a container (it brings mount or pid namespaces of its own): mount its files with -o criu=, and restore it with what made it (runc restore, say)", r.images)
	}
	r.plan.Criu, err = criu.Find(r.criuPath)
	return err
}

// source is --from as a lower.
func (r *restoreCommand) source() string {
	if rest, ok := strings.CutPrefix(r.from, "ssh://"); ok {
		if !strings.Contains(rest, "/") {
			return r.from + "/"
		}
		return r.from
	}
	if strings.Contains(r.from, ":") {
		return r.from
	}
	return r.from + ":/"
}

// prepare makes the directories. Each is undone if the restore fails.
func (r *restoreCommand) prepare() error {
	var b [6]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	r.id = hex.EncodeToString(b[:])
	r.dir = filepath.Join(runDir, "restore-"+r.id)
	r.plan.View = filepath.Join(r.dir, "root")
	r.plan.State = filepath.Join(r.dir, "criu")
	if r.upper == "" {
		r.upper = filepath.Join(varDir, r.id, "upper")
		if err := r.mkdir(filepath.Dir(r.upper)); err != nil {
			return err
		}
	}
	var err error
	if r.upper, err = filepath.Abs(r.upper); err != nil {
		return err
	}
	if err := r.makeUpper(); err != nil {
		return err
	}
	for _, d := range []string{r.dir, r.plan.View, r.plan.State} {
		if err := r.mkdir(d); err != nil {
			return err
		}
	}
	return nil
}

// makeUpper makes the upper if it is not there. One that this restore has made
// goes again, with its work directory, if the restore fails: all that is in
// them is of a process that never ran.
func (r *restoreCommand) makeUpper() error {
	err := os.Mkdir(r.upper, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("upper %q: %w", r.upper, bare(err))
	}
	made := []string{r.upper}
	if work := defaultWork(r.upper); !isBelow(work, r.upper) {
		if _, err := os.Lstat(work); errors.Is(err, os.ErrNotExist) {
			made = append(made, work)
		}
	}
	r.undo = append(r.undo, func() {
		if _, mounted := mountAt(r.plan.View); mounted {
			return
		}
		for _, dir := range made {
			_ = os.RemoveAll(dir)
		}
	})
	return nil
}

// mkdir makes a directory that only root gets into, with its parents.
func (r *restoreCommand) mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state directory %q: %w", dir, bare(err))
	}
	r.undo = append(r.undo, func() { _ = os.Remove(dir) })
	return nil
}

// rollBack undoes what was done, the last first. CRIU's log stays.
func (r *restoreCommand) rollBack() {
	for _, f := range slices.Backward(r.undo) {
		f()
	}
	r.undo = nil
}

// mountView mounts the overlay by a daemon in the background, in this mount
// namespace: the daemon and its ssh must never live in the view they serve.
func (r *restoreCommand) mountView(ctx context.Context) error {
	opts := []string{
		"criu=" + escapeOption(r.images), "lowerdir=" + escapeOption(r.source()),
		"upperdir=" + escapeOption(r.upper), "view=root", "hard",
	}
	if r.sshConfig != "" {
		abs, err := filepath.Abs(r.sshConfig)
		if err != nil {
			return err
		}
		opts = append(opts, "ssh_config="+escapeOption(abs))
	}
	args := []string{"-o", strings.Join(opts, ",")}
	for _, o := range r.options {
		args = append(args, "-o", o)
	}
	r.undo = append(r.undo, r.unmount)
	daemon, text, err := startDaemon(ctx, append(args, "--", r.plan.View))
	r.daemon = daemon
	if ctx.Err() != nil {
		return errInterrupted
	}
	if err == nil {
		r.say("%s", strings.TrimPrefix(text, "migratefs: "))
	}
	return err
}

var errInterrupted = errors.New("interrupted: everything is as it was before")

// escapeOption quotes what separates options and lowers.
func escapeOption(v string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(v)
}

// unmount ends the view, if it is mounted, and waits for the end of its daemon.
func (r *restoreCommand) unmount() {
	if m, ok := mountAt(r.plan.View); ok {
		if err := unmount(m.point, howToUnmount{}); err != nil {
			_ = unmount(m.point, howToUnmount{lazy: true})
		}
	}
	if r.daemon != nil {
		_, _ = r.daemon.Wait()
	}
}

// restore starts the helper in namespaces of its own and waits for its report.
func (r *restoreCommand) restore(ctx context.Context) (*restoreState, error) {
	r.plan.Images = r.images
	r.plan.Binds = r.binds
	r.plan.ShellJob = r.checkpoint.ShellJob
	r.plan.LogLevel = 3 // the log is all there is if something goes wrong
	if r.verbose {
		r.plan.LogLevel = 4
	}
	init, answer, err := r.startInit()
	if err != nil {
		return nil, err
	}
	kill := func() { _ = init.Process.Kill() } // and with it everything in there
	stop := context.AfterFunc(ctx, kill)
	b, err := io.ReadAll(io.LimitReader(answer, 1<<20))
	_ = answer.Close()
	stop()
	var rep restoreReport
	if err == nil && len(b) == 0 {
		err = errors.New("the restore ended without a word: see " + r.keepLog())
	}
	if err == nil {
		err = json.Unmarshal(b, &rep)
	}
	if err == nil && rep.Error != "" {
		err = r.explain(&rep)
	}
	if ctx.Err() != nil {
		err = errInterrupted
	}
	if err != nil {
		kill()
		_ = init.Wait()
		return nil, err
	}
	s := &restoreState{
		Init: init.Process.Pid, Started: startTime(init.Process.Pid), Pid: outerPid(init.Process.Pid, rep.Pid),
		Images: r.images, From: r.from, Upper: r.upper,
	}
	if err := s.save(r.dir); err != nil {
		kill()
		_ = init.Wait()
		return nil, err
	}
	r.say("criu %s restored pid %d", rep.Criu, rep.Pid)
	_ = init.Process.Release()
	return s, nil
}

// startInit starts the helper. Answer carries its report.
func (r *restoreCommand) startInit() (init *exec.Cmd, answer *os.File, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	plan, err := json.Marshal(&r.plan)
	if err != nil {
		return nil, nil, err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer pr.Close()
	defer pw.Close()
	answer, aw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer aw.Close()
	log, err := os.OpenFile(filepath.Join(r.plan.State, helperLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		_ = answer.Close()
		return nil, nil, err
	}
	defer log.Close()
	ns, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		_ = answer.Close()
		return nil, nil, err
	}
	defer ns.Close()
	cmd := exec.Command(self, "restore-init", "--above", fmt.Sprint(freePids(r.checkpoint)))
	cmd.Stdout, cmd.Stderr = log, log
	if r.plan.ShellJob {
		cmd.Stdin = os.Stdin // the terminal that CRIU gives to the job
	}
	cmd.ExtraFiles = []*os.File{pr, aw, ns}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = answer.Close()
		return nil, nil, fmt.Errorf("new mount and pid namespaces: %w", err)
	}
	if _, err := pw.Write(plan); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = answer.Close()
		return nil, nil, err
	}
	return cmd, answer, nil
}

// freePids returns a pid above which a few hundred are not the checkpoint's: for
// the helper's and CRIU's own threads and children.
func freePids(c *criu.Checkpoint) uint32 {
	const room = 500
	var taken []uint32
	for _, t := range c.Tasks {
		taken = append(taken, t.PID, t.PGID, t.SID)
		taken = append(taken, t.Threads...)
	}
	slices.Sort(taken)
	for i, pid := range taken {
		if pid >= 300 && pid < 30000 && (i+1 == len(taken) || taken[i+1]-pid > room) {
			return pid
		}
	}
	if taken[0] > 300+room {
		return 300
	}
	return 31000
}

// explain makes CRIU's refusal one line that says why, and where to read more.
func (r *restoreCommand) explain(rep *restoreReport) error {
	log := r.keepLog()
	if !rep.Refused {
		return errors.New(rep.Error)
	}
	f, err := os.Open(log)
	if err != nil {
		return fmt.Errorf("%s: its log is missing: %w", rep.Error, err)
	}
	defer f.Close()
	// CRIU's answer holds the first error of its log, which means little.
	return fmt.Errorf("criu could not restore the process: %s (whole log: %s)", criu.Summary(criu.LogErrors(f)), log)
}

// keepLog returns the path of CRIU's log, and removes what is beside it.
func (r *restoreCommand) keepLog() string {
	log := filepath.Join(r.plan.State, criuLog)
	r.undo = append(r.undo, func() {
		_ = os.RemoveAll(filepath.Join(r.plan.State, toolsDir))
		for _, name := range []string{criuConf, pluginsDir} {
			_ = os.Remove(filepath.Join(r.plan.State, name))
		}
		if st, err := os.Stat(filepath.Join(r.plan.State, helperLog)); err == nil && st.Size() == 0 {
			_ = os.Remove(filepath.Join(r.plan.State, helperLog))
		}
	})
	return log
}

func (r *restoreCommand) say(format string, args ...any) {
	if r.verbose {
		fmt.Fprintf(os.Stderr, "migratefs: "+format+"\n", args...)
	}
}

func (r *restoreCommand) announce(out io.Writer, s *restoreState) {
	comm := r.checkpoint.Tasks[0].Comm
	fmt.Fprintf(out, "process %d (%q) runs, outside as %d\n", r.checkpoint.Tasks[0].PID, comm, s.Pid)
	fmt.Fprintf(out, "its root is %s, its changes go to %s\n", r.plan.View, r.upper)
	fmt.Fprintf(out, "when it has ended: migratefs umount %s\n", r.plan.View)
}
