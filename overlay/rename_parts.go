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
// empty one that it replaces, lies in other layers as well: done is false where one call
// is, or where it cannot be done at all. The caller holds FS.dirMoves.
//
// What waits to be removed in a lower (removals.go) knows its directory by the node, so
// it follows; what is being removed is waited for, since it leaves a path in the trash.
func (fs *FS) renameParts(m *move) (done bool, err error) {
	if fs.promised {
		if err := fs.finishRename(); err != nil {
			return true, err
		}
	}
	fs.removing.Lock()
	defer fs.removing.Unlock()
	unlock := lockBoth(m.src, m.dst)
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
	if !fs.needsParts(old, targets) {
		return false, nil
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
	bury, err = fs.travel(m, j, append(old, dirs...))
	if err == nil {
		fs.dirChanged(m.from.parent, old[0].layer)
		fs.dirChanged(m.to.parent, old[0].layer)
	}
	return true, err
}

// spreadTo makes the directory that m leads into in each lower that has a part of what
// moves. Where it cannot be, the rename will be EXDEV.
func (fs *FS) spreadTo(ctx context.Context, m *move) error {
	m.src.mu.RLock()
	lowers := m.src.lowers
	m.src.mu.RUnlock()
	for i := range lowers {
		err := fs.spread(ctx, m.to.parent, lowers[i].layer)
		switch {
		case err == unix.ENOSPC, err == unix.EDQUOT, err == unix.EROFS:
			// An old storage may be full; the new one has room for what mv copies.
			fs.log.Debug("a directory is copied in place of being renamed: where it goes cannot be made below", "name", m.to.name, "layer", lowers[i].layer.ID(), "cause", err)
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

// spread makes the directory n, which lies in the upper, in the lower l as well, its
// parents first, with the metadata it has above; unless something else stands there. What
// is made is empty, and shows no more than the upper's part of it did.
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
	if !ok || !n.isUpper() {
		return nil
	}
	if err := fs.spread(ctx, at.parent, l); err != nil {
		return err
	}
	dir, err := fs.gaining(at.parent, l)
	if dir == nil || err != nil {
		return err
	}
	defer fs.dirs.release(dir)
	if err := fs.makeBelow(n, copyup.Place{Dir: dir.fd, Name: at.name}, l); err != nil {
		return err
	}
	fs.unsynced.changed(l, dir)
	fs.dirChanged(at.parent, l)
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
	temp, err := copyup.Node(src, at, fs.copies, nil)
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

// needsParts reports whether a rename of the directory old over the empty directory
// targets, if there is one, takes several calls. Where something else than a directory is
// hidden under either, mv has to copy.
func (fs *FS) needsParts(old, targets []part) bool {
	for _, p := range append(old[:len(old):len(old)], targets...) {
		if !p.isDir() || fs.layerName(p.layer) == "" {
			return false
		}
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

func (fs *FS) partName(p *part) copyup.Origin {
	return copyup.OriginOf(fs.layerName(p.layer), &p.attr)
}

// journey plans the rename of old, to where targets are. It is nil where the new
// directory does not lie in each layer. dirs are its parts. The layer of what is
// replaced comes last, else the highest: until then the old name leads to all there is.
// The caller holds both locks.
func (fs *FS) journey(m *move, old, targets []part) (j *journey, dirs []part, err error) {
	j = &journey{}
	var ok [2]bool
	j.from, ok[0] = fs.pathOf(m.from)
	j.to, ok[1] = fs.pathOf(m.to)
	if !ok[0] || !ok[1] {
		return nil, nil, unix.ENOENT
	}
	var last *leg
	for i := len(old) - 1; i >= 0; i-- {
		p := &old[i]
		dir, err := fs.standing(m.to.parent, p.layer)
		if err != nil || dir == nil {
			return nil, dirs, err
		}
		dirs = append(dirs, part{layer: p.layer, d: dir})
		l := leg{part: fs.partName(p), from: p.d.fd, to: dir.fd}
		if len(targets) > 0 && targets[0].layer == p.layer {
			last = &l
			continue
		}
		j.legs = append(j.legs, l)
	}
	if last != nil {
		j.legs = append(j.legs, *last)
	}
	for i := range j.legs {
		j.parts = append(j.parts, j.legs[i].part)
	}
	if len(targets) > 0 {
		if err := fs.thinOut(m.dst, m.to.name, targets); err != nil {
			return nil, dirs, err
		}
		j.over = leg{part: fs.partName(&targets[0]), from: -1, to: targets[0].d.fd}
		j.intent.over = j.over.part
	}
	return j, dirs, nil
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
	if err := writeIntent(fs.upper.root, fs.work, &j.intent); err != nil {
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
		ended = dropIntent(fs.upper.root)
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
		for _, l := range append([]*layer{fs.upper}, fs.lowers...) {
			if fs.layerName(l) == name {
				return l.root
			}
		}
		return -1
	})
	if err == nil {
		fs.promised = false
	}
	return err
}
