package remember

import (
	"container/list"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// dir is what is known of the names in one directory. That of a name of its own, its
// attributes, is with its parent; the root is the name "" in itself.
type dir struct {
	path  layers.Path
	elem  *list.Element // in Layer.used
	bytes int
	names map[string]*name

	// listed is when the listing was asked for since which names has every name there
	// is; 0 if it has not. Single names may be known from later.
	listed moment

	// What the detectors in walk.go count.
	subs    []string // the directories in it, in the order that sorted says
	sorted  order
	misses  int // names that had to be asked for one by one, lately
	missAt  moment
	missed  string // the last of them
	links   int    // targets of symlinks, likewise
	ahead   bool   // it was listed for a walker that has not come yet
	refused moment // when it could not be listed ahead
}

// name is what is known of one name. What it was asked for at is older than what is
// there now only while an answer is on its way.
type name struct {
	at     moment       // as of when the following is known; 0: it has turned out to be wrong
	attr   *layers.Attr // nil: not known, or absent
	typ    uint32       // of one that was listed
	ino    uint64
	absent bool
	walk   uint32 // the last walk that came to this directory

	target   *string // of a symlink
	targetAt moment
	xattrs   layers.Xattrs
	xattrsAt moment
}

// What a remembered directory and a remembered name take, about.
const (
	dirBytes  = int(unsafe.Sizeof(dir{})) + 100
	nameBytes = int(unsafe.Sizeof(name{})) + 60
	attrBytes = int(unsafe.Sizeof(layers.Attr{}))
)

func (n *name) bytes(base string) int {
	sum := nameBytes + len(base)
	if n.attr != nil {
		sum += attrBytes
	}
	if n.target != nil {
		sum += len(*n.target) + 16
	}
	for k, v := range n.xattrs {
		sum += len(k) + len(v) + 64
	}
	return sum
}

// nameLocked returns what is known of p and the directory that has it; nil where there
// is nothing.
func (l *Layer) nameLocked(p layers.Path) (*dir, *name) {
	parent, base := p.Split()
	d := l.dirs[parent]
	if d == nil {
		return nil, nil
	}
	l.used.MoveToFront(d.elem)
	return d, d.names[base]
}

// attrLocked returns the attributes of p, however old; nil if they were never seen.
func (l *Layer) attrLocked(p layers.Path) *layers.Attr {
	if _, n := l.nameLocked(p); n != nil {
		return n.attr
	}
	return nil
}

// listedLocked returns the directory p if all its names are known.
func (l *Layer) listedLocked(p layers.Path) *dir {
	if d := l.dirs[p]; d != nil && l.fresh(d.listed) {
		return d
	}
	return nil
}

func (l *Layer) needDirLocked(p layers.Path) *dir {
	d := l.dirs[p]
	if d == nil {
		d = &dir{path: p, names: make(map[string]*name)}
		d.elem = l.used.PushFront(d)
		l.dirs[p] = d
		l.growLocked(d, dirBytes+len(p))
	}
	return d
}

// growLocked notes that d has become larger by so many bytes.
func (l *Layer) growLocked(d *dir, by int) {
	d.bytes += by
	l.bytes += by
}

// dropDirLocked forgets what is known of the names in p.
func (l *Layer) dropDirLocked(p layers.Path) {
	if d := l.dirs[p]; d != nil {
		delete(l.dirs, p)
		l.used.Remove(d.elem)
		l.bytes -= d.bytes
	}
}

// boundLocked forgets what was used least recently, until what is left is no more than
// the bound.
func (l *Layer) boundLocked() {
	for l.bytes > l.cfg.Max && l.used.Len() > 0 {
		l.dropDirLocked(l.used.Back().Value.(*dir).path)
	}
}

// putLocked changes what is known of p, as of at, by f; not if something newer is
// known.
func (l *Layer) putLocked(p layers.Path, at moment, f func(n *name)) {
	parent, base := p.Split()
	d := l.needDirLocked(parent)
	n := d.names[base]
	if n == nil {
		n = &name{}
		d.names[base] = n
		l.growLocked(d, n.bytes(base))
	} else if n.at > at {
		return
	}
	before, wasDir := n.bytes(base), n.isDir()
	f(n)
	l.growLocked(d, n.bytes(base)-before)
	if n.isDir() != wasDir {
		d.subs = nil
		if wasDir {
			l.dropDirLocked(p)
		}
	}
	l.boundLocked()
}

func (n *name) isDir() bool {
	if n.attr != nil {
		return n.attr.IsDir()
	}
	return !n.absent && isDir(n.typ)
}

// see notes the attributes a of n as of at.
func (n *name) see(a *layers.Attr, at moment) {
	if n.attr == nil || !n.attr.SameVersion(a) {
		n.target = nil // another symlink
	}
	n.attr, n.at, n.absent = a, at, false
	n.typ = a.Type()
}

// miss notes that n is not there.
func (n *name) miss(at moment) { *n = name{at: at, absent: true} }

// newListing is a listing before it is remembered, made without a lock: it may be long.
type newListing struct {
	names map[string]*name
	bytes int
}

func prepare(entries []layers.Entry, at moment) newListing {
	new := newListing{names: make(map[string]*name, len(entries))}
	for i := range entries {
		e := &entries[i]
		n := &name{at: at, attr: e.Attr, typ: e.Type, ino: e.Ino}
		if e.Attr != nil {
			n.typ = e.Attr.Type()
		}
		new.names[e.Name] = n
		new.bytes += n.bytes(e.Name)
	}
	return new
}

// putListingLocked remembers what p held as of at. What is known of single names from
// later stays, and so do targets and attributes that listings do not have.
func (l *Layer) putListingLocked(p layers.Path, at moment, new newListing) {
	if new.bytes > l.cfg.Max/2 {
		l.dropDirLocked(p) // it would take the place of all else
		return
	}
	d := l.needDirLocked(p)
	if d.listed > at {
		return
	}
	for base, old := range d.names {
		n := new.names[base]
		switch {
		case base == "" || old.at > at:
			new.replace(base, old)
		case n == nil:
			if old.isDir() {
				l.dropDirLocked(p.Join(base))
			}
		default:
			if old.isDir() && !n.isDir() {
				l.dropDirLocked(p.Join(base))
			}
			new.bytes -= n.bytes(base)
			n.inherit(old)
			new.bytes += n.bytes(base)
		}
	}
	l.growLocked(d, dirBytes+len(p)+new.bytes-d.bytes)
	d.names, d.listed = new.names, at
	d.subs, d.misses = nil, 0
	l.used.MoveToFront(d.elem)
	l.boundLocked()
}

// inherit takes over from old, an earlier look at the same name, what n does not tell.
func (n *name) inherit(old *name) {
	n.walk = old.walk
	switch {
	case n.attr == nil:
		if old.attr != nil && old.attr.Type() == n.typ {
			n.attr, n.at = old.attr, old.at
			n.target, n.targetAt = old.target, old.targetAt
		}
	case old.attr != nil && old.attr.SameVersion(n.attr):
		n.target, n.targetAt = old.target, old.targetAt
		n.xattrs, n.xattrsAt = old.xattrs, old.xattrsAt
	}
}

func (new *newListing) replace(base string, n *name) {
	if m := new.names[base]; m != nil {
		new.bytes -= m.bytes(base)
	}
	new.names[base] = n
	new.bytes += n.bytes(base)
}

// Forget makes p unknown, and what leads to it: something else than what is remembered
// turned out to be there. What is on its way from before is not kept.
func (l *Layer) Forget(p layers.Path) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgetLocked(p)
}

func (l *Layer) forgetLocked(p layers.Path) {
	l.forgotten++
	if d, n := l.nameLocked(p); n != nil {
		l.growLocked(d, -n.bytes(baseOf(p)))
		*n = name{typ: n.typ, walk: n.walk}
		l.growLocked(d, n.bytes(baseOf(p)))
	} else if d != nil && p != layers.Root {
		d.listed = 0 // it was said not to be there
	}
	l.dropDirLocked(p)
	l.turnBackLocked(question{aboutNames, p})
	for at := p; ; {
		for _, a := range []about{aboutAttr, aboutTarget, aboutXattrs} {
			l.turnBackLocked(question{a, at})
		}
		if at == layers.Root {
			return
		}
		at, _ = at.Split()
		if _, n := l.nameLocked(at); n != nil {
			n.at = 0
		}
		l.turnBackLocked(question{aboutNames, at})
	}
}

// turnBackLocked lets nobody else join the flight of q, and its answer go with those who
// have.
func (l *Layer) turnBackLocked(q question) {
	if f := l.flights[q]; f != nil {
		f.stale = true
		delete(l.flights, q)
	}
}

func baseOf(p layers.Path) string {
	_, base := p.Split()
	return base
}

func isDir(typ uint32) bool { return typ == unix.S_IFDIR }
