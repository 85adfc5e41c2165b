package overlay

import (
	"context"
	"errors"
	"os"

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
	{layers.ErrStale, unix.ESTALE},
	{layers.ErrCorrupt, unix.EIO},
	{layers.ErrNotRegular, unix.EINVAL},
	{copyup.ErrReplaced, unix.ESTALE},
	{os.ErrClosed, unix.EBADF},
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
		path, _ := n.path()
		if name != "" {
			path = path.Join(name)
		}
		fs.log.Error("request failed", "op", op, "path", string(path), "cause", err)
	}
	return fuse.Status(errno)
}
