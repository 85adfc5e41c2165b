package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// The upper of a detached mount is settled: it becomes a plain tree, and its work
// directory goes. What it still holds for the mount's sake ends so:
//
//	whiteouts                       removed: nothing is left that they hide
//	opaque, redirect, origin, ...   removed from what has them, for the same reason
//	names left on the source        dropped, with WORK/detached: they were EIO
//	cached objects, index, links    go with the work directory; link counts are right then
//	stubs, metacopies               none may be there: their content is elsewhere, so
//	                                nothing is done until they are whole, or removed
//
// The first step is one rename, of a WORK/detached that says "settling": from then on a
// mount shows the upper and nothing else, which is what the plain tree will be, and no
// step after it changes what that is. The last removes WORK/detached. So a crash leaves
// what can be mounted, and settled again, or plain directories with an empty work
// directory beside them.

// Settle is the work of making the upper of a detached mount plain directories. Nothing
// may have it mounted.
type Settle struct {
	Upper  int // the root of the upper
	Work   int // the work directory; -1: there is none any more
	Format whiteout.Format

	// Failed is told of what is in the way: nothing is done then but in part by an
	// earlier Settle.
	Failed func(path layers.Path, why error)
}

// Settled is what was done.
type Settled struct {
	Files     int64 // there are, directories included
	Whiteouts int64 // that were removed
	Marks     int64 // attributes that were removed
	Dropped   int64 // names that had been left on the source, of those that were known
	Nested    int64 // attributes of an overlay inside the mount, which stay escaped
}

// Why an upper cannot be settled.
var (
	ErrAttached = errors.New("the mount was not detached from its source: what is not in the upper would be lost")
	ErrUnwhole  = errors.New("not all of its content is in the upper")

	errHidden   = errors.New("content of files that the upper does not show to be pending would be lost")
	errStub     = fmt.Errorf("%w: the rest was left on the source: mount it, and remove it or say 'migratefs resolve --keep-local --yes'", ErrUnwhole)
	errMounted  = errors.New("something is mounted there: unmount it first")
	errMetacopy = fmt.Errorf("%w: only its metadata was changed, and its data is in a lower: mount it and write to it, or copy it", ErrUnwhole)
)

// Run settles. It may be called again after a crash or an error.
func (s *Settle) Run(ctx context.Context) (done Settled, err error) {
	var d *Departure
	if s.Work >= 0 {
		if d, err = ReadDeparture(s.Work); err != nil {
			return done, err
		}
	}
	w := settling{Settle: s, done: &done}
	if err := w.each(ctx, s.Upper, layers.Root, w.inspect); err != nil {
		return done, err
	}
	done.Nested = 0 // they are counted as they are left
	switch {
	case w.inTheWay > 0:
		return done, ErrUnwhole
	case d == nil && w.marks > 0:
		return done, ErrAttached
	case d == nil:
		return done, w.empty(ctx) // it is done, but for what a crash left
	}
	done.Dropped = d.Left()
	if !d.Settling {
		// What stubs stand for goes with the work directory: marks of another format
		// than the mount's would not have shown them.
		if left, err := stubsOf(ctx, s.Work); err != nil || left > 0 {
			return done, cmp.Or(err, fmt.Errorf("%w: pending files in the work directory: %d: give --userxattr as the mount had it, or mount it once more", errHidden, left))
		}
		d.Settling = true
		d.sources = []*departed{{id: "settled", dirs: map[layers.Path]*departedDir{
			layers.Root: {attr: layers.Attr{Mode: unix.S_IFDIR | 0o755}},
		}}}
		if err := d.write(s.Work); err != nil {
			return done, err
		}
	}
	if err := w.each(ctx, s.Upper, layers.Root, w.plain); err != nil {
		return done, err
	}
	if err := w.clear(s.Upper, ""); err != nil {
		return done, err
	}
	if err := sys.Syncfs(s.Upper); err != nil {
		return done, err
	}
	if err := removeBelow(ctx, s.Work, detachedFile); err != nil {
		return done, err
	}
	if err := copyup.SyncDir(s.Work, copyup.Config{}); err != nil {
		return done, err
	}
	if err := sys.Unlink(s.Work, detachedFile); err != nil {
		return done, err
	}
	return done, copyup.SyncDir(s.Work, copyup.Config{})
}

// stubsOf counts the pending files of a work directory.
func stubsOf(ctx context.Context, work int) (int, error) {
	fd, err := sys.OpenAt(work, "stubs", unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	es, err := local.ReadDirAt(ctx, fd)
	return len(es), err
}

// settling is one walk through the upper.
type settling struct {
	*Settle
	done     *Settled
	marks    int
	inTheWay int
}

// each calls f for everything below dirfd, what is in a directory before itself.
func (w *settling) each(ctx context.Context, dirfd int, at layers.Path, f func(dirfd int, e *layers.Entry, path layers.Path) error) error {
	es, err := local.ReadDirAt(ctx, dirfd)
	if err != nil {
		return err
	}
	var here, below unix.Statx_t
	if err := sys.Statx(dirfd, "", &here); err != nil {
		return err
	}
	for i := range es {
		e := &es[i]
		path := at.Join(e.Name)
		if at == layers.Root && e.Name == Reserved {
			continue
		}
		if e.Type == 0 {
			e.Type = typeOf(dirfd, e.Name)
		}
		if e.Type == unix.S_IFDIR {
			fd, err := sys.OpenAt(dirfd, e.Name, unix.O_RDONLY|unix.O_DIRECTORY)
			if err != nil {
				return err
			}
			// What lies in another filesystem is not the upper's, and what lies under that is.
			if err = sys.Statx(fd, "", &below); err == nil && below.Mnt_id != here.Mnt_id {
				err = fmt.Errorf("%q: %w", string(path), errMounted)
			}
			if err == nil {
				err = w.each(ctx, fd, path, f)
			}
			unix.Close(fd)
			if err != nil {
				return err
			}
		}
		if err := f(dirfd, e, path); err != nil {
			return fmt.Errorf("%q: %w", string(path), err)
		}
	}
	return ctx.Err()
}

// inspect looks whether the file can be a plain one.
func (w *settling) inspect(dirfd int, e *layers.Entry, path layers.Path) error {
	if w.isWhiteout(dirfd, e) {
		w.marks++
		return nil
	}
	names, err := w.ours(dirfd, e.Name)
	if err != nil {
		return err
	}
	w.marks += len(names)
	if e.Type != unix.S_IFREG {
		return nil
	}
	if !slices.Contains(names, w.Format.Name(whiteout.Metacopy)) {
		return nil
	}
	why := errMetacopy
	if slices.Contains(names, w.Format.Name(whiteout.Object)) {
		why = errStub
	}
	w.inTheWay++
	if w.Failed != nil {
		w.Failed(path, why)
	}
	return nil
}

func (w *settling) isWhiteout(dirfd int, e *layers.Entry) bool {
	if e.Type == unix.S_IFCHR {
		var stx unix.Statx_t
		if sys.Statx(dirfd, e.Name, &stx) != nil {
			return false
		}
		a := local.AttrOf(&stx)
		return whiteout.Is(&a)
	}
	if e.Type != unix.S_IFREG {
		return false
	}
	_, err := sys.Getxattr(dirfd, e.Name, w.Format.Name(whiteout.Whiteout))
	return err == nil
}

// ours returns the attributes of the file that belong to the overlay. An empty name is
// the directory itself.
func (w *settling) ours(dirfd int, name string) (list []string, err error) {
	all, err := sys.Listxattr(dirfd, name)
	if err != nil {
		return nil, ignoreNoXattr(err)
	}
	for _, x := range all {
		if shown, ok := w.Format.FromDisk(x); !ok {
			list = append(list, x)
		} else if shown != x {
			w.done.Nested++
		}
	}
	return list, nil
}

// plain makes the file a plain one.
func (w *settling) plain(dirfd int, e *layers.Entry, _ layers.Path) error {
	if w.isWhiteout(dirfd, e) {
		w.done.Whiteouts++
		return w.timeless(dirfd, func() error { return sys.Unlink(dirfd, e.Name) })
	}
	w.done.Files++
	return w.clear(dirfd, e.Name)
}

// clear takes what belongs to the overlay off the file.
func (w *settling) clear(dirfd int, name string) error {
	names, err := w.ours(dirfd, name)
	if err != nil {
		return err
	}
	for _, x := range names {
		err := error(nil)
		if name == "" {
			err = sys.Fremovexattr(dirfd, x)
		} else {
			err = sys.Removexattr(dirfd, name, x)
		}
		if ignoreNoXattr(err) != nil {
			return err
		}
		w.done.Marks++
	}
	return nil
}

// timeless does something in a directory and puts its times back.
func (w *settling) timeless(dirfd int, do func() error) error {
	var stx unix.Statx_t
	if err := sys.Statx(dirfd, "", &stx); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	a := local.AttrOf(&stx)
	return copyup.RestoreTimes(dirfd, &a)
}

// empty removes what a crash has left of the work directory. One with anything else in
// it is not one that was settled.
func (w *settling) empty(ctx context.Context) error {
	if w.Work < 0 {
		return nil
	}
	es, err := local.ReadDirAt(ctx, w.Work)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Name != idName {
			return ErrAttached
		}
	}
	return nil
}

// removeBelow removes all below dirfd but the names in keep.
func removeBelow(ctx context.Context, dirfd int, keep string) error {
	es, err := local.ReadDirAt(ctx, dirfd)
	if err != nil {
		return err
	}
	for _, e := range es {
		if e.Name == keep || keep != "" && e.Name == idName {
			continue
		}
		err := sys.Unlink(dirfd, e.Name)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			var fd int
			if fd, err = sys.OpenAt(dirfd, e.Name, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
				err = removeBelow(ctx, fd, "")
				unix.Close(fd)
				err = cmp.Or(err, sys.Rmdir(dirfd, e.Name))
			}
		}
		if err != nil {
			return fmt.Errorf("%q in the work directory: %w", e.Name, err)
		}
	}
	return ctx.Err()
}
