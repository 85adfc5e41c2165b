package overlay

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// A pending file of which all is here becomes an ordinary file of the upper. If it has
// one name, its data file gets what metadata the stub has and is renamed over the
// stub: the one step that counts. With more names the data is copied into the stub,
// and the mark taken off is the step. Its handles go on as those of an upper file.

// Why a pending file stays one for now.
var (
	errNotWhole = errors.New("not all of it is here")
	errNameless = errors.New("no name that is known leads to it")
	errSealed   = errors.New("it is immutable or append-only: it stays pending until that is taken off")
	errCapable  = errors.New("it has capabilities, which a crash could lose, and several names: it stays pending")
)

// openChanging opens the upper inode of n (O_PATH), which until done is called stays
// what n's metadata is kept on: what is changed of a stub that the data file took the
// place of would be lost. The caller must not lock n meanwhile.
func (fs *FS) openChanging(n *node) (fd int, done func(), err error) {
	for {
		seq := fs.swaps.begin()
		fd, err := fs.openUpper(n)
		if err != nil {
			return -1, nil, err
		}
		n.mu.RLock()
		same, pending := fs.swaps.same(seq), hasObject(n.pending)
		if same && pending {
			return fd, n.mu.RUnlock, nil
		}
		n.mu.RUnlock()
		if same {
			return fd, func() {}, nil
		}
		unix.Close(fd)
	}
}

// finishing is one pending file that turns into an ordinary one.
type finishing struct {
	fs  *FS
	n   *node
	id  extent.ID
	obj *extent.Object

	d    dentry
	dir  *dirFD
	path int // of the stub, O_PATH
	was  layers.Attr

	turned bool // it is an ordinary file
}

// finishPending makes the pending file n an ordinary one if all of it is here and its
// source still has the version that it came of; proven says that one exchange has
// shown that already.
func (fs *FS) finishPending(ctx context.Context, n *node, proven bool) error {
	if err := fs.flights.enter(ctx, n); err != nil {
		return err
	}
	defer fs.flights.leave(n)
	n.mu.RLock()
	id := n.pending
	n.mu.RUnlock()
	if !hasObject(id) {
		return nil
	}
	obj, err := fs.store.Pending(id)
	if err != nil {
		return err
	}
	defer obj.Close()
	if !obj.Whole() {
		return errNotWhole
	}
	if !proven {
		if err := fs.verifyWhole(ctx, id, obj); err != nil {
			return err
		}
	}
	if !fs.cfg.Volatile { // most of it now, while the file is not locked
		if err := obj.SyncFile(); err != nil {
			return err
		}
	}
	f := &finishing{fs: fs, n: n, id: id, obj: obj}
	switch err := f.run(ctx); {
	case err != nil && !f.turned:
		return err
	case err != nil: // the object stays for the next mount to sweep
		path, _ := n.path()
		fs.log.Error("a file that became whole may not be durable", "path", string(path), "cause", err)
	default:
		fs.dropPending(id)
	}
	if fs.notify != nil {
		fs.notify.InodeNotify(n.id, -1, 0) // blocks and ctime are others
	}
	return nil
}

// verifyWhole asks the source, once everything is here, whether it still has the
// version that this came of. Each fetch has proven that for itself; a version that
// changes by the end says that somebody was writing, and that a clock may hide it. A
// file of which nothing came from there is its own proof, and so is the operator's.
func (fs *FS) verifyWhole(ctx context.Context, id extent.ID, obj *extent.Object) error {
	if obj.Clean() == 0 {
		return nil
	}
	switch kind, _, err := fs.conflictOf(id); {
	case err != nil:
		return err
	case kind == conflictKept:
		return nil
	case kind == conflictOpen:
		return errInConflict
	}
	from := obj.Source()
	l := fs.layerByID(from.LayerID)
	if fs.Detached() {
		return nil // nobody can be asked: each fetch has proven what it brought
	}
	if l == nil {
		return fmt.Errorf("the lower that %q came from is not part of this mount: %w", string(from.Path), layers.ErrOffline)
	}
	want := from.Attr()
	f, err := l.Open(layers.Background(ctx), from.Path, &want)
	if err == nil {
		return f.Close()
	}
	if err = staleIfGone(err); errors.Is(err, layers.ErrStale) {
		fs.noteConflict(id, from.Path, err)
		return errInConflict
	}
	return err
}

// dropPending removes what is left of a pending object whose file does not need it.
// The object goes first: a stub's name without an object is swept, and so is an object
// whose stub says otherwise.
func (fs *FS) dropPending(id extent.ID) {
	if err := fs.store.Remove(id); err != nil {
		fs.log.Warn("object left for the next mount to sweep", "object", id.String(), "cause", err)
		return
	}
	_ = sys.Unlink(fs.stubs, id.String())
}

func (f *finishing) run(ctx context.Context) error {
	fs, n := f.fs, f.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending != f.id || n.dead != nil || !f.obj.Whole() {
		return errNotWhole
	}
	var ok bool
	if f.d, ok = n.dentry(); !ok {
		return errNameless
	}
	var err error
	if f.dir, err = fs.upperDir(f.d.parent); err != nil {
		return err
	}
	defer fs.dirs.release(f.dir)
	if f.path, err = openIdentified(f.dir.fd, f.d.name, n.upID); err != nil {
		return err
	}
	defer unix.Close(f.path)
	var stx unix.Statx_t
	if err := sys.Statx(f.path, "", &stx); err != nil {
		return err
	}
	f.was = local.AttrOf(&stx)
	if f.was.Immutable || f.was.AppendOnly {
		return errSealed
	}
	// One name, and that in WORK/stubs.
	if f.was.Nlink == 2 && f.sameProject() {
		if err = f.replace(); !errors.Is(err, unix.EXDEV) {
			return err
		}
	}
	return f.fillStub(ctx)
}

// sameProject reports whether the data file has the stub's project id: a rename into a
// directory that hands down its own would be EXDEV, and quotas would be wrong.
func (f *finishing) sameProject() bool {
	var stub, data sys.Fsxattr
	err := withReadable(f.path, func(fd int) error { return sys.GetFsxattr(fd, &stub) })
	if err != nil || sys.GetFsxattr(f.obj.DataFd(), &data) != nil {
		return true // there are none
	}
	return stub.Project() == data.Project()
}

// replace renames the data file over the stub. n.mu is held.
func (f *finishing) replace() error {
	fs, n, data := f.fs, f.n, f.obj.DataFd()
	objects, err := sys.OpenAt(fs.work, "objects", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(objects)
	// While it has a mode that lets us: the stub's may not.
	fds, err := n.reopenAll(data)
	if err != nil {
		return err
	}
	if err = f.dress(data); err == nil && !fs.cfg.Volatile {
		err = f.obj.SyncFile()
	}
	var endMove func(bool)
	if err == nil {
		endMove, err = n.moveLocks(data)
	}
	if err != nil {
		closeAll(fds)
		return err
	}
	err = fs.swaps.do(func() error {
		err := fs.timeless(f.d.parent, f.dir.fd, func() error {
			return fs.knownAs(n, data, "", func() error {
				return sys.Rename(objects, f.id.DataName(), f.dir.fd, f.d.name, 0)
			})
		})
		if err == nil {
			f.become(data, fds)
		}
		return err
	})
	endMove(err == nil)
	if err != nil {
		closeAll(fds)
		return err
	}
	f.turned = true
	// Nobody writes to it before it is sure that no loss of power brings the stub
	// back: the object would know of nothing that is written from here on.
	if err := copyup.SyncDir(f.dir.fd, fs.copies); err != nil {
		return fmt.Errorf("the name of a file that is whole is not durable: %w", err)
	}
	return nil
}

// dress gives the data file all metadata that the stub has, and none besides.
func (f *finishing) dress(data int) error {
	src := copyup.Source{Attr: f.was, Size: f.obj.Size()}
	src.Attr.Size = src.Size
	src.Path, _ = f.n.path()
	var err error
	if src.Xattrs, err = local.XattrsAt(f.path, ""); err != nil {
		return err
	}
	for _, x := range []string{whiteout.Metacopy, whiteout.Object, whiteout.Conflict} {
		delete(src.Xattrs, f.fs.cfg.Format.Name(x))
	}
	_ = withReadable(f.path, func(fd int) (err error) { src.Flags, err = sys.Flags(fd); return err })
	return copyup.Dress(data, &src, f.fs.copies)
}

// reopenAll opens the file fd for each handle of n. The caller holds n.mu.
func (n *node) reopenAll(fd int) (map[*handle]int, error) {
	fds := make(map[*handle]int, len(n.open))
	for _, h := range n.open {
		nfd, err := reopenFor(fd, h.flags, n.fs.cfg.NoAtime)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds[h] = nfd
	}
	return fds, nil
}

// reopenFor opens the file fd as a handle with these flags has it.
func reopenFor(fd int, flags uint32, noAtime bool) (int, error) {
	how := dataFlags(flags)
	if noAtime || flags&unix.O_NOATIME != 0 {
		if nfd, err := sys.Reopen(fd, how|unix.O_NOATIME); err == nil {
			return nfd, nil
		}
	}
	return sys.Reopen(fd, how)
}

func closeAll(fds map[*handle]int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// become makes the data file, which has the name now, n's upper inode. A handle's
// descriptor keeps its number, which requests under way may be using. n.mu is held.
func (f *finishing) become(data int, fds map[*handle]int) {
	n := f.n
	var stx unix.Statx_t
	if err := sys.Statx(data, "", &stx); err != nil {
		n.fs.log.Error("file that became whole not known by its inode", "cause", err)
	}
	a := local.AttrOf(&stx)
	n.upID, n.pending = idOf(&a), extent.ID{}
	n.fresh.Store(true)
	if n.kept >= 0 {
		kept, err := sys.Reopen(data, unix.O_PATH)
		if err != nil {
			kept = -1
		}
		n.keep(kept)
	}
	for h, fd := range fds {
		if h.fd < 0 {
			h.fd = fd
			continue
		}
		if err := unix.Dup3(fd, h.fd, unix.O_CLOEXEC); err != nil {
			n.fs.log.Error("open file not moved to its data", "cause", err)
			h.fd = -1 // opened anew when it is used: the stub has nothing to read
		}
		unix.Close(fd)
	}
	n.retireObject()
}

// fillStub copies the data into the stub, which has several names, or a project of its
// own. While the mark stands nothing counts of what is in there. n.mu is held: a file
// that shares no blocks with the copy stands still meanwhile.
func (f *finishing) fillStub(ctx context.Context) error {
	fs, n := f.fs, f.n
	fd, err := sys.Reopen(f.path, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if hasXattr(fd, "security.capability") {
		return errCapable
	}
	if f.was.Size > 0 { // what an attempt that was cut short has left
		if err := sys.Truncate(fd, 0); err != nil {
			return err
		}
		if err := copyup.RestoreTimes(fd, &f.was); err != nil {
			return err
		}
	}
	data := dup(f.obj.DataFd())
	if data < 0 {
		return unix.EMFILE
	}
	src := local.NewFile(data, layers.Attr{Size: f.obj.Size()})
	defer src.Close()
	if err := copyup.Complete(ctx, fd, src, f.obj.Size(), fs.copies); err != nil {
		return err
	}
	err = fs.swaps.do(func() error {
		if err := sys.Fremovexattr(fd, fs.cfg.Format.Name(whiteout.Metacopy)); err != nil {
			return err
		}
		n.pending = extent.ID{}
		n.retireObject()
		f.turned = true
		return nil
	})
	if err != nil {
		return err
	}
	for _, x := range []string{whiteout.Object, whiteout.Conflict} { // they mean nothing without the mark
		if name := fs.cfg.Format.Name(x); hasXattr(fd, name) {
			_ = sys.Fremovexattr(fd, name)
		}
	}
	if fs.cfg.Volatile {
		return nil
	}
	if err := sys.Fsync(fd); err != nil {
		return fmt.Errorf("a file that is whole is not durable without its object: %w", err)
	}
	return nil
}
