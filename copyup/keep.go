package copyup

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// Keep is Remove, but for the end: the file stays in the trash until Expire, and
// IN.path says where it lay and, by its mtime, since when it is there.
func Keep(dir int, name string, was *layers.Attr, trash int, path layers.Path) error {
	_, err := toTrash(dir, name, was, trash, trashName(was), path)
	return err
}

// KeepLink gives the file that name in dir is, and that is about to lose that name
// by a rename of another over it, a name in the trash. forget takes that back.
func KeepLink(dir int, name string, was *layers.Attr, trash int, path layers.Path) (forget func(), err error) {
	in := trashName(was)
	if err := ignoreNoRoom(sys.Symlink(string(path), trash, in+pathSuffix)); err != nil {
		return nil, err
	}
	forget = func() {
		_ = sys.Unlink(trash, in)
		_ = sys.Unlink(trash, in+pathSuffix)
	}
	if err := sys.Link(dir, name, trash, in); err != nil {
		forget()
		return nil, err
	}
	var stx unix.Statx_t
	if err := sys.Statx(trash, in, &stx); err != nil {
		forget()
		return nil, err
	}
	if is := local.AttrOf(&stx); !meant(&is, in) {
		forget()
		return nil, ErrReplaced
	}
	return forget, nil
}

// ignoreNoRoom: on a full lower, and with a path longer than a symlink holds, a file
// goes without the note of where it lay. A crash
// before it is gone leaves it in the trash for good.
func ignoreNoRoom(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	return err
}

// stillThere reports whether the kept file in, which a describes, has its name as
// well: it was to be renamed over, and that did not come to pass.
func (t *Trash) stillThere(in string, path layers.Path, a *layers.Attr) bool {
	if a.Nlink < 2 {
		return false
	}
	dir, name, err := sys.OpenParent(t.Root, string(path))
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	return sameName(t.Dir, in, dir, name)
}

// Kept returns the inode numbers of what the trash holds.
func Kept(ctx context.Context, trash int) (map[uint64]bool, error) {
	entries, err := local.ReadDirAt(ctx, trash)
	if err != nil {
		return nil, err
	}
	kept := make(map[uint64]bool, len(entries))
	for _, e := range entries {
		kept[e.Ino] = true
	}
	return kept, nil
}

// Expire removes what went into the trash before a time. What is not what was
// meant, or has nothing that says when it went, stays.
func Expire(ctx context.Context, trash int, before time.Time) error {
	entries, err := local.ReadDirAt(ctx, trash)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		in, ok := strings.CutSuffix(e.Name, pathSuffix)
		if !ok {
			continue
		}
		var stx, note unix.Statx_t
		if sys.Statx(trash, e.Name, &note) != nil || sys.Statx(trash, in, &stx) != nil {
			continue // another host is at it
		}
		is := local.AttrOf(&stx)
		if meant(&is, in) && time.Unix(note.Mtime.Sec, int64(note.Mtime.Nsec)).Before(before) {
			errs = append(errs, discard(trash, in))
		}
	}
	return errors.Join(errs...)
}
