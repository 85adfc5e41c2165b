package overlay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers/local"
)

// claimed are the claims of what lowers have at the names that an operation
// changes; nil with one host.
type claimed map[copyup.Origin]*copyup.Claim

// claimedName is a name that is to be changed, and how what it leads to is claimed.
type claimedName struct {
	dentry
	kind copyup.Kind
	// free says that the name itself is claimed, as what is about to get it must not
	// meet another thing there.
	free bool
}

// claimNames takes the claims of what lowers have at the given names, in one order
// that all hosts keep. The caller releases them.
func (fs *FS) claimNames(ctx context.Context, names ...claimedName) (claimed, error) {
	if !fs.many() {
		return nil, nil
	}
	want := map[copyup.Origin]copyup.Kind{}
	var order []copyup.Origin
	for _, d := range names {
		fs.notice(d.parent)
		if d.free {
			for _, o := range fs.placesOf(d.dentry) {
				want[o] = copyup.Lock
				order = append(order, o)
			}
			continue
		}
		origins, err := fs.originsAt(d.dentry)
		if err != nil {
			return nil, err
		}
		for _, o := range origins {
			if _, twice := want[o]; !twice || d.kind == copyup.Lock {
				want[o] = d.kind
			}
			order = append(order, o)
		}
	}
	slices.Sort(order)
	have := claimed{}
	for _, o := range slices.Compact(order) {
		var c *copyup.Claim
		err := fs.asDaemon(func() (err error) {
			c, err = fs.turns.Take(untilKilled(ctx), o, want[o], nil)
			return err
		})
		if err != nil {
			have.release()
			return nil, err
		}
		have[o] = c
	}
	for _, d := range names {
		fs.notice(d.parent) // it may have come up while we waited, with what is in it
	}
	return have, nil
}

// originsAt returns the origins of what lowers have at d.
func (fs *FS) originsAt(d dentry) (origins []copyup.Origin, err error) {
	refs, err := fs.lowersAt(d)
	for i := range refs {
		origins = append(origins, refs[i].origin())
	}
	return origins, err
}

// claimedAt reports whether a lower still has something at d of which we have the
// claim, and which is the file of the given origin if that is not empty: until we had
// the claim, others could take the name away.
func (fs *FS) claimedAt(d dentry, c claimed, of copyup.Origin) (bool, error) {
	origins, err := fs.originsAt(d)
	return slices.ContainsFunc(origins, func(o copyup.Origin) bool {
		return c[o] != nil && (of == "" || of == o)
	}), err
}

// origin is what copies of what stands at the name in p say of where they come from.
func (p *part) origin() copyup.Origin { return (&lowerRef{layer: p.layer, attr: &p.attr}).origin() }

// placesOf returns what stands for the name d itself among claims: one for each lower
// that has a part of the directory.
func (fs *FS) placesOf(d dentry) (places []copyup.Origin) {
	d.parent.mu.RLock()
	defer d.parent.mu.RUnlock()
	for i := range d.parent.lowers {
		sum := sha256.Sum256([]byte(d.name))
		places = append(places, d.parent.lowers[i].origin()+copyup.Origin("+"+hex.EncodeToString(sum[:8])))
	}
	return places
}

// held reports whether all claims were ours all the time until now.
func (c claimed) held() bool {
	for _, claim := range c {
		if !claim.Held() {
			return false
		}
	}
	return true
}

func (c claimed) release() {
	for _, claim := range c {
		claim.Release()
	}
}

// whole reports whether nobody has broken any of the claims. It is called after a change:
// where one was broken, others may have had a last look before that, and be about to
// publish a copy; they cannot any more, and what they have published is looked for after
// this.
func (c claimed) whole() bool {
	whole := true
	for _, claim := range c {
		if !claim.Kept() {
			whole = false
		}
	}
	return whole
}

// agree returns errChanged if parts, what the layers have at a name, is not n, or not
// what is claimed. The caller holds n.mu.
func (c claimed) agree(n *node, parts []part) error {
	if c == nil {
		return nil
	}
	if len(parts) == 0 {
		return errChanged
	}
	for i := range parts {
		if parts[i].layer.index > 0 && c[parts[i].origin()] == nil {
			return errChanged
		}
	}
	id := idOf(&parts[0].attr)
	switch {
	case parts[0].layer.index == 0:
		if n.upper && n.upID.is(id) {
			return nil
		}
	case (!n.upper || n.indexed) && len(n.lowers) > 0 && n.lowers[0].id().is(id):
		return nil
	}
	return errChanged
}

// takeHidden removes the shadowed lower file at d if it is the one that was looked
// at; errChanged if not.
func (fs *FS) takeHidden(d dentry, p *part) error {
	err := fs.removeHidden(d, p)
	fs.unsynced.changed(p.layer, p.d)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, copyup.ErrReplaced) {
		return errChanged
	}
	if err == nil {
		fs.unmarkIfLast(&lowerRef{layer: p.layer, attr: &p.attr})
	}
	return err
}

func (fs *FS) removeHidden(d dentry, p *part) error {
	if fs.keeps() {
		return fs.unlinkPart(p, d.parent, d.name) // it is not lost, whatever it is
	}
	path, _ := d.parent.path()
	trash, err := fs.trash(p.layer)
	if err != nil {
		return err
	}
	return fs.asDaemon(func() error { return copyup.RemoveHidden(p.d.fd, d.name, &p.attr, trash, path.Join(d.name)) })
}

// inUpperAt looks at d in the upper, which another host may have given a part of its
// directory only now.
func (fs *FS) inUpperAt(d dentry, f func(dirfd int, stx *unix.Statx_t) error) error {
	if !fs.notice(d.parent) {
		return nil
	}
	dir, err := fs.upperDir(d.parent)
	if err != nil {
		return err
	}
	defer fs.dirs.release(dir)
	var stx unix.Statx_t
	if err := sys.Statx(dir.fd, d.name, &stx); err != nil {
		return ignoreGone(err)
	}
	return f(dir.fd, &stx)
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// succeededAt reports whether the upper has the successor of the lower file o at d.
func (fs *FS) succeededAt(d dentry, o copyup.Origin) (has bool) {
	_ = fs.inUpperAt(d, func(dirfd int, _ *unix.Statx_t) error {
		origin, err := copyup.ReadOrigin(dirfd, d.name)
		has = err == nil && origin == o
		return nil
	})
	return has
}

// removeIf removes name from the upper directory dirfd if it is still the inode id,
// and reports whether it was. A name cannot be removed by what it leads to: if it leads
// there now it is moved aside first, and looked at again.
func (fs *FS) removeIf(dirfd int, name string, id fileID) (bool, error) {
	if is, err := idAt(dirfd, name); err != nil || !is.is(id) {
		return false, ignoreGone(err)
	}
	temp := copyup.TempName()
	if err := sys.Rename(dirfd, name, fs.work, temp, 0); err != nil {
		return false, ignoreGone(err)
	}
	var stx unix.Statx_t
	err := sys.Statx(fs.work, temp, &stx)
	is := local.AttrOf(&stx)
	if err == nil && idOf(&is).is(id) {
		return true, sys.Unlink(fs.work, temp)
	}
	if is.IsDir() {
		return false, sys.Rename(fs.work, temp, dirfd, name, 0)
	}
	if err := sys.Link(fs.work, temp, dirfd, name); err != nil {
		return false, err
	}
	return false, sys.Unlink(fs.work, temp)
}
