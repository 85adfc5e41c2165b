package overlay

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// BringUp has what shows at paths copied to the upper, one after the other, as the first
// write to each would. It returns at once. What cannot come up now stays where it is, and
// the log says why; what is not there is left out.
func (fs *FS) BringUp(paths []layers.Path) {
	e := &fs.ending
	if fs.ReadOnly() || fs.Detached() || len(paths) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return
	}
	e.jobs.Go(func() {
		ctx := layers.Background(e.ctx)
		for _, p := range paths {
			err := fs.fill.roomFor(ctx)
			if err == nil {
				err = fs.bringPath(ctx, p)
			}
			if ctx.Err() != nil {
				return
			}
			if err != nil && !nothing(err) {
				fs.log.Warn("not copied to the upper", "path", "/"+string(p), "cause", err)
			}
		}
	})
}

// bringPath brings up the regular file that shows at p.
func (fs *FS) bringPath(ctx context.Context, p layers.Path) (err error) {
	n := fs.root
	fs.table.ref(n)
	defer func() { fs.Forget(n.id, 1) }()
	for name := range strings.SplitSeq(string(p), "/") {
		if !n.isDir() {
			return unix.ENOTDIR
		}
		child, _, err := fs.find(ctx, n, name)
		if err != nil {
			return err
		}
		fs.Forget(n.id, 1)
		n = child
	}
	if !n.isRegular() {
		return errors.ErrUnsupported
	}
	return fs.up(ctx, n, whole)
}
