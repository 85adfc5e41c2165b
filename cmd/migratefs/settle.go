package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/whiteout"
	"github.com/migratefs/migratefs/overlay"
)

// settleFlags are the flags of migratefs settle.
type settleFlags struct {
	work      string
	userXattr bool
	json      bool
}

func newSettleCommand() *cobra.Command {
	var f settleFlags
	c := &cobra.Command{
		Use:   "settle [--workdir DIR] UPPERDIR",
		Short: "Make plain directories of the upper of a mount that was detached",
		Long: strings.TrimSpace(`
Make plain directories of the upper directory of a mount that was detached from its source, so that what runs there
next needs no migratefs: whiteouts and the overlay's attributes go, and so does the work directory. The mount must
have been unmounted. Nothing is copied, and nothing of this host's other directories comes into it. Names that were
left on the source are gone afterwards.

A file of which not all is in the upper is in the way: it is listed, and nothing is done. After a crash or an error
the upper can be mounted as before, or settled again.

Exit codes: 0 the directories are plain (or were), 3 something is in the way, 1 it could not be done, 2 the command
line is wrong.`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usageErrorf("migratefs settle: give the upper directory of the mount, got %q", args)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return f.run(c.OutOrStdout(), args[0]) },
	}
	fl := c.Flags()
	fl.StringVar(&f.work, "workdir", "", "the work directory, if the mount named one")
	fl.BoolVar(&f.userXattr, "userxattr", false, "as the mount had it")
	fl.BoolVar(&f.json, "json", false, "print the outcome as one JSON object")
	return c
}

func (f *settleFlags) run(out io.Writer, dir string) error {
	if m, err := findMount(dir); err == nil {
		upper, _, uerr := layersOf(m)
		if uerr != nil {
			upper = "UPPERDIR"
		}
		return fmt.Errorf("%q is mounted: end that with 'migratefs umount %s', then 'migratefs settle %s'", dir, m.point, upper)
	}
	unix.Umask(0)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	st := &stack{o: &options{mode: "overlay", upper: dir, work: f.work}, log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	defer st.unlock()
	for _, step := range []func(context.Context, string) error{st.findDirs, st.lockUpper} {
		if err := step(ctx, ""); err != nil {
			return drainError(err)
		}
	}
	work := f.work
	if work == "" {
		work = defaultWork(st.upper)
	}
	s := overlay.Settle{Upper: int(st.lock.Fd()), Work: -1, Format: whiteout.Trusted}
	if f.userXattr || !isRoot() || !initialUserNS() {
		s.Format = whiteout.User
	}
	// As with a mount, nobody else may work in it meanwhile.
	wd, err := os.OpenFile(work, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	switch {
	case err == nil:
		defer wd.Close()
		s.Work = int(wd.Fd())
		if err := unix.Flock(s.Work, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("work directory %q is in use by a mount: unmount that first", work)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("work directory %q: %w", work, bare(err))
	}
	var inTheWay []string
	s.Failed = func(path layers.Path, why error) {
		inTheWay = append(inTheWay, fmt.Sprintf("%q: %v", "/"+string(path), why))
	}
	done, err := s.Run(ctx)
	switch {
	case errors.Is(err, overlay.ErrUnwhole):
		for i, line := range inTheWay {
			if i == missingShown {
				fmt.Fprintf(os.Stderr, "  and %d more\n", len(inTheWay)-i)
				break
			}
			fmt.Fprintf(os.Stderr, "  %s\n", oneLine(line))
		}
		return &codeError{exitFound, fmt.Errorf("%q is as it was: files that are not whole: %d", dir, len(inTheWay))}
	case errors.Is(err, overlay.ErrAttached):
		return &codeError{exitFound, fmt.Errorf("%q: %w: mount it, and 'migratefs detach' it first (work directory %q)", dir, err, work)}
	case err != nil:
		return fmt.Errorf("%q is not settled: %w: it can be mounted as before, or settled again", dir, err)
	}
	if s.Work >= 0 {
		if err := unix.Rmdir(work); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("%q is plain, and its work directory %q stays: %w", dir, work, err)
		}
	}
	if f.json {
		return json.NewEncoder(out).Encode(done)
	}
	fmt.Fprintf(out, "%q is a plain directory: files: %d; whiteouts removed: %d; attributes removed: %d; names dropped that were left on the source: %d\n",
		dir, done.Files, done.Whiteouts, done.Marks, done.Dropped)
	if done.Nested > 0 {
		fmt.Fprintf(out, "attributes of an overlay that was mounted inside stay escaped: %d\n", done.Nested)
	}
	return nil
}
