package overlay

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// fileID is what tells one inode of this host from every other: its number, which is
// another's as soon as it is gone, and its birth. Two are compared by is.
type fileID struct {
	dev   uint64
	ino   uint64
	birth int64 // ns; 0 where unknown
}

func idOf(a *layers.Attr) fileID { return fileID{a.Dev, a.Ino, nsOf(a.Btime)} }

func nsOf(t layers.Time) int64 { return t.Sec*1e9 + int64(t.Nsec) }

// is reports whether both are of one inode, as far as their births are known.
func (id fileID) is(other fileID) bool {
	return id.dev == other.dev && id.ino == other.ino && !bornApart(id.birth, other.birth)
}

func bornApart(a, b int64) bool { return a != 0 && b != 0 && a != b }

// fileKey finds the node of a file that was seen before. For a file with an
// inode it is that; for one without (on another host) it is the layer and a hash of
// the path and, of a regular file, of the version: another version is another node, so
// that two versions never share pages in the kernel's cache. There are two for each
// file that the kernel knows: it is kept small.
type fileKey struct {
	dev  uint64
	ino  uint64
	more uint64 // the rest of the hash
}

// identity is a key and what tells its file from an earlier one with that key.
type identity struct {
	fileKey
	path  layers.Path // of a file without an inode: its number is made of it
	birth layers.Time // zero where unknown
	upper bool        // lies in the upper, which may be on the filesystem of a lower
}

const noDev = 1 << 63 // set in fileKey.dev where the layer has no inodes

// lowerRef is where a node lies in one lower.
type lowerRef struct {
	layer *layer
	path  layers.Path // in that layer; in migrate mode the node's own path counts
	attr  *layers.Attr
	// handle is the overlayfs file handle of a hard-linked file, once it was needed.
	handle string
}

func (r *lowerRef) id() fileID { return idOf(r.attr) }

// dentry is one name of a node.
type dentry struct {
	parent *node
	name   string
}

// node is one file of the merged tree, known to the kernel by id until it
// forgets it. The id stays for life: through copy-up, rename and the removal of
// the lower copy.
type node struct {
	fs  *FS
	id  uint64 // immutable
	ino uint64 // st_ino; immutable
	typ uint32 // S_IFMT; immutable

	lookups uint64    // protected by table.mu
	keys    []fileKey // protected by table.mu
	names   []dentry  // protected by FS.tree; empty when unlinked, or not linked yet, and of the root

	// redirect is that of an upper directory: where it lies below, if not at its
	// name. Protected by FS.tree.
	redirect string

	// mu protects all below. It is held while the file is published, renamed or
	// unlinked, never while data is copied or a source is asked for data. The small
	// fields stand together: there is a node for each file that the kernel knows.
	mu      sync.RWMutex
	upper   bool
	indexed bool          // has a name in WORK/index, to be subtracted from nlink
	origin  bool          // an upper copy that says what it is a copy of
	mapped  bool          // may be mapped in passthrough, shared and writable, since the kernel knows n
	io      ioMode        // of all of open; see passthrough.go
	fresh   atomic.Bool   // a copy-up gave it its name in the upper, which may not be durable yet
	impure  atomic.Int32  // of an upper directory: unasked, pure, impure
	losses  atomic.Uint32 // of a directory: names that this mount took from it, in any layer; see FS.find
	backing int32         // what the kernel calls the upper file, while io is ioPassthrough
	shown   atomic.Uint32 // suid and sgid as the kernel was last told
	told    atomic.Bool   // the kernel has had the attributes since the last open: reading makes it doubt the access time
	pending extent.ID     // a stub in the upper; the data is in this object
	upID    fileID
	lowers  []lowerRef
	data    *dataBelow   // of a metacopy, in the upper or a lower: where its data is
	dead    *layers.Attr // after the last name went
	kept    int          // then, or before the first came, an O_PATH descriptor of the file, or -1: the kernel may open it still
	open    map[uint64]*handle
	pages   *pages         // what the kernel may have read of it, where others change files too
	obj     *extent.Object // while open, of a remote or pending file
	src     *source        // where obj's missing extents come from
	retired []readable     // what obj and src were, for reads under way
	noticed atomic.Int64   // when a reader last asked whether another host has brought n up: Unix time, ns

	locks atomic.Pointer[fileLocks] // nil until somebody locks; set with mu held
}

func (n *node) isDir() bool { return n.typ == unix.S_IFDIR }

// upKey is what the upper inode of n makes it known by. The caller holds n.mu.
func (n *node) upKey() identity {
	return identity{fileKey: fileKey{dev: n.upID.dev, ino: n.upID.ino}, upper: true}
}

// dentry returns one present name of n.
func (n *node) dentry() (dentry, bool) {
	n.fs.tree.RLock()
	defer n.fs.tree.RUnlock()
	if len(n.names) == 0 {
		return dentry{}, false
	}
	return n.names[0], true
}

// isCalled reports whether name in dir is a name of n that we know.
func (n *node) isCalled(dir *node, name string) bool {
	n.fs.tree.RLock()
	defer n.fs.tree.RUnlock()
	return slices.Contains(n.names, dentry{dir, name})
}

// path returns the path of n in the merged tree, which is its path in the upper
// and, in migrate mode, in every layer. It is false once n has no name.
func (n *node) path() (layers.Path, bool) {
	n.fs.tree.RLock()
	defer n.fs.tree.RUnlock()
	return n.pathLocked()
}

func (n *node) pathLocked() (layers.Path, bool) {
	size := 0
	for m := n; m != n.fs.root; m = m.names[0].parent {
		if len(m.names) == 0 {
			return "", false
		}
		size += len(m.names[0].name) + 1
	}
	if size == 0 {
		return layers.Root, true
	}
	b := make([]byte, size-1)
	for m := n; m != n.fs.root; m = m.names[0].parent {
		name := m.names[0].name
		end := size - 1
		size -= len(name) + 1
		copy(b[end-len(name):], name)
		if size > 0 {
			b[size-1] = '/'
		}
	}
	return layers.Path(b), true
}

// pathIn returns the path of n in the lower r.
func (n *node) pathIn(r *lowerRef) (layers.Path, bool) {
	if r.layer.writable {
		return n.path()
	}
	return r.path, true
}

// addName notes that n lies at name in parent, and makes that the name it is
// looked for by: of several, others may have gone underneath. A name keeps its
// directory's node, as a lookup does: a file with several names may outlive what
// the kernel knows of the directories they lie in.
func (fs *FS) addName(n, parent *node, name string) {
	fs.addNameIf(n, parent, name, nil)
}

// addNameIf is addName if still, where there is one, holds, which is asked with FS.tree
// held, unless n is looked for by that name already.
func (fs *FS) addNameIf(n, parent *node, name string, still func(n *node) bool) bool {
	if parent == nil || parent == n {
		return true
	}
	d := dentry{parent, name}
	fs.tree.RLock()
	first := len(n.names) > 0 && n.names[0] == d
	fs.tree.RUnlock()
	if first {
		return true
	}
	fs.tree.Lock()
	if still != nil && !still(n) {
		fs.tree.Unlock()
		return false
	}
	var moved []dentry
	switch i := slices.Index(n.names, d); {
	case i >= 0:
		n.names[0], n.names[i] = n.names[i], n.names[0]
	case n.isDir(): // it has one name: it was moved underneath
		moved = append(fs.cutLocked(n, parent), n.names...)
		n.names = []dentry{d}
		fs.uncallLocked(n, moved...)
		fs.table.ref(parent)
	default:
		n.names = append([]dentry{d}, n.names...)
		fs.table.ref(parent)
	}
	fs.callLocked(n, d)
	fs.tree.Unlock()
	fs.leave(moved)
	return true
}

// cutLocked takes its name from the directory through which parent would be below
// n, which is about to be named in parent: it has moved out of n underneath, and
// nobody has looked up yet to where. The caller holds FS.tree, and afterwards calls
// leave with what is returned.
func (fs *FS) cutLocked(n, parent *node) (gone []dentry) {
	for m := parent; len(m.names) > 0; m = m.names[0].parent {
		if m.names[0].parent == n {
			gone, m.names = m.names, nil
			fs.uncallLocked(m, gone...)
			return gone
		}
	}
	return nil
}

func (fs *FS) dropName(n, parent *node, name string) (left int) {
	fs.tree.Lock()
	parent.losses.Add(1)
	var gone []dentry
	for i, d := range n.names {
		if d.parent == parent && d.name == name {
			gone = []dentry{d}
			n.names = append(n.names[:i:i], n.names[i+1:]...)
			fs.uncallLocked(n, d)
			break
		}
	}
	left = len(n.names)
	fs.tree.Unlock()
	fs.leave(gone)
	return left
}

// renameNameLocked gives n the name to instead of from. The caller holds FS.tree, and
// afterwards, without it, calls leave with what is returned.
func (fs *FS) renameNameLocked(n *node, from, to dentry) []dentry {
	fs.table.ref(to.parent)
	from.parent.losses.Add(1)
	var left []dentry
	if n.isDir() {
		left = fs.cutLocked(n, to.parent)
	}
	for i, d := range n.names {
		if d == from {
			n.names[i] = to
			fs.uncallLocked(n, from)
			fs.callLocked(n, to)
			return append(left, from)
		}
	}
	n.names = append(n.names, to)
	fs.callLocked(n, to)
	return left
}

// leave lets go of the directories of names that are none any more. The caller
// holds no lock but nodes'.
func (fs *FS) leave(names []dentry) {
	for _, d := range names {
		fs.Forget(d.parent.id, 1)
	}
}

// flights lets one goroutine at a time change where a node lies; the others
// wait, and can be interrupted while they do.
type flights struct {
	mu sync.Mutex
	m  map[*node]chan struct{}
}

// enter waits until n is free and takes it, unless the caller of the request is
// killed. The caller calls leave.
func (f *flights) enter(ctx context.Context, n *node) error {
	ctx = untilKilled(ctx)
	for {
		f.mu.Lock()
		busy, ok := f.m[n]
		if !ok {
			if f.m == nil {
				f.m = make(map[*node]chan struct{})
			}
			f.m[n] = make(chan struct{})
			f.mu.Unlock()
			return nil
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return unix.EINTR
		}
	}
}

func (f *flights) leave(n *node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.m[n])
	delete(f.m, n)
}
