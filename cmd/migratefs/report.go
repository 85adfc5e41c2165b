package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/control"
)

func newReportCommand() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:   "report -o FILE MOUNTPOINT",
		Short: "Write a page about a mount: how it went, what moved, what is missing, what was slow",
		Long: `Write a page about a mount, to look at or to hand on: its state over time, what moved, what is missing, at risk or in
conflict, the slowest files, latencies, errors by kind, options and versions.

It is one HTML file that needs nothing else: no script, and nothing from the network. Names of files are in it, so only
its owner may read it; one that was there is replaced, at once.

Exit codes: 0 it is written, 1 there is no such mount, its daemon does not answer, or the file cannot be written, 2 the
command line is wrong.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) != 1:
				return usageErrorf("migratefs report: give one mountpoint, got %q", args)
			case to == "":
				return usageErrorf("migratefs report: give a file to write with -o, or -o - for standard output")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return report(c.OutOrStdout(), args[0], to) },
	}
	c.Flags().StringVarP(&to, "output", "o", "", "the file to write; - for standard output")
	_ = c.MarkFlagFilename("output", "html")
	return c
}

func report(out io.Writer, point, to string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	m, err := findOne(point)
	if err != nil {
		return err
	}
	told, err := askReport(ctx, m)
	if err != nil {
		return m.failed(err)
	}
	if to == "-" {
		return told.write(out)
	}
	if err := writeWhole(to, told.write); err != nil {
		return fmt.Errorf("%q: %w: the report is not written", to, bare(err))
	}
	return nil
}

// reportData is what a daemon tells for a report.
type reportData struct {
	seen      *seenMount
	now       time.Time
	kernel    string
	history   control.History
	slow      []control.Slow
	missing   control.Missing
	conflicts control.Conflicts
	latencies control.Latencies
}

func askReport(ctx context.Context, m *seenMount) (*reportData, error) {
	defer m.client.Close()
	if m.ask(ctx); m.err != nil {
		return nil, m.err
	}
	r := &reportData{seen: m}
	var slow struct{ Slow []control.Slow }
	for path, into := range map[string]any{
		"/v1/history": &r.history, "/v1/slow": &slow, "/v1/missing": &r.missing, "/v1/conflicts": &r.conflicts, "/v1/latencies": &r.latencies,
	} {
		// A mount goes on with the program that it began with, which may know less.
		if err := m.client.Get(ctx, path, into); err != nil && !errors.Is(err, control.ErrUnknown) {
			return nil, err
		}
	}
	r.slow, r.now = slow.Slow, time.Now()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	return r, nil
}

// writeWhole has write make the content of the file at path, which shows its old or its
// new content at any time. What is no file, as /dev/null, is written to.
func writeWhole(path string, write func(io.Writer) error) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // what a symlink is to, is replaced
	}
	switch st, err := os.Stat(path); {
	case err == nil && st.IsDir():
		return unix.EISDIR
	case err == nil && !st.Mode().IsRegular():
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".migratefs-report-*") // its mode is 0600
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = unix.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
