package overlay

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// A lower file with several names comes up once. WORK/index has a further link
// to the upper copy under a name made of the lower inode's identity, so that the
// file's other names, which still stand in the lower, lead to the copy.
//
// Those names keep the lower inode recognisable by a link count above 1; in
// migrate mode, where they are removed as they come up, a marker link
// LOWER/.migratefs/hl/ID does (see migrate.go).

// indexName is the name in WORK/index of the lower file r. It is made of what
// stays through a reboot: device numbers do not.
func indexName(r *lowerRef) string {
	return fmt.Sprintf("%x-%x-%x.%x", r.layer.fsid, r.attr.Ino, r.attr.Btime.Sec, r.attr.Btime.Nsec)
}

// canIndex reports whether the lower file r has names that we may not know.
func canIndex(r *lowerRef) bool {
	return r.layer.isLocal() && r.attr.Has(layers.KnownIno|layers.KnownNlink) && r.attr.Nlink > 1 && !r.attr.IsDir()
}

// foundIndexed turns a lower file that came up under another name into the upper
// file it now is.
func (fs *FS) foundIndexed(f *found) error {
	if fs.upper == nil || len(f.lowers) == 0 || !canIndex(&f.lowers[0]) {
		return nil
	}
	name := indexName(&f.lowers[0])
	var stx unix.Statx_t
	err := sys.Statx(fs.index, name, &stx)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	a := local.AttrOf(&stx)
	f.attr, f.birth, f.upper, f.upID, f.indexed = a, a.Btime, true, idOf(&a), true
	f.keys = append([]fileKey{keyOf(fs.upper, "", &a)}, f.keys...)
	f.attr.Nlink = fs.linksShown(&a, fs.index, name)
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
	shown := fs.linksShown(&f.attr, d.fd, name)
	f.indexed = shown != f.attr.Nlink || f.indexed
	f.attr.Nlink = shown
}

// linksShown returns the link count to show for the upper inode a, which is name
// in dirfd.
func (fs *FS) linksShown(a *layers.Attr, dirfd int, name string) uint32 {
	if fs.cfg.Mode == Migrate {
		return fs.linksInLowers(a)
	}
	v, err := sys.Getxattr(dirfd, name, fs.cfg.Format.Name(whiteout.Nlink))
	if err != nil {
		return a.Nlink
	}
	return applyNlink(a.Nlink, string(v))
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

// setNlink records how many names more (or less) than its own count the upper
// inode fd has in the merged tree. A count that is off by one after a crash
// misleads nobody about data.
func (fs *FS) setNlink(fd int, shown uint32) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	v := nlinkValue(shown, uint32(st.Nlink))
	if err := sys.Setxattr(fd, "", fs.cfg.Format.Name(whiteout.Nlink), []byte(v), 0); err != nil {
		fs.log.Warn("link count not recorded", "cause", err)
	}
}
