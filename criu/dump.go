package criu

import (
	"fmt"
	"os"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// DumpRequest is what a dump needs to know.
type DumpRequest struct {
	Pid    int      // of the root task, as CRIU sees it
	Images *os.File // directory
	Work   *os.File // directory for CRIU's log
	Log    string   // file name in Work

	LogLevel     int32  // 1 errors to 4 debug
	ShellJob     bool   // see Checkpoint
	FileLocks    bool   // the tasks may hold locks on files, and nobody else does
	LeaveRunning bool   // the tasks go on, else they are killed
	ConfigFile   string // more options, as DumpConfigLines makes them; "" is none

	// Written is called when the images are, while the tasks still stand still. If it
	// returns an error they go on as if nothing had been, and that is what Dump
	// returns.
	Written func() error
}

// DumpError: CRIU could not dump, and the tasks go on. Its log says why.
type DumpError struct {
	Errno unix.Errno // as CRIU has it, or 0
	Msg   string     // likewise, or ""
}

func (e *DumpError) Error() string {
	switch {
	case e.Msg != "":
		return "criu could not dump the process: " + strings.TrimSpace(e.Msg)
	case e.Errno != 0:
		return "criu could not dump the process: " + e.Errno.Error()
	}
	return "criu could not dump the process"
}

// Dump dumps. If CRIU says no it is a *DumpError.
func (w *Worker) Dump(r DumpRequest) error {
	typ := rpc.CriuReqType_DUMP
	imagesFd, workFd, pid := int32(r.Images.Fd()), int32(r.Work.Fd()), int32(r.Pid)
	notify := true
	opts := &rpc.CriuOpts{
		ImagesDirFd:   &imagesFd,
		WorkDirFd:     &workFd,
		Pid:           &pid,
		LogFile:       &r.Log,
		LogLevel:      &r.LogLevel,
		ShellJob:      &r.ShellJob,
		FileLocks:     &r.FileLocks,
		LeaveRunning:  &r.LeaveRunning,
		NotifyScripts: &notify,
	}
	if r.ConfigFile != "" {
		opts.ConfigFile = &r.ConfigFile
	}
	var failed error // Written's
	resp, err := w.exchange(&rpc.CriuReq{Type: &typ, Opts: opts})
	for err == nil && resp.GetType() == rpc.CriuReqType_NOTIFY {
		if resp.GetNotify().GetScript() == "post-dump" && r.Written != nil {
			failed = r.Written()
		}
		typ, ok := rpc.CriuReqType_NOTIFY, failed == nil
		resp, err = w.exchange(&rpc.CriuReq{Type: &typ, NotifySuccess: &ok})
	}
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return err
	case !resp.GetSuccess():
		return &DumpError{Errno: unix.Errno(resp.GetCrErrno()), Msg: resp.GetCrErrmsg()}
	case resp.GetType() != typ:
		return fmt.Errorf("criu answered a dump with %v", resp.GetType())
	}
	return nil
}
