package copyup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// What was removed from a lower and is kept in its trash can come back: Undo links
// it at its name again, in the lower, or copies it elsewhere. It takes no claim:
// linking a file that has no name in the tree takes nothing from anybody, and who
// is just bringing it up, by a descriptor of before, sees its ctime change and
// begins again.

// ErrTaken: something else has the name now.
var ErrTaken = errors.New("the name is taken")

// Versions returns what the trash directory trash holds of path and, if that was a
// directory, of what was below it; the last removed first. The root is above all.
func Versions(ctx context.Context, trash int, path layers.Path) ([]Trashed, error) {
	fd, err := sys.OpenBeneath(trash, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var of []Trashed
	err = local.EachPart(ctx, fd, func(es []layers.Entry) error {
		for i := range es {
			name := es[i].Name
			if strings.HasSuffix(name, PathSuffix) || strings.HasSuffix(name, DoneSuffix) {
				continue
			}
			t, err := LookTrash(trash, name)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, layers.ErrCorrupt) || err == nil && !t.Match {
				continue
			}
			if err != nil {
				return err
			}
			if path == layers.Root || t.Path == path || strings.HasPrefix(string(t.Path), string(path)+"/") {
				of = append(of, t)
			}
		}
		return nil
	})
	slices.SortFunc(of, func(a, b Trashed) int {
		return cmp.Or(cmp.Compare(b.When.Sec, a.When.Sec), cmp.Compare(b.When.Nsec, a.When.Nsec), cmp.Compare(a.Path, b.Path))
	})
	return of, err
}

// Undo brings files back from the trash of one lower.
type Undo struct {
	Root   int   // of the lower
	Trash  int   // its trash
	Layers []int // the roots of all layers, highest first, as far as they are known
	// Made is told of each directory that is made because no layer has it any more.
	Made func(layers.Path)
}

// Back gives t its name again. ErrTaken means that something has it, in any layer.
// What fails leaves t in the trash.
func (u *Undo) Back(t *Trashed) error {
	if u.isTaken(t.Path, nil) {
		return ErrTaken
	}
	if err := u.parents(t); err != nil {
		return err
	}
	dir, name, err := sys.OpenParent(u.Root, string(t.Path))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := sys.Link(u.Trash, t.Name, dir, name); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return ErrTaken
		}
		return err
	}
	// Who made a file of that name in a layer above meanwhile was before us.
	if u.isTaken(t.Path, &t.Attr) {
		if sameName(u.Trash, t.Name, dir, name) {
			_ = sys.Unlink(dir, name)
		}
		return ErrTaken
	}
	if err := syncAt(dir); err != nil {
		return err
	}
	return discard(u.Trash, t.Name)
}

// syncAt makes the names in dir, which may be O_PATH, durable.
func syncAt(dir int) error {
	fd, err := sys.OpenBeneath(dir, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := sys.Fsync(fd); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

// isTaken reports whether any layer has something at path, or on the way, but a
// directory there; except, if not nil, the file itself.
func (u *Undo) isTaken(path layers.Path, except *layers.Attr) bool {
	for _, root := range u.Layers {
		dir, name, err := sys.OpenParent(root, string(path))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return true // a file on the way
		}
		var stx unix.Statx_t
		err = sys.Statx(dir, name, &stx)
		unix.Close(dir)
		if err == nil {
			a := local.AttrOf(&stx)
			if except == nil || a.Ino != except.Ino || a.Dev != except.Dev {
				return true
			}
		} else if !errors.Is(err, unix.ENOENT) {
			return true
		}
	}
	return false
}

// parents makes the directories above t in the lower that are not there: like those
// in the highest layer that has them, or else open to nobody but t's owner.
func (u *Undo) parents(t *Trashed) error {
	var path layers.Path
	names := t.Path.Components()
	for _, name := range names[:len(names)-1] {
		path = path.Join(name)
		dir, last, err := sys.OpenParent(u.Root, string(path))
		if err != nil {
			return err
		}
		err = u.parent(t, dir, last, path)
		unix.Close(dir)
		if err != nil {
			return fmt.Errorf("directory %q: %w", string(path), err)
		}
	}
	return nil
}

func (u *Undo) parent(t *Trashed, dir int, name string, path layers.Path) error {
	var stx unix.Statx_t
	if err := sys.Statx(dir, name, &stx); !errors.Is(err, unix.ENOENT) {
		return err
	}
	src := Source{Attr: t.Attr}
	src.Attr.Mode = unix.S_IFDIR | 0o700
	src.Attr.Known &^= layers.KnownTimes
	found := false
	for _, root := range u.Layers {
		above, last, err := sys.OpenParent(root, string(path))
		if err != nil {
			continue
		}
		if sys.Statx(above, last, &stx) == nil && stx.Mode&unix.S_IFMT == unix.S_IFDIR {
			found, src.Attr = true, local.AttrOf(&stx)
			src.Xattrs, err = aclsOf(above, last)
		}
		unix.Close(above)
		if err != nil {
			return err
		}
		if found {
			break
		}
	}
	at := Place{Dir: dir, Name: name, Work: u.Trash}
	temp, err := Node(src, at, Config{Owner: true})
	if err != nil {
		return err
	}
	if err := PublishNode(temp, at, true); err != nil {
		RemoveTemp(u.Trash, temp)
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	}
	if !found && u.Made != nil {
		u.Made(path)
	}
	return nil
}

func aclsOf(dir int, name string) (layers.Xattrs, error) {
	x, err := local.XattrsAt(dir, name)
	for n := range x {
		if n != aclAccess && n != aclDefault {
			delete(x, n)
		}
	}
	return x, err
}

// CopyTo copies t, with all metadata, to name in the directory dir, over nothing. It
// stays in the trash. What is made by a name gets it in a directory of our own: dir may
// be another user's, who could put another file in its place before it gets its owner.
func (u *Undo) CopyTo(ctx context.Context, t *Trashed, dir int, name string) error {
	work, end, err := privateIn(dir)
	if err != nil {
		return err
	}
	defer end()
	at := Place{Dir: dir, Name: name, Work: work}
	cfg := Config{Owner: true}
	src := Source{Attr: t.Attr, Size: t.Attr.Size, Path: t.Path}
	if src.Xattrs, err = local.XattrsAt(u.Trash, t.Name); err != nil {
		return err
	}
	delete(src.Xattrs, XattrOrigin)
	delete(src.Xattrs, XattrOver)
	if t.Attr.IsRegular() {
		return u.copyFile(ctx, t, src, at, cfg)
	}
	if t.Attr.Type() == unix.S_IFLNK {
		if src.Target, err = sys.Readlink(u.Trash, t.Name); err != nil {
			return err
		}
	}
	temp, err := Node(src, at, cfg)
	if err != nil {
		return err
	}
	if err := PublishNode(temp, at, false); err != nil {
		RemoveTemp(work, temp)
		return takenIfExists(err)
	}
	return syncAt(dir)
}

// privateIn makes a directory in dir that nobody else may use, until end.
func privateIn(dir int) (fd int, end func(), err error) {
	name := TempName()
	if err := sys.Mkdir(dir, name, 0o700); err != nil {
		return -1, nil, err
	}
	fd, err = sys.OpenAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err == nil && (int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0) {
		err = fmt.Errorf("somebody has put another directory in the place of one that was made: %w", unix.EPERM)
	}
	end = func() {
		if fd >= 0 {
			unix.Close(fd)
		}
		_ = sys.Rmdir(dir, name)
	}
	if err != nil {
		end()
	}
	return fd, end, err
}

func (u *Undo) copyFile(ctx context.Context, t *Trashed, src Source, at Place, cfg Config) error {
	fd, err := sys.OpenAt(u.Trash, t.Name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	src.File = local.NewFile(fd, t.Attr)
	defer src.File.Close()
	c, err := File(ctx, src, at, cfg)
	if err != nil {
		return err
	}
	if err := c.Publish(); err != nil {
		c.Discard()
		return takenIfExists(err)
	}
	unix.Close(c.Fd)
	return syncAt(at.Dir)
}

func takenIfExists(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return ErrTaken
	}
	return err
}
