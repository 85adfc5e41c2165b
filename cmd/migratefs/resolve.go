package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/overlay"
)

// resolveFlags are the flags of migratefs resolve.
type resolveFlags struct {
	list       bool
	json       bool
	keepLocal  bool
	yes        bool
	takeSource bool
	aside      string
	discard    bool
}

func newResolveCommand() *cobra.Command {
	var f resolveFlags
	c := &cobra.Command{
		Use:   "resolve {--keep-local [--yes] | --take-source [--aside NAME | --discard]} FILE\n  migratefs resolve --list MOUNTPOINT",
		Short: "Decide about a file that was changed here and on its source",
		Long: `A file that was changed here before all of it had come over, and that its source then changed, too, is in
conflict: what is here of it can be read and written, the rest is ESTALE.

--keep-local makes what is here the file. What only the former version on the source had reads as zeros from then
on; if there is any of that, --yes says that it may be lost.

--take-source takes the data that the source has now; owner, mode and attributes stay as they are here. What was
here is kept beside it as an ordinary file, FILE.local-TIME or the NAME of --aside, with holes for what is missing,
unless --discard gives it up. Nobody may have the file open.`,
		Args: f.args,
		RunE: func(c *cobra.Command, args []string) error {
			if f.list {
				return f.printAll(c.OutOrStdout(), args[0])
			}
			return f.run(c.OutOrStdout(), args[0])
		},
	}
	fl := c.Flags()
	fl.BoolVarP(&f.list, "list", "l", false, "list all files in conflict of the mount that the path is in")
	fl.BoolVar(&f.json, "json", false, "list as JSON, one object on a line")
	fl.BoolVar(&f.keepLocal, "keep-local", false, "what is here is the file")
	fl.BoolVar(&f.yes, "yes", false, "with --keep-local: what is missing may be lost")
	fl.BoolVar(&f.takeSource, "take-source", false, "what the source has now is the file")
	fl.StringVar(&f.aside, "aside", "", "with --take-source: the name, in the same directory, for what was here")
	fl.BoolVar(&f.discard, "discard", false, "with --take-source: what was here is given up")
	return c
}

func (f *resolveFlags) args(_ *cobra.Command, args []string) error {
	words := 0
	for _, given := range []bool{f.list || f.json, f.keepLocal, f.takeSource} {
		if given {
			words++
		}
	}
	f.list = f.list || f.json
	switch {
	case len(args) != 1 || args[0] == "":
		return usageErrorf("migratefs resolve: give one path, got %q", args)
	case words != 1:
		return usageErrorf("migratefs resolve: give one of --keep-local, --take-source and --list")
	case f.yes && !f.keepLocal:
		return usageErrorf("migratefs resolve: --yes goes with --keep-local")
	case (f.aside != "" || f.discard) && !f.takeSource:
		return usageErrorf("migratefs resolve: --aside and --discard go with --take-source")
	case f.aside != "" && f.discard:
		return usageErrorf("migratefs resolve: --aside keeps what --discard gives up: give one of them")
	case strings.Contains(f.aside, "/"):
		return usageErrorf("migratefs resolve: --aside %q: give a name in the directory of the file", f.aside)
	}
	return nil
}

func (f *resolveFlags) run(out io.Writer, path string) error {
	b, err := getXattr(path, overlay.ControlConflict)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%q is not in conflict with its source: 'migratefs resolve --list' says what is", path)
	case err != nil:
		return resolveError(path, err)
	}
	var c overlay.ConflictReport
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("%q: its mount's daemon is of another version: %w", path, err)
	}
	how := overlay.Resolution{KeepLocal: f.keepLocal, Loss: f.yes, Aside: f.aside}
	switch {
	case f.keepLocal && c.Missing > 0 && !f.yes:
		return &codeError{exitFound, fmt.Errorf("%q misses %s (%d bytes of %d), which would read as zeros for good: say --yes, or --take-source", path, bytesText(c.Missing), c.Missing, c.Size)}
	case f.takeSource && f.aside == "" && !f.discard:
		how.Aside = filepath.Base(path) + ".local-" + time.Now().UTC().Format("20060102T150405Z")
	}
	word, err := json.Marshal(how)
	if err != nil {
		return err
	}
	if err := unix.Lsetxattr(path, overlay.ControlResolve, word, 0); err != nil {
		return resolveError(path, err)
	}
	switch {
	case f.keepLocal && c.Missing > 0:
		fmt.Fprintf(out, "%q is what was here; %d bytes of it are zeros\n", path, c.Missing)
	case f.keepLocal:
		fmt.Fprintf(out, "%q is what was here\n", path)
	case how.Aside != "":
		fmt.Fprintf(out, "%q is what the source has; what was here is %q\n", path, filepath.Join(filepath.Dir(path), how.Aside))
	default:
		fmt.Fprintf(out, "%q is what the source has\n", path)
	}
	return nil
}

// resolveError says what an errno of the daemon means.
func resolveError(path string, err error) error {
	why := map[unix.Errno]string{
		unix.EPERM:     "only root, or who runs the mount, may decide",
		unix.EBUSY:     "somebody has it open or mapped: close it first",
		unix.EEXIST:    "the name for what was here is taken: give another with --aside",
		unix.ENOENT:    "there is no such file, here or on the source: see --keep-local",
		unix.ENOTEMPTY: "more of it is missing than a moment ago: look again",
		unix.ENODATA:   "it is not in conflict with its source",
		unix.EIO:       "the source cannot be asked now",
		unix.EROFS:     "the mount is read-only",
	}
	var errno unix.Errno
	if errors.As(err, &errno) && why[errno] != "" {
		return fmt.Errorf("%q: %w: %s", path, err, why[errno])
	}
	return fmt.Errorf("%q: %w", path, err)
}

func getXattr(path, name string) ([]byte, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(path, name, b)
	return b[:max(n, 0)], err
}

// printAll lists all conflicts of the mount that path is in.
func (f *resolveFlags) printAll(out io.Writer, path string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	found := 0
	for page := 0; ; page++ {
		b, err := getXattr(path, fmt.Sprint(overlay.ControlConflicts, page))
		if errors.Is(err, unix.ENODATA) {
			break
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("%q is in no mount of migratefs: name a mountpoint, or a path below one", path)
		}
		if err != nil {
			return resolveError(path, err)
		}
		for line := range bytes.Lines(b) {
			found++
			if f.json {
				if _, err := out.Write(line); err != nil {
					return err
				}
				continue
			}
			var c overlay.ConflictReport
			if err := json.Unmarshal(line, &c); err != nil {
				return err
			}
			fmt.Fprintf(w, "%s\tsince %s\t%s written here\t%s missing of %s\t\"%s\"\n", c.Why, c.Since.Local().Format("2006-01-02 15:04:05"),
				bytesText(c.Written), bytesText(c.Missing), bytesText(c.Size), c.Path)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if found > 0 {
		return &codeError{exitFound, errors.New("")}
	}
	return nil
}
