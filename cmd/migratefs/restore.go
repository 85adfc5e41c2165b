package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/internal/sys"
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
	maps      []string
	verbose   bool
	tell      restoreTell
	extra     []string // CRIU's

	images     string // absolute, or user@host:/dir
	verify     string
	view       string
	noLocal    bool
	drain      bool
	lazyPages  bool
	force      bool
	checkpoint *criu.Checkpoint
	plan       restorePlan
	id         string
	dir        string // runDir/restore-ID
	daemon     *os.Process
	pages      *os.Process // the helper that brings memory
	leash      *os.File    // the end that daemon and helper get
	hold       *os.File    // our end

	undo []func()
}

func newRestoreCommand() *cobra.Command {
	var r restoreCommand
	c := &cobra.Command{
		Use:   "restore --from [user@]host [--upperdir DIR] [user@host:]IMAGES [-- criu options]",
		Short: "Restore a checkpointed process here, with its files still on the host it came from",
		Long: strings.TrimSpace(`
Restore a process that CRIU dumped on another host. Its files stay there and are
fetched when it touches them; what it changes is written to the upper directory
here, and nothing on the other host is modified. The command returns when the
process runs. IMAGES is the directory that criu dump wrote; as user@host:/dir it
is read there, over the same connection, and nothing of it is copied first.

The process gets mount and pid namespaces of its own. Its root is the view:
the upper, the other host's files, and below both this host's. /proc is fresh;
/sys, /dev, /run and every --bind are this host's. With --view=paths its root is
this host's, and the view is mounted, for it alone, over the smallest directories
that its files lie in; /usr, /etc and the like are this host's and must be the same.

Processes that had mounts of their own (unshare -m, PrivateTmp=, a root directory
by pivot_root), or pids of their own, get them as they were. Where their root
directory and external mounts lie on the source is said with --map, if it is not
the source's own root. A container that runc or an engine dumped is theirs to
restore: see docs/containers.md.

The view stays mounted when the process has ended, so that its results can be
read there; they are in the upper in any case. End it with migratefs umount.

All memory is read before the process runs, but with --lazy-pages: then a page comes
when it is touched, and the rest in the background. Until all is here (migratefs status,
wait --complete) the images must stay as they are, a thread that touches what
cannot be read waits, and the process cannot be dumped. It never sees anything but
what it had: if the helper that brings its memory is killed, it is ended.

With --wait the command stays until the process has ended, passes signals on to
it, and ends with its exit code (128 and the signal's number if one killed it).

What would make the restore fail, as migratefs plan lists it, is said before
anything is touched, or once the images are read that lie on another host.

Exit codes: 0 the process runs, 1 the restore failed, 2 the command line is
wrong, 3 it would fail here for what is said, 32 the view could not be mounted. After a failure everything is as it was
before, but for CRIU's log, whose path is printed; the process can still be
restored where it was dumped.`),
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
	f.StringVar(&r.verify, "verify", "strict", "of files that changed on the source since the dump: strict refuses, warn names them and goes on, off does not look")
	f.StringVar(&r.view, "view", "root", "root: the view is the root of the process; paths: it is mounted over the directories of its files only")
	f.BoolVar(&r.noLocal, "no-local", false, "fetch programs and libraries from the source also where this host has the same")
	f.BoolVar(&r.drain, "drain", false, "when the process runs, have all the rest of its files come in the background, as migratefs drain does")
	f.BoolVar(&r.lazyPages, "lazy-pages", false, "let the process run before its memory is here: a page comes when it is touched, the rest in the background")
	f.BoolVar(&r.force, "force", false, "try it also if something is known that would make it fail")
	f.StringArrayVar(&r.binds, "bind", nil, "take this directory from this host, as /run is (repeatable)")
	f.StringArrayVar(&r.maps, "map", nil, "KEY=/path: of processes with mounts of their own, where the mount of this key or mountpoint lies on the source; / is their root directory (repeatable)")
	f.StringArrayVarP(&r.options, "options", "o", nil, "more mount options for the view")
	f.BoolVar(&r.tell.wait, "wait", false, "stay until the process has ended, and end with its exit code")
	f.StringVar(&r.tell.pidFile, "pidfile", "", "write the pid that the process has outside to this file, which must not be there")
	f.IntVar(&r.tell.statusFd, "status-fd", -1, "write a NUL byte to this descriptor, and close it, when the process runs")
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
	err := r.mountView(ctx)
	if err == nil && r.checkpoint == nil {
		err = r.load(r.imagesDir())
	}
	if err != nil {
		r.rollBack()
		return err
	}
	state, answer, err := r.restore(ctx)
	if err != nil {
		r.rollBack()
		return err
	}
	signals := r.tell.passOn()
	stop()
	r.announce(out, state)
	r.tell.ready()
	if r.drain {
		r.bringRest()
	}
	if r.tell.wait {
		return awaitEnd(answer, state.Pid, signals)
	}
	return nil
}

// check finds everything that is wrong before anything is touched.
func (r *restoreCommand) check() (err error) {
	if isRemote(r.images) {
		t, err := remote.ParseTarget(r.images)
		if err != nil {
			return usageErrorf("%v", err)
		}
		if t.Path = "/"; r.from == "" {
			r.from = t.String()
		}
	}
	if r.from == "" {
		return usageErrorf("migratefs restore: --from is missing: name the host that the process's files are on")
	}
	if err := setVerify(new(options), r.verify); err != nil {
		return err
	}
	if err := setView(new(options), r.view); err != nil {
		return err
	}
	if r.view == "paths" && len(r.binds) > 0 {
		return usageErrorf("--bind is for --view=root: with --view=paths all is this host's but the directories of the process's files")
	}
	if _, err := remote.ParseTarget(sourceTarget(r.from)); err != nil {
		return usageErrorf("--from: %v", err)
	}
	if r.plan.Options, err = criu.ConfigLines(r.extra); err != nil {
		return usageErrorf("%v", err)
	}
	if err := r.tell.check(); err != nil {
		return err
	}
	for i, b := range r.binds {
		if !filepath.IsAbs(b) || filepath.Clean(b) == "/" {
			return usageErrorf("--bind %q: give the absolute path of a directory below /", b)
		}
		r.binds[i] = filepath.Clean(b)
	}
	for _, m := range r.maps {
		if _, _, err := splitMap(m); err != nil {
			return err
		}
	}
	if !isRoot() {
		return errors.New("restoring a process needs root: run migratefs restore as root")
	}
	if r.lazyPages {
		if err := sys.UffdUsable(); err != nil {
			return fmt.Errorf("--lazy-pages: userfaultfd(2): %w: this kernel or what we run in does not have it: restore without --lazy-pages", err)
		}
	}
	if r.plan.Criu, err = criu.Find(r.criuPath); err != nil {
		return err
	}
	if isRemote(r.images) {
		return nil // they are read when they are mounted
	}
	if r.images, err = filepath.Abs(r.images); err != nil {
		return err
	}
	return r.load(r.images)
}

// load reads the images in the directory dir, and refuses what cannot be restored.
func (r *restoreCommand) load(dir string) (err error) {
	r.plan.Images = dir
	if r.checkpoint, err = criu.Load(dir); err != nil {
		return err
	}
	if st, err := os.Stat(dir); err == nil && !st.IsDir() { // CRIU reads directories
		return fmt.Errorf("%q is an archive: have the engine that made it restore it (podman container restore --import), or unpack it and name the directory with the images", r.images)
	}
	if err := r.checkpoint.CheckPages(); err != nil {
		return err
	}
	if r.plan.Options, err = criu.ConfigLines(append(ownOptions(r.checkpoint), r.extra...)); err != nil {
		return usageErrorf("%v", err)
	}
	if r.lazyPages {
		r.plan.Options += "lazy-pages\n"
	}
	if err := r.planMounts(); err != nil {
		return err
	}
	if r.view == "paths" {
		if err := r.planPaths(); err != nil {
			return err
		}
	}
	return r.inTheWay()
}

// inTheWay says what is not as it was, each on a line of its own, and returns an error if
// anything would make the restore fail.
func (r *restoreCommand) inTheWay() error {
	var fatal []string
	for _, o := range r.checkpoint.InTheWay(r.binds, r.extra) {
		line := oneLine(o.String())
		if o.Level == criu.Blocker && !r.force {
			fatal = append(fatal, line)
		} else {
			fmt.Fprintf(os.Stderr, "migratefs: %s\n", line)
		}
	}
	if len(fatal) == 0 {
		return nil
	}
	last := len(fatal) - 1
	for _, line := range fatal[:last] {
		fmt.Fprintf(os.Stderr, "migratefs: %s\n", line)
	}
	return &codeError{exitFound, errors.New(fatal[last])}
}

// ownOptions are the options that CRIU needs since the images are as they are:
// without --file-locks it would leave the locks out and say nothing.
func ownOptions(c *criu.Checkpoint) (args []string) {
	for _, o := range c.Options() {
		if o != "shell-job" { // RestoreRequest.ShellJob
			args = append(args, "--"+o)
		}
	}
	return args
}

func (r *restoreCommand) say(format string, args ...any) {
	if r.verbose {
		fmt.Fprintf(os.Stderr, "migratefs: "+format+"\n", args...)
	}
}

// bringRest has the view bring what the checkpoint names. The process runs: that this cannot
// be is no failure of the restore.
func (r *restoreCommand) bringRest() {
	e := &ended{point: r.plan.View}
	if err := e.begin("drain", false); err != nil {
		err = e.endError(err)
		fmt.Fprintf(os.Stderr, "migratefs: the rest of its files is not fetched in the background: %v: 'migratefs drain %s' does that\n", err, r.plan.View)
	}
}

func (r *restoreCommand) announce(out io.Writer, s *restoreState) {
	comm := r.checkpoint.Tasks[0].Comm
	fmt.Fprintf(out, "process %d (%q) runs, outside as %d\n", r.checkpoint.Tasks[0].PID, comm, s.Pid)
	where := "its root is " + r.plan.View
	if r.plan.InPlace {
		where = "it has this host's root, and another " + strings.Join(r.plan.Paths, ", ")
	}
	fmt.Fprintf(out, "%s, its changes go to %s\n", where, r.upper)
	fmt.Fprintf(out, "when it has ended: migratefs umount %s\n", r.plan.View)
}
