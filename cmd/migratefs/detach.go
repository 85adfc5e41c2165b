package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/overlay"
)

// detachFlags are the flags of migratefs detach.
type detachFlags struct {
	scopeFlags
	force  bool
	dryRun bool
	json   bool
}

func newDetachCommand() *cobra.Command {
	var f detachFlags
	c := &cobra.Command{
		Use:   "detach [--force] [--all | --changed] MOUNTPOINT [PATH...]",
		Short: "Let go of the source for good: from then on it may be switched off",
		Long: strings.TrimSpace(`
Let go of the other host. What has to be here is looked through once more; if anything of it is missing, it is
listed and nothing is done. Otherwise the mount never asks that host for anything again, also after a remount and
whatever becomes of it. Processes that use the mount go on.

` + scopeText + `

What the source has besides is left there. Its names are listed as before, and can be removed and replaced; reading
them is EIO, for ever: no other file is shown in their place. --force gives up what is missing as well, and says
what that is.

Exit codes: 0 it is detached, 3 something is missing, 1 it could not be done, 2 the command line is wrong.`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || args[0] == "" {
				return usageErrorf("migratefs detach: give a mountpoint")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			e, err := f.findEnd("detach", args)
			if err != nil {
				return err
			}
			return f.run(c.OutOrStdout(), e)
		},
	}
	f.add(c)
	fl := c.Flags()
	fl.BoolVar(&f.force, "force", false, "also if something is missing: it is lost")
	fl.BoolVarP(&f.dryRun, "dry-run", "n", false, "only say what is missing")
	fl.BoolVar(&f.json, "json", false, "print the outcome as one JSON object")
	return c
}

func (f *detachFlags) run(out io.Writer, e *ended) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	s, err := e.source()
	if err != nil {
		return err
	}
	if s.Phase == overlay.Detached {
		return f.end(out, e, s, nil)
	}
	if p := readPages(restoreDir(e.point)); p != nil {
		return &codeError{exitFound, fmt.Errorf("not detached: of the memory of the restored process %s: it cannot go on without: 'migratefs wait --complete %s' waits for it", p.text(), e.point)}
	}
	if s, err = f.order(ctx, e, "look"); err != nil {
		return err
	}
	names, err := e.missing()
	if err != nil {
		return err
	}
	if !f.json {
		fmt.Fprintf(out, "%s: %s are here, %s are missing\n", s.Scope, amountText(s.Here), amountText(s.Missing))
		if len(names) > 0 && f.force {
			fmt.Fprintln(out, "lost with the source:")
			printMissing(out, names, len(names))
		}
	}
	switch {
	case s.Missing.Files > 0 && !f.force:
		if f.json {
			return cmp.Or(e.printJSON(out, names), error(&codeError{exitFound, f.missing(e, s)}))
		}
		printMissing(os.Stderr, names, missingShown)
		return &codeError{exitFound, f.missing(e, s)}
	case f.dryRun:
		return f.end(out, e, s, names)
	}
	if s, err = f.order(ctx, e, "detach"); err != nil {
		return err
	}
	if s.Phase != overlay.Detached {
		return &codeError{exitFound, f.missing(e, s)}
	}
	return f.end(out, e, s, names)
}

func (f *detachFlags) missing(e *ended, s *overlay.StateReport) error {
	return fmt.Errorf("not detached: missing here: %s: bring it with 'migratefs drain %s', or give it up with --force", amountText(s.Missing), e.point)
}

// order has the daemon do something, which is stopped if the command is.
func (f *detachFlags) order(ctx context.Context, e *ended, do string) (*overlay.StateReport, error) {
	s, err := e.run(ctx, do, f.force, nil)
	switch {
	case errors.Is(err, context.Canceled):
		word, _ := json.Marshal(overlay.EndOrder{Do: "stop"})
		_ = unix.Setxattr(e.point, overlay.ControlEnd, word, 0)
		return nil, errors.New("interrupted: see 'migratefs detach' again for whether it is detached")
	case err != nil:
		return nil, err
	}
	switch s.Job.Result {
	case overlay.JobFailed:
		return nil, fmt.Errorf("%q: %s", e.point, s.Job.Error)
	case overlay.JobStopped:
		return nil, fmt.Errorf("%q: it was stopped: start it again", e.point)
	}
	return s, nil
}

func (f *detachFlags) end(out io.Writer, e *ended, s *overlay.StateReport, names []missingName) error {
	if f.json {
		return e.printJSON(out, names)
	}
	if s.Phase == overlay.Detached {
		fmt.Fprintf(out, "detached: no source is asked any more; names left there, in directories that are known here: %d\n", s.Left)
	}
	return nil
}
