package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/overlay"
)

// drainFlags are the flags of migratefs drain, as given.
type drainFlags struct {
	options      []string
	newer, older string
	clock        string
	minSize      string
	maxSize      string
	users        []string
	groups       []string
	shard        string
	jobs         int
	bandwidth    string
	maxLoad      float64
	maxPressure  float64
	count        bool
	dryRun       bool
	checksum     bool
	json         bool

	scopeFlags // of a mount with a lower on another host
}

func newDrainCommand() *cobra.Command {
	var f drainFlags
	c := &cobra.Command{
		Use:   "drain [flags] MOUNTPOINT|PATH, or drain [flags] -o lowerdir=...,upperdir=... [SUBDIR]",
		Short: "Bring up what nobody touches, until the lower is empty",
		Long: strings.TrimSpace(`
Bring up what still lies in the lowers of a migration, and remove it there. This works beside mounts, on
any host that has the layers, and needs none: it is one host more. It can be ended at any time and started
again, and several can work at once (--shard).

  migratefs drain /scratch
  migratefs drain --older 90d --bwlimit 200M --max-load 8 /scratch/projects
  migratefs drain -o lowerdir=/oldscratch,upperdir=/newscratch --shard 3/16

Of a mount with a lower on another host, which is never changed, it brings up what has to be here before that
host may be switched off, and waits for it: see migratefs wait, and then migratefs detach. The mount goes on with
it if the command is ended.

Exit codes: 0 nothing of what was meant is left, 3 something is, 1 it could not be done, 2 the command line
is wrong.`),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 0 && len(f.options) == 0 {
				return usageErrorf("migratefs drain: give one mountpoint, or a path below one, or -o lowerdir=...,upperdir=...")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if e, ok, err := f.ofSource(c, args); ok || err != nil {
				if err != nil {
					return err
				}
				return f.drainSource(c.OutOrStdout(), e)
			}
			return f.run(c.OutOrStdout(), strings.Join(args, ""))
		},
	}
	s := c.Flags()
	s.StringArrayVarP(&f.options, "options", "o", nil, "the layers, as the mount has them, where there is no mount")
	s.StringVar(&f.newer, "newer", "", "only files changed since: an age as 12h or 30d, or a date as 2026-01-31")
	s.StringVar(&f.older, "older", "", "only files not changed since")
	s.StringVar(&f.clock, "time", "mtime", "the time that --newer and --older go by: mtime, atime or ctime")
	s.StringVar(&f.minSize, "min-size", "", "only files of so many bytes at least, as 10M")
	s.StringVar(&f.maxSize, "max-size", "", "only files of so many bytes at most")
	s.StringSliceVar(&f.users, "user", nil, "only files of these users, by name or number")
	s.StringSliceVar(&f.groups, "group", nil, "only files of these groups")
	s.StringVar(&f.shard, "shard", "", "I/N: the I-th, from 0, of N parts of the work, for drains on several hosts")
	s.IntVar(&f.jobs, "jobs", 8, "files under way at once")
	s.StringVar(&f.bandwidth, "bwlimit", "", "bytes a second, as 200M")
	s.Float64Var(&f.maxLoad, "max-load", 0, "pause while the load average of the last minute is higher")
	s.Float64Var(&f.maxPressure, "max-pressure", 0, "pause while more than so many percent of the time some task waits for I/O")
	s.BoolVar(&f.count, "count", false, "count first what there is to move, for an estimate of the time it takes")
	s.BoolVar(&f.dryRun, "dry-run", false, "change nothing: say what would move")
	s.BoolVar(&f.checksum, "checksum", false, "read each copy back and compare before the lower one goes")
	s.BoolVar(&f.json, "json", false, "print the outcome as one JSON object")
	s.BoolVar(&f.all, "all", false, "of a lower on another host: everything that it has (the default, but with criu=)")
	s.BoolVar(&f.changed, "changed", false, "of a lower on another host: only what was changed here, or is open")
	return c
}

func (f *drainFlags) run(out io.Writer, arg string) error {
	cfg, pace, err := f.config()
	if err != nil {
		return err
	}
	o, sub, err := f.layers(arg)
	if err != nil {
		return err
	}
	if err := mayDrain(o); err != nil {
		return err
	}
	cfg.Path = sub
	unix.Umask(0)
	if isRoot() {
		_ = sys.DropCapability(unix.CAP_SYS_RESOURCE) // it overrides quotas
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	defer stop()
	cfg.Hold, cfg.Pace = pace.hold, pace.moved

	st, err := openDrain(ctx, o, f.dryRun)
	if err != nil {
		return drainError(err)
	}
	defer st.abandon()
	show := newDrainShow(out, f.json, f.dryRun)
	show.partly, show.lowers = partly(&cfg), o.lowers
	cfg.Seen, cfg.Failed = &show.seen, show.failed
	if !f.dryRun {
		defer show.report(st, f.shard)()
	}
	if f.count || f.dryRun {
		count := cfg
		count.Seen = &show.total
		if f.dryRun {
			count.Seen = &show.seen
		}
		show.start("counting")
		err = overlay.CountDrain(ctx, st.lowers, count)
		show.stop()
	}
	if err == nil && !f.dryRun {
		show.guess(st)
		show.start("")
		err = st.fs.Drain(ctx, cfg)
		show.stop()
	}
	return show.end(err)
}

// partly reports whether not all that is in the lowers is meant.
func partly(cfg *overlay.DrainConfig) bool {
	return !cfg.Select.All() || cfg.Shards > 1 || cfg.Path != ""
}

// mayDrain refuses what has nothing to drain.
func mayDrain(o *options) error {
	for _, l := range o.lowers {
		if l.remote {
			return fmt.Errorf("the lower %q is on another host: what is brought from there its mount brings: give the mountpoint, without -o", l.text)
		}
	}
	switch {
	case o.upper == "":
		return errors.New("without upperdir nothing can be brought up: give the layers as the migration has them")
	case o.mode != "migrate":
		return errors.New("in mode=overlay lowers are never changed: drain is for mode=migrate, and for mounts with a lower on another host")
	}
	return nil
}

// openDrain opens the layers as a mount does, but for a mountpoint; for a dry run
// the lowers alone, and nothing is made.
func openDrain(ctx context.Context, o *options, dry bool) (*stack, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	st := &stack{o: o, log: log}
	steps := []func(context.Context, string) error{st.findDirs, st.overlaps, st.lockUpper, st.openLowers, st.openWork, st.assemble}
	if dry {
		steps = []func(context.Context, string) error{st.findDirs, st.overlaps, st.openLowers}
	}
	for _, step := range steps {
		if err := step(ctx, ""); err != nil {
			st.abandon()
			return nil, err
		}
	}
	return st, nil
}

// drainError is err for a command that mounts nothing.
func drainError(err error) error {
	var ce *codeError
	if !errors.As(err, &ce) || ce.code != exitMount {
		return err
	}
	if strings.Contains(err.Error(), "in use by another mount") {
		return fmt.Errorf("%w; drain works beside mounts with hosts=many", ce.err)
	}
	return ce.err
}
