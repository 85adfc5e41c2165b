package copyup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

const (
	// pathSuffix marks the symlink that remembers where a trashed file came from.
	pathSuffix = ".path"
	// doneSuffix marks a file that is to go, whatever becomes of its successor.
	doneSuffix = ".done"
	// olderSuffix ends the name of one that has no successor: another file hides it.
	olderSuffix = ".old"
)

// ErrReplaced: the name to be removed holds another file than the one that was
// copied. It was left, or put back, where it was.
var ErrReplaced = errors.New("the lower file was replaced meanwhile")

// trashID is the identity of the file as a name: what it takes to decide, later
// and without any other record, whether a file in the trash is the one meant.
func trashID(a *layers.Attr) string {
	return fmt.Sprintf("%x-%x-%x.%x-%x.%x", a.Ino, a.Size, a.Mtime.Sec, a.Mtime.Nsec, a.Btime.Sec, a.Btime.Nsec)
}

// trashName is a name in the trash for the file a that nobody else has: a rename
// to it takes nothing away.
func trashName(a *layers.Attr) string { return trashID(a) + "~" + randomHex(8) }

// meant reports whether the file a is the one that name, in the trash, was made for.
func meant(a *layers.Attr, name string) bool {
	id, _, _ := strings.Cut(name, "~")
	return trashID(a) == id
}

// Remove removes name in dir, a directory of the lower, if it still is the file
// that was describes; see the package comment for the steps. trash is the
// lower's trash directory and path the file's path from the lower's root.
func Remove(dir int, name string, was *layers.Attr, trash int, path layers.Path) error {
	in, err := toTrash(dir, name, was, trash, trashName(was), path)
	if err != nil || in == "" {
		return err
	}
	return discard(trash, in)
}

// RemoveHidden is Remove for a file that another hides: that was not made of it, and
// who removes it after a crash need not look for a successor.
func RemoveHidden(dir int, name string, was *layers.Attr, trash int, path layers.Path) error {
	in, err := toTrash(dir, name, was, trash, trashName(was)+olderSuffix, path)
	if err != nil || in == "" {
		return err
	}
	return discard(trash, in)
}

// toTrash renames name in dir, if it still is the file that was describes, to in in
// the trash. An empty in says that it has gone from there already.
func toTrash(dir int, name string, was *layers.Attr, trash int, to string, path layers.Path) (in string, err error) {
	var stx unix.Statx_t
	if err := sys.Statx(dir, name, &stx); err != nil {
		return "", err
	}
	if is := local.AttrOf(&stx); trashID(&is) != trashID(was) {
		return "", ErrReplaced // what is another file at the first look is not touched
	}
	in = to
	// NFS repeats requests whose answer was lost: what nobody else can have done is
	// done, whatever the second answer was.
	if err := ignoreNoRoom(sys.Symlink(string(path), trash, in+pathSuffix)); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	moved := sys.Rename(dir, name, trash, in, 0)
	switch err := sys.Statx(trash, in, &stx); {
	case moved != nil && err != nil:
		_ = sys.Unlink(trash, in+pathSuffix)
		return "", moved
	case errors.Is(err, unix.ENOENT):
		return "", nil // another host has just been mounted, and has settled it
	case err != nil:
		return "", err
	}
	if is := local.AttrOf(&stx); !meant(&is, in) {
		// EEXIST: somebody made yet another file there; both stay.
		if err := putBack(trash, in, dir, name); err != nil {
			return "", fmt.Errorf("%w; it is kept as .migratefs/trash/%s", ErrReplaced, in)
		}
		return "", ErrReplaced
	}
	return in, nil
}

// discard takes in out of the trash for good. Where that fails it stays, and the
// next Settle does it: back at its name it would show once the upper has lost that.
func discard(trash int, in string) error {
	if err := ignoreGone(sys.Unlink(trash, in)); err != nil {
		_ = sys.Rename(trash, in, trash, in+doneSuffix, 0)
		return err
	}
	_ = sys.Unlink(trash, in+pathSuffix)
	return nil
}

// putBack gives a file that is not meant its name again.
func putBack(trash int, in string, dir int, name string) error {
	err := sys.Link(trash, in, dir, name)
	var st unix.Stat_t
	if errors.Is(err, unix.EPERM) && unix.Fstatat(trash, in, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return putBackDir(trash, in, dir, name)
	}
	switch {
	case errors.Is(err, unix.EEXIST) && sameName(trash, in, dir, name): // another host has done so
	case errors.Is(err, unix.ENOENT) && unix.Fstatat(trash, in, &st, unix.AT_SYMLINK_NOFOLLOW) == unix.ENOENT: // and more
	case err != nil: // the directory may be gone, too
		return err
	}
	return discard(trash, in)
}

// putBackDir is putBack for a directory, which cannot be linked.
func putBackDir(trash int, in string, dir int, name string) error {
	err := sys.Rename(trash, in, dir, name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = sys.Rename(trash, in, dir, name, 0) // over nothing but an empty directory
	}
	if err == nil {
		_ = sys.Unlink(trash, in+pathSuffix)
	}
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func sameName(adir int, a string, bdir int, b string) bool {
	var x, y unix.Stat_t
	return unix.Fstatat(adir, a, &x, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(bdir, b, &y, unix.AT_SYMLINK_NOFOLLOW) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// Trash is the trash of a lower whose removals are to be settled.
type Trash struct {
	Dir   int    // of the trash
	Root  int    // of the lower
	Lower string // what the lower is called in origins
	// Successor reports whether the upper has, at path, the file that came of the
	// lower inode o.
	Successor func(path layers.Path, o Origin) bool
	// Grace is how old an intent without a file must be before it is removed: other
	// hosts may be about to carry theirs out. Zero: there are none.
	Grace time.Duration
	// Keep says that files lie in the trash to stay there.
	Keep bool
}

// Settle ends the removals that a crash, of this host or another, interrupted. A
// file that is the one meant goes if its successor is there, and else stays where
// it is; one that is not goes back to its name, if that is free. left counts what
// stays.
func (t *Trash) Settle(ctx context.Context) (left int, err error) {
	entries, err := local.ReadDirAt(ctx, t.Dir)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, e := range entries {
		if in, ok := strings.CutSuffix(e.Name, pathSuffix); ok {
			stays, err := t.settle(in)
			if stays {
				left++
			}
			errs = append(errs, err)
		}
		if in, ok := strings.CutSuffix(e.Name, doneSuffix); ok {
			errs = append(errs, ignoreGone(sys.Unlink(t.Dir, e.Name)))
			_ = sys.Unlink(t.Dir, in+pathSuffix)
		}
		if t.Grace == 0 && strings.HasPrefix(e.Name, TempPrefix) {
			RemoveTemp(t.Dir, e.Name) // a directory that was to stand in the lower; nobody else makes one now
		}
	}
	return left, errors.Join(errs...)
}

func (t *Trash) settle(in string) (stays bool, err error) {
	target, err := sys.Readlink(t.Dir, in+pathSuffix)
	if errors.Is(err, unix.ENOENT) {
		return false, nil // another host is at it
	}
	if err != nil {
		return false, err
	}
	path := layers.Path(target)
	if path == layers.Root || !path.Valid() {
		return false, fmt.Errorf("trash entry %q names no file: %w", in, layers.ErrCorrupt)
	}
	var stx unix.Statx_t
	switch err := sys.Statx(t.Dir, in, &stx); {
	case errors.Is(err, unix.ENOENT): // step b was never reached, or d was
		if t.old(in + pathSuffix) {
			_ = sys.Unlink(t.Dir, in+pathSuffix)
		}
		return false, nil
	case err != nil:
		return false, err
	}
	is := local.AttrOf(&stx)
	switch {
	case !meant(&is, in):
		dir, name, err := sys.OpenParent(t.Root, target)
		if err == nil {
			err = putBack(t.Dir, in, dir, name)
			unix.Close(dir)
		}
		if err != nil {
			return true, fmt.Errorf("trash entry %q cannot go back to %q: %w", in, target, err)
		}
		return false, nil
	case t.Keep && !t.stillThere(in, path, &is):
		return false, nil
	case t.Keep || strings.HasSuffix(in, olderSuffix) || t.Successor(path, OriginOf(t.Lower, &is)):
		return false, discard(t.Dir, in)
	}
	return true, nil
}

// old reports whether name in the trash is older than Grace, by the clock of the
// filesystem.
func (t *Trash) old(name string) bool {
	if t.Grace == 0 {
		return true
	}
	var now, then unix.Stat_t
	return sys.BeatAt(t.Dir, "") == nil && unix.Fstat(t.Dir, &now) == nil &&
		unix.Fstatat(t.Dir, name, &then, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		time.Duration(now.Mtim.Nano()-then.Mtim.Nano()) > t.Grace
}
