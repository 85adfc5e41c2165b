package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// trees compares the names that are in more than one layer, in migrate mode. What a
// mount leaves is directories, with the same rights in each.
func (c *check) trees(ctx context.Context) error {
	if len(c.lowers) == 0 {
		return nil
	}
	c.rights(c.stack(), layers.Root)
	return c.together(ctx, layers.Root)
}

// stack is all layers, highest first.
func (c *check) stack() []*checked { return append([]*checked{c.upper}, c.lowers...) }

// together compares what the layers have in the directory path.
func (c *check) together(ctx context.Context, path layers.Path) error {
	stack := c.stack()
	shared := map[string]bool{} // directories in more than one layer
	for i := len(stack) - 1; i > 0; i-- {
		err := c.each(ctx, stack[i], path, func(dir int, e *layers.Entry) error {
			if path == layers.Root && e.Name == Reserved || shared[e.Name] {
				return nil
			}
			p := path.Join(e.Name)
			low, err := statAt(stack[i], p)
			if err != nil {
				c.unlessGone(stack[i], p, err)
				return nil
			}
			for j := i - 1; j >= 0; j-- {
				high, err := statAt(stack[j], p)
				if err == nil {
					if c.compare(ctx, stack[j], stack[i], p, &high, &low) {
						shared[e.Name] = true
					}
					return ctx.Err()
				}
				if !nothing(err) {
					c.unread(stack[j], p, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for name := range shared {
		p := path.Join(name)
		c.rights(stack, p)
		if err := c.together(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) unlessGone(l *checked, p layers.Path, err error) {
	if !nothing(err) {
		c.unread(l, p, err)
	}
}

func statAt(l *checked, p layers.Path) (a layers.Attr, err error) {
	err = inParent(l.Root(), p, func(dir int, name string) error {
		var stx unix.Statx_t
		err := sys.Statx(dir, name, &stx)
		a = local.AttrOf(&stx)
		return err
	})
	return a, err
}

// compare compares what two layers have under one name, and reports whether both
// have a directory.
func (c *check) compare(ctx context.Context, high, low *checked, p layers.Path, h, l *layers.Attr) (both bool) {
	switch {
	case h.IsDir() && l.IsDir():
		return true
	case high == c.upper && !c.cfg.KeepLower && c.replaced(low, p, l):
		c.found(FoundUnmoved, low, p, "another file was renamed over it, in the upper, and its removal was interrupted", "removed", func(dir int, name string) error {
			return c.finishRemoval(low, dir, name, p, l)
		})
		return false
	case h.Type() != l.Type():
		c.found(FoundTypes, low, p, fmt.Sprintf("%s, which %s hides in which it is %s", typeName(l), high.name, typeName(h)), "", nil)
		return false
	}
	o, _ := originIn(high, p)
	successor := o != "" && o == copyup.OriginOf(c.originID(low), l)
	if c.cfg.KeepLower && high == c.upper && (successor || o == "") {
		return false
	}
	same, err := c.sameContent(ctx, spot{high, p}, spot{low, p}, h, l)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.unread(low, p, err)
	case !same && successor:
		c.found(FoundDifferent, low, p, "it was brought up, and its copy in the upper was changed since: this one is hidden, and 'migratefs drain' takes it away", "", nil)
	case !same:
		c.found(FoundDifferent, low, p, "it is hidden by another content in "+high.name, "", nil)
	case successor || high == c.upper && isCopy(high, low, p, h, l):
		c.found(FoundUnmoved, low, p, "its copy is in the upper: its removal was interrupted, or the mounts have keep_lower (then say --keep-lower)", "removed", func(dir int, name string) error {
			return c.finishRemoval(low, dir, name, p, l)
		})
	default:
		c.found(FoundUnmoved, low, p, "it is hidden by the same content in "+high.name+", and may have other metadata: nothing says that one was made of the other", "", nil)
	}
	return false
}

// replaced reports whether what the upper has at p was renamed over the lower file a.
func (c *check) replaced(low *checked, p layers.Path, a *layers.Attr) bool {
	var over []copyup.Origin
	_ = inParent(c.upper.Root(), p, func(dir int, name string) (err error) {
		over, err = copyup.ReadOver(dir, name)
		return err
	})
	return slices.Contains(over, copyup.OriginOf(c.originID(low), a))
}

func originIn(l *checked, p layers.Path) (o copyup.Origin, err error) {
	err = inParent(l.Root(), p, func(dir int, name string) error {
		o, err = copyup.ReadOrigin(dir, name)
		return err
	})
	return o, err
}

func typeName(a *layers.Attr) string {
	switch a.Type() {
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFLNK:
		return "a symlink"
	}
	return "a special file"
}

// isCopy reports whether h, with the content of l, has all else that l has, so that
// nothing is lost with that: copies made by others, as by rsync, may be without xattrs,
// and without the other names of hard links.
func isCopy(high, low *checked, p layers.Path, h, l *layers.Attr) bool {
	if !sameMetadata(h, l) || l.Nlink > 1 {
		return false
	}
	same := false
	_ = inParent(high.Root(), p, func(hdir int, name string) error {
		return inParent(low.Root(), p, func(ldir int, _ string) error {
			x, err := local.XattrsAt(hdir, name)
			if err != nil {
				return err
			}
			y, err := local.XattrsAt(ldir, name)
			same = err == nil && copyup.HasAll(x, y)
			return err
		})
	})
	return same
}

// sameMetadata reports whether h can only be a copy of l: copy-up keeps all this.
func sameMetadata(h, l *layers.Attr) bool {
	return h.Mode == l.Mode && h.UID == l.UID && h.GID == l.GID && h.Mtime == l.Mtime
}

// finishRemoval removes a lower copy as a mount does.
func (c *check) finishRemoval(l *checked, dir int, name string, p layers.Path, was *layers.Attr) error {
	private, err := openReserved(l.change.Root(), false)
	if err != nil {
		return err
	}
	defer unix.Close(private)
	trash, err := sys.MkdirOpen(private, "trash")
	if err != nil {
		return err
	}
	defer unix.Close(trash)
	return copyup.Remove(dir, name, was, trash, p)
}

// spot is a file of a layer.
type spot struct {
	*checked
	path layers.Path
}

// sameContent compares data, targets or device numbers.
func (c *check) sameContent(ctx context.Context, high, low spot, h, l *layers.Attr) (bool, error) {
	switch h.Type() {
	case unix.S_IFREG:
		if h.Size != l.Size {
			return false, nil
		}
		return sameData(ctx, high, low)
	case unix.S_IFLNK:
		a, err := high.Readlink(ctx, high.path)
		if err != nil {
			return false, err
		}
		b, err := low.Readlink(ctx, low.path)
		return a == b, err
	}
	return h.Rdev == l.Rdev, nil
}

func sameData(ctx context.Context, high, low spot) (bool, error) {
	a, err := high.Layer.Open(ctx, high.path, nil)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := low.Layer.Open(ctx, low.path, nil)
	if err != nil {
		return false, err
	}
	defer b.Close()
	x, y := make([]byte, 256<<10), make([]byte, 256<<10)
	for off := int64(0); ; off += int64(len(x)) {
		n, err := a.ReadAt(ctx, x, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		m, err2 := b.ReadAt(ctx, y, off)
		if err2 != nil && !errors.Is(err2, io.EOF) {
			return false, err2
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if n < len(x) {
			return true, nil
		}
	}
}

// accessNames are the xattrs that decide who may do what in a directory.
var accessNames = []string{"system.posix_acl_access", "system.posix_acl_default"}

// rights compares owner, mode and ACLs of a directory in all layers that have it.
func (c *check) rights(stack []*checked, p layers.Path) {
	var first *checked
	var want layers.Attr
	for _, l := range stack {
		a, err := statAt(l, p)
		if err != nil || !a.IsDir() {
			continue
		}
		if first == nil {
			first, want = l, a
			continue
		}
		from := first
		if a.Mode == want.Mode && a.UID == want.UID && a.GID == want.GID && sameACLs(from, l, p) {
			continue
		}
		c.found(FoundDirectory, l, p, fmt.Sprintf("its rights (%04o, %d:%d) are not those that show, of %s (%04o, %d:%d): a change of them was interrupted",
			a.Mode&0o7777, a.UID, a.GID, first.name, want.Mode&0o7777, want.UID, want.GID), "it gets those that show",
			func(dir int, name string) error { return takeRights(from, p, dir, name, &want) })
	}
}

func accessOf(l *checked, p layers.Path) map[string]string {
	acls := map[string]string{}
	_ = inParent(l.Root(), p, func(dir int, name string) error {
		for _, x := range accessNames {
			if v, err := sys.Getxattr(dir, name, x); err == nil {
				acls[x] = string(v)
			}
		}
		return nil
	})
	return acls
}

func sameACLs(a, b *checked, p layers.Path) bool {
	x, y := accessOf(a, p), accessOf(b, p)
	return x[accessNames[0]] == y[accessNames[0]] && x[accessNames[1]] == y[accessNames[1]]
}

func takeRights(from *checked, p layers.Path, dir int, name string, want *layers.Attr) error {
	if err := sys.Chown(dir, name, int(want.UID), int(want.GID)); err != nil {
		return err
	}
	if err := sys.Chmod(dir, name, want.Mode&0o7777); err != nil {
		return err
	}
	acls := accessOf(from, p)
	for _, x := range accessNames {
		v, ok := acls[x]
		if ok {
			if err := sys.Setxattr(dir, name, x, []byte(v), 0); err != nil {
				return err
			}
			continue
		}
		if err := sys.Removexattr(dir, name, x); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return nil
}
