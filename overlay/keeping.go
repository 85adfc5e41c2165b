package overlay

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// What becomes of files that lose their last name in a lower (migrate mode): they are
// deleted; with trash_days they lie in LOWER/.migratefs/trash for that long; with
// keep_lower lower copies stay at their names for as long as the upper has those, and
// then, like everything else, in the trash for good.
//
// A hard-linked file loses its names as they come up or are removed; only the last
// one takes it to the trash.

// keeps reports whether files of lowers go to the trash.
func (fs *FS) keeps() bool { return fs.cfg.KeepLower || fs.cfg.TrashDays > 0 }

// keepsCopy reports whether the lower file a stays where it is when it comes up.
func (fs *FS) keepsCopy(a *layers.Attr) bool { return fs.cfg.KeepLower && a.Nlink <= 1 }

// takeAway removes name, which is the file that was describes, from a directory of
// the lower r.layer, for its copy is durable.
func (fs *FS) takeAway(r *lowerRef, dir int, name string, was *layers.Attr, path layers.Path) error {
	trash, err := fs.trash(r.layer)
	if err != nil {
		return err
	}
	if fs.keeps() && fs.isLastName(r, dir, name) {
		return fs.keepFile(r.layer, dir, name, was, trash, path)
	}
	return copyup.Remove(dir, name, was, trash, path)
}

// keepFile moves name, the last one of the file was, to the trash of l. Its marker
// has nothing to mark any more.
func (fs *FS) keepFile(l *layer, dir int, name string, was *layers.Attr, trash int, path layers.Path) error {
	err := copyup.Keep(dir, name, was, trash, path)
	if err != nil || l.marks < 0 {
		return err
	}
	mark := indexName(&lowerRef{layer: l, attr: was})
	// As in lostBelow: the name is gone, durably, before the index forgets the copy.
	if has, err := inUpper(l.marks, mark); err == nil && has && fs.syncDir(dir, copyup.Config{}) == nil {
		fs.unmarkLast(l, mark, 1)
	}
	return nil
}

// isLastName reports whether the lower file r, which is name in dir, has no other
// name than that and its marker.
func (fs *FS) isLastName(r *lowerRef, dir int, name string) bool {
	var stx unix.Statx_t
	if sys.Statx(dir, name, &stx) != nil {
		return false
	}
	if stx.Nlink == 1 {
		return true
	}
	marks, err := fs.marks(r.layer)
	if err != nil || stx.Nlink > 2 {
		return false
	}
	is := local.AttrOf(&stx)
	id, err := idAt(marks, indexName(&lowerRef{layer: r.layer, attr: &is}))
	return err == nil && id.is(idOf(&is))
}

// unlinkPart removes name from p, a part of the directory dir.
func (fs *FS) unlinkPart(p *part, dir *node, name string) error {
	if p.layer == fs.upper || !fs.keeps() {
		return sys.Unlink(p.d.fd, name)
	}
	return fs.asDaemon(func() error { return fs.discard(p, dir, name) })
}

func (fs *FS) discard(p *part, dir *node, name string) error {
	var stx unix.Statx_t
	if err := sys.Statx(p.d.fd, name, &stx); err != nil {
		return err
	}
	is := local.AttrOf(&stx)
	path, ok := dir.path()
	if !ok {
		return unix.ESTALE
	}
	if !fs.isLastName(&lowerRef{layer: p.layer, attr: &is}, p.d.fd, name) {
		return sys.Unlink(p.d.fd, name)
	}
	trash, err := fs.trash(p.layer)
	if err == nil {
		err = fs.keepFile(p.layer, p.d.fd, name, &is, trash, path.Join(name))
	}
	if fs.cfg.KeepLower || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	// Somebody makes room: the trash is not worth more than that.
	fs.log.Warn("no room in the trash: a file is deleted at once", "path", string(path.Join(name)), "cause", err)
	return sys.Unlink(p.d.fd, name)
}

// keepTarget gives the file a name in the trash that is about to lose its last one in
// a lower, since another is renamed over it there. forget takes that back.
func (fs *FS) keepTarget(targets []part, at *layer, of dentry) (forget func(), err error) {
	forget = func() {}
	if at == fs.upper || !fs.keeps() {
		return forget, nil
	}
	for _, p := range targets {
		var stx unix.Statx_t
		if p.layer != at || p.isDir() || sys.Statx(p.d.fd, of.name, &stx) != nil {
			continue
		}
		is := local.AttrOf(&stx)
		path, ok := of.parent.path()
		if !ok || !fs.isLastName(&lowerRef{layer: at, attr: &is}, p.d.fd, of.name) {
			continue
		}
		err := fs.asDaemon(func() error {
			trash, err := fs.trash(at)
			if err == nil {
				forget, err = copyup.KeepLink(p.d.fd, of.name, &is, trash, path.Join(of.name))
			}
			return err
		})
		if err != nil && (fs.cfg.KeepLower || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT)) {
			return nil, err
		}
	}
	return forget, nil
}

// expiry is how often old files in the trash are looked for.
const expiry = time.Hour

// expireNow deletes what has been in the trash for longer than trash_days. Any host
// does it for all.
func (fs *FS) expireNow(now time.Time) {
	if fs.cfg.KeepLower || fs.cfg.TrashDays <= 0 {
		return
	}
	before := now.AddDate(0, 0, -fs.cfg.TrashDays)
	for _, l := range fs.lowers {
		trash, err := fs.trash(l)
		if err == nil {
			err = copyup.Expire(context.Background(), trash, before)
		}
		if err != nil {
			fs.log.Warn("old files stay in the trash", "layer", l.ID(), "cause", err)
		}
	}
}
