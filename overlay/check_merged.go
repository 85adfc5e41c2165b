package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// upperTree looks at every name of an upper in overlay mode for what it says of
// itself.
func (c *check) upperTree(ctx context.Context, fs *FS) error {
	return c.upperDir(ctx, fs, layers.Root)
}

func (c *check) upperDir(ctx context.Context, fs *FS, path layers.Path) error {
	var below []layers.Path
	err := c.each(ctx, c.upper, path, func(dir int, e *layers.Entry) error {
		if path == layers.Root && e.Name == Reserved {
			return nil
		}
		p := path.Join(e.Name)
		var stx unix.Statx_t
		if err := sys.Statx(dir, e.Name, &stx); err != nil {
			c.unread(c.upper, p, err)
			return nil
		}
		a := local.AttrOf(&stx)
		switch {
		case a.IsDir():
			c.directoryMarks(dir, e.Name, p)
			below = append(below, p)
		case whiteout.Is(&a):
			return nil
		case a.IsRegular():
			c.fileMarks(fs, dir, e.Name, p, &a)
		}
		if fs != nil && !a.IsDir() {
			c.originMark(fs, dir, e.Name, p)
		}
		return nil
	})
	for _, p := range below {
		if err == nil {
			err = c.upperDir(ctx, fs, p)
		}
	}
	return err
}

func (c *check) xattr(dir int, name, x string) ([]byte, bool) {
	v, err := sys.Getxattr(dir, name, c.cfg.Format.Name(x))
	return v, err == nil
}

func (c *check) directoryMarks(dir int, name string, p layers.Path) {
	if v, ok := c.xattr(dir, name, whiteout.Opaque); ok && string(v) != "y" && string(v) != "x" {
		c.found(FoundMark, c.upper, p, fmt.Sprintf("it is marked opaque as %q, which says nothing", v), "", nil)
	}
	if v, ok := c.xattr(dir, name, whiteout.Redirect); ok {
		if _, err := checkRedirect(string(v)); err != nil {
			c.found(FoundMark, c.upper, p, fmt.Sprintf("it is redirected to %q, which is no place in a lower: it cannot be used", v), "", nil)
		}
	}
}

func (c *check) fileMarks(fs *FS, dir int, name string, p layers.Path, a *layers.Attr) {
	v, marked := c.xattr(dir, name, whiteout.Metacopy)
	if !marked {
		return
	}
	if _, err := whiteout.ParseMark(v); err != nil {
		c.found(FoundMark, c.upper, p, "its metacopy mark cannot be read: "+err.Error(), "", nil)
		return
	}
	if id, ok := c.xattr(dir, name, whiteout.Object); ok {
		c.pendingFile(p, a.Ino, string(id))
		if v, _ := c.xattr(dir, name, whiteout.Conflict); strings.HasPrefix(string(v), string(conflictOpen)+" "+string(id)) {
			c.tell(Finding{Kind: FoundPending, Where: c.upper.name, Path: copyup.Quoted(p), Note: true,
				Means: "it is in conflict with its source: 'migratefs resolve', while it is mounted, decides"})
		}
		return
	}
	if v, ok := c.xattr(dir, name, whiteout.Redirect); ok {
		if _, err := checkRedirect(string(v)); err != nil {
			c.found(FoundMark, c.upper, p, fmt.Sprintf("its data is said to lie at %q, which is no place in a lower: it cannot be read", v), "", nil)
			return
		}
	}
}

// originMark checks that the lower file that a copy was made of is there. Without
// it only the inode number changes.
func (c *check) originMark(fs *FS, dir int, name string, p layers.Path) {
	v, ok := c.xattr(dir, name, whiteout.Origin)
	if !ok || len(v) == 0 {
		return
	}
	h, ok := whiteout.ParseHandle(v)
	if !ok || !fs.isGone(h) {
		return
	}
	if _, counted := c.xattr(dir, name, whiteout.Nlink); counted {
		return // it leads to the index: see there
	}
	c.found(FoundMark, c.upper, p, "it names the lower file that it was made of, which is gone: harmless", "the note is removed", func(dir int, name string) error {
		return sys.Removexattr(dir, name, c.cfg.Format.Name(whiteout.Origin))
	})
}

// stacked returns the layers as a mount stacks them, to be looked at only. What
// would be written to fails: the layers are read-only clones.
func (c *check) stacked(ctx context.Context) (*FS, error) {
	cfg := Config{Mode: Overlay, Upper: c.upper.Layer, Format: c.cfg.Format, Metacopy: true, Log: discard}
	for _, l := range c.lowers {
		cfg.Lowers = append(cfg.Lowers, Lower{Layer: l.Layer})
	}
	fs := newFS(cfg)
	if c.work != nil {
		fs.index, _ = sys.OpenBeneath(c.work.Root(), "index", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		fs.links, _ = sys.OpenBeneath(c.work.Root(), "links", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	}
	if fs.cfg.Format == whiteout.Trusted {
		fs.openAllHandles()
		c.identities(fs)
	}
	if err := fs.openRoot(ctx); err != nil {
		_ = fs.closeOwn()
		return nil, err
	}
	return fs, nil
}

// identities compares what the upper and the index say of whom they belong to.
func (c *check) identities(fs *FS) {
	compare := func(l *checked, path layers.Path, x string, of *layer, means string) {
		if !of.hasHandles() {
			return
		}
		want, err := of.handleOf(of.handles.fd, of == fs.upper)
		if err != nil {
			return
		}
		_ = inParent(l.Root(), path, func(dir int, name string) error {
			if v, ok := c.xattr(dir, name, x); ok && !bytes.Equal(v, want) {
				c.found(FoundMark, l, path, means, "", nil)
			}
			return nil
		})
	}
	compare(c.upper, layers.Root, whiteout.Origin, fs.lowers[0], "the upper was last used over another highest lower: are these the lowers, in this order?")
	if c.work != nil {
		compare(c.work, "index", whiteout.Upper, fs.upper, "the work directory belongs to another upper: the kernel's overlayfs would need index=off")
	}
}

// names is how many names of a hard-linked file were seen, and are said to be.
type names struct {
	seen, shown uint32
	own         uint32
	path        layers.Path
	upper       bool
}

// merged looks every name up as a mount would.
func (c *check) merged(ctx context.Context, fs *FS) error {
	counts := map[uint64]*names{}
	if err := c.mergedDir(ctx, fs, fs.root, layers.Root, counts); err != nil {
		return err
	}
	for _, n := range counts {
		if n.seen == n.shown {
			continue
		}
		means := fmt.Sprintf("it has %d names and shows a link count of %d", n.seen, n.shown)
		if n.path == "" || !n.upper {
			continue
		}
		c.found(FoundLinks, c.upper, n.path, means, "the count is noted anew", func(dir int, name string) error {
			return sys.Setxattr(dir, name, c.cfg.Format.Name(whiteout.Nlink), []byte(nlinkValue(n.seen, n.own)), 0)
		})
	}
	return nil
}

func (c *check) mergedDir(ctx context.Context, fs *FS, dir *node, path layers.Path, counts map[uint64]*names) error {
	es, err := fs.readDir(ctx, dir)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		c.unread(c.upper, path, err)
		return nil
	}
	for i := range es {
		name := es[i].Name
		if name == "." || name == ".." {
			continue
		}
		if err := c.mergedName(ctx, fs, dir, path.Join(name), name, counts); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (c *check) mergedName(ctx context.Context, fs *FS, dir *node, p layers.Path, name string, counts map[uint64]*names) error {
	c.report.Looked++
	f, err := fs.lookup(ctx, dir, name)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, layers.ErrCorrupt):
		if c.wasMarked(p) {
			return nil
		}
		c.found(FoundLost, c.upper, p, "it cannot be read: "+err.Error(), "", nil)
		return nil
	case err != nil:
		c.unread(c.upper, p, err)
		return nil
	}
	if f.attr.IsDir() {
		if f.upper && f.redirect != "" && len(f.lowers) == 0 {
			c.found(FoundMark, c.upper, p, fmt.Sprintf("it is redirected to %q, where no lower has a directory: what lay below does not show", f.redirect), "", nil)
		}
		child := fs.table.adopt(fs, f, dir, name)
		err := c.mergedDir(ctx, fs, child, p, counts)
		fs.Forget(child.id, 1)
		return err
	}
	if f.data != nil && f.attr.Size > 0 {
		c.mergedData(ctx, f, p)
	}
	if f.upper && f.indexed {
		c.count(f, p, counts)
	}
	return nil
}

// wasMarked reports whether the walk of the upper has said already what is wrong
// with the mark of p.
func (c *check) wasMarked(p layers.Path) bool {
	said := false
	_ = inParent(c.upper.Root(), p, func(dir int, name string) error {
		if v, ok := c.xattr(dir, name, whiteout.Metacopy); ok {
			_, err := whiteout.ParseMark(v)
			said = said || err != nil
		}
		if v, ok := c.xattr(dir, name, whiteout.Redirect); ok {
			_, err := checkRedirect(string(v))
			said = said || err != nil
		}
		return nil
	})
	return said
}

// mergedData opens what holds the data of a metacopy.
func (c *check) mergedData(ctx context.Context, f *found, p layers.Path) {
	file, err := f.data.layer.Open(ctx, f.data.path, nil)
	if err == nil {
		err = f.data.checkData(file)
		file.Close()
	}
	if err != nil {
		c.found(FoundLost, c.upper, p, "it is a metacopy, and its data below is not what it was: "+err.Error(), "", nil)
	}
}

// count counts a name of an upper file that is in the index.
func (c *check) count(f *found, p layers.Path, counts map[uint64]*names) {
	n := counts[f.upID.ino]
	if n == nil {
		n = &names{shown: f.attr.Nlink}
		counts[f.upID.ino] = n
	}
	n.seen++
	if n.upper {
		return
	}
	_ = inParent(c.upper.Root(), p, func(dir int, name string) error {
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Ino == f.upID.ino {
			n.path, n.own, n.upper = p, uint32(st.Nlink), true
		}
		return nil
	})
}
