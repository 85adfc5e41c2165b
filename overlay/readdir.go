package overlay

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// dirHandle is one open of a directory. What it lists is taken when it is first
// read, and again after a rewind.
type dirHandle struct {
	n *node

	mu      sync.Mutex // protects list; held while the layers are read
	list    listing
	asOf    time.Time // when a source was asked for list; zero if none was
	started bool

	// Of one that serves all who read the directory; protected by listings.mu.
	users int  // requests
	ended bool // somebody has got to the end
}

// OpenDir implements fuse.RawFileSystem.
func (fs *FS) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if fs.unopened {
		return fuse.ENOSYS // and the kernel asks for none again; see listings.go
	}
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	if !n.isDir() {
		return fuse.ENOTDIR
	}
	h := &dirHandle{n: n}
	if fs.cfg.AsCaller {
		// Whether the directory may be read shows when it is.
		ctx := begin(cancel, in.Pid)
		defer ctx.end()
		if _, err := fs.entries(ctx, h, 0); err != nil {
			return fs.status("opendir", n, "", err)
		}
	}
	out.Fh = fs.handles.add(h)
	if fs.listingsKept() {
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE // until it changes a name
	}
	return fuse.OK
}

// namesKept reports whether names change through this mount only: what the kernel
// was told of them it may keep.
func (fs *FS) namesKept() bool { return fs.Alone() && fs.entryTimeout == forever }

// listingsKept reports whether the kernel may keep listings until a name changes.
func (fs *FS) listingsKept() bool { return fs.namesKept() && !fs.cfg.Restored }

// ReleaseDir implements fuse.RawFileSystem.
func (fs *FS) ReleaseDir(in *fuse.ReleaseIn) { fs.handles.remove(in.Fh) }

// FsyncDir implements fuse.RawFileSystem.
func (fs *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n := fs.table.get(in.NodeId)
	if n == nil {
		return fuse.OK
	}
	if err := fs.settle(n); err != nil || !n.isUpper() {
		return fs.status("fsyncdir", n, "", err)
	}
	fd, err := fs.openUpper(n)
	if err != nil {
		return fs.status("fsyncdir", n, "", err)
	}
	defer unix.Close(fd)
	dir, err := sys.OpenBeneath(fd, "", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fs.status("fsyncdir", n, "", err)
	}
	defer unix.Close(dir)
	if err := sys.Fsync(dir); err != nil {
		return fs.status("fsyncdir", n, "", err)
	}
	return fs.status("fsyncdir", n, "", fs.syncNames(n))
}

// entries returns what h lists from offset off on.
func (fs *FS) entries(ctx context.Context, h *dirHandle, off uint64) (listing, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := !h.started
	if first || off == 0 {
		list, err := fs.readDir(ctx, h.n)
		if err != nil {
			return listing{}, err
		}
		h.list, h.started, h.asOf = newListing(list), true, time.Time{}
		if age := layers.AgeOf(ctx); age > 0 {
			h.asOf = time.Now().Add(-age)
		}
	} else if !h.asOf.IsZero() {
		layers.AnsweredAsOf(ctx, h.asOf)
	}
	if first && fs.cfg.Restored {
		off = h.list.foreign(off)
	}
	return h.list.from(off), nil
}

// ReadDir implements fuse.RawFileSystem.
func (fs *FS) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	h, done := fs.listed(in)
	if h == nil {
		return fuse.EBADF
	}
	list, err := fs.entries(ctx, h, in.Offset)
	done(err == nil && len(list.entries) == 0)
	if err != nil {
		return fs.status("readdir", h.n, "", err)
	}
	for i := range list.entries {
		l := &list.entries[i]
		e := fuse.DirEntry{Name: l.Name, Mode: l.Type, Ino: fs.listedIno(ctx, h.n, l), Off: list.offsets[i]}
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

// ReadDirPlus implements fuse.RawFileSystem. An entry that is gone by now, or
// whose attributes cannot be had, is listed without them: the kernel asks for it
// when somebody wants it.
func (fs *FS) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	ctx := begin(cancel, in.Pid)
	defer ctx.end()
	h, done := fs.listed(in)
	if h == nil {
		return fuse.EBADF
	}
	list, err := fs.entries(ctx, h, in.Offset)
	done(err == nil && len(list.entries) == 0)
	if err != nil {
		return fs.status("readdir", h.n, "", err)
	}
	for i := range list.entries {
		l := &list.entries[i]
		e := fuse.DirEntry{Name: l.Name, Mode: l.Type, Ino: l.Ino, Off: list.offsets[i]}
		if e.Name == "." || e.Name == ".." || fs.cached(h.n, l) {
			if out.AddDirLookupEntry(e) == nil { // no node id: not looked up
				break
			}
			continue
		}
		var n *node
		before := h.n.losses.Load()
		f, err := fs.lookupEntry(ctx, h.n, l)
		if err == nil {
			var is bool
			n, is = fs.table.adoptIf(fs, f, h.n, e.Name, func(*node) bool { return h.n.losses.Load() == before })
			if !is {
				fs.Forget(n.id, 1)
				n = nil
			}
		}
		if n != nil {
			e.Ino = n.ino
		}
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			if n != nil {
				fs.Forget(n.id, 1)
			}
			break
		}
		if n != nil {
			fs.fillEntry(entry, n, &f.attr)
			ctx.shorten(entry)
			out.FixMode(f.attr.Mode)
		}
	}
	return fuse.OK
}

// listedIno is the number of a listed file. What merge left open is looked up: the
// number of an upper file may be that of a file below.
func (fs *FS) listedIno(ctx context.Context, dir *node, e *layers.Entry) uint64 {
	if e.Ino != 0 || e.Name == ".." {
		return e.Ino
	}
	look := func() (*found, error) { return fs.lookup(ctx, dir, e.Name) }
	if e.Attr != nil {
		// Of another host, which is not asked for each entry.
		look = func() (*found, error) { return fs.lookupEntry(ctx, dir, e) }
	}
	f, err := look()
	if err != nil {
		return 0
	}
	return fs.table.inoFound(f)
}

// cached reports whether the kernel was told of the entry e of dir before, for good,
// and has not opened the file since: then the listing need not tell it again.
func (fs *FS) cached(dir *node, e *layers.Entry) bool {
	if !fs.namesKept() {
		return false
	}
	n := fs.table.showing(e.Ino)
	return n != nil && n.told.Load() && n.isCalled(dir, e.Name)
}

// errNotNow: looking up an entry would cost an exchange with a source.
var errNotNow = errors.New("left for when it is asked for")

// lookupEntry is lookup for an entry that was just listed. Where a source is among
// the layers it is not asked again: what came with the listing serves, if that
// is all there is to know of the name.
func (fs *FS) lookupEntry(ctx context.Context, n *node, e *layers.Entry) (*found, error) {
	n.mu.RLock()
	upper, lowers := n.upper, n.lowers
	n.mu.RUnlock()
	var from *lowerRef
	for i := range lowers {
		if !lowers[i].layer.isLocal() {
			if from != nil {
				return nil, errNotNow // which of them listed it?
			}
			from = &lowers[i]
		}
	}
	if from == nil {
		return fs.lookup(ctx, n, e.Name)
	}
	if e.Attr == nil && e.Type != unix.S_IFDIR && e.Type != 0 && len(lowers) == 1 {
		return fs.lookup(ctx, n, e.Name) // it lies in the upper, where that ends
	}
	if e.Attr == nil || e.Attr.IsDir() && len(lowers) > 1 {
		return nil, errNotNow
	}
	// The list may be older than what was done to the directory since; all that
	// is done leaves a name in the upper.
	if upper {
		d, err := fs.upperDir(n)
		if err != nil {
			return nil, err
		}
		changed, err := inUpper(d.fd, e.Name)
		fs.dirs.release(d)
		if err != nil || changed {
			return nil, errNotNow
		}
	}
	attr := *e.Attr
	f := &found{}
	f.add(&lowerRef{layer: from.layer, path: from.path.Join(e.Name), attr: &attr})
	return f, nil
}

// readDir lists the merged directory n. The lowest layer is read first: a file
// that another host moves up meanwhile is then seen in one place at least.
func (fs *FS) readDir(ctx context.Context, n *node) ([]layers.Entry, error) {
	n.mu.RLock()
	upper, lowers, dead := n.upper, n.lowers, n.dead != nil
	n.mu.RUnlock()
	list := []layers.Entry{{Name: ".", Type: unix.S_IFDIR, Ino: n.ino}, {Name: "..", Type: unix.S_IFDIR, Ino: n.ino}}
	if dead {
		return list[:0], nil
	}
	if d, ok := n.dentry(); ok {
		list[1].Ino = d.parent.ino
	}
	seen := make(map[string]int)
	for i := len(lowers) - 1; i >= 0; i-- {
		r := &lowers[i]
		es, err := fs.readLower(ctx, n, r)
		if nothing(err) || errors.Is(err, errMoved) {
			continue // removed by another host
		}
		if err != nil {
			return nil, err
		}
		if fs.cfg.Mode == Overlay {
			hide := func(name string) {
				if i, known := seen[name]; known {
					list[i].Name = ""
					delete(seen, name)
				}
			}
			if es, err = fs.whites(ctx, r, es, hide); err != nil {
				return nil, err
			}
		}
		if fs.cache() != nil && !r.layer.isLocal() {
			fs.ahead.listed(r.layer, r.path, es)
		}
		list = fs.merge(list, es, seen, n, r.layer)
	}
	if upper || fs.many() && fs.notice(n) {
		es, err := fs.readUpper(ctx, n)
		if err != nil {
			return nil, err
		}
		list = fs.merge(list, es, seen, n, fs.upper)
	}
	out := list[:0]
	for i := range list {
		if list[i].Name != "" {
			out = append(out, list[i])
		}
	}
	return out, nil
}

// merge puts the entries of a higher layer over list. A whiteout takes its name
// away: it leaves an entry with an empty name.
func (fs *FS) merge(list, es []layers.Entry, seen map[string]int, dir *node, l *layer) []layers.Entry {
	mixed := l == fs.upper && dir.impure.Load() == impure
	for _, e := range es {
		if dir == fs.root && e.Name == Reserved {
			continue
		}
		i, known := seen[e.Name]
		if fs.cfg.Mode == Overlay && l == fs.upper && e.Type == unix.S_IFCHR && fs.isWhiteout(dir, e.Name) {
			if known {
				list[i].Name = ""
				delete(seen, e.Name)
			}
			continue
		}
		if l.isLocal() {
			copied := l == fs.upper && fs.cfg.Mode == Overlay && (mixed || known && e.Type == unix.S_IFDIR)
			e.Ino = fs.table.shownIno(identity{fileKey: fileKey{dev: l.dev, ino: e.Ino}, upper: l == fs.upper}, copied)
		}
		if known {
			list[i] = e
			continue
		}
		seen[e.Name] = len(list)
		list = append(list, e)
	}
	return list
}

// isWhiteout looks whether the character device name in the upper's dir is one:
// few are not.
func (fs *FS) isWhiteout(dir *node, name string) bool {
	d, err := fs.upperDir(dir)
	if err != nil {
		return false
	}
	defer fs.dirs.release(d)
	var stx unix.Statx_t
	if sys.Statx(d.fd, name, &stx) != nil {
		return false
	}
	a := local.AttrOf(&stx)
	return whiteout.Is(&a)
}

func (fs *FS) readLower(ctx context.Context, n *node, r *lowerRef) ([]layers.Entry, error) {
	if r.layer.isLocal() {
		// No signal makes getdents(2) of a filesystem of this host fail: programs
		// do not expect EINTR. A source is another matter.
		ctx = context.WithoutCancel(ctx)
	}
	if !r.layer.writable {
		return r.layer.ReadDir(ctx, r.path)
	}
	d, err := fs.lowerDir(n, r)
	if err != nil {
		return nil, err
	}
	defer fs.dirs.release(d)
	return fs.listDir(ctx, d.fd)
}

func (fs *FS) readUpper(ctx context.Context, n *node) ([]layers.Entry, error) {
	d, err := fs.upperDir(n)
	if err != nil {
		return nil, err
	}
	defer fs.dirs.release(d)
	if fs.upper.hasHandles() {
		fs.isImpure(n, d.fd) // for merge
	}
	ctx = context.WithoutCancel(ctx)
	if fs.cfg.NoAtime {
		// Only an owner, or root, may leave access times alone.
		if fd, err := sys.OpenBeneath(d.fd, "", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME, 0); err == nil {
			defer unix.Close(fd)
			return local.ReadDirFd(ctx, fd)
		}
	}
	return fs.listDir(ctx, d.fd)
}
