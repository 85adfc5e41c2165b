package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/overlay"
)

// What drain, wait and detach have in common: a mount, a scope in it, and a daemon that
// is told what to do and asked how far it is.

// scopeFlags are the flags that say what has to be here.
type scopeFlags struct {
	all     bool
	changed bool
}

func (f *scopeFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.all, "all", false, "everything the source has (the default, but with criu=)")
	c.Flags().BoolVar(&f.changed, "changed", false, "only what was changed here, or is open")
}

const scopeText = `What has to be here is, without a PATH: of a mount with a checkpoint (criu=, restore) the files that the
checkpoint names and every file and symlink that was used since; of any other mount everything the source has.
What was changed here, and what is open, belongs to it in any case.`

// ended is a mount whose end is near.
type ended struct {
	point string
	order overlay.EndOrder // with the scope
	raw   json.RawMessage  // the last state, as it was told
	poll  time.Duration
}

// findEnd finds the mount that the arguments mean, and the scope in it.
func (f *scopeFlags) findEnd(what string, args []string) (*ended, error) {
	if f.all && f.changed {
		return nil, usageErrorf("migratefs %s: give one of --all and --changed", what)
	}
	m, sub, err := mountOver(args[0])
	if err != nil {
		return nil, err
	}
	e := &ended{point: m.point, poll: 50 * time.Millisecond}
	paths := []layers.Path{}
	if sub != layers.Root {
		paths = append(paths, sub)
	}
	for _, arg := range args[1:] {
		p := arg
		if !filepath.IsAbs(p) {
			p = filepath.Join(m.point, p)
		}
		// A name that is not there would be a scope of nothing, which is always here.
		in, sub, err := mountOver(p)
		if err != nil {
			return nil, err
		}
		if in.point != m.point {
			return nil, usageErrorf("migratefs %s: %q is not in the mount on %q", what, arg, m.point)
		}
		paths = append(paths, sub)
	}
	switch {
	case len(paths) > 0 && (f.all || f.changed):
		return nil, usageErrorf("migratefs %s: --all and --changed are for the whole mount: give no path with them", what)
	case len(paths) > 0:
		e.order.Scope = overlay.ScopePaths
		for _, p := range paths {
			e.order.Paths = append(e.order.Paths, []byte(p))
		}
	case f.all:
		e.order.Scope = overlay.ScopeAll
	case f.changed:
		e.order.Scope = overlay.ScopeChanged
	}
	return e, nil
}

// state asks the daemon.
func (e *ended) state() (*overlay.StateReport, error) {
	b, err := getXattr(e.point, overlay.ControlState)
	if err != nil {
		return nil, e.endError(err)
	}
	e.raw = bytes.Clone(b)
	var s overlay.StateReport
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%q: its daemon is of another version: %w", e.point, err)
	}
	return &s, nil
}

// source is state for a mount that has a lower on another host.
func (e *ended) source() (*overlay.StateReport, error) {
	s, err := e.state()
	if err == nil && s.Phase == overlay.Local {
		err = fmt.Errorf("every layer of the mount on %q is on this host: there is no source to wait for or to let go of (of a migration between local directories, 'migratefs drain' is the end)", e.point)
	}
	return s, err
}

// endError says what an errno of the daemon means.
func (e *ended) endError(err error) error {
	why := map[unix.Errno]string{
		unix.EPERM:      "only root, or who runs the mount, may",
		unix.EROFS:      "the mount has no upperdir that anything could be brought to: mount it with one",
		unix.EOPNOTSUPP: "its daemon does not know how: it is of an older version, or no mount of migratefs",
		unix.ENODATA:    "every layer is on this host",
		unix.EINVAL:     "its daemon is of another version",
		unix.ENOTCONN:   "its daemon has ended: mount it again",
	}
	var errno unix.Errno
	if errors.As(err, &errno) && why[errno] != "" {
		return fmt.Errorf("%q: %w: %s", e.point, err, why[errno])
	}
	return fmt.Errorf("%q: %w", e.point, err)
}

// begin has the daemon begin to do something. EBUSY: it does something else.
func (e *ended) begin(do string, force bool) error {
	e.order.Do, e.order.Force = do, force
	word, err := json.Marshal(e.order)
	if err != nil {
		return err
	}
	return unix.Setxattr(e.point, overlay.ControlEnd, word, 0)
}

// run has the daemon do something, and returns how that ended. show, if not nil, is
// called while it is under way. If ctx ends, what is under way goes on.
func (e *ended) run(ctx context.Context, do string, force bool, show func(*overlay.StateReport)) (*overlay.StateReport, error) {
	for {
		before, err := e.state()
		if err != nil {
			return nil, err
		}
		err = e.begin(do, force)
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return before, e.endError(err)
		}
		for {
			s, serr := e.state()
			if serr != nil {
				return nil, serr
			}
			if err == nil && s.Job.ID != before.Job.ID && s.Job.Result != "" {
				return s, nil
			}
			if err != nil && s.Job.Result != "" {
				break // what kept us from it has ended
			}
			if show != nil {
				show(s)
			}
			select {
			case <-ctx.Done():
				return s, ctx.Err()
			case <-time.After(e.poll):
			}
		}
	}
}

// endOutcome is what wait, drain and detach print with --json: what the daemon told.
type endOutcome struct {
	Migration json.RawMessage   `json:"migration"`
	Missing   []json.RawMessage `json:"missing"`
}

func (e *ended) printJSON(out io.Writer, names []missingName) error {
	o := endOutcome{Migration: e.raw, Missing: []json.RawMessage{}}
	for _, m := range names {
		o.Missing = append(o.Missing, m.raw)
	}
	return json.NewEncoder(out).Encode(o)
}

// missingName is something that is missing, and as it was told.
type missingName struct {
	overlay.MissingReport
	raw json.RawMessage
}

// missing lists what the daemon knows to be missing.
func (e *ended) missing() (all []missingName, err error) {
	for page := 0; ; page++ {
		b, err := getXattr(e.point, fmt.Sprint(overlay.ControlMissing, page))
		if errors.Is(err, unix.ENODATA) {
			return all, nil
		}
		if err != nil {
			return nil, e.endError(err)
		}
		for line := range bytes.Lines(b) {
			m := missingName{raw: bytes.TrimSpace(bytes.Clone(line))}
			if err := json.Unmarshal(line, &m.MissingReport); err != nil {
				return nil, err
			}
			all = append(all, m)
		}
	}
}

// missingShown is how many names are printed where nobody has asked for all.
const missingShown = 20

func printMissing(out io.Writer, all []missingName, most int) {
	for i, m := range all {
		if i == most {
			fmt.Fprintf(out, "  and %d more\n", len(all)-i)
			return
		}
		path, why := fmt.Sprintf("\"/%s\"", m.Path), ""
		if m.Path == "" {
			path = "a file without a name"
		}
		if m.Why != "" {
			why = ": " + oneLine(string(m.Why))
		}
		fmt.Fprintf(out, "  %s, %s%s\n", path, bytesText(m.Bytes), why)
	}
}

func amountText(a overlay.Amount) string {
	return fmt.Sprintf("%d files, %s", a.Files, bytesText(a.Bytes))
}
