package overlay

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/layers"
)

// changeShared is change for what lies in lowers only, and may not much longer. The
// caller has n's flight.
func (fs *FS) changeShared(ctx context.Context, n *node, f func(fd int, shown bool) error) error {
	return fs.inTurns(ctx, func() error {
		if fs.notice(n) {
			return fs.changeUpperToo(n, f)
		}
		return fs.changeBelow(ctx, n, f)
	})
}

// changeUpperToo changes the upper part of n and, of a directory, those below it.
func (fs *FS) changeUpperToo(n *node, f func(fd int, shown bool) error) error {
	if n.isDir() {
		if err := fs.changeParts(n, f); err != nil {
			return err
		}
	}
	return fs.changeUpper(n, func(fd int) error { return f(fd, true) })
}

// changeParts changes the parts of n that lie in lowers, the lowest first; of a file
// there is one that counts.
func (fs *FS) changeParts(n *node, f func(fd int, shown bool) error) error {
	n.mu.RLock()
	upper, lowers := n.upper, n.lowers
	n.mu.RUnlock()
	if !n.isDir() {
		lowers = lowers[:min(len(lowers), 1)]
	}
	for i := len(lowers) - 1; i >= 0; i-- {
		err := fs.changeLower(n, &lowers[i], func(fd int) error { return f(fd, i == 0 && !upper) })
		if errors.Is(err, errMoved) && upper && fs.many() {
			continue // another host was done with that part
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changeBelow changes n in its lower while we have its claim; errChanged says that it
// came up before.
func (fs *FS) changeBelow(ctx context.Context, n *node, f func(fd int, shown bool) error) error {
	n.mu.RLock()
	dead := n.dead != nil || len(n.lowers) == 0
	n.mu.RUnlock()
	if dead {
		return fs.changeParts(n, f)
	}
	c, err := fs.claim(ctx, n, copyup.Lock)
	if err != nil {
		return err
	}
	defer c.Release()
	if fs.notice(n) {
		return errChanged
	}
	// An open descriptor would lead to the file wherever it is by now, or is not.
	if !fs.stands(n) {
		return layers.ErrStale
	}
	if err := fs.changeParts(n, f); err != nil {
		return err
	}
	switch {
	case c.Kept():
		return nil
	case !fs.notice(n) && !fs.stands(n):
		return layers.ErrStale
	case !n.isUpper():
		return nil
	}
	// Somebody broke our claim, and may have made a copy of what was before.
	err = fs.changeUpper(n, func(fd int) error { return f(fd, true) })
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODATA) {
		return nil // of what is now
	}
	return err
}

// stands reports whether n, a lower file with a name, is where its name says.
func (fs *FS) stands(n *node) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.dead == nil && len(n.lowers) > 0 && fs.standsBelow(n)
}
