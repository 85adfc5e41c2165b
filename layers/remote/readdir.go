package remote

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

const (
	// maxEntries bounds one directory, so that a server that never ends a
	// listing cannot fill our memory.
	maxEntries = 4 << 20

	// firstReaddirs is how many READDIR requests follow an OPENDIR at once, and
	// mostReaddirs how many are under way at most. OpenSSH answers each with up
	// to 100 names.
	firstReaddirs = 4
	mostReaddirs  = 32
)

// ReadDir takes one exchange to open the directory and to see that no symlink
// leads there, and for a directory of ordinary size one more for the names, which
// carry their attributes. Names that a path cannot hold are logged and left out.
func (l *Layer) ReadDir(ctx context.Context, p layers.Path) (list []layers.Entry, err error) {
	if err := l.check(p); err != nil {
		return nil, l.fail("readdir", p, err)
	}
	err = l.exchange(ctx, func(ctx context.Context, c *conn) error {
		list, err = l.readDir(ctx, c, p)
		return err
	})
	if err != nil {
		return nil, l.fail("readdir", p, err)
	}
	return list, nil
}

func (l *Layer) readDir(ctx context.Context, c *conn, p layers.Path) ([]layers.Entry, error) {
	replies, err := c.do(ctx, append([]request{askPath(fxpOpendir, l.path(p))}, l.askWhere(p, c)...)...)
	if err != nil {
		return nil, err
	}
	_, err = l.where(replies[1:], p)
	handle, openErr := replies[0].handle()
	if openErr == nil {
		defer c.post(askHandle(fxpClose, handle))
	}
	switch {
	case errors.Is(err, errVague):
		return nil, l.whyAbsent(ctx, c, p)
	case err != nil:
		return nil, err
	case isStatus(openErr, fxNoSuchFile):
		return nil, fmt.Errorf("%w: it was replaced while it was opened", layers.ErrStale)
	case openErr != nil:
		return nil, openErr
	}
	// From here on the handle holds the directory, whatever becomes of its name.
	return l.list(ctx, c, p, handle)
}

// list reads names until the server says that there are no more. The number of
// requests under way doubles as answers come.
func (l *Layer) list(ctx context.Context, c *conn, p layers.Path, handle string) ([]layers.Entry, error) {
	var flying []*burst
	defer func() {
		for _, b := range flying {
			b.abandon()
		}
	}()
	refused := func(name string) {
		l.cfg.Logger.Warn("a name was left out that no path can hold", "layer", l.name,
			"dir", fmt.Sprintf("%q", string(p)), "name", fmt.Sprintf("%q", name[:min(len(name), 300)]))
	}
	var all []layers.Entry
	seen := make(map[string]struct{})
	for ahead := firstReaddirs; ; ahead = min(2*ahead, mostReaddirs) {
		for len(flying) < ahead {
			b, err := (*burst)(nil), error(nil)
			if len(flying) == 0 {
				b, err = c.start(ctx, askReaddir(handle))
			} else {
				b, err = c.tryStart(askReaddir(handle))
			}
			if err != nil {
				return nil, err
			}
			if b == nil {
				break
			}
			flying = append(flying, b)
		}
		replies, err := flying[0].wait(ctx)
		if err != nil {
			return nil, err
		}
		flying = flying[1:]
		progress(ctx)
		some, err := replies[0].entries(refused)
		if isStatus(err, fxEOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		for _, e := range some {
			if _, twice := seen[e.Name]; twice {
				continue // it was renamed under the server's cursor
			}
			seen[e.Name] = struct{}{}
			if e.Attr != nil {
				l.squash(e.Attr)
			}
			all = append(all, e)
		}
		if len(all) > maxEntries {
			return nil, fmt.Errorf("more than %d names: %w", maxEntries, unix.EOVERFLOW)
		}
	}
}
