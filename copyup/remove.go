package copyup

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// pathSuffix marks the symlink that remembers where a trashed file came from.
const pathSuffix = ".path"

// ErrReplaced: the name to be removed holds another file than the one that was
// copied. It was left, or put back, where it was.
var ErrReplaced = errors.New("the lower file was replaced meanwhile")

// trashID is the identity of the file as a name: what it takes to decide, later
// and without any other record, whether a file in the trash is the one meant.
func trashID(a *layers.Attr) string {
	return fmt.Sprintf("%x-%x-%x.%x-%x.%x", a.Ino, a.Size, a.Mtime.Sec, a.Mtime.Nsec, a.Btime.Sec, a.Btime.Nsec)
}

// Remove removes name in dir, a directory of the lower, if it still is the file
// that was describes; see the package comment for the steps. trash is the
// lower's trash directory and path the file's path from the lower's root.
func Remove(dir int, name string, was *layers.Attr, trash int, path layers.Path) error {
	id := trashID(was)
	if err := sys.Symlink(string(path), trash, id+pathSuffix); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := sys.Rename(dir, name, trash, id, 0); err != nil {
		_ = sys.Unlink(trash, id+pathSuffix)
		return err
	}
	return settle(trash, id, func() error { return sys.Link(trash, id, dir, name) })
}

// settle ends a removal whose file is in the trash: unlink on a match, back on a
// mismatch.
func settle(trash int, id string, back func() error) error {
	var stx unix.Statx_t
	if err := sys.Statx(trash, id, &stx); err != nil {
		return err
	}
	is := local.AttrOf(&stx)
	if trashID(&is) != id {
		// EEXIST: somebody made yet another file there; both stay.
		if err := back(); err != nil {
			return fmt.Errorf("%w; it is kept as .migratefs/trash/%s", ErrReplaced, id)
		}
		_ = sys.Unlink(trash, id)
		_ = sys.Unlink(trash, id+pathSuffix)
		return ErrReplaced
	}
	if err := sys.Unlink(trash, id); err != nil {
		// Back to where it is seen: what the trash holds when the upper has lost
		// the name, as by an unlink that is yet to come, would return at its name.
		if back() == nil && sys.Unlink(trash, id+pathSuffix) == nil {
			_ = sys.Unlink(trash, id)
		}
		return err
	}
	_ = sys.Unlink(trash, id+pathSuffix)
	return nil
}

// Restore ends the removals that a crash interrupted. published reports whether
// the upper has path: only then may the lower's last copy go.
func Restore(root, trash int, published func(layers.Path) bool) error {
	entries, err := local.ReadDirAt(context.Background(), trash)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name, pathSuffix); ok {
			errs = append(errs, restoreOne(root, trash, id, published))
		}
	}
	return errors.Join(errs...)
}

func restoreOne(root, trash int, id string, published func(layers.Path) bool) error {
	target, err := sys.Readlink(trash, id+pathSuffix)
	if err != nil {
		return err
	}
	path := layers.Path(target)
	if path == layers.Root || !path.Valid() {
		return fmt.Errorf("trash entry %q names no file: %w", id, layers.ErrCorrupt)
	}
	var stx unix.Statx_t
	switch err := sys.Statx(trash, id, &stx); {
	case errors.Is(err, unix.ENOENT):
		return sys.Unlink(trash, id+pathSuffix) // step b was never reached, or d was
	case err != nil:
		return err
	}
	back := func() error {
		dir, name, err := sys.OpenParent(root, target)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return sys.Link(trash, id, dir, name)
	}
	if published(path) {
		if err := settle(trash, id, back); err != nil && !errors.Is(err, ErrReplaced) {
			return err
		}
		return nil
	}
	if err := back(); err != nil {
		return fmt.Errorf("trash entry %q cannot go back to %q: %w", id, target, err)
	}
	_ = sys.Unlink(trash, id)
	return sys.Unlink(trash, id+pathSuffix)
}
