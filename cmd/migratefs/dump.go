package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/internal/sys"
)

// dumpCommand is `migratefs dump`: dump a process, also one that migratefs restore has
// restored, with CRIU in there with it.
type dumpCommand struct {
	dir          string
	criuPath     string
	leaveRunning bool
	verbose      bool
	extra        []string // CRIU's

	pid      int
	restored *restoreState // nil: the process is not one of ours
	view     string        // the root that it then has
	made     bool          // dir was made by this dump
	images   *os.File      // dir, locked
	state    string        // directory for what the helper needs
	plan     dumpPlan
}

func newDumpCommand() *cobra.Command {
	var d dumpCommand
	c := &cobra.Command{
		Use:   "dump -D DIR PID [-- criu options]",
		Short: "Dump a process with CRIU, also one that migratefs restored",
		Long: strings.TrimSpace(`
Dump the process PID and its children with CRIU into the directory DIR, which is
made, or is empty. PID is its number on this host: of a process that migratefs
restore has restored, the one that is called "outside". CRIU is run in the
namespaces that the process lives in, and ends it.

The images of a restored process say where its files are on this host, below the
mount that it had as its root. That mount stays, and goes on fetching what it has
not got yet: leave it until the process has all of its files where it went.
Restore it there with

  migratefs restore --from THIS-HOST IMAGES

also where it came from. Images are on the disk before the process is ended.

Exit codes: 0 the process is dumped, 1 it could not be dumped and goes on as it
was, 2 the command line is wrong. After a failure DIR holds CRIU's log only, but
for one after the images were whole: they stay, and the message says so.`),
		Args: func(c *cobra.Command, args []string) error {
			n := c.ArgsLenAtDash()
			if n < 0 {
				n = len(args)
			}
			if n != 1 {
				return usageErrorf("migratefs dump: want the number of one process, got %q", args[:n])
			}
			pid, err := strconv.Atoi(args[0])
			if err != nil || pid <= 0 {
				return usageErrorf("migratefs dump: %q is no number of a process", args[0])
			}
			d.pid, d.extra = pid, args[1:]
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return d.run(c.OutOrStdout()) },
	}
	f := c.Flags()
	f.StringVarP(&d.dir, "images-dir", "D", "", "where the images are written: a directory that is empty, or is not there")
	f.StringVar(&d.criuPath, "criu", "", "the criu to use (default: the one in PATH)")
	f.BoolVar(&d.leaveRunning, "leave-running", false, "let the process go on here as well: then there are two of it")
	f.BoolVarP(&d.verbose, "verbose", "v", false, "have CRIU log more")
	return c
}

func (d *dumpCommand) run(out io.Writer) error {
	if err := d.check(); err != nil {
		return err
	}
	if err := d.prepare(); err != nil {
		d.cleanUp(true)
		return err
	}
	// CRIU is not stopped half-way: it would leave its own code in the process.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		for range signals {
			fmt.Fprintln(os.Stderr, "migratefs: the dump is not interrupted, since the process would not be as it was: wait for its end")
		}
	}()
	comm := processName(d.pid)
	rep, err := d.dump()
	if err == nil && rep.Error != "" {
		err = d.explain(rep)
	}
	if err = d.finish(err); err != nil {
		return err
	}
	d.announce(out, comm)
	return nil
}

// check finds everything that is wrong before anything is touched.
func (d *dumpCommand) check() (err error) {
	if d.dir == "" {
		return usageErrorf("migratefs dump: -D is missing: name the directory that the images are written to")
	}
	if d.plan.Options, err = criu.DumpConfigLines(d.extra); err != nil {
		return usageErrorf("%v", err)
	}
	if !isRoot() {
		return errors.New("dumping a process needs root: run migratefs dump as root")
	}
	if d.plan.Criu, err = criu.Find(d.criuPath); err != nil {
		return err
	}
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return err
	}
	return d.find()
}

// find finds out which process is meant, and in what it lives.
func (d *dumpCommand) find() error {
	if len(nsPids(d.pid)) == 0 {
		return fmt.Errorf("process %d: there is none of that number, or it is just ending", d.pid)
	}
	d.plan.Pid = d.pid
	d.plan.LogLevel = 3
	if d.verbose {
		d.plan.LogLevel = 4
	}
	d.plan.LeaveRunning = d.leaveRunning
	dir, s := restoreOf(d.pid)
	switch {
	case s != nil && s.Init == d.pid:
		return fmt.Errorf("process %d is migratefs's own, in which the restored process %d lives: dump that", d.pid, s.Pid)
	case s != nil && readPages(dir) != nil:
		return fmt.Errorf("process %d: of its memory %s: 'migratefs wait --complete %s' waits until it can be dumped", d.pid, readPages(dir).text(), filepath.Join(dir, "root"))
	case s != nil:
		d.restored, d.view = s, filepath.Join(dir, "root")
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		d.plan.Enter, d.plan.Origin = true, &criu.Origin{Host: host, Root: d.view}
		// The view is this process's alone, and so are the locks on its files.
		d.plan.Pid, d.plan.FileLocks, d.plan.ShellJob = inPidNamespace(d.pid, s.Init), true, s.ShellJob
		return nil
	}
	for _, kind := range []string{"pid", "mnt"} {
		theirs, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", d.pid, kind))
		ours, err2 := os.Readlink("/proc/self/ns/" + kind)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if theirs != ours && !hasOurRoot(d.pid) {
			return fmt.Errorf("process %d lives in a %s namespace of its own, with another root directory, that is not of migratefs restore: it is a container, have its runtime dump it (runc checkpoint, podman container checkpoint; criu dump, if it has none)", d.pid, kind)
		}
	}
	return nil
}

// hasOurRoot reports whether the root directory of a process is this one's, in whatever
// mount namespace: such a process is no container.
func hasOurRoot(pid int) bool {
	var theirs, ours unix.Stat_t
	return unix.Stat(fmt.Sprintf("/proc/%d/root", pid), &theirs) == nil && unix.Stat("/", &ours) == nil &&
		theirs.Dev == ours.Dev && theirs.Ino == ours.Ino
}

// prepare makes the directories. What the images hold is for root only.
func (d *dumpCommand) prepare() error {
	err := os.Mkdir(d.dir, 0o700)
	made := err == nil
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("image directory %q: %w", d.dir, bare(err))
	}
	if err := d.lock(); err != nil {
		return err
	}
	d.made = made
	if made {
		if err := syncDir(filepath.Dir(d.dir)); err != nil {
			return fmt.Errorf("image directory %q could not be made durable: %w", d.dir, bare(err))
		}
	}
	entries, err := os.ReadDir(inside(d.images, ""))
	if err != nil {
		return fmt.Errorf("image directory %q: %w", d.dir, bare(err))
	}
	for _, e := range entries {
		if e.Name() != dumpLog { // of a dump that failed
			return fmt.Errorf("image directory %q is not empty, it has %q: name another", d.dir, e.Name())
		}
		// CRIU would write where a symlink leads.
		if err := os.Remove(inside(d.images, dumpLog)); err != nil {
			return fmt.Errorf("image directory %q: the log of a former dump: %w", d.dir, bare(err))
		}
	}
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return fmt.Errorf("state directory %q: %w", runDir, bare(err))
	}
	if d.state, err = os.MkdirTemp(runDir, "dump-"); err != nil {
		return fmt.Errorf("state directory in %q: %w", runDir, bare(err))
	}
	d.plan.State = d.state
	return nil
}

// lock keeps other dumps out of the directory: who fails removes what is in it. The
// helper has the lock as well, so that it holds for as long as somebody writes there.
func (d *dumpCommand) lock() (err error) {
	if d.images, err = os.Open(d.dir); err != nil {
		return fmt.Errorf("image directory %q: %w", d.dir, bare(err))
	}
	// Where there are no locks, as of directories on NFS, nobody is kept out.
	err = sys.Flock(int(d.images.Fd()), unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("image directory %q: another dump is writing to it: name another", d.dir)
	}
	return nil
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

// wholeMark is a file in the state directory: the images are whole, and on the disk.
const wholeMark = "whole"

// finish cleans up after a dump that ended with err. Images that were whole by then stay,
// since the process may have ended: they are the only one of it.
func (d *dumpCommand) finish(err error) error {
	whole := err != nil && d.whole()
	d.cleanUp(err != nil && !whole)
	if whole {
		return fmt.Errorf("process %d: the dump failed at its very end, when the images in %s were whole: they stay; restore them only if the process is gone: %w", d.pid, d.dir, err)
	}
	return err
}

func (d *dumpCommand) whole() bool {
	_, err := os.Stat(filepath.Join(d.state, wholeMark))
	return !errors.Is(err, os.ErrNotExist)
}

// cleanUp removes what only the dump needed; of a dump that failed all but CRIU's log.
func (d *dumpCommand) cleanUp(failed bool) {
	if d.state != "" {
		_ = os.RemoveAll(d.state)
	}
	if !failed || d.state == "" && !d.made {
		return // what is in there is not ours
	}
	entries, _ := os.ReadDir(inside(d.images, ""))
	for _, e := range entries {
		if e.Name() != dumpLog {
			_ = os.RemoveAll(inside(d.images, e.Name()))
		}
	}
	if d.made {
		_ = os.Remove(d.dir) // unless there is a log
	}
}

// explain makes CRIU's refusal one line that says why, and where to read more.
func (d *dumpCommand) explain(rep *dumpReport) error {
	log := filepath.Join(d.dir, dumpLog)
	if !rep.Refused {
		said, _ := os.ReadFile(filepath.Join(d.state, helperLog))
		if len(said) > 0 {
			return fmt.Errorf("%s: it printed %q", rep.Error, clipped(said))
		}
		return errors.New(rep.Error)
	}
	f, err := os.Open(inside(d.images, dumpLog))
	if err != nil {
		return fmt.Errorf("%s: its log is missing: %w", rep.Error, err)
	}
	defer f.Close()
	if d.whole() {
		return fmt.Errorf("criu failed: %s (whole log: %s)", criu.DumpSummary(criu.LogErrors(f)), log)
	}
	return fmt.Errorf("criu could not dump process %d, which goes on as it was: %s (whole log: %s)", d.pid, criu.DumpSummary(criu.LogErrors(f)), log)
}

func (d *dumpCommand) announce(out io.Writer, comm string) {
	fmt.Fprintf(out, "process %d (%q) is dumped, its images are in %s\n", d.pid, comm, d.dir)
	if d.restored != nil {
		fmt.Fprintf(out, "its files are in %s: leave that mounted until they are all where it goes on\n", d.view)
	}
	if d.leaveRunning {
		fmt.Fprintf(os.Stderr, "migratefs: process %d goes on here: restored elsewhere it would be there twice, and both take the same files for theirs: end one of them\n", d.pid)
	}
}

// clipped is the end of what a program has printed.
func clipped(b []byte) string {
	const most = 500
	return strings.TrimSpace(string(b[max(0, len(b)-most):]))
}

// processName is the name that a process shows, or "".
func processName(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSuffix(string(b), "\n")
}
