package overlay

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// Directories of ours in migrate mode.
const (
	indexPath   = layers.Path(Reserved + "/index")
	claimsPath  = layers.Path(Reserved + "/claims")
	daemonsPath = layers.Path(Reserved + "/daemons")
	trashPath   = layers.Path(Reserved + "/trash")
	marksPath   = layers.Path(Reserved + "/hl")
)

// migrate checks an upper in migrate mode, and what lowers of it are at hand.
func (c *check) migrate(ctx context.Context) error {
	for _, l := range c.lowers {
		c.ownership(l)
	}
	// What is at two places would be found there.
	c.intent()
	// The trees first: what is mended there may leave markers without a file.
	if err := c.trees(ctx); err != nil {
		return err
	}
	for i, l := range c.lowers {
		if err := c.lowerPrivate(ctx, i, l); err != nil {
			return err
		}
	}
	return c.upperPrivate(ctx)
}

// ownership finds out whether what a lower has as Reserved is ours. In a lower that
// was never mounted whoever may write to its root can have made it, and have us link
// and remove files for him.
func (c *check) ownership(l *checked) {
	dir, err := sys.OpenAt(l.Root(), Reserved, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		err = isOurs(dir, false)
		unix.Close(dir)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		l.strange = true
		c.found(FoundUnknown, l, Reserved, "it is no directory that belongs to this user and is closed to others, as one of migratefs is: nothing in it is believed", "", nil)
	default:
		l.strange = true
		c.unread(l, Reserved, err)
	}
}

// guarded is mend for what lies in Reserved in a lower, if that is ours by then, too.
func (c *check) guarded(l *checked, path layers.Path, mend func(dir int, name string) error) func(dir int, name string) error {
	if l == c.upper || l == c.work || !strings.HasPrefix(string(path), Reserved+"/") {
		return mend
	}
	return func(dir int, name string) error {
		if err := isOurs(dir, false); err != nil {
			return err
		}
		return mend(dir, name)
	}
}

// idOf returns what a layer calls itself, "" if it has no name.
func (c *check) idOf(l *checked) string {
	if l.strange {
		return ""
	}
	id, err := idOfLayer(l.Root())
	if err != nil || len(id) != idDigits {
		return ""
	}
	return id
}

// originID is the part of a lower's id that the names of its files have.
func (c *check) originID(l *checked) string { return c.idOf(l)[:min(shortID, len(c.idOf(l)))] }

// identity checks the file that says which layer this is.
func (c *check) identity(l *checked, lost string) {
	path := layers.Path(Reserved + "/" + idName)
	id, err := idOfLayer(l.Root())
	_, herr := hex.DecodeString(id)
	switch {
	case errors.Is(err, unix.ENOENT):
		c.found(FoundDamaged, l, path, "it is missing: "+lost, "", nil)
	case err != nil:
		c.unread(l, path, err)
	case herr != nil || len(id) != idDigits:
		c.found(FoundDamaged, l, path, fmt.Sprintf("it does not hold %d hexadecimal digits: %s", idDigits, lost), "", nil)
	}
}

func (c *check) upperPrivate(ctx context.Context) error {
	any := false
	err := c.each(ctx, c.upper, Reserved, func(_ int, e *layers.Entry) error {
		any = true
		switch e.Name {
		case idName, "index", "claims", "daemons", intentName:
		case "links", "stubs", "objects", "temps", "whiteout", "work": // overlay mode's, where its work directory is here
		default:
			c.leftover(c.upper, layers.Path(Reserved).Join(e.Name), e.Name)
		}
		return nil
	})
	if any {
		c.identity(c.upper, "the next mount takes the upper for another one")
	}
	if err == nil {
		err = c.claims(ctx)
	}
	if err == nil {
		err = c.daemons(ctx)
	}
	if err == nil {
		err = c.sharedIndex(ctx)
	}
	return err
}

func (c *check) claims(ctx context.Context) error {
	return c.each(ctx, c.upper, claimsPath, func(_ int, e *layers.Entry) error {
		path := claimsPath.Join(e.Name)
		if !isIndexName(e.Name) || e.Type == unix.S_IFDIR {
			c.leftover(c.upper, path, e.Name)
			return nil
		}
		c.found(FoundClaim, c.upper, path, "a host began to bring a file up, or to change it, and ended: the lower file is as it was", "removed", remove)
		return nil
	})
}

func (c *check) daemons(ctx context.Context) error {
	return c.each(ctx, c.upper, daemonsPath, func(dir int, e *layers.Entry) error {
		path := daemonsPath.Join(e.Name)
		if e.Type != unix.S_IFDIR {
			c.leftover(c.upper, path, e.Name)
			return nil
		}
		var stx unix.Statx_t
		fd, err := sys.OpenAt(dir, e.Name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err == nil {
			err = sys.Statx(fd, aliveName, &stx)
			unix.Close(fd)
		}
		alive := local.AttrOf(&stx).Mtime
		switch {
		case err != nil && err != unix.ENOENT:
			c.unread(c.upper, path, err)
		case err == nil && !strings.HasPrefix(e.Name, hostID()+"-") && time.Since(time.Unix(alive.Sec, 0)) < lifeless:
			// Our lock says that it is gone; not on every filesystem do locks reach other hosts.
			c.found(FoundDaemon, c.upper, path, "the work directory of a mount on another host, which showed life "+ago(alive)+": is it still there?", "", nil)
		default:
			c.found(FoundDaemon, c.upper, path, "the work directory of a mount that ended without tidying up", "removed", remove)
		}
		return nil
	})
}

// sharedIndex checks UPPER/.migratefs/index against the markers in the lowers.
func (c *check) sharedIndex(ctx context.Context) error {
	lonely := map[string]*lonelyEntry{}
	err := c.each(ctx, c.upper, indexPath, func(dir int, e *layers.Entry) error {
		path := indexPath.Join(e.Name)
		switch {
		case strings.HasPrefix(e.Name, backPrefix):
			c.backName(c.upper, dir, path, e.Name)
		case !isIndexName(e.Name):
			c.leftover(c.upper, path, e.Name)
		default:
			c.indexEntry(c.upper, dir, path, e.Name)
			if l := c.lowerOf(e.Name); l != nil && !has(l, marksPath.Join(e.Name)) {
				lonely[e.Name] = &lonelyEntry{lower: l}
			}
		}
		return nil
	})
	if err != nil || len(lonely) == 0 {
		return err
	}
	for _, l := range c.lowers {
		if err := c.search(ctx, l, c.originID(l), layers.Root, lonely); err != nil {
			return err
		}
	}
	for name, x := range lonely {
		if x.seen {
			continue
		}
		c.found(FoundIndex, c.upper, indexPath.Join(name), "it is for the names of a hard-linked file that have not come up, and there are none", "removed",
			func(dir int, name string) error {
				var st unix.Stat_t
				if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					return err
				}
				_ = sys.Unlink(dir, backName(st.Ino))
				return sys.Unlink(dir, name)
			})
	}
	return nil
}

// lonelyEntry is an entry in the index whose lower has no marker for it.
type lonelyEntry struct {
	lower *checked
	seen  bool
}

// lowerOf returns the lower whose file has this identity, nil if it is not at hand.
func (c *check) lowerOf(name string) *checked {
	for _, l := range c.lowers {
		if id := c.originID(l); id != "" && strings.HasPrefix(name, id+"-") {
			return l
		}
	}
	return nil
}

func has(l *checked, path layers.Path) bool {
	return inParent(l.Root(), path, func(dir int, name string) error {
		var st unix.Stat_t
		return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}) == nil
}

// search looks in a whole lower for files that the index speaks of.
func (c *check) search(ctx context.Context, l *checked, id string, path layers.Path, lonely map[string]*lonelyEntry) error {
	var below []layers.Path
	err := c.each(ctx, l, path, func(dir int, e *layers.Entry) error {
		if path == layers.Root && e.Name == Reserved {
			return nil
		}
		p := path.Join(e.Name)
		var stx unix.Statx_t
		if err := sys.Statx(dir, e.Name, &stx); err != nil {
			c.unread(l, p, err)
			return nil
		}
		a := local.AttrOf(&stx)
		if a.IsDir() {
			below = append(below, p)
			return nil
		}
		name := string(copyup.OriginOf(id, &a))
		x := lonely[name]
		if x == nil || x.lower != l || x.seen {
			return nil
		}
		x.seen = true
		c.found(FoundMarker, l, p, "it came up under another name, and nothing marks it: it may show what it was before", "it is linked to "+string(marksPath.Join(name)),
			func(dir int, called string) error {
				marked := marksPath.Join(name)
				return inParent(l.change.Root(), marked, c.guarded(l, marked, func(marks int, name string) error {
					return sys.Link(dir, called, marks, name)
				}))
			})
		return nil
	})
	for _, p := range below {
		if err == nil {
			err = c.search(ctx, l, id, p, lonely)
		}
	}
	return err
}

func (c *check) lowerPrivate(ctx context.Context, i int, l *checked) error {
	if l.strange {
		return nil
	}
	any := false
	err := c.each(ctx, l, Reserved, func(_ int, e *layers.Entry) error {
		any = true
		switch e.Name {
		case idName, "trash", "hl":
		default:
			c.leftover(l, layers.Path(Reserved).Join(e.Name), e.Name)
		}
		return nil
	})
	if any {
		c.identity(l, "what has come up of it is not recognised any more")
	}
	if err == nil {
		err = c.markers(ctx, l)
	}
	if err == nil {
		err = c.trash(ctx, l)
	}
	return err
}

// markers checks LOWER/.migratefs/hl: one further name of each hard-linked file of
// which a name has come up.
func (c *check) markers(ctx context.Context, l *checked) error {
	id := c.originID(l)
	return c.each(ctx, l, marksPath, func(dir int, e *layers.Entry) error {
		path := marksPath.Join(e.Name)
		if !isIndexName(e.Name) {
			c.leftover(l, path, e.Name)
			return nil
		}
		var stx unix.Statx_t
		if err := sys.Statx(dir, e.Name, &stx); err != nil {
			c.unread(l, path, err)
			return nil
		}
		a := local.AttrOf(&stx)
		switch indexed := has(c.upper, indexPath.Join(e.Name)); {
		case id == "": // said already
		case string(copyup.OriginOf(id, &a)) != e.Name:
			c.found(FoundMarker, l, path, "it marks another file than its name says", "", nil)
		case a.Nlink == 1:
			c.found(FoundMarker, l, path, "it is all that is left of a file whose names have come up or were removed", "removed, with its entry in the index", c.unmark)
		case !indexed:
			c.found(FoundMarker, l, path, "it marks a file of which no name has come up: its link count is one too high", "removed", remove)
		}
		return nil
	})
}

// unmark is FS.unmarkLast.
func (c *check) unmark(dir int, name string) error {
	err := inParent(c.upper.change.Root(), indexPath.Join(name), func(index int, name string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(index, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if err := sys.Unlink(index, backName(st.Ino)); err != nil && err != unix.ENOENT {
			return err
		}
		return sys.Unlink(index, name)
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return sys.Unlink(dir, name)
}

// trash checks what lies in LOWER/.migratefs/trash.
func (c *check) trash(ctx context.Context, l *checked) error {
	return c.each(ctx, l, trashPath, func(dir int, e *layers.Entry) error {
		path := trashPath.Join(e.Name)
		if strings.HasPrefix(e.Name, copyup.TempPrefix) {
			c.leftover(l, path, e.Name)
			return nil
		}
		if id, done := strings.CutSuffix(e.Name, copyup.DoneSuffix); done {
			c.found(FoundTrash, l, path, "its removal was decided and failed", "removed", func(dir int, name string) error {
				_ = sys.Unlink(dir, id+copyup.PathSuffix)
				return sys.Unlink(dir, name)
			})
			return nil
		}
		if id, note := strings.CutSuffix(e.Name, copyup.PathSuffix); note {
			if !has(l, trashPath.Join(id)) && !has(l, trashPath.Join(id+copyup.DoneSuffix)) {
				c.found(FoundTrash, l, path, "it says where a file lay that is not in the trash", "removed", remove)
			}
			return nil
		}
		t, err := copyup.LookTrash(dir, e.Name)
		switch {
		case errors.Is(err, unix.ENOENT):
			c.found(FoundTrash, l, path, "nothing says where it lay", "", nil)
		case errors.Is(err, layers.ErrCorrupt):
			c.found(FoundTrash, l, path, fmt.Sprintf("it lay at %q, which is no place in a lower", string(t.Path)), "", nil)
		case err != nil:
			c.unread(l, path, err)
		default:
			c.trashed(ctx, l, path, &t)
		}
		return nil
	})
}

// trashed checks one file in the trash that has a place where it lay.
func (c *check) trashed(ctx context.Context, l *checked, path layers.Path, t *copyup.Trashed) {
	days := c.cfg.TrashDays
	expired := days > 0 && time.Since(time.Unix(t.When.Sec, 0)) > time.Duration(days)*24*time.Hour
	where := fmt.Sprintf("%q, removed %s", string(t.Path), ago(t.When))
	drop := func(dir int, name string) error {
		if err := sys.Unlink(dir, name); err != nil {
			return err
		}
		return sys.Unlink(dir, name+copyup.PathSuffix)
	}
	switch {
	case !t.Match:
		c.found(FoundTrash, l, path, "it is another file than the one that was to be removed: it lay at "+where, "it is linked there again, if the name is free", func(dir int, name string) error {
			err := inParent(l.change.Root(), t.Path, func(to int, back string) error { return sys.Link(dir, name, to, back) })
			if err != nil {
				return err
			}
			return drop(dir, name)
		})
	case sameInode(l, t):
		c.found(FoundTrash, l, path, "it has its name as well: what was to take that from it, or to bring it back, did not come to its end: "+where, "removed from the trash", drop)
	case days < 0 || days > 0 && !expired:
		c.tell(Finding{Kind: FoundTrash, Where: l.name, Path: copyup.Quoted(path), Note: true, Means: "kept: " + where})
	case expired:
		c.found(FoundTrash, l, path, fmt.Sprintf("it is older than %d days: %s", days, where), "removed", drop)
	case c.hasSuccessor(ctx, l, path, t):
		c.found(FoundTrash, l, path, "its removal was interrupted, and its copy is in the upper: "+where, "removed", drop)
	default:
		c.found(FoundTrash, l, path, "its removal was interrupted, and no copy of it is in the upper ('migratefs undo' brings it back): "+where, "", nil)
	}
}

// sameInode reports whether a file in the trash of l still is where it lay.
func sameInode(l *checked, t *copyup.Trashed) bool {
	a, err := statAt(l, t.Path)
	return err == nil && a.Ino == t.Attr.Ino && a.Dev == t.Attr.Dev
}

// hasSuccessor reports whether the upper has the copy of a file in the trash of l, at
// path, where that lay.
func (c *check) hasSuccessor(ctx context.Context, l *checked, path layers.Path, t *copyup.Trashed) bool {
	up, err := statAt(c.upper, t.Path)
	if err != nil {
		return false
	}
	if c.replaced(l, t.Path, &t.Attr) || has(c.upper, indexPath.Join(string(copyup.OriginOf(c.originID(l), &t.Attr)))) {
		return true
	}
	if o, err := originIn(c.upper, t.Path); o != "" || err != nil {
		return o == copyup.OriginOf(c.originID(l), &t.Attr)
	}
	if up.Type() != t.Attr.Type() || !sameMetadata(&up, &t.Attr) {
		return false
	}
	same, err := c.sameContent(ctx, spot{c.upper, t.Path}, spot{l, path}, &up, &t.Attr)
	return same && err == nil
}
