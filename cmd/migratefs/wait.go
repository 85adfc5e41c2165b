package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/overlay"
)

// waitFlags are the flags of migratefs wait, and of a drain of a source.
type waitFlags struct {
	scopeFlags
	complete bool
	timeout  time.Duration
	json     bool
}

func newWaitCommand() *cobra.Command {
	var f waitFlags
	c := &cobra.Command{
		Use:   "wait --complete [--timeout D] [--all | --changed] MOUNTPOINT [PATH...]",
		Short: "Wait until nothing of a migration is missing here",
		Long: strings.TrimSpace(`
Wait until everything that has to be here has come from the other host, as ordinary files of the upper directory.
What nobody has asked for yet is brought, as by migratefs drain.

` + scopeText + `

It is complete when a look through all of that, after the last file has come, has found nothing missing; a file
of the checkpoint's that was removed here is not missing. What restore --lazy-pages has left of the process's memory
is waited for, too. A source that cannot be reached is waited for. When the
time is over, or the command is interrupted, the mount goes on with it.

Exit codes: 0 nothing is missing, 3 something is (it is listed: it cannot come, or the time is over), 1 it could
not be found out, 2 the command line is wrong.`),
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 || args[0] == "":
				return usageErrorf("migratefs wait: give a mountpoint, or a path below one")
			case !f.complete:
				return usageErrorf("migratefs wait: say what for: --complete")
			case f.timeout < 0:
				return usageErrorf("migratefs wait: --timeout %v is negative", f.timeout)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			e, err := f.findEnd("wait", args)
			if err != nil {
				return err
			}
			return f.run(c.OutOrStdout(), e, nil)
		},
	}
	f.add(c)
	fl := c.Flags()
	fl.BoolVar(&f.complete, "complete", false, "until nothing is missing")
	fl.DurationVar(&f.timeout, "timeout", 0, "wait no longer than this, as 90s or 2h")
	fl.BoolVar(&f.json, "json", false, "print the outcome as one JSON object")
	return c
}

// run has the scope brought up and waits for it.
func (f *waitFlags) run(out io.Writer, e *ended, show func(*overlay.StateReport)) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	s, err := e.source()
	if err != nil {
		return err
	}
	if s.Phase == overlay.Detached {
		return f.end(out, e, s, "it is detached: what was left on the source cannot come")
	}
	s, err = e.run(ctx, "drain", false, show)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return f.end(out, e, s, fmt.Sprintf("not complete after %v", f.timeout))
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted: the mount on %q goes on with it", e.point)
	case err != nil:
		return err
	}
	if err := awaitMemory(ctx, e); err != nil {
		return err
	}
	switch s.Job.Result {
	case overlay.JobWhole, overlay.JobMissing:
		return f.end(out, e, s, "not all of it could be brought")
	case overlay.JobStopped:
		return fmt.Errorf("%q: it was stopped: start it again", e.point)
	}
	return fmt.Errorf("%q: %s", e.point, s.Job.Error)
}

// awaitMemory waits until the memory of the process that was restored in the mount is here.
func awaitMemory(ctx context.Context, e *ended) error {
	for {
		p := readPages(restoreDir(e.point))
		if p == nil {
			return nil
		}
		select {
		case <-time.After(e.poll):
			continue
		case <-ctx.Done():
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &codeError{exitFound, fmt.Errorf("not complete: of the memory of the restored process %s", p.text())}
		}
		return fmt.Errorf("interrupted: the mount on %q goes on with it", e.point)
	}
}

// end prints how it ended.
func (f *waitFlags) end(out io.Writer, e *ended, s *overlay.StateReport, otherwise string) error {
	var names []missingName
	whole := s.Job.Result == overlay.JobWhole && s.Missing.Files == 0 || s.Phase == overlay.Detached && s.Missing.Files == 0
	if !whole {
		var err error
		if names, err = e.missing(); err != nil {
			return err
		}
	}
	if f.json {
		if err := e.printJSON(out, names); err != nil {
			return err
		}
	}
	if whole {
		if !f.json {
			fmt.Fprintf(out, "complete: %s, of which %s\n", s.Scope, amountText(s.Here)+" are here")
		}
		return nil
	}
	if !f.json {
		printMissing(os.Stderr, names, missingShown)
	}
	return &codeError{exitFound, fmt.Errorf("%s: missing of %s: %s", otherwise, s.Scope, amountText(s.Missing))}
}
