package overlay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// overlay checks an upper in overlay mode, and its work directory.
func (c *check) overlay(ctx context.Context) error {
	var fs *FS
	if len(c.lowers) > 0 {
		var err error
		if fs, err = c.stacked(ctx); err != nil {
			return err
		}
		defer func() { _ = fs.closeOwn() }()
	}
	if c.work != nil {
		if err := c.workDir(ctx, fs); err != nil {
			return err
		}
	}
	if err := c.upperTree(ctx, fs); err != nil {
		return err
	}
	c.orphans()
	if fs == nil {
		return nil
	}
	return c.merged(ctx, fs)
}

func (c *check) workDir(ctx context.Context, fs *FS) error {
	err := c.each(ctx, c.work, layers.Root, func(_ int, e *layers.Entry) error {
		switch e.Name {
		case "index":
			return c.indexDir(ctx, fs)
		case "links":
			return c.linksDir(ctx)
		case "stubs", "objects", "whiteout", "temps", detachedFile, touchedFile:
		case "work", "incompat": // the kernel's
		case idName, "claims", "daemons", "trash", "hl": // migrate mode's, where both are in the upper
		default:
			c.leftover(c.work, layers.Path(e.Name), e.Name)
		}
		return nil
	})
	if err == nil {
		err = c.each(ctx, c.work, "temps", func(_ int, e *layers.Entry) error {
			c.leftover(c.work, layers.Path("temps").Join(e.Name), e.Name)
			return nil
		})
	}
	if err == nil {
		err = c.pendings(ctx)
	}
	return err
}

// leftover reports a name that should not be in a directory of ours.
func (c *check) leftover(l *checked, path layers.Path, name string) {
	if strings.HasPrefix(name, copyup.TempPrefix) {
		c.found(FoundTemp, l, path, "what an operation prepared that a crash ended: nothing leads to it", "removed", remove)
		return
	}
	c.found(FoundUnknown, l, path, "it is in a directory of migratefs, which did not make it", "", nil)
}

// indexDir checks WORK/index, which the kernel's overlayfs reads too: the names are
// the lower files' handles.
func (c *check) indexDir(ctx context.Context, fs *FS) error {
	return c.each(ctx, c.work, "index", func(dir int, e *layers.Entry) error {
		path := layers.Path("index").Join(e.Name)
		b, err := hex.DecodeString(e.Name)
		h, ok := whiteout.ParseHandle(b)
		if err != nil || !ok {
			c.leftover(c.work, path, e.Name)
			return nil
		}
		var st unix.Stat_t
		if err := unix.Fstatat(dir, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			c.unread(c.work, path, err)
			return nil
		}
		if st.Nlink != 1 || st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Mode&unix.S_IFMT == unix.S_IFCHR {
			return nil
		}
		v, err := sys.Getxattr(dir, e.Name, c.cfg.Format.Name(whiteout.Nlink))
		switch {
		case err == nil && string(v) == nlinkValue(0, 1):
			c.found(FoundIndex, c.work, path, "a copy of a hard-linked file that has no name left", "removed", remove)
		case fs != nil && fs.isGone(h):
			c.found(FoundIndex, c.work, path, "a copy of a hard-linked file that has no name left: the lower file is gone, too", "removed", remove)
		}
		return nil
	})
}

// isGone reports whether the lower file of the handle h does not exist any more,
// on a filesystem that is at hand.
func (fs *FS) isGone(h whiteout.Handle) bool {
	asked := false
	for _, l := range fs.lowers {
		if !l.hasHandles() || l.handles.uuid != h.UUID {
			continue
		}
		fd, err := sys.OpenHandle(l.handles.fd, h.Type, h.Bytes)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, unix.ESTALE) {
			return false
		}
		asked = true
	}
	return asked
}

// linksDir checks WORK/links: copies by the identity of the lower file, back names
// that lead from their inodes to them, and counts of names that are gone.
func (c *check) linksDir(ctx context.Context) error {
	return c.each(ctx, c.work, "links", func(dir int, e *layers.Entry) error {
		path := layers.Path("links").Join(e.Name)
		switch {
		case strings.HasPrefix(e.Name, backPrefix):
			c.backName(c.work, dir, path, e.Name)
		case strings.HasPrefix(e.Name, "gone-"):
			v, err := sys.Readlink(dir, e.Name)
			if _, nerr := strconv.ParseUint(v, 10, 32); err != nil || nerr != nil {
				c.found(FoundLinks, c.work, path, "it should say how many names of a lower file are gone, and does not", "", nil)
			}
		case isIndexName(e.Name):
			c.indexEntry(c.work, dir, path, e.Name)
		default:
			c.leftover(c.work, path, e.Name)
		}
		return nil
	})
}

// isIndexName reports whether name is an identity: LOWER-INO-SEC.NSEC.
func isIndexName(name string) bool {
	parts := strings.Split(name, "-")
	return len(parts) >= 3 && strings.Contains(parts[len(parts)-1], ".") && !strings.HasPrefix(name, copyup.TempPrefix)
}

// backName checks a symlink from an inode to its entry in the index.
func (c *check) backName(l *checked, dir int, path layers.Path, back string) {
	name, err := sys.Readlink(dir, back)
	var st unix.Stat_t
	if err == nil && layers.ValidName(name) && unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && backName(st.Ino) == back {
		return
	}
	c.found(FoundIndex, l, path, "it should lead from an inode to its name in the index, and does not", "removed", remove)
}

// indexEntry checks that a name in the index can be found from its inode: else
// nobody would take it away.
func (c *check) indexEntry(l *checked, dir int, path layers.Path, name string) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		c.unread(l, path, err)
		return
	}
	if to, err := sys.Readlink(dir, backName(st.Ino)); err == nil && to == name {
		return
	}
	c.found(FoundIndex, l, path, "nothing leads from the inode to this name in the index: its link count is wrong", "the symlink "+backName(st.Ino)+" is made",
		func(dir int, name string) error {
			_ = sys.Unlink(dir, backName(st.Ino))
			return sys.Symlink(name, dir, backName(st.Ino))
		})
}

// pendingObject is what is known of a file that is still to be fetched.
type pendingObject struct {
	extent.Surveyed
	have  bool // there is an object
	stub  uint64
	links uint32 // of the stub
	whole bool   // the stub is none any more, or that of another object
	named uint64 // inode of the file in the upper that names it
	told  bool
}

func (c *check) pendings(ctx context.Context) error {
	get := func(id string) *pendingObject {
		if c.objects[id] == nil {
			c.objects[id] = &pendingObject{}
		}
		return c.objects[id]
	}
	objects, err := sys.OpenBeneath(c.work.Root(), "objects", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil && err != unix.ENOENT {
		c.unread(c.work, "objects", err)
	}
	if err == nil {
		leftovers, err := extent.Survey(objects, func(v extent.Surveyed) error {
			o := get(v.ID.String())
			o.Surveyed, o.have = v, true
			return ctx.Err()
		})
		unix.Close(objects)
		if err != nil {
			c.unread(c.work, "objects", err)
		}
		for _, name := range leftovers {
			c.found(FoundTemp, c.work, layers.Path("objects").Join(name), "what was fetched and not kept when a crash came", "removed", remove)
		}
	}
	return c.each(ctx, c.work, "stubs", func(dir int, e *layers.Entry) error {
		path := layers.Path("stubs").Join(e.Name)
		if _, err := extent.ParseID(e.Name); err != nil {
			c.leftover(c.work, path, e.Name)
			return nil
		}
		var st unix.Stat_t
		if err := unix.Fstatat(dir, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			c.unread(c.work, path, err)
			return nil
		}
		o := get(e.Name)
		o.stub, o.links = st.Ino, uint32(st.Nlink)
		_, err := sys.Getxattr(dir, e.Name, c.cfg.Format.Name(whiteout.Metacopy))
		of, named := c.xattr(dir, e.Name, whiteout.Object)
		o.whole = errors.Is(err, unix.ENODATA) || named && string(of) != e.Name
		return nil
	})
}

// pendingFile is for a file in the upper that names the object id.
func (c *check) pendingFile(path layers.Path, ino uint64, id string) {
	if c.work == nil {
		c.found(FoundUnread, c.upper, path, "its content lies in the work directory, which is not at hand: name it with --workdir", "", nil)
		return
	}
	o := c.objects[id]
	_, err := extent.ParseID(id)
	switch {
	case err != nil:
		c.found(FoundMark, c.upper, path, "it names an object in the work directory, by no name that one has", "", nil)
		return
	case o == nil || !o.have:
		c.found(FoundLost, c.upper, path, fmt.Sprintf("its content should be in object %s, which is not in the work directory: is it the right one?", id), "", nil)
		return
	case o.named != 0 && o.named != ino:
		c.found(FoundDamaged, c.upper, path, fmt.Sprintf("it has object %s in common with another file: a copy was made of a stub", id), "", nil)
		return
	}
	o.named = ino
	if o.told {
		return // a further name
	}
	o.told = true
	switch {
	case o.Err != nil:
		c.found(FoundDamaged, c.upper, path, fmt.Sprintf("its object %s cannot be trusted: %v", id, o.Err), "", nil)
	case o.Missing > 0:
		c.tell(Finding{Kind: FoundPending, Where: c.upper.name, Path: copyup.Quoted(path), Note: true,
			Means: fmt.Sprintf("%d of %d bytes are still on the source: %q of %s", o.Missing, o.Size, string(o.Source.Path), o.Source.LayerID)})
	default:
		c.tell(Finding{Kind: FoundPending, Where: c.upper.name, Path: copyup.Quoted(path), Note: true,
			Means: fmt.Sprintf("all of its %d bytes are here, in the work directory", o.Size)})
	}
	if o.stub == ino {
		return
	}
	if o.stub != 0 {
		c.found(FoundDamaged, c.upper, path, fmt.Sprintf("stubs/%s in the work directory is of another file", id), "", nil)
		return
	}
	c.found(FoundOrphan, c.upper, path, fmt.Sprintf("stubs/%s is missing in the work directory: the next mount would take its content for a leftover", id), "it is linked there",
		func(dir int, name string) error {
			stubs, err := sys.OpenBeneath(c.work.change.Root(), "stubs", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(stubs)
			o.stub = ino
			return sys.Link(dir, name, stubs, id)
		})
}

// orphans reports objects and stubs of files that have no name.
func (c *check) orphans() {
	for id, o := range c.objects {
		if o.named != 0 {
			continue
		}
		stub := layers.Path("stubs").Join(id)
		switch {
		case o.links > 1 && !o.whole:
			c.found(FoundOrphan, c.work, stub, "a file that is still to be fetched has a name outside of the upper, or one that could not be read", "", nil)
		case o.have:
			object, _ := extent.ParseID(id)
			c.found(FoundOrphan, c.work, layers.Path("objects").Join(object.DataName()), "content of a file that has no name any more, or has it elsewhere", "removed",
				func(dir int, _ string) error {
					if err := extent.Discard(dir, object); err != nil {
						return err
					}
					return inParent(c.work.change.Root(), stub, remove)
				})
		default:
			c.found(FoundOrphan, c.work, stub, "a file that was to be fetched, and has no name, or all of its content, by now", "removed", remove)
		}
	}
}
