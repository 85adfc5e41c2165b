package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/control"
)

// statusFlags are the flags of migratefs status.
type statusFlags struct {
	json     bool
	whole    bool
	watch    bool
	interval time.Duration
}

func newStatusCommand() *cobra.Command {
	var f statusFlags
	c := &cobra.Command{
		Use:   "status [--verbose] [--json] [--watch] [MOUNTPOINT]",
		Short: "Say how a mount is, or all of this host",
		Long: `Say how a mount is: its layers and whether they can be reached, how much is here and how much is missing, what
would be lost if the source died now, how long it will take, what went wrong last. Of several mounts it is a line each;
--verbose, or to name one, says all.

It ends with 3 if something needs attention: a daemon that does not answer, a layer that cannot be reached, memory of
a restored process that does not come, or files in conflict.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return usageErrorf("migratefs status: give one mountpoint, or none for all, got %q", args)
			case f.whole && (f.json || f.watch):
				return usageErrorf("migratefs status: --verbose goes with neither --json, which has everything, nor --watch")
			case f.interval < 100*time.Millisecond:
				return usageErrorf("migratefs status: --interval %v: give at least 100ms", f.interval)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			point := ""
			if len(args) == 1 {
				point = args[0]
			}
			return f.run(c.OutOrStdout(), point)
		},
	}
	fl := c.Flags()
	fl.BoolVar(&f.json, "json", false, "as JSON, one object on a line for each mount")
	fl.BoolVarP(&f.whole, "verbose", "v", false, "all of each mount, also of several")
	fl.BoolVarP(&f.watch, "watch", "w", false, "go on, until interrupted: a picture on a terminal, else a line now and then")
	fl.DurationVar(&f.interval, "interval", time.Second, "with --watch: how often")
	return c
}

// seen is one mount as it is found.
type seenMount struct {
	mountInfo
	client    *control.Client
	elsewhere bool            // it is not in this mount namespace
	status    *control.Status // nil: err says why
	raw       []byte
	err       error
}

// findMounts finds the mounts of this namespace, and those of others whose daemons
// answer here. With a point, only the one on that.
func findMounts(point string) ([]*seenMount, error) {
	if point != "" {
		m, err := findMount(point)
		if err == nil {
			return []*seenMount{newSeen(m)}, nil
		}
		for _, s := range elsewhere(nil) {
			if s.ask(context.Background()); s.status != nil && string(s.status.Mountpoint) == quotedText(point) {
				return []*seenMount{s}, nil
			}
		}
		return nil, fmt.Errorf("%w: 'migratefs status' lists what is", err)
	}
	ms, err := mounts()
	if err != nil {
		return nil, err
	}
	var all []*seenMount
	have := map[string]bool{}
	for _, m := range ms {
		if m.fsType == fsType && !have[m.dev] {
			have[m.dev] = true
			all = append(all, newSeen(m))
		}
	}
	return append(all, elsewhere(have)...), nil
}

func newSeen(m mountInfo) *seenMount {
	dir, uid := socketDirOf(m)
	return &seenMount{mountInfo: m, client: &control.Client{Dir: dir, Device: m.dev, UID: uid}}
}

// elsewhere finds sockets of mounts that are not among those known.
func elsewhere(known map[string]bool) (all []*seenMount) {
	dir := socketDir()
	if dir == "" {
		return nil
	}
	for _, dev := range control.Devices(dir) {
		if !known[dev] {
			s := &seenMount{
				mountInfo: mountInfo{dev: dev, fsType: fsType}, elsewhere: true,
				client: &control.Client{Dir: dir, Device: dev, UID: os.Geteuid()},
			}
			all = append(all, s)
		}
	}
	return all
}

// ask asks the daemon how the mount is.
func (s *seenMount) ask(ctx context.Context) {
	s.status, s.err = nil, s.client.Get(ctx, "/v1/status", &s.raw)
	if s.err != nil {
		return
	}
	var st control.Status
	switch err := json.Unmarshal(s.raw, &st); {
	case err != nil:
		s.err = fmt.Errorf("its daemon is of another version: %w", err)
	case st.Device != s.dev:
		s.err = control.ErrNoDaemon
	default:
		s.status = &st
		if s.elsewhere {
			s.point = string(st.Mountpoint)
		}
	}
}

// askAll asks all daemons at once. What is not mounted here and does not answer is
// no mount.
func askAll(ctx context.Context, all []*seenMount) []*seenMount {
	done := make(chan struct{})
	for _, s := range all {
		go func() {
			s.ask(ctx)
			done <- struct{}{}
		}()
	}
	for range all {
		<-done
	}
	return slices.DeleteFunc(all, func(s *seenMount) bool { return s.elsewhere && s.status == nil })
}

// quotedText is a name as JSON answers have it.
func quotedText(s string) string {
	q := fmt.Sprintf("%q", s)
	return q[1 : len(q)-1]
}

func (f *statusFlags) run(out io.Writer, point string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if f.watch {
		return f.watchMounts(ctx, out, point)
	}
	all, err := findMounts(point)
	if err != nil {
		return err
	}
	all = askAll(ctx, all)
	if len(all) == 0 && !f.json {
		fmt.Fprintln(out, "nothing is mounted")
		return nil
	}
	if f.json {
		for _, s := range all {
			if err := f.printJSON(out, s); err != nil {
				return err
			}
		}
		return attention(all)
	}
	slices.SortFunc(all, func(a, b *seenMount) int { return cmp.Compare(a.point, b.point) })
	if len(all) > 1 && !f.whole {
		width, _ := terminalSize(out)
		showTable(out, all, width)
		return attention(all)
	}
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(out)
		}
		showMount(out, s, time.Now())
	}
	return attention(all)
}

func (f *statusFlags) printJSON(out io.Writer, s *seenMount) error {
	if s.status != nil {
		_, err := out.Write(append(bytes.TrimSpace(s.raw), '\n'))
		return err
	}
	b, err := json.Marshal(map[string]any{"mountpoint": quotedText(s.point), "device": s.dev, "error": s.err.Error()})
	if err != nil {
		return err
	}
	_, err = out.Write(append(b, '\n'))
	return err
}

// attention is what the command ends with: the mounts that somebody should look at.
func attention(all []*seenMount) error {
	var need []string
	for _, s := range all {
		if why := s.needs(); why != "" {
			need = append(need, fmt.Sprintf("%q %s", s.point, why))
		}
	}
	if len(need) == 0 {
		return nil
	}
	return &codeError{exitFound, errors.New(strings.Join(need, "; "))}
}

// needs says what somebody should look at; "" if nothing.
func (s *seenMount) needs() string {
	if s.status == nil {
		return s.why()
	}
	for i := range s.status.Layers {
		if l := &s.status.Layers[i]; !l.Reachable {
			return fmt.Sprintf("cannot reach its %s %s", l.Role, l.Name)
		}
	}
	if p := s.status.Memory; p != nil && p.Why != "" {
		return "has a process that waits for its memory, which does not come"
	}
	if n := s.status.Fill.Conflicts; n > 0 {
		return fmt.Sprintf("has %d in conflict with the source: see 'migratefs resolve --list'", n)
	}
	return ""
}

// why says why a mount's daemon has told nothing, and what to do.
func (s *seenMount) why() string {
	switch {
	case errors.Is(s.err, control.ErrNoDaemon) && isDead(s.point):
		return "is dead, its daemon has ended: 'migratefs umount' takes it away"
	case errors.Is(s.err, control.ErrNoDaemon):
		return "is served by a daemon without a control socket: one of an older version, or mounted without XDG_RUNTIME_DIR"
	case errors.Is(s.err, control.ErrForbidden):
		return fmt.Sprintf("is user %d's: only they and root may ask its daemon", s.owner())
	}
	return fmt.Sprintf("does not answer: %v", s.err)
}
