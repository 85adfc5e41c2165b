package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/overlay"
)

// ofSource reports whether the drain is of a mount with a lower on another host.
func (f *drainFlags) ofSource(c *cobra.Command, args []string) (e *ended, ok bool, err error) {
	asked := f.all || f.changed
	if len(f.options) > 0 || len(args) == 0 {
		if asked {
			return nil, false, usageErrorf("migratefs drain: --all and --changed are for a mountpoint")
		}
		return nil, false, nil
	}
	if e, err = f.findEnd("drain", args); err != nil {
		return nil, false, err
	}
	s, err := e.state()
	switch {
	case (err != nil || s.Phase == overlay.Local) && asked:
		return nil, false, usageErrorf("migratefs drain: --all and --changed are for a mount with a lower on another host")
	case err != nil || s.Phase == overlay.Local:
		return nil, false, nil // what it is, the rest finds out
	}
	for _, name := range []string{"newer", "older", "time", "min-size", "max-size", "user", "group", "shard", "jobs", "bwlimit", "max-load", "max-pressure", "count", "dry-run", "checksum"} {
		if c.Flags().Changed(name) {
			return nil, false, usageErrorf("migratefs drain: --%s is for lowers on this host (the mount option fill_rate= bounds what comes from another)", name)
		}
	}
	return e, true, nil
}

// drainSource has the mount bring what its scope misses.
func (f *drainFlags) drainSource(out io.Writer, e *ended) error {
	_, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
	terminal := err == nil
	every := time.Minute
	if terminal {
		every = time.Second
	}
	began := time.Now()
	last := began
	show := func(s *overlay.StateReport) {
		if time.Since(last) < every {
			return
		}
		last = time.Now()
		line := fmt.Sprintf("here: %s; missing: %s", amountText(s.Here), amountText(s.Missing))
		if s.Away != "" {
			line += "; the source cannot be reached"
		}
		if terminal {
			fmt.Fprintf(os.Stderr, "\r\x1b[K%s", line)
		} else {
			fmt.Fprintln(os.Stderr, line)
		}
	}
	w := waitFlags{json: f.json}
	err = w.run(out, e, show)
	if terminal && last != began {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	return err
}
