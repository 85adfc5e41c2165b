package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/control"
)

// topFlags are the flags of migratefs top.
type topFlags struct {
	json     bool
	interval time.Duration
	times    int
	lines    int
}

func newTopCommand() *cobra.Command {
	var f topFlags
	c := &cobra.Command{
		Use:   "top [--interval TIME] [-n TIMES] MOUNTPOINT",
		Short: "Show which processes and files cause traffic, waiting and copy-ups, as it happens",
		Long: `Show which processes and files cause traffic, waiting and copy-ups, as it happens: what was done since the last
time, those that waited most first. It is noted only while somebody looks.

What the kernel reads and writes by itself is not seen: files of the upper on a disk of this host (passthrough), and
what is in its cache.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) != 1:
				return usageErrorf("migratefs top: give one mountpoint, got %q", args)
			case f.interval < 100*time.Millisecond || f.interval > 10*time.Second:
				return usageErrorf("migratefs top: --interval %v: give 100ms to 10s", f.interval)
			case f.times < 0 || f.lines < 1:
				return usageErrorf("migratefs top: --times and --lines are numbers from 1 on")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return f.run(c.OutOrStdout(), args[0]) },
	}
	fl := c.Flags()
	fl.BoolVar(&f.json, "json", false, "as JSON, one object on a line each time: sums since it began to look")
	fl.DurationVar(&f.interval, "interval", 2*time.Second, "how often")
	fl.IntVarP(&f.times, "times", "n", 0, "end after so many times; 0: go on until interrupted")
	fl.IntVar(&f.lines, "lines", 10, "so many processes, and so many files")
	return c
}

func (f *topFlags) run(out io.Writer, point string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	m, err := findOne(point)
	if err != nil {
		return err
	}
	var before control.Top
	if err := m.client.Get(ctx, "/v1/top", &before); err != nil {
		return m.failed(err)
	}
	terminal := isTerminal(os.Stdout) && f.times != 1 && !f.json
	for i := 0; f.times == 0 || i < f.times; i++ {
		if sleep(ctx, f.interval) != nil {
			return nil
		}
		var raw []byte
		if f.json {
			if err := m.client.Get(ctx, "/v1/top", &raw); err != nil {
				return orInterrupted(ctx, m.failed(err))
			}
			if _, err := out.Write(append(bytes.TrimSpace(raw), '\n')); err != nil {
				return err
			}
			continue
		}
		var now control.Top
		if err := m.client.Get(ctx, "/v1/top", &now); err != nil {
			return orInterrupted(ctx, m.failed(err))
		}
		if terminal {
			fmt.Fprint(out, "\x1b[H\x1b[2J")
		} else if i > 0 {
			fmt.Fprintln(out)
		}
		width, height := 0, 0
		if terminal {
			width, height = terminalSize(out)
		}
		f.show(out, point, &before, &now, width, height)
		before = now
	}
	return nil
}

// orInterrupted is no error if ctx has ended.
func orInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// show prints what was done between two looks, on a terminal of that size; 0: there is
// none.
func (f *topFlags) show(out io.Writer, point string, before, now *control.Top, width, height int) {
	took := now.Seconds - before.Seconds
	if took <= 0 { // nobody looked for a while, and it began anew
		before, took = &control.Top{}, max(now.Seconds, 0.001)
	}
	fmt.Fprintln(out, cutTo(fmt.Sprintf("%s, in the last %.1f s", shownName(point), took), width))
	lines := f.lines
	if height > 0 { // two tables, and what is around them
		lines = min(lines, max(1, (height-6)/2))
	}
	processes := table[*control.Doing]{columns: doingColumns, title: "PROCESS"}
	files := table[*control.Doing]{columns: doingColumns, title: "FILE", paths: true}
	rows := between(before.Processes, now.Processes)
	for i := range rows[:min(len(rows), lines)] {
		who := fmt.Sprintf("%d %s", rows[i].PID, onLine(string(rows[i].Program)))
		if rows[i].PID == 0 {
			who = "(of another pid namespace, or the kernel)"
		}
		processes.add(&rows[i], who)
	}
	processes.print(out, width)
	fmt.Fprintln(out)
	rows = between(before.Files, now.Files)
	for i := range rows[:min(len(rows), lines)] {
		files.add(&rows[i], "/"+onLine(string(rows[i].Path)))
	}
	files.print(out, width)
	if now.Dropped > before.Dropped {
		fmt.Fprintln(out, cutTo(fmt.Sprintf("(%d that did less were dropped: there was no room for them)", now.Dropped-before.Dropped), width))
	}
}

func someBytes(n int64) string {
	if n == 0 {
		return ""
	}
	return bytesText(n)
}

// shortTime is a time in seconds, as ms where it is short.
func shortTime(s float64) string {
	if s < 10 {
		return fmt.Sprintf("%.1f ms", s*1000)
	}
	return fmt.Sprintf("%.1f s", s)
}

// between is what was done between two looks, those that waited most first.
func between(before, now []control.Doing) (rows []control.Doing) {
	type key struct {
		pid  uint32
		path string
	}
	was := map[key]control.Doing{}
	for _, d := range before {
		was[key{d.PID, string(d.Path)}] = d
	}
	for _, d := range now {
		old := was[key{d.PID, string(d.Path)}]
		if old.Requests <= d.Requests {
			d.Requests -= old.Requests
			d.Failed -= old.Failed
			d.Waited -= old.Waited
			d.Read -= old.Read
			d.Written -= old.Written
			d.Fetched -= old.Fetched
			d.CopyUps -= old.CopyUps
			d.Copied -= old.Copied
		}
		if d.Requests > 0 || d.Fetched > 0 || d.CopyUps > 0 {
			rows = append(rows, d)
		}
	}
	slices.SortStableFunc(rows, func(a, b control.Doing) int { return cmp.Compare(b.Waited, a.Waited) })
	return rows
}
