package overlay

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// table holds every node the kernel knows.
type table struct {
	mu    sync.Mutex
	next  uint64 // node ids are never reused: 1 is the root, 0 means none
	byID  map[uint64]*node
	byKey map[fileKey]known
	byIno map[uint64]*node // st_ino as shown, so that no two nodes share one
	peak  int              // most nodes since the maps were made
	dev   uint64           // the device whose inode numbers are shown as they are
	// stable has the filesystem ids of the layers' other devices, whose numbers are
	// not the same after a reboot.
	stable map[uint64]uint64
}

// known is the node that has a key, and which inode with that number it is. There is
// one for each file that the kernel knows: it is kept small.
type known struct {
	n     *node
	birth int64 // ns; 0 where unknown
	upper bool
}

func (k *identity) known(n *node) known {
	return known{n, nsOf(k.birth), k.upper}
}

func (t *table) init() {
	t.next = 1
	t.byID = make(map[uint64]*node)
	t.byKey = make(map[fileKey]known)
	t.byIno = make(map[uint64]*node)
}

func (t *table) setRoot(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[n.id] = n
	n.lookups = 1 << 62 // the kernel never forgets the root
}

func (t *table) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// identityOf is that of the file at p that a describes in layer l.
func identityOf(l *layer, p layers.Path, a *layers.Attr) identity {
	id := identity{birth: a.Btime, upper: l.index == 0}
	if a.Has(layers.KnownIno) && l.isLocal() {
		id.dev, id.ino = a.Dev, a.Ino
		return id
	}
	if l.pairs && a.Has(layers.KnownIno|layers.KnownNlink) && a.Nlink > 1 && !a.IsDir() {
		p = layers.Path(fmt.Sprintf("\x00%x:%x", a.Dev, a.Ino)) // no path has a NUL
	}
	var version [24]byte
	put := binary.LittleEndian.PutUint64
	put(version[:], uint64(a.Type()))
	if a.IsRegular() {
		put(version[8:], uint64(a.Size))
		put(version[16:], uint64(versionTime(a)))
	}
	h := sha256.Sum256(append(version[:], p...))
	id.dev, id.path = noDev|uint64(l.index), p
	id.ino, id.more = binary.LittleEndian.Uint64(h[:]), binary.LittleEndian.Uint64(h[8:])
	return id
}

// versionTime is one number of the times that tell versions of a file of another
// host apart: that of the last modification and, where the source shows it, that of
// the last change.
func versionTime(a *layers.Attr) int64 {
	t := a.Mtime.Sec*1e9 + int64(a.Mtime.Nsec)
	if a.Has(layers.KnownCtime) {
		const odd = 0x1e3779b97f4a7c15 // any large one: both times move together
		t += (a.Ctime.Sec*1e9 + int64(a.Ctime.Nsec)) * odd
	}
	return t
}

// inoOf is the inode number shown for a file while nobody else shows it: the
// file's own on the main device, a hash elsewhere (Lustre, NFS and btrfs use all
// 64 bits, so there is no room for layer bits).
func (t *table) inoOf(k *identity) uint64 {
	if k.dev&noDev != 0 {
		return max(stableHash(k.dev, 0, k.path), 2) // stays when the source changes the content
	}
	if k.dev == t.dev && k.ino > 1 {
		return k.ino
	}
	dev := k.dev
	if id, ok := t.stable[dev]; ok {
		dev = id
	}
	return max(stableHash(dev, k.ino, ""), 2)
}

// freeIno is inoOf or, if another node shows that number (it had it before a
// copy-up, and the filesystem gave it away again), one that follows from it: a
// listing tells the number that a lookup will give. The caller holds t.mu.
func (t *table) freeIno(k *identity) uint64 {
	ino := t.inoOf(k)
	for t.byIno[ino] != nil {
		ino = max(stableHash(ino, k.ino, k.path), 2)
	}
	return ino
}

// nameDevices notes what stays of the layers' filesystems. Two with one id keep
// their device numbers.
func (t *table) nameDevices(fs *FS) {
	of := map[uint64]uint64{}
	t.stable = map[uint64]uint64{}
	for _, l := range fs.lowers {
		if !l.isLocal() || l.fsid == 0 {
			continue
		}
		if dev, ok := of[l.fsid]; ok && dev != l.dev {
			delete(t.stable, dev)
			continue
		}
		of[l.fsid] = l.dev
		t.stable[l.dev] = l.fsid &^ noDev
	}
}

// knows reports whether a node is known by k.
func (t *table) knows(k identity) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byKey[k.fileKey].by(k)
}

// shownIno is the inode number of the file k: that of its node, which
// keeps it through copy-up, or else the one it would get; 0 if that may be of
// another file, which it is a copy of.
func (t *table) shownIno(k identity, copied bool) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.byKey[k.fileKey]; m.by(k) {
		return m.n.ino
	}
	if copied {
		return 0
	}
	return t.freeIno(&k)
}

// inoFound is shownIno of what a lookup found.
func (t *table) inoFound(f *found) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range f.keys {
		if m := t.byKey[k.fileKey]; m.is(k, f) {
			return m.n.ino
		}
	}
	return t.freeIno(f.shows())
}

// showing returns the node that shows the inode number ino.
func (t *table) showing(ino uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byIno[ino]
}

// adopt returns the node of what was found at name in parent, a new one if none
// is known, with one more lookup to its account. The name stays while it is looked up
// and adopted; else see FS.find.
func (t *table) adopt(fs *FS, f *found, parent *node, name string) *node {
	n, _ := t.adoptIf(fs, f, parent, name, nil)
	return n
}

// adoptIf is adopt, but where n is not known by that name already it is so only if still
// says so, and the look is not behind it; else it is a node that was seen there, and no
// more. Without still it is always.
func (t *table) adoptIf(fs *FS, f *found, parent *node, name string, still func(n *node) bool) (n *node, is bool) {
	fs.meet(f, parent, name)
	n = t.node(fs, f)
	if still != nil && f.isBehind(n) {
		return n, false
	}
	if is = fs.addNameIf(n, parent, name, still); is {
		n.upgrade(f)
	}
	return n, is
}

// find looks name up in dir and returns its node, with one more lookup to its account.
// While the kernel has a name looked up, nobody takes it away through the mount. But who
// drains looks names up beside the kernel, and removes lower copies: if a name has gone
// from dir since the look began, what it found may be gone, and a node of that would lead
// nowhere, or be a second one of a file that has come up. Then it counts if the next look
// finds it again. And where it is a look later that n, which has come up, is not in the
// upper, it was taken away there: what stands below is not n.
func (fs *FS) find(ctx context.Context, dir *node, name string) (*node, *found, error) {
	return fs.findBy(dir, name, func() (*found, error) { return fs.lookup(ctx, dir, name) })
}

func (fs *FS) findBy(dir *node, name string, look func() (*found, error)) (*node, *found, error) {
	var seen *node // by the look before
	var up *node   // it had come up before this look
	leave := func() {
		if seen != nil {
			fs.Forget(seen.id, 1)
		}
	}
	defer func() { leave() }()
	for missed := false; ; {
		before := dir.losses.Load()
		f, err := look()
		if err == unix.ENOENT && dir.losses.Load() != before && !missed {
			missed = true
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		n, is := fs.table.adoptIf(fs, f, dir, name, func(n *node) bool { return n == seen || dir.losses.Load() == before })
		if is {
			return n, f, nil
		}
		leave()
		seen = n
		switch behind := f.isBehind(n); {
		case behind && up == n:
			fs.table.disown(n, f.keys)
		case behind:
			up = n
		}
	}
}

func (t *table) node(fs *FS, f *found) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	var n *node
	for _, k := range f.keys {
		if m := t.byKey[k.fileKey]; m.is(k, f) {
			n = m.n
			break
		}
	}
	if n == nil {
		n = t.create(fs, f)
	}
	for _, k := range f.keys {
		t.bind(n, k)
	}
	n.lookups++
	return n
}

// is reports whether f, found by its identity k, can be the node that is known
// by that key: an inode number that came back with another type or birth time, or in
// the upper after it was one of a lower, is another file. The birth is that of the
// inode with the key, not of the node: a look that is older than a copy-up has found
// the lower's.
func (m known) is(k identity, f *found) bool {
	return m.by(k) && m.n.typ == f.attr.Type()
}

// by is is where the type is not known.
func (m known) by(k identity) bool {
	return m.n != nil && m.upper == k.upper && !bornApart(m.birth, nsOf(k.birth))
}

// before reports whether the inode k was there, as a look that took long may have seen it,
// before that with its number by which a node is known.
func (k identity) before(m known) bool {
	if birth := nsOf(k.birth); bornApart(birth, m.birth) {
		return birth < m.birth
	}
	return m.upper && !k.upper // what is made is made in the upper
}

func (t *table) create(fs *FS, f *found) *node {
	n := &node{fs: fs, id: t.next, typ: f.attr.Type(), kept: -1}
	t.next++
	if t.next == 2 {
		t.next++ // the root was made; 2 is left out to keep ids and inode numbers apart in traces
	}
	n.ino = t.freeIno(f.shows())
	t.byIno[n.ino] = n
	t.byID[n.id] = n
	t.peak = max(t.peak, len(t.byID))
	return n
}

func (t *table) bind(n *node, k identity) {
	old := t.byKey[k.fileKey]
	if k.birth == (layers.Time{}) && old.n == n || old.n != nil && old.n != n && k.before(old) {
		return
	}
	t.byKey[k.fileKey] = k.known(n)
	if old.n != n {
		n.keys = append(n.keys, k.fileKey)
	}
}

// also makes n known by the inode that a copy-up gave it.
func (t *table) also(n *node, k identity) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bind(n, k)
}

// not takes back what also made known.
func (t *table) not(n *node, k identity) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey[k.fileKey].n == n {
		delete(t.byKey, k.fileKey)
	}
	n.keys = slices.DeleteFunc(n.keys, func(have fileKey) bool { return have == k.fileKey })
}

// disown makes n not known by keys.
func (t *table) disown(n *node, keys []identity) {
	for _, k := range keys {
		t.not(n, k)
	}
}

// die makes sure that the inode numbers of n, which has no name any more, lead
// nobody to it: the filesystem will give them to other files.
func (t *table) die(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unbind(n)
}

func (t *table) unbind(n *node) {
	for _, k := range n.keys {
		if t.byKey[k].n == n {
			delete(t.byKey, k)
		}
	}
	n.keys = nil
}

// ref is one more lookup of n, for a name in it.
func (t *table) ref(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.lookups++
}

// forget takes back lookups and returns the node if it is gone, and whether most
// others went before it.
func (t *table) forget(id, lookups uint64) (n *node, shrunk bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n = t.byID[id]
	if n == nil {
		return nil, false
	}
	n.lookups -= min(lookups, n.lookups)
	if n.lookups > 0 {
		return nil, false
	}
	delete(t.byID, id)
	if t.byIno[n.ino] == n {
		delete(t.byIno, n.ino)
	}
	t.unbind(n)
	return n, t.shrinkLocked()
}

// stableHash mixes what a file is known by into 64 bits, the same in every run (FNV-1a), so that a
// file without an inode shows one st_ino across remounts.
func stableHash(dev, ino uint64, path layers.Path) uint64 {
	const prime = 1099511628211
	h := uint64(14695981039346656037)
	add := func(v uint64) {
		for range 8 {
			h = (h ^ v&0xff) * prime
			v >>= 8
		}
	}
	add(dev)
	add(ino)
	for i := range len(path) {
		h = (h ^ uint64(path[i])) * prime
	}
	return h
}

// Forget implements fuse.RawFileSystem.
func (fs *FS) Forget(id, lookups uint64) {
	n, shrunk := fs.table.forget(id, lookups)
	if n == nil {
		return
	}
	if shrunk {
		fs.giveBack.Reset(giveBackAfter)
	}
	n.mu.Lock()
	n.closeObject()
	n.keep(-1)
	n.mu.Unlock()
	fs.tree.Lock()
	names := n.names
	n.names = nil
	fs.uncallLocked(n, names...)
	if shrunk && fs.called != nil {
		fs.called = fresh(fs.called)
	}
	fs.tree.Unlock()
	fs.leave(names)
}
