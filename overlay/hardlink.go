package overlay

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// A lower file with several names comes up once. WORK/index (in migrate mode
// UPPER/.migratefs/index, which all mounts share) has a further link
// to the upper copy under a name made of the lower inode's identity, so that the
// file's other names, which still stand in the lower, lead to the copy.
//
// Those names keep the lower inode recognisable by a link count above 1; in
// migrate mode, where they are removed as they come up, a marker link
// LOWER/.migratefs/hl/ID does (see migrate.go).

// indexAt is the place in the index of the lower file r. Where it can be named by
// its file handle, it is that in the kernel's WORK/index.
func (fs *FS) indexAt(r *lowerRef) (dirfd int, name string) {
	if r.layer.hasHandles() {
		if r.handle == "" {
			r.handle = string(fs.originOf(r))
		}
		if r.handle != "" {
			return fs.index, indexHandle([]byte(r.handle))
		}
	}
	return fs.links, indexName(r)
}

// indexName is the name in our own index of the lower file r. It is made of what
// stays through a reboot: device numbers do not.
func indexName(r *lowerRef) string {
	return string(copyup.OriginOf(r.layer.name, r.attr))
}

// canIndex reports whether the lower file r has names that we may not know.
func canIndex(r *lowerRef) bool {
	return r.layer.isLocal() && r.attr.Has(layers.KnownIno|layers.KnownNlink) && r.attr.Nlink > 1 && !r.attr.IsDir()
}

// foundIndexed turns a lower file that came up under another name into the upper
// file it now is.
func (fs *FS) foundIndexed(ctx context.Context, f *found, parent *node, called string) error {
	if fs.upper == nil || len(f.lowers) == 0 || !canIndex(&f.lowers[0]) {
		return nil
	}
	return fs.asDaemon(func() error { return fs.lookIndex(ctx, f, parent, called) })
}

func (fs *FS) lookIndex(ctx context.Context, f *found, parent *node, called string) error {
	dir, name := fs.indexAt(&f.lowers[0])
	var stx unix.Statx_t
	err := sys.Statx(dir, name, &stx)
	if errors.Is(err, unix.ENOENT) || dir < 0 { // no index: Check looks without one
		f.attr.Nlink = fs.linksLeft(&f.lowers[0])
		return nil
	}
	if err != nil {
		return err
	}
	a := local.AttrOf(&stx)
	if a.Type() != f.attr.Type() {
		return layers.ErrCorrupt
	}
	f.attr, f.upper, f.upID, f.indexed = a, true, idOf(&a), true
	f.keys = append([]identity{identityOf(fs.upper, "", &a)}, f.keys...)
	f.data = nil
	if fs.cfg.Mode == Overlay && a.IsRegular() {
		if err := fs.foundMark(ctx, f, parent, called, dir, name); err != nil {
			return err
		}
	}
	f.attr.Nlink, _ = fs.linksShown(&a, dir, name)
	return nil
}

// countLinks corrects the link count of an upper file for names that are ours,
// and for names that still stand in a lower.
func (fs *FS) countLinks(f *found, n *node, name string) {
	if hasObject(f.pending) {
		f.attr.Nlink-- // WORK/stubs
		return
	}
	d, err := fs.upperDir(n)
	if err != nil {
		return
	}
	defer fs.dirs.release(d)
	f.attr.Nlink, f.indexed = fs.linksShown(&f.attr, d.fd, name)
}

// linksShown returns the link count to show for the upper inode a, which is name
// in dirfd, and whether it has a name in WORK/index.
func (fs *FS) linksShown(a *layers.Attr, dirfd int, name string) (links uint32, indexed bool) {
	if fs.cfg.Mode == Migrate {
		own := *a
		own.Nlink = fs.ownLinks(a, dirfd, name)
		_ = fs.asDaemon(func() error { links, indexed = fs.linksInLowers(&own); return nil })
		return links, indexed
	}
	v, err := sys.Getxattr(dirfd, name, fs.cfg.Format.Name(whiteout.Nlink))
	if err != nil {
		return a.Nlink, false
	}
	own := a.Nlink
	if len(v) > 0 && v[0] == 'L' {
		// The kernel was interrupted between making a link and noting it.
		origin, _ := sys.Getxattr(dirfd, name, fs.cfg.Format.Name(whiteout.Origin))
		_, low, ok := fs.lowerByHandle(origin)
		if !ok {
			return a.Nlink, true
		}
		own, v[0] = low.Nlink, 'U'
	}
	return applyNlink(own, string(v)), true
}

// applyNlink applies the kernel's overlay.nlink: "U+n" or "U-n", relative to the
// upper inode's own count.
func applyNlink(own uint32, v string) uint32 {
	if len(v) < 3 || v[0] != 'U' {
		return own
	}
	delta, err := strconv.ParseInt(v[1:], 10, 32)
	if n := int64(own) + delta; err == nil && n > 0 {
		return uint32(n)
	}
	return max(own, 2) - 1
}

// nlinkValue is the overlay.nlink of an inode with own links that shows others.
func nlinkValue(shown, own uint32) string {
	return fmt.Sprintf("U%+d", int64(shown)-int64(own))
}

// goneName is the name in WORK/index of a symlink that holds how many names of
// the lower file r are whited out. It is there only while no copy of r is, which
// has its count in its own attribute.
func goneName(r *lowerRef) string { return "gone-" + indexName(r) }

// upCounted brings up a hard-linked lower file that is about to lose a name: the
// kernel's overlayfs does so too, since the count of those that are left is noted
// on the copy in WORK/index. Where there is no room for one, WORK/links notes it,
// for us alone.
func (fs *FS) upCounted(ctx context.Context, n *node) {
	if fs.cfg.Mode == Migrate || n.isDir() {
		return
	}
	n.mu.RLock()
	counted := !n.upper && len(n.lowers) > 0 && canIndex(&n.lowers[0]) && n.lowers[0].layer.hasHandles()
	n.mu.RUnlock()
	if !counted {
		return
	}
	if err := fs.up(ctx, n, bare); err != nil {
		fs.log.Debug("not brought up to count its names", "cause", err)
	}
}

// linksLeft is the link count to show for a hard-linked lower file that has not
// come up.
func (fs *FS) linksLeft(r *lowerRef) uint32 {
	if fs.cfg.Mode == Migrate {
		return r.attr.Nlink
	}
	v, err := sys.Readlink(fs.links, goneName(r))
	if err != nil {
		return r.attr.Nlink
	}
	gone, _ := strconv.ParseUint(v, 10, 32)
	return max(r.attr.Nlink, uint32(gone)+1) - uint32(gone)
}

// setGone records that links names of the lower file r are left. With no name
// left there is nobody to ask.
func (fs *FS) setGone(r *lowerRef, links uint32) {
	name, temp := goneName(r), copyup.TempName()
	if links == 0 {
		_ = sys.Unlink(fs.links, name)
		return
	}
	err := sys.Symlink(strconv.Itoa(int(r.attr.Nlink-min(links, r.attr.Nlink))), fs.work, temp)
	if err == nil {
		err = sys.Rename(fs.work, temp, fs.links, name, 0)
	}
	if err != nil {
		fs.log.Warn("link count not recorded", "cause", err)
	}
}

// dropIndex takes the upper file n, which has no other name left, out of the
// index. fd is a descriptor of it, or -1. The caller holds n.mu.
func (fs *FS) dropIndex(n *node, fd int) {
	if !n.indexed {
		return
	}
	if len(n.lowers) > 0 && canIndex(&n.lowers[0]) {
		dir, name := fs.indexAt(&n.lowers[0])
		fs.unindexAt(dir, name, n.upID.ino)
		return
	}
	if fd >= 0 && fs.index >= 0 {
		if origin, err := sys.Getxattr(fd, "", fs.cfg.Format.Name(whiteout.Origin)); err == nil && len(origin) > 0 {
			fs.unindexAt(fs.index, indexHandle(origin), n.upID.ino)
		}
	}
	if name, err := sys.Readlink(fs.links, backName(n.upID.ino)); err == nil {
		fs.unindexAt(fs.links, name, n.upID.ino)
	}
}

// unindexAt removes a name of the upper inode ino from the index.
func (fs *FS) unindexAt(dir int, name string, ino uint64) {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Ino == ino {
		_ = sys.Unlink(dir, name)
	}
	if dir == fs.links {
		_ = sys.Unlink(fs.links, backName(ino))
	}
}

// enterIndex notes that the upper inode of fd has a further name in our own
// index, and of which lower file it is the copy: backName leads from the inode to
// it.
func (fs *FS) enterIndex(fd int, r *lowerRef) error {
	var stx unix.Statx_t
	if err := sys.Statx(fd, "", &stx); err != nil {
		return err
	}
	back := backName(stx.Ino)
	_ = sys.Unlink(fs.links, back)
	return sys.Symlink(indexName(r), fs.links, back)
}

// setNlink records how many names more (or less) than its own count the upper
// inode fd has in the merged tree. A count that is off by one after a crash
// misleads nobody about data.
func (fs *FS) setNlink(fd int, shown uint32) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	if err := fs.setNlinkOf(fd, nlinkValue(shown, uint32(st.Nlink))); err != nil {
		fs.log.Warn("link count not recorded", "cause", err)
	}
}

func (fs *FS) setNlinkOf(fd int, v string) error {
	return sys.Setxattr(fd, "", fs.cfg.Format.Name(whiteout.Nlink), []byte(v), 0)
}

// unindex takes back what was made for the copy fd of n, which gets no name. The
// caller holds n.mu.
func (fs *FS) unindex(n *node, fd int) {
	n.indexed = false
	dir, name := fs.indexAt(&n.lowers[0])
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	fs.unindexAt(dir, name, st.Ino)
	// Other hosts may rely on the marker.
	if l := n.lowers[0].layer; fs.cfg.Mode == Migrate && !fs.many() && l.marks >= 0 {
		_ = sys.Unlink(l.marks, name)
	}
}

// sweepIndex removes what a crash left in the index: entries whose file has no
// other name to show, and in migrate mode names that lead to no entry, and
// markers that are the last name of their file.
func (fs *FS) sweepIndex(ctx context.Context) error {
	if err := fs.sweepIndexIn(ctx, fs.links); err != nil || fs.index < 0 {
		return err
	}
	return fs.sweepIndexIn(ctx, fs.index)
}

func (fs *FS) sweepIndexIn(ctx context.Context, dir int) error {
	entries, err := local.ReadDirAt(ctx, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Fstatat(dir, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		switch {
		case strings.HasPrefix(e.Name, backPrefix):
			fs.sweepBackName(e.Name)
		case fs.cfg.Mode == Overlay && st.Nlink == 1:
			v, err := sys.Getxattr(dir, e.Name, fs.cfg.Format.Name(whiteout.Nlink))
			if err == nil && string(v) == nlinkValue(0, 1) {
				_ = sys.Unlink(dir, e.Name)
			}
		}
	}
	return nil
}

// sweepBackName removes back if it leads nowhere, and nobody is about to make that
// to which it leads.
func (fs *FS) sweepBackName(back string) {
	name, err := sys.Readlink(fs.links, back)
	var st unix.Stat_t
	// With many hosts the name in the index comes after the back name, and goes with the
	// claim, or the lock, still there: so that is looked for first.
	if err == nil && fs.claims >= 0 && unix.Fstatat(fs.claims, name, &st, unix.AT_SYMLINK_NOFOLLOW) != unix.ENOENT {
		return
	}
	if err == nil && unix.Fstatat(fs.links, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && backName(st.Ino) == back {
		return
	}
	_ = sys.Unlink(fs.links, back)
}

// sweepMarks removes the markers in a lower that are all that is left of their
// file, with the index entry.
func (fs *FS) sweepMarks(ctx context.Context, l *layer) error {
	marks, err := fs.marks(l)
	if err != nil {
		return err
	}
	entries, err := local.ReadDirAt(ctx, marks)
	if err != nil {
		return err
	}
	kept := map[uint64]bool{}
	if fs.keeps() {
		if kept, err = copyup.Kept(ctx, l.trash); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if kept[e.Ino] {
			fs.unmarkLast(l, e.Name, 1)
			continue
		}
		fs.unmarkLast(l, e.Name, 0)
	}
	return nil
}
