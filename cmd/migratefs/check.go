package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers/whiteout"
	"github.com/migratefs/migratefs/overlay"
)

// checkFlags are the flags of migratefs check.
type checkFlags struct {
	mode      string
	work      string
	userXattr bool
	repair    bool
	json      bool
	keepLower bool
	trashDays int
}

func newCheckCommand() *cobra.Command {
	f := checkFlags{}
	c := &cobra.Command{
		Use:   "check [--repair] [--json] [--mode MODE] [--workdir DIR] UPPER [LOWER...]",
		Short: "Look at an upper that is not mounted, and say what is wrong with it",
		Long: `Look at the directory UPPER of mounts that have ended, at its work directory and, as far as they are given, at
the lowers (directories of this host, highest first), and say what is not as a mount leaves it: leftovers of
crashes, names in two layers, notes that lead nowhere, files whose content is gone. What is said to be mended,
--repair mends; all else is for people. Without --repair nothing is changed.

Exit codes: 0 nothing is wrong (any more), 3 something is, 1 it could not be looked at.`,
		Args: f.args,
		RunE: func(c *cobra.Command, args []string) error { return f.run(c.OutOrStdout(), args[0], args[1:]) },
	}
	fl := c.Flags()
	fl.StringVar(&f.mode, "mode", "", "migrate or overlay, where the upper does not tell")
	fl.StringVar(&f.work, "workdir", "", "the work directory, in overlay mode; by default where a mount has it")
	fl.BoolVar(&f.userXattr, "userxattr", false, "the mounts have userxattr, or are not root's")
	fl.BoolVar(&f.repair, "repair", false, "mend what has one right answer")
	fl.BoolVar(&f.json, "json", false, "print each finding as a JSON object on a line, and the sum at the end")
	fl.BoolVar(&f.keepLower, "keep-lower", false, "the mounts have keep_lower: lower copies stay")
	fl.IntVar(&f.trashDays, "trash-days", -1, "the mounts have trash_days=N: what is older is expired")
	return c
}

func (f *checkFlags) args(_ *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return usageErrorf("migratefs check: give the upper, and the lowers if they are at hand")
	case f.mode != "" && f.mode != "migrate" && f.mode != "overlay":
		return usageErrorf("migratefs check: --mode %q: want migrate or overlay", f.mode)
	case f.trashDays < -1:
		return usageErrorf("migratefs check: --trash-days %d: want a number of days", f.trashDays)
	}
	for _, dir := range args[1:] {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) && strings.Contains(dir, ":") {
			return usageErrorf("migratefs check: lower %q: directories of this host only; leave out what lies on others", dir)
		}
	}
	return nil
}

func (f *checkFlags) run(out io.Writer, upper string, lowers []string) error {
	cfg, err := f.config(upper, lowers)
	if err != nil {
		return err
	}
	unix.Umask(0)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	unlock, err := lockUnmounted(cfg.Upper, upper, f.repair)
	if err != nil {
		return err
	}
	defer unlock()
	report, err := f.check(ctx, out, cfg)
	if err != nil {
		return fmt.Errorf("check of %q: %w", upper, err)
	}
	if f.json {
		_ = json.NewEncoder(out).Encode(map[string]overlay.CheckReport{"sum": report})
	}
	if left := report.Found - report.Repaired; left > 0 {
		return &codeError{exitFound, fmt.Errorf("%q: %d things are not as they should be: see above", upper, left)}
	}
	return nil
}

// check looks and, with --repair, mends, until there is nothing more to mend: what
// is mended may bring to light what else leads nowhere. What then is left is told
// by a last look that changes nothing.
func (f *checkFlags) check(ctx context.Context, out io.Writer, cfg overlay.CheckConfig) (sum overlay.CheckReport, err error) {
	const enough = 8
	for round := 0; f.repair && round < enough; round++ {
		cfg.Repair = true
		cfg.Found = func(x overlay.Finding) {
			if x.Done || x.Error != "" {
				f.tell(out, x)
			}
		}
		r, err := overlay.Check(ctx, cfg)
		sum.Repaired += r.Repaired
		if err != nil {
			return sum, err
		}
		if r.Repaired == 0 {
			break
		}
	}
	cfg.Repair = false
	cfg.Found = func(x overlay.Finding) { f.tell(out, x) }
	r, err := overlay.Check(ctx, cfg)
	r.Found += sum.Repaired
	r.Repaired = sum.Repaired
	return r, err
}

func (f *checkFlags) tell(out io.Writer, x overlay.Finding) {
	if f.json {
		_ = json.NewEncoder(out).Encode(x)
		return
	}
	text := fmt.Sprintf("%s: %s %q: %s", x.Kind, x.Where, string(x.Path), x.Means)
	switch {
	case x.Done:
		text += ": " + x.Mends
	case x.Error != "":
		text += ": could not be mended: " + x.Error
	case x.Mends != "":
		text += " (--repair: " + x.Mends + ")"
	}
	fmt.Fprintln(out, oneLine(text))
}

func (f *checkFlags) config(upper string, lowers []string) (cfg overlay.CheckConfig, err error) {
	cfg = overlay.CheckConfig{Format: whiteout.Trusted, KeepLower: f.keepLower, TrashDays: f.trashDays}
	if f.userXattr || !isRoot() || !initialUserNS() {
		cfg.Format = whiteout.User
	}
	if cfg.Upper, err = existingDir("upper", upper); err != nil {
		return cfg, err
	}
	all := []namedDir{{"upper", upper, cfg.Upper}}
	for _, dir := range lowers {
		real, err := existingDir("lower", dir)
		if err != nil {
			return cfg, err
		}
		all = append(all, namedDir{"lower", dir, real})
		cfg.Lowers = append(cfg.Lowers, real)
	}
	st := &stack{dirs: all}
	if err := st.overlaps(context.Background(), ""); err != nil {
		return cfg, failed(err)
	}
	return cfg, f.findMode(&cfg, upper)
}

// findMode finds out how the upper was used, and its work directory.
func (f *checkFlags) findMode(cfg *overlay.CheckConfig, upper string) error {
	private := filepath.Join(cfg.Upper, overlay.Reserved)
	migrated := exists(filepath.Join(private, "id")) || exists(filepath.Join(private, "daemons"))
	work := f.work
	if work == "" {
		work = defaultWork(cfg.Upper)
	}
	overlaid := exists(filepath.Join(work, "index")) && exists(filepath.Join(work, "stubs")) || f.work != ""
	mode := f.mode
	switch {
	case mode != "":
	case migrated && overlaid:
		return usageErrorf("migratefs check: %q was used in both modes: say --mode migrate or --mode overlay", upper)
	case migrated:
		mode = "migrate"
	case overlaid:
		mode = "overlay"
	default:
		return fmt.Errorf("nothing in or beside %q tells of a mount: if it was one's upper, say --mode, and --workdir if it had one", upper)
	}
	switch {
	case mode == "migrate":
		if f.work != "" {
			return usageErrorf("migratefs check: --workdir is for --mode overlay: in migrate mode everything is in the layers")
		}
		cfg.Mode = overlay.Migrate
	case f.work != "" || overlaid:
		real, err := existingDir("work directory", work)
		if err != nil {
			return err
		}
		cfg.Work = real
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// failed makes an error of the mount command one of a command that mounts nothing.
func failed(err error) error {
	var ce *codeError
	if errors.As(err, &ce) && ce.code == exitMount {
		return ce.err
	}
	return err
}

// lockUnmounted makes sure that no mount uses the upper, of either mode and on any
// host, and that none begins to until unlock.
func lockUnmounted(upper, text string, repair bool) (unlock func(), err error) {
	var files []*os.File
	unlock = func() {
		for _, f := range files {
			f.Close()
		}
	}
	directory := func() error {
		f, err := os.Open(upper)
		if err != nil {
			return err
		}
		files = append(files, f)
		return lockAlone(f)
	}
	id := func() error {
		// On NFS a lock is exclusive only for who may write.
		f, err := os.OpenFile(filepath.Join(upper, overlay.Reserved, "id"), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		files = append(files, f)
		return lockWithin(f, unix.LOCK_EX, noticing)
	}
	for _, lock := range []func() error{directory, id} {
		err := lock()
		switch {
		case err == nil:
		case errors.Is(err, unix.EWOULDBLOCK):
			unlock()
			return nil, fmt.Errorf("upper %q is in use by a mount: unmount it first, on every host", text)
		case !repair && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EROFS)):
			// Nothing is changed: what is looked at may only be confusing.
		default:
			unlock()
			return nil, fmt.Errorf("upper %q cannot be locked, so nobody knows whether a mount uses it: %w", text, bare(err))
		}
	}
	return unlock, nil
}
