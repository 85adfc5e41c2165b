package remote

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Readlink takes one exchange. Anything but a symlink is EINVAL.
func (l *Layer) Readlink(ctx context.Context, p layers.Path) (target string, err error) {
	if err := l.check(p); err != nil {
		return "", l.fail("readlink", p, err)
	}
	err = l.exchange(ctx, func(ctx context.Context, c *conn) error {
		target, err = l.readlink(ctx, c, p)
		return err
	})
	return target, l.fail("readlink", p, err)
}

func (l *Layer) readlink(ctx context.Context, c *conn, p layers.Path) (string, error) {
	dir, _ := p.Split()
	reqs := []request{askPath(fxpReadlink, l.path(p)), askPath(fxpLstat, l.path(p))}
	replies, err := c.do(ctx, append(reqs, l.askWhere(dir, c)...)...)
	if err != nil {
		return "", err
	}
	_, err = l.where(replies[2:], dir)
	if errors.Is(err, errVague) {
		return "", l.whyAbsent(ctx, c, dir)
	}
	if err != nil {
		return "", err
	}
	a, err := l.attrs(&replies[1])
	if err != nil {
		return "", err
	}
	if a.Type() != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	target, err := replies[0].name()
	if err == nil && (len(target) > pathMax || strings.IndexByte(target, 0) >= 0) {
		err = corrupt("a symlink's target that cannot be one")
	}
	return l.rebase(p, target), err
}

// Statfs describes the filesystem of the root. It is ENOSYS if the server lacks
// statvfs@openssh.com.
func (l *Layer) Statfs(ctx context.Context) (st layers.Statfs, err error) {
	err = l.exchange(ctx, func(ctx context.Context, c *conn) error {
		if !l.root.known {
			return unix.ENOSYS
		}
		replies, err := c.do(ctx, askStatvfs(l.root.path))
		if err != nil {
			return err
		}
		if err := l.sameRoot(&replies[0]); err != nil {
			return err
		}
		v, err := replies[0].statvfs()
		st = v.Statfs
		return err
	})
	return st, l.fail("statfs", layers.Root, err)
}
