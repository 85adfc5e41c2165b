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
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/overlay"
)

// undoFlags are the flags of migratefs undo.
type undoFlags struct {
	options   []string
	to        string
	list      bool
	json      bool
	recursive bool
	version   int
}

func newUndoCommand() *cobra.Command {
	var f undoFlags
	c := &cobra.Command{
		Use:   "undo [--list] [--to FILE] [--version N] [-o lowerdir=...] PATH",
		Short: "Bring back a file that was removed from a lower",
		Long: `Bring back what was removed at PATH, out of the trash that mounts with trash_days= or keep_lower leave in the
lowers. PATH is in a mount, in a lower, or, with -o lowerdir=...,upperdir=..., counts from the root of those
layers. What has the name now is never overwritten. It works beside mounts on any host.`,
		Args: f.args,
		RunE: func(c *cobra.Command, args []string) error { return f.run(c.OutOrStdout(), args[0]) },
	}
	fl := c.Flags()
	fl.StringArrayVarP(&f.options, "options", "o", nil, "the layers, as the mount has them: lowerdir=...,upperdir=...")
	fl.StringVar(&f.to, "to", "", "copy it to this file instead, and leave it in the trash")
	fl.BoolVarP(&f.list, "list", "l", false, "list what there is of PATH and below it")
	fl.BoolVar(&f.json, "json", false, "list as JSON, one object on a line")
	fl.BoolVarP(&f.recursive, "recursive", "r", false, "bring back the last version of everything below PATH")
	fl.IntVar(&f.version, "version", 0, "which of several versions: 1 is the last")
	return c
}

func (f *undoFlags) args(_ *cobra.Command, args []string) error {
	switch {
	case len(args) != 1 || args[0] == "":
		return usageErrorf("migratefs undo: give one path, got %q", args)
	case f.version < 0:
		return usageErrorf("migratefs undo: --version %d: 1 is the last", f.version)
	case f.recursive && (f.to != "" || f.version != 0):
		return usageErrorf("migratefs undo: --recursive takes the last version of each file to its own name: give it alone")
	}
	return nil
}

// trashedAt is a file in the trash of one of the lowers.
type trashedAt struct {
	copyup.Trashed
	in *undoLower
}

type undoLower struct {
	dir         string
	root, trash *os.File
}

func (f *undoFlags) run(out io.Writer, path string) error {
	unix.Umask(0)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	w, err := f.find(path)
	if err != nil {
		return err
	}
	defer w.close()
	all, err := w.versions(ctx)
	if err != nil {
		return err
	}
	var exact []trashedAt
	for _, t := range all {
		if t.Path == w.path {
			exact = append(exact, t)
		}
	}
	switch {
	case f.list || f.json:
		return f.print(out, all)
	case f.recursive:
		return w.backAll(out, all)
	case len(exact) == 0 && len(all) > 0:
		return fmt.Errorf("%q itself is not in the trash, %d files below it are: list them with --list, bring them back with --recursive", path, len(all))
	case len(exact) == 0:
		return fmt.Errorf("nothing in the trash was at %q: see --list of a directory above", path)
	case f.version > len(exact):
		return fmt.Errorf("there are %d versions of %q in the trash, not %d: see --list", len(exact), path, f.version)
	case f.version == 0 && len(exact) > 1:
		if err := f.print(out, exact); err != nil {
			return err
		}
		return fmt.Errorf("there are %d versions of %q in the trash, see above: say --version N, where 1 is the last", len(exact), path)
	}
	t := exact[max(f.version, 1)-1]
	if f.to != "" {
		return w.copyTo(ctx, out, t, f.to)
	}
	return w.back(out, t)
}

// undoWork is the layers that something is to come back in.
type undoWork struct {
	path   layers.Path
	layers []*os.File // highest first
	lowers []*undoLower
}

func (w *undoWork) close() {
	for _, f := range w.layers {
		f.Close()
	}
	for _, l := range w.lowers {
		l.trash.Close()
	}
}

// find finds out which layers PATH is in, and where.
func (f *undoFlags) find(path string) (*undoWork, error) {
	if len(f.options) > 0 {
		o, err := parseOptions(f.options)
		if err != nil {
			return nil, err
		}
		var lowers []string
		for _, l := range o.lowers {
			if !l.remote {
				lowers = append(lowers, l.text)
			}
		}
		return openUndo(strings.TrimPrefix(filepath.Clean("/"+path), "/"), o.upper, lowers)
	}
	abs, err := placeOf(path)
	if err != nil {
		return nil, err
	}
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var m mountInfo
	for _, x := range all { // the last of the innermost mountpoint covers the others
		if (x.point == abs || isBelow(abs, x.point)) && len(x.point) >= len(m.point) {
			m = x
		}
	}
	if m.fsType == fsType {
		upper, lowers, err := layersOf(m)
		if err != nil {
			return nil, err
		}
		return openUndo(strings.TrimPrefix(strings.TrimPrefix(abs, m.point), "/"), upper, lowers)
	}
	for dir := abs; ; dir = filepath.Dir(dir) {
		if hasTrash(dir) {
			return openUndo(strings.TrimPrefix(strings.TrimPrefix(abs, dir), "/"), "", []string{dir})
		}
		if dir == "/" {
			return nil, fmt.Errorf("%q is in no mount of migratefs and in no lower of one: give the layers with -o lowerdir=A,upperdir=B", path)
		}
	}
}

// placeOf is where path is, or would be if it were there.
func placeOf(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := filepath.Base(abs)
	for dir := filepath.Dir(abs); ; dir, rest = filepath.Dir(dir), filepath.Join(filepath.Base(dir), rest) {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if dir == "/" || !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("%q: %w", path, bare(err))
		}
	}
}

func openUndo(path, upper string, lowers []string) (w *undoWork, err error) {
	w = &undoWork{path: layers.Path(path)}
	defer func() {
		if err != nil {
			w.close()
			w = nil
		}
	}()
	if w.path != layers.Root && !w.path.Valid() {
		return w, fmt.Errorf("%q is no path in a layer: name one as it is below the mountpoint", path)
	}
	if upper != "" {
		f, err := openLayer("upper", upper)
		if err != nil {
			return w, err
		}
		w.layers = append(w.layers, f)
	}
	for _, dir := range lowers {
		root, err := openLayer("lower", dir)
		if err != nil {
			return w, err
		}
		w.layers = append(w.layers, root)
		trash, err := openTrash(root)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return w, fmt.Errorf("trash of %q: %w", dir, err)
		}
		w.lowers = append(w.lowers, &undoLower{dir, root, trash})
	}
	if len(w.lowers) == 0 {
		return w, fmt.Errorf("there is no trash in %q: mount with trash_days=N or keep_lower to have one", lowers)
	}
	return w, nil
}

// openTrash opens the trash of the lower root. What others may have made, in a
// directory of theirs, is none: it would have files brought back to where they like.
func openTrash(root *os.File) (*os.File, error) {
	private, err := sys.OpenAt(int(root.Fd()), overlay.Reserved, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(private)
	var st unix.Stat_t
	if err := unix.Fstat(private, &st); err != nil {
		return nil, err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("%s must belong to who runs this (uid %d) and be closed to others: %w", overlay.Reserved, os.Geteuid(), unix.EPERM)
	}
	fd, err := sys.OpenAt(private, "trash", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "trash"), nil
}

// hasTrash reports whether dir is a lower with a trash.
func hasTrash(dir string) bool {
	root, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer root.Close()
	trash, err := openTrash(root)
	if err != nil {
		return false
	}
	trash.Close()
	return true
}

func openLayer(what, dir string) (*os.File, error) {
	real, err := existingDir(what, dir)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(real)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", what, dir, bare(err))
	}
	return f, nil
}

func (w *undoWork) versions(ctx context.Context) (all []trashedAt, err error) {
	for _, l := range w.lowers {
		of, err := copyup.Versions(ctx, int(l.trash.Fd()), w.path)
		if err != nil {
			return nil, fmt.Errorf("trash of %q: %w", l.dir, err)
		}
		for _, t := range of {
			all = append(all, trashedAt{t, l})
		}
	}
	slices.SortStableFunc(all, func(a, b trashedAt) int {
		return cmp.Or(cmp.Compare(b.When.Sec, a.When.Sec), cmp.Compare(b.When.Nsec, a.When.Nsec))
	})
	return all, nil
}

func (w *undoWork) undo(t *trashedAt) *copyup.Undo {
	u := &copyup.Undo{Root: int(t.in.root.Fd()), Trash: int(t.in.trash.Fd())}
	for _, f := range w.layers {
		u.Layers = append(u.Layers, int(f.Fd()))
	}
	return u
}

func (w *undoWork) back(out io.Writer, t trashedAt) error {
	u := w.undo(&t)
	u.Made = func(p layers.Path) {
		fmt.Fprintf(out, "directory %q was made anew, for the owner of what comes back in it alone\n", string(p))
	}
	err := u.Back(&t.Trashed)
	if errors.Is(err, copyup.ErrTaken) {
		return fmt.Errorf("%q is there, or something is on the way to it, and is not overwritten: say where to put the old one with --to", string(t.Path))
	}
	if err != nil {
		return fmt.Errorf("%q stays in the trash: %w", string(t.Path), err)
	}
	fmt.Fprintf(out, "%q is back, as it was on %s\n", string(t.Path), timeText(t.When))
	return nil
}

// backAll brings back the last version of each path. One that cannot come back does
// not keep the others.
func (w *undoWork) backAll(out io.Writer, all []trashedAt) error {
	if len(all) == 0 {
		return fmt.Errorf("nothing in the trash was below %q: see --list of a directory above", string(w.path))
	}
	seen := map[layers.Path]bool{}
	var errs []error
	for _, t := range all {
		if !seen[t.Path] {
			seen[t.Path] = true
			errs = append(errs, w.back(out, t))
		}
	}
	return errors.Join(errs...)
}

func (w *undoWork) copyTo(ctx context.Context, out io.Writer, t trashedAt, to string) error {
	dir, err := openTrusted(filepath.Dir(to))
	if err != nil {
		return fmt.Errorf("--to %q: %w", to, bare(err))
	}
	defer unix.Close(dir)
	err = w.undo(&t).CopyTo(ctx, &t.Trashed, dir, filepath.Base(to))
	if errors.Is(err, copyup.ErrTaken) {
		return fmt.Errorf("--to %q: it is there, and is not overwritten: name another", to)
	}
	if err != nil {
		return fmt.Errorf("--to %q: %w", to, err)
	}
	fmt.Fprintf(out, "%q is copied to %q, as it was on %s\n", string(t.Path), to, timeText(t.When))
	return nil
}

func timeText(t layers.Time) string {
	return time.Unix(t.Sec, int64(t.Nsec)).Local().Format("2006-01-02 15:04:05")
}

// listed is a version as --json has it.
type listed struct {
	Path    copyup.Quoted `json:"path"`
	Version int           `json:"version"`
	Removed time.Time     `json:"removed"`
	Mtime   time.Time     `json:"mtime"`
	Bytes   int64         `json:"bytes"`
	UID     uint32        `json:"uid"`
	GID     uint32        `json:"gid"`
	Mode    string        `json:"mode"` // octal
	Lower   string        `json:"lower"`
}

func (f *undoFlags) print(out io.Writer, all []trashedAt) error {
	count := map[layers.Path]int{}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, t := range all {
		count[t.Path]++
		a := &t.Attr
		if f.json {
			err := json.NewEncoder(out).Encode(listed{
				Path: copyup.Quoted(t.Path), Version: count[t.Path], Lower: t.in.dir,
				Removed: time.Unix(t.When.Sec, int64(t.When.Nsec)).UTC(), Mtime: time.Unix(a.Mtime.Sec, int64(a.Mtime.Nsec)).UTC(),
				Bytes: a.Size, UID: a.UID, GID: a.GID, Mode: fmt.Sprintf("%06o", a.Mode),
			})
			if err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%d\tremoved %s\tmodified %s\t%s\t%d:%d\t%q\n", count[t.Path], timeText(t.When), timeText(a.Mtime),
			bytesText(a.Size), a.UID, a.GID, string(t.Path))
	}
	return w.Flush()
}
