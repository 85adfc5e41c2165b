package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
)

// restore starts the helper in namespaces of its own, waits for its report, and lets
// it go. Answer carries what it says later.
func (r *restoreCommand) restore(ctx context.Context) (*restoreState, *json.Decoder, error) {
	r.placeMounts()
	r.plan.Binds = r.binds
	r.plan.ShellJob = r.checkpoint.ShellJob
	r.plan.Wait = r.tell.wait
	r.plan.Lazy = r.lazyPages
	r.plan.LogLevel = 3 // the log is all there is if something goes wrong
	if r.verbose {
		r.plan.LogLevel = 4
	}
	init, pipe, err := r.startInit(ctx)
	if ctx.Err() != nil && err != nil {
		err = errInterrupted
	}
	if err != nil {
		return nil, nil, err
	}
	answer := json.NewDecoder(pipe)
	kill := func() { _ = init.Process.Kill() } // and with it everything in there
	stop := context.AfterFunc(ctx, kill)
	s, err := r.report(answer, init.Process.Pid)
	if !stop() {
		err = errInterrupted
	}
	if err == nil {
		err = r.letGo()
	}
	if err != nil {
		kill()
		_ = init.Wait()
		_ = pipe.Close()
		r.endPages()
		return nil, nil, err
	}
	if !r.lazyPages { // else they are read for a while yet
		r.unmountImages()
	}
	_ = init.Process.Release()
	return s, answer, nil
}

// report waits for what the helper, which is init outside, says of the restore, and
// writes it down.
func (r *restoreCommand) report(answer *json.Decoder, init int) (*restoreState, error) {
	var rep restoreReport
	switch err := answer.Decode(&rep); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the helper that restores ended without a word: somebody has killed it, or " + r.keepLog() + " says why")
	case err != nil:
		return nil, err
	case rep.Error != "":
		return nil, r.explain(&rep)
	}
	r.say("criu %s restored pid %d", rep.Criu, rep.Pid)
	s := &restoreState{
		Init: init, Started: startTime(init), Pid: outerPid(init, rep.Pid),
		Images: r.images, From: r.from, Upper: r.upper, ShellJob: r.plan.ShellJob,
	}
	if s.Pid == 0 {
		return nil, fmt.Errorf("process %d ended as soon as it was restored: see %s", rep.Pid, r.keepLog())
	}
	if err := s.save(r.dir); err != nil {
		return nil, fmt.Errorf("what was restored cannot be written down: %w", err)
	}
	r.undo = append(r.undo, func() { _ = os.Remove(filepath.Join(r.dir, stateFile)) })
	return s, r.tell.writePid(s.Pid)
}

// letGo lets daemon and helper off the leash: what was done stays.
func (r *restoreCommand) letGo() error {
	_, err := r.hold.Write(make([]byte, leashed))
	return err
}

// startInit starts the helper. Answer carries its reports.
func (r *restoreCommand) startInit(ctx context.Context) (init *exec.Cmd, answer *os.File, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	plan, err := json.Marshal(&r.plan)
	if err != nil {
		return nil, nil, err
	}
	var theirs []*os.File // closed here in any case, so that we see their end
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer pw.Close()
	theirs = append(theirs, pr)
	ours, aw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	theirs = append(theirs, aw)
	defer func() {
		if err != nil {
			_ = ours.Close()
		}
	}()
	log, err := os.OpenFile(filepath.Join(r.plan.State, helperLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	theirs = append(theirs, log)
	ns, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return nil, nil, err
	}
	theirs = append(theirs, ns)
	cmd := exec.Command(self, "restore-init", "--above", fmt.Sprint(freePids(r.checkpoint)))
	cmd.Stdout, cmd.Stderr = log, log
	if r.plan.ShellJob {
		cmd.Stdin = os.Stdin // the terminal that CRIU gives to the job
	}
	cmd.ExtraFiles = []*os.File{pr, aw, ns, r.leash}
	var memory *os.File // the end of who has it, open as long as they live
	if r.lazyPages {
		mr, mw, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		theirs = append(theirs, mr, mw)
		cmd.ExtraFiles, memory = append(cmd.ExtraFiles, mr), mw
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Setsid: true}
	if err = cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("new mount and pid namespaces: %w", err)
	}
	_ = pr.Close() // or a helper that dies would have us wait
	if r.lazyPages {
		err = r.startPages(ctx, cmd.Process.Pid, memory)
	}
	if err == nil {
		if _, err = pw.Write(plan); err != nil {
			err = fmt.Errorf("the helper that restores ended before it knew what to do: %w", err)
		}
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		r.endPages()
		return nil, nil, err
	}
	return cmd, ours, nil
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
	if _, err := os.Stat(log); !rep.Refused && err == nil {
		return fmt.Errorf("%s (CRIU's log: %s)", rep.Error, log)
	}
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
		for _, name := range []string{criuConf, pluginsDir, newRootDir} {
			_ = os.Remove(filepath.Join(r.plan.State, name))
		}
		if st, err := os.Stat(filepath.Join(r.plan.State, helperLog)); err == nil && st.Size() == 0 {
			_ = os.Remove(filepath.Join(r.plan.State, helperLog))
		}
	})
	return log
}
