package overlay

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/layers"
)

// errnoTable is the one place where errors become what a program sees. First
// match wins; an errno anywhere in the chain comes last, so that a typed error
// can say more than the call under it.
var errnoTable = []struct {
	err   error
	errno unix.Errno
}{
	{context.Canceled, unix.EINTR},
	{context.DeadlineExceeded, unix.EIO},
	{layers.ErrOffline, unix.EIO},
	{layers.ErrDenied, unix.EIO},
	{layers.ErrReplaced, unix.EIO},
	{ErrDetached, unix.EIO},
	{layers.ErrStale, unix.ESTALE},
	{layers.ErrCorrupt, unix.EIO},
	{layers.ErrNotRegular, unix.EINVAL},
	{copyup.ErrReplaced, unix.ESTALE},
	{copyup.ErrChanged, unix.ESTALE},
	{copyup.ErrDiffers, unix.EIO},
	{ErrShadowed, unix.EEXIST},
	{ErrForeign, unix.EXDEV},
	{ErrRestless, unix.EBUSY},
	{os.ErrClosed, unix.EBADF},
	{unix.ELOOP, unix.ESTALE}, // a symlink stands underneath where a directory was: look anew
}

func errnoOf(err error) unix.Errno {
	for _, row := range errnoTable {
		if errors.Is(err, row.err) {
			return row.errno
		}
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return unix.EIO
}

// status is err as go-fuse wants it. What the caller could not have caused is
// logged, once, here.
func (fs *FS) status(op string, n *node, name string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno := errnoOf(err)
	switch errno {
	case unix.EIO, unix.ESTALE, unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE:
		fs.complain(op, n, name, errno, err)
	default:
		if x := (*copyup.XattrError)(nil); errors.As(err, &x) {
			fs.complain(op, n, name, errno, err)
		}
	}
	return fuse.Status(errno)
}

// complaints keeps a source that is away, or a full disk, from filling the log:
// of one kind of failure of one operation, one is logged a second.
type complaints struct {
	mu     sync.Mutex
	kinds  map[complaint]time.Time
	unsaid int
}

type complaint struct {
	op    string
	errno unix.Errno
}

func (fs *FS) complain(op string, n *node, name string, errno unix.Errno, err error) {
	fs.meter.failed(err, errno)
	c, now := &fs.complaints, time.Now()
	c.mu.Lock()
	k := complaint{op, errno}
	if now.Sub(c.kinds[k]) < time.Second {
		c.unsaid++
		c.mu.Unlock()
		return
	}
	if c.kinds == nil {
		c.kinds = make(map[complaint]time.Time)
	}
	c.kinds[k] = now
	unsaid := c.unsaid
	c.unsaid = 0
	c.mu.Unlock()

	path, _ := n.path()
	if name != "" {
		path = path.Join(name)
	}
	attrs := []any{"op", op, "path", string(path), "cause", err}
	if unsaid > 0 {
		attrs = append(attrs, "not_logged_before", unsaid)
	}
	fs.log.Error("request failed", attrs...)
}
