package overlay

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// renameParts renames a directory for which one call is not enough, because it, or an
// empty one that it replaces, or what it changes places with, lies in other layers as well:
// done is false where one call is, or where it cannot be done at all. The caller holds
// FS.dirMoves.
//
// What waits to be removed in a lower (removals.go) knows its directory by the node, so
// it follows; what is being removed is waited for, since it leaves a path in the trash.
func (fs *FS) renameParts(m *move) (done bool, err error) {
	if fs.promised {
		if err := fs.asDaemon(fs.finishRename); err != nil {
			return true, err
		}
	}
	unlock := fs.lockParts(m)
	var bury *node
	defer func() {
		unlock()
		if bury != nil {
			fs.bury(bury)
		}
	}()
	old, err := fs.partsWith(m.from.parent, m.from.name)
	if err != nil {
		return true, err
	}
	defer releaseAll(fs, old)
	targets, err := fs.partsWith(m.to.parent, m.to.name)
	if err != nil {
		return true, err
	}
	defer releaseAll(fs, targets)
	if !fs.needsParts(m, old, targets) {
		return false, nil
	}
	// A shadowed copy is older than what shows: it goes before anything moves.
	if old, err = fs.bareFile(m.from, old); err == nil {
		targets, err = fs.bareFile(m.to, targets)
	}
	if err != nil {
		return true, err
	}
	for _, dir := range []*node{m.from.parent, m.to.parent} {
		if err := fs.settle(dir); err != nil {
			return true, err
		}
	}
	j, dirs, err := fs.journey(m, old, targets)
	defer releaseAll(fs, dirs)
	if j == nil || err != nil {
		return err != nil, err
	}
	bury, err = fs.travel(m, j, slices.Concat(old, targets, dirs))
	if err == nil {
		highest := old[0].layer
		if m.exchange() && targets[0].layer.index < highest.index {
			highest = targets[0].layer
		}
		fs.dirChanged(m.from.parent, highest)
		fs.dirChanged(m.to.parent, highest)
	}
	return true, err
}

// lockParts locks both ends, and keeps lower copies from being removed. In an exchange one
// end may be a file. Who brings that up removes its lower copy with its lock held: so it is
// locked before FS.removing is taken, and directories after.
func (fs *FS) lockParts(m *move) (unlock func()) {
	dir, other := m.src, m.dst
	if !dir.isDir() {
		dir, other = other, dir
	}
	if other != nil && !other.isDir() {
		other.mu.Lock()
		fs.removing.Lock()
		dir.mu.Lock()
		return func() { dir.mu.Unlock(); fs.removing.Unlock(); other.mu.Unlock() }
	}
	fs.removing.Lock()
	both := lockBoth(dir, other)
	return func() { both(); fs.removing.Unlock() }
}

// bareFile removes what lies under the file that shows at d in parts, if it is one, and
// returns what is left.
func (fs *FS) bareFile(d dentry, parts []part) ([]part, error) {
	if len(parts) < 2 || parts[0].isDir() {
		return parts, nil
	}
	return parts[:1], fs.unlinkParts(d, parts[1:], parts[0].d, nil)
}

// spreadTo makes the directory that m leads into in each lower that has a part of what
// moves, and in an exchange the other one, too. Where it cannot be, the rename will be EXDEV.
func (fs *FS) spreadTo(ctx context.Context, m *move) error {
	if err := fs.spreadFor(ctx, m.src, m.to); err != nil || !m.exchange() {
		return err
	}
	return fs.spreadFor(ctx, m.dst, m.from)
}

// spreadFor is spreadTo for n, which is about to get the name to.
func (fs *FS) spreadFor(ctx context.Context, n *node, to dentry) error {
	n.mu.RLock()
	lowers := n.lowers
	if !n.isDir() && n.upper {
		lowers = nil // copies that it hides do not move
	}
	n.mu.RUnlock()
	for i := range lowers {
		err := fs.spread(ctx, to.parent, lowers[i].layer)
		switch {
		case err == unix.ENOSPC, err == unix.EDQUOT, err == unix.EROFS,
			fs.cfg.AsCaller && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)):
			// An old storage may be full; the new one has room for what mv copies.
			fs.log.Debug("a directory is copied in place of being renamed: where it goes cannot be made below", "name", to.name, "layer", lowers[i].layer.ID(), "cause", err)
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// spread makes the directory n in the lower l as well, if it is not there, its parents first,
// with the metadata that it has in the upper, where it comes up before; unless something else
// stands there. What is made is empty, and shows no more than the upper's part of it does.
func (fs *FS) spread(ctx context.Context, n *node, l *layer) error {
	d, err := fs.gaining(n, l)
	if err != nil {
		return err
	}
	if d != nil {
		fs.dirs.release(d)
		return nil
	}
	at, ok := n.dentry()
	if !ok {
		return nil
	}
	if err := fs.up(ctx, n, whole); err != nil {
		return err
	}
	if err := fs.spread(ctx, at.parent, l); err != nil {
		return err
	}
	dir, err := fs.gaining(at.parent, l)
	if dir == nil || err != nil {
		return err
	}
	defer fs.dirs.release(dir)
	if err := fs.asDaemon(func() error { return fs.makeBelow(n, copyup.Place{Dir: dir.fd, Name: at.name}, l) }); err != nil {
		return err
	}
	fs.unsynced.changed(l, dir)
	found, _, err := fs.find(ctx, at.parent, at.name) // tells n
	if err == nil {
		fs.Forget(found.id, 1)
	}
	return err
}

// makeBelow makes a directory like n's part in the upper at a place in l.
func (fs *FS) makeBelow(n *node, at copyup.Place, l *layer) error {
	up, err := fs.upperDir(n)
	if err != nil {
		return err
	}
	defer fs.dirs.release(up)
	var stx unix.Statx_t
	if err := sys.Statx(up.fd, "", &stx); err != nil {
		return err
	}
	src := copyup.Source{Attr: local.AttrOf(&stx)}
	if src.Xattrs, err = local.XattrsAt(up.fd, ""); err != nil {
		return err
	}
	delete(src.Xattrs, copyup.XattrOrigin)
	delete(src.Xattrs, copyup.XattrOver)
	if at.Work, err = fs.trash(l); err != nil {
		return err
	}
	temp, err := copyup.Node(src, at, fs.copies)
	if err != nil {
		return err
	}
	if err = copyup.PublishNode(temp, at, true); err != nil {
		copyup.RemoveTemp(at.Work, temp)
	}
	if err == unix.EEXIST || err == unix.ENOTDIR || err == unix.ENOTEMPTY {
		return nil
	}
	return err
}

// needsParts reports whether a rename of old over the empty directory targets, if there is
// one, or an exchange of both, takes several calls. Where something else than a directory is
// hidden under a directory, or a directory under a file, mv has to copy.
func (fs *FS) needsParts(m *move, old, targets []part) bool {
	alike := func(parts []part, isDir bool) bool {
		return !slices.ContainsFunc(parts, func(p part) bool { return p.isDir() != isDir || fs.layerName(p.layer) == "" })
	}
	if !alike(old, m.src.isDir()) || len(targets) > 0 && (m.dst == nil || !alike(targets, m.dst.isDir())) {
		return false
	}
	if m.exchange() {
		return len(old) > 0 && len(targets) > 0 && (len(old) > 1 || len(targets) > 1 || old[0].layer != targets[0].layer)
	}
	return len(old) > 1 || len(old) == 1 && len(targets) > 0 && targets[0].layer.index < old[0].layer.index
}

// layerName is what an intent calls a layer; empty where that is nothing that a later
// mount would find it by.
func (fs *FS) layerName(l *layer) string {
	id := l.ident
	if l == fs.upper {
		id = fs.self.upper
	}
	return id[:min(shortID, len(id))]
}

// layerNamed is the layer that an intent calls so; nil if there is none.
func (fs *FS) layerNamed(name string) *layer {
	for _, l := range append([]*layer{fs.upper}, fs.lowers...) {
		if fs.layerName(l) == name {
			return l
		}
	}
	return nil
}

func (fs *FS) partName(p *part) copyup.Origin {
	return copyup.OriginOf(fs.layerName(p.layer), &p.attr)
}

// journey plans the rename of old, to where targets are. It is nil where the new
// directory, or in an exchange the old one, does not lie in each layer that it has to. dirs are its
// parts. The layer of what is replaced comes last, else the highest: until then the old name leads to
// all there is. The caller holds both locks.
func (fs *FS) journey(m *move, old, targets []part) (j *journey, dirs []part, err error) {
	j = &journey{}
	var ok [2]bool
	j.from, ok[0] = fs.pathOf(m.from)
	j.to, ok[1] = fs.pathOf(m.to)
	if !ok[0] || !ok[1] {
		return nil, nil, unix.ENOENT
	}
	for _, p := range slices.Backward(old) {
		j.parts = append(j.parts, fs.partName(&p))
	}
	switch {
	case m.exchange():
		for _, p := range slices.Backward(targets) {
			j.back = append(j.back, fs.partName(&p))
		}
		if !m.src.isDir() {
			j.file = "from"
		} else if !m.dst.isDir() {
			j.file = "to"
		}
	case len(targets) > 0:
		if i := slices.IndexFunc(j.parts, func(o copyup.Origin) bool { return layerOf(o) == fs.layerName(targets[0].layer) }); i >= 0 {
			j.parts = append(slices.Delete(slices.Clone(j.parts), i, i+1), j.parts[i])
		}
		j.intent.over = fs.partName(&targets[0])
		j.over = leg{part: j.intent.over, from: -1, to: targets[0].d.fd}
	}
	j.legs = j.route()
	at := func(n *node, parts []part, layer string) (fd int, err error) {
		for _, p := range parts {
			if fs.layerName(p.layer) == layer {
				return p.d.fd, nil
			}
		}
		d, err := fs.standing(n, fs.layerNamed(layer))
		if d == nil || err != nil {
			return -1, err
		}
		dirs = append(dirs, part{layer: fs.layerNamed(layer), d: d})
		return d.fd, nil
	}
	for i := range j.legs {
		l := &j.legs[i]
		if l.from, err = at(m.from.parent, old, l.layer()); err == nil {
			l.to, err = at(m.to.parent, targets, l.layer())
		}
		if err != nil || l.from < 0 || l.to < 0 {
			return nil, dirs, err
		}
	}
	if j.over.part != "" {
		err = fs.thinOut(m.dst, m.to.name, targets)
	}
	return j, dirs, err
}

func (fs *FS) pathOf(d dentry) (path layers.Path, ok bool) {
	path, ok = d.parent.path()
	return path.Join(d.name), ok
}

// standing returns the part of the directory n in layer l; nil if it has none.
func (fs *FS) standing(n *node, l *layer) (*dirFD, error) {
	if l != fs.upper {
		return fs.gaining(n, l)
	}
	if !n.isUpper() {
		return nil, nil
	}
	return fs.upperDir(n)
}

// thinOut removes all parts of the empty directory n, called name, but the highest:
// nobody sees them, so that is nothing to take back. The caller holds n.mu.
func (fs *FS) thinOut(n *node, name string, parts []part) error {
	for i := len(parts) - 1; i > 0; i-- {
		p := &parts[i]
		if err := ignoreGone(sys.Rmdir(p.d.fd, name)); err != nil {
			return err
		}
		fs.unsynced.changed(p.layer, p.d)
		n.lowers = slices.DeleteFunc(slices.Clone(n.lowers), func(r lowerRef) bool { return r.layer == p.layer })
		fs.dirs.dropIn(n, p.layer)
	}
	return nil
}

// travel makes the journey j, under an intent. parts are the directories that it
// changes. It returns what is to be buried. The caller holds both locks.
func (fs *FS) travel(m *move, j *journey, parts []part) (bury *node, err error) {
	if fs.cfg.AsCaller {
		// It ends with a sync of directories that neither the caller nor we may be let read.
		if err := j.sync(fs.copies); errors.Is(err, unix.EACCES) {
			return nil, unix.EXDEV
		}
		j.as = m.as
	}
	if err := fs.asDaemon(func() error { return writeIntent(fs.upper.root, fs.work, &j.intent) }); err != nil {
		fs.promised = true // maybe
		return nil, err
	}
	fs.window.open()
	if err = j.complete(); err == nil {
		bury = fs.moved(m)
	}
	fs.window.close()
	for i := range parts {
		fs.unsynced.changed(parts[i].layer, parts[i].d)
	}
	if errors.Is(err, errSplit) {
		fs.promised = true
		fs.log.Error("a directory has moved in a part of the layers: the next rename of a directory, or the next mount, ends that", "from", string(j.from), "to", string(j.to), "cause", err)
		return nil, err
	}
	ended := j.sync(fs.copies)
	if ended == nil {
		ended = fs.asDaemon(func() error { return dropIntent(fs.upper.root) })
	}
	if ended != nil {
		fs.promised = true
		fs.log.Warn("the intent of a rename is left for the next rename of a directory, or the next mount", "from", string(j.from), "to", string(j.to), "cause", ended)
	}
	return bury, err
}

// finishRename ends a rename of a directory that was begun, by us or by a mount before.
func (fs *FS) finishRename() error {
	err := finishIntent(fs.upper.root, func(name string) int {
		if l := fs.layerNamed(name); l != nil {
			return l.root
		}
		return -1
	})
	if err == nil {
		fs.promised = false
	}
	return err
}
