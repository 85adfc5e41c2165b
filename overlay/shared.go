package overlay

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// Other hosts do the same things to the same layers (Hosts Many). What keeps the two
// layers of a name together, since no call changes both:
//
//   - Who changes a lower file, its name included, or gives it a successor in the
//     upper has its claim (package copyup). Who finds one that does not change
//     breaks it: then the rest has to do, which leaves one of the outcomes that
//     there would be one after the other.
//   - The upper file U is the successor of the lower inode L if it says so: its
//     origin is L's. Whoever had L goes on with U.
//   - What changes the lower takes it from there by identity, never by name alone;
//     and what somebody looks at by name is looked at again once it is done if the
//     claim was broken.

// sharedTries is how often an operation begins anew because others were faster.
const sharedTries = 8

// inTurns runs f, and again while it returns errChanged, each time after a longer
// pause: EBUSY in the end.
func (fs *FS) inTurns(ctx context.Context, f func() error) error {
	for i := range sharedTries {
		if err := f(); !errors.Is(err, errChanged) {
			return err
		}
		if err := fs.pause(ctx, i); err != nil {
			return err
		}
	}
	return unix.EBUSY
}

// pause lets others go on, before the i-th time that something is tried again.
func (fs *FS) pause(ctx context.Context, i int) error {
	if !fs.many() {
		return nil
	}
	t := time.NewTimer(time.Millisecond << i)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// origin is what copies of the lower file r say of where they come from.
func (r *lowerRef) origin() copyup.Origin { return copyup.Origin(indexName(r)) }

// lowerOrigin is that of the lower file that n is, or was; empty if there is none.
func (n *node) lowerOrigin() copyup.Origin {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if len(n.lowers) == 0 {
		return ""
	}
	return n.lowers[0].origin()
}

// notice reports whether n is in the upper by now: another host may have brought it
// up. Then n, and whoever has it open, goes on with what that made.
func (fs *FS) notice(n *node) bool {
	n.mu.RLock()
	upper, dead := n.upper, n.dead != nil
	n.mu.RUnlock()
	if upper || dead || !fs.many() {
		return upper
	}
	d, ok := n.dentry()
	if ok && fs.notice(d.parent) && fs.noticeAt(n, d) {
		return true
	}
	return fs.noticeIndexed(n)
}

func (fs *FS) noticeAt(n *node, d dentry) bool {
	dir, err := fs.upperDir(d.parent)
	if err != nil {
		return false
	}
	defer fs.dirs.release(dir)
	fd, err := sys.OpenAt(dir.fd, d.name, unix.O_PATH)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.upper || fs.succeed(n, fd)
}

// noticeIndexed is notice for a hard-linked file that came up by another name.
func (fs *FS) noticeIndexed(n *node) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	// How many names it had when it was looked up says nothing: who gave it another
	// may have brought it up by that.
	if n.upper || n.dead != nil || n.isDir() || len(n.lowers) == 0 || !n.lowers[0].layer.isLocal() {
		return n.upper
	}
	fd := -1
	err := fs.asDaemon(func() (err error) {
		dir, name := fs.indexAt(&n.lowers[0])
		fd, err = sys.OpenAt(dir, name, unix.O_PATH)
		return err
	})
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return fs.succeed(n, fd)
}

// succeed makes the upper file fd (O_PATH) what n is from now on, if it is the
// successor of the lower file that n was. The caller holds n.mu.
func (fs *FS) succeed(n *node, fd int) bool {
	var st unix.Stat_t
	if n.dead != nil || len(n.lowers) == 0 || !n.lowers[0].layer.writable ||
		unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != n.typ {
		return false
	}
	// A directory that merges with n, but was not made of it, a lookup finds: it may be
	// taken away again without n.
	origin, err := copyup.ReadOrigin(fd, "")
	if err != nil || origin != n.lowers[0].origin() {
		return false
	}
	end, err := n.moveLocks(fd)
	if err != nil {
		// Others have what our clients have locked: who goes on must not believe that it
		// still has that, and gets ESTALE.
		fs.log.Warn("locks do not go with a file that another host brought up", "cause", err)
		return false
	}
	if st.Nlink > 1 {
		_ = fs.asDaemon(func() (err error) {
			_, err = sys.Readlink(fs.links, backName(st.Ino))
			n.indexed = err == nil
			return nil
		})
	}
	n.data = nil
	fs.switchOver(n, fd, extent.ID{})
	n.fresh.Store(true) // that host may not have synced the name yet
	end(true)
	return true
}

// standsBelow reports whether n is still at its place in its lower. The caller holds
// n.mu.
func (fs *FS) standsBelow(n *node) bool {
	a, named, err := fs.statBelow(context.Background(), n, &n.lowers[0])
	return named && err == nil && sameFile(&a, n.lowers[0].attr)
}

// meet is called with what the upper has at name in parent before a node is made of
// it: it may be what a lower file that is known by that name has become.
func (fs *FS) meet(f *found, parent *node, name string) {
	if !fs.many() || !f.upper || parent == nil || fs.table.knows(f.keys[0]) {
		return
	}
	d := dentry{parent, name}
	fs.tree.RLock()
	n := fs.called[callHash(d)]
	if n != nil && !slices.Contains(n.names, d) {
		n = nil
	}
	fs.tree.RUnlock()
	if n == nil || n.isUpper() || !fs.table.hold(n) {
		return
	}
	defer fs.Forget(n.id, 1)
	fs.noticeAt(n, d)
}

// hold is one more lookup of n, unless it is forgotten.
func (t *table) hold(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[n.id] != n {
		return false
	}
	n.lookups++
	return true
}

// callLocked notes that d is a name of n. The caller holds FS.tree.
func (fs *FS) callLocked(n *node, d dentry) {
	if fs.called != nil {
		fs.called[callHash(d)] = n
	}
}

// uncallLocked takes that back. The caller holds FS.tree.
func (fs *FS) uncallLocked(n *node, names ...dentry) {
	if fs.called == nil {
		return
	}
	for _, d := range names {
		if h := callHash(d); fs.called[h] == n && !slices.Contains(n.names, d) {
			delete(fs.called, h)
		}
	}
}

var callSeed = maphash.MakeSeed()

// callHash stands for a name in FS.called: of 64 bytes or more for each name that the
// kernel knows it takes half. Of two names with one hash, the one is not found.
func callHash(d dentry) uint64 { return maphash.Comparable(callSeed, d) }

// lookEvery is how long who reads a lower file may go on before it is asked whether
// another host has brought it up.
const lookEvery = time.Second

// noticeNowAndThen is notice for who reads through the handle of a lower file.
func (fs *FS) noticeNowAndThen(n *node) bool {
	if !fs.many() {
		return false
	}
	now, last := time.Now().UnixNano(), n.noticed.Load()
	return now-last > int64(lookEvery) && n.noticed.CompareAndSwap(last, now) && fs.notice(n)
}

// claimCopy takes the claim that is to become the copy of the lower file n. It is
// nil where none is needed, and errChanged if another host was faster.
func (fs *FS) claimCopy(ctx context.Context, n *node, t *target) (*copyup.Claim, error) {
	c, err := fs.claim(ctx, n, copyup.ForCopy)
	if c == nil || err != nil {
		return nil, err
	}
	if err := fs.stillFree(n, t); err != nil {
		c.Release()
		closeFd(c.Fd)
		return nil, err
	}
	return c, nil
}

// claim takes the claim of n's lower file. It is nil where there is only this mount,
// or no lower file that others could have; errChanged says that n came up.
func (fs *FS) claim(ctx context.Context, n *node, kind copyup.Kind) (c *copyup.Claim, err error) {
	if !fs.many() {
		return nil, nil
	}
	n.mu.RLock()
	needed := n.dead == nil && len(n.lowers) > 0 && n.lowers[0].layer.writable
	var o copyup.Origin
	if needed {
		o = n.lowers[0].origin()
	}
	n.mu.RUnlock()
	if !needed {
		return nil, nil
	}
	err = fs.asDaemon(func() (err error) {
		c, err = fs.turns.Take(ctx, o, kind, func() error {
			if fs.notice(n) {
				return errChanged
			}
			return nil
		})
		return err
	})
	return c, err
}

// catchUp is called when the directory n has been published, and its claim was broken
// meanwhile: others may have changed the lower one, and could not revoke this. The
// caller holds n.mu.
func (fs *FS) catchUp(ctx context.Context, n *node, at copyup.Place, src *copyup.Source) error {
	r := n.lowers[0]
	a, named, err := fs.statBelow(ctx, n, &r)
	if named && err == nil && sameFile(&a, r.attr) {
		if a.Ctime == src.Attr.Ctime {
			return nil
		}
		now := *src
		now.Attr = a
		path, ok := n.pathIn(&r)
		if !ok {
			return nil
		}
		if now.Xattrs, err = r.layer.Xattrs(ctx, path); err != nil {
			return gone(err)
		}
		return copyup.Renew(at, now, fs.copies)
	}
	// It was removed, or has moved: what was made of it goes if nobody uses it.
	if err := sys.Rmdir(at.Dir, at.Name); err != nil {
		return nil
	}
	fs.table.not(n, n.upKey())
	fs.dirs.dropIn(n, fs.upper)
	n.upper, n.upID = false, fileID{}
	return errMoved
}

// stillFree returns errChanged if n came up before we had its claim, and ErrStale if
// another file has its name in the upper.
func (fs *FS) stillFree(n *node, t *target) error {
	if t.named {
		switch has, err := inUpper(t.dir.fd, t.name); {
		case err != nil:
			return err
		case has && !fs.notice(n):
			return layers.ErrStale
		case has:
			return errChanged
		}
	}
	if fs.noticeIndexed(n) {
		return errChanged
	}
	return nil
}

// ownLinks is the link count of the upper file a, which is name in dirfd, without its
// claim, by which it is called while who brought it up is not done with it, or is dead.
// Whoever sees that sees to it that the file's other names lead there, too: it may be
// about to be changed.
func (fs *FS) ownLinks(a *layers.Attr, dirfd int, name string) uint32 {
	if !fs.many() || a.Nlink < 2 {
		return a.Nlink
	}
	origin, err := copyup.ReadOrigin(dirfd, name)
	if err != nil || origin == "" {
		return a.Nlink
	}
	links := a.Nlink
	_ = fs.asDaemon(func() error {
		var st unix.Stat_t
		isClaim := func() bool {
			return unix.Fstatat(fs.claims, string(origin), &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Ino == a.Ino && st.Dev == a.Dev
		}
		if !isClaim() {
			return nil
		}
		if err := fs.indexClaim(string(origin)); err != nil {
			fs.log.Warn("a hard-linked file is up under one name only", "cause", err)
		}
		if isClaim() {
			links = uint32(st.Nlink) - 1
		}
		return nil
	})
	return links
}

// enterShared enters the copy fd of a hard-linked file, which was published at t, into
// the index. With one host that comes before; but a copy that has a name in the index
// cannot be revoked any more. If we die in between, who finds the claim enters it.
// The caller holds n.mu.
func (fs *FS) enterShared(n *node, fd int, t *target) error {
	if !fs.many() || !n.indexed {
		return nil
	}
	dir, name := fs.indexAt(&n.lowers[0])
	err := sys.LinkFd(fd, dir, name)
	switch {
	case err == nil, errors.Is(err, unix.EEXIST) && isFile(fd, dir, name):
		return nil
	case t == nil: // it is published by that
		if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) {
			return errChanged
		}
		return err
	case errors.Is(err, unix.EEXIST):
		// Our claim was broken, and the file came up by another name as well.
		fs.log.Warn("names of a hard-linked file are two files now", "name", t.name)
		n.indexed = false
		return nil
	}
	if _, rerr := fs.removeIf(t.dir.fd, t.name, idOfFd(fd)); rerr != nil {
		fs.log.Warn("a hard-linked file is up under one name only", "name", t.name, "cause", rerr)
	}
	return err
}

func isFile(fd, dir int, name string) bool {
	is, err := idAt(dir, name)
	return err == nil && is.is(idOfFd(fd))
}

// indexClaim ends enterShared for a daemon that is dead, or slow: the claim of that
// name is of a copy that was published.
func (fs *FS) indexClaim(name string) error {
	var st unix.Stat_t
	if unix.Fstatat(fs.claims, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return nil
	}
	if of, err := sys.Readlink(fs.links, backName(st.Ino)); err != nil || of != name {
		return nil // it has one name
	}
	if err := sys.Link(fs.claims, name, fs.links, name); err != nil && err != unix.ENOENT {
		return ignoreExists(err)
	}
	return nil
}

// sweepClaims takes away claims of the dead that nobody asks for.
func (fs *FS) sweepClaims(ctx context.Context) {
	if err := fs.sweeper.Look(ctx); err != nil {
		fs.log.Warn("leftover claims not swept", "cause", err)
	}
}
