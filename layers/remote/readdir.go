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

	// nothingNew is how many names a packet counts for that brings none, so that
	// one that repeats itself cannot keep us for ever.
	nothingNew = 4096

	// mostOdd bounds what is logged about one directory.
	mostOdd = 20

	// firstReaddirs is how many READDIR requests follow an OPENDIR at once:
	// OpenSSH answers each with up to 100 names, and the one after the last with
	// the end. moreReaddirs is how many go into each burst after that.
	firstReaddirs = 13
	moreReaddirs  = 16
)

// ReadDir takes one exchange to open the directory and to see that no symlink
// leads there, and for a directory of ordinary size one more for the names, which
// carry their attributes; where handles can be predicted it is one for both. Names
// that a path cannot hold are logged and left out.
func (l *Layer) ReadDir(ctx context.Context, p layers.Path) (list []layers.Entry, err error) {
	if err := l.check(p); err != nil {
		return nil, l.fail("readdir", p, err)
	}
	err = l.exchange(ctx, func(ctx context.Context, c *conn) error {
		if fast := l.predicting(ctx); fast != nil {
			if list, err = l.readDirAtOnce(ctx, fast, p); err == nil || ctx.Err() != nil {
				return err
			}
		}
		if c.predicts() { // a lane for blocks: not for a handle that stays open
			return l.exchangeOn(ctx, l.session, l.narrowly(func(ctx context.Context, c *conn) error {
				list, err = l.readDir(ctx, c, p)
				return err
			}))
		}
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

// A listing gathers what READDIRs bring.
type listing struct {
	l    *Layer
	dir  layers.Path
	all  []layers.Entry
	seen map[string]struct{}
	came int // names, those included that were left out
	odd  int // that no path can hold

	strange error // names of owners are to be asked for, and then all once more
}

func (l *Layer) newListing(dir layers.Path) *listing {
	return &listing{l: l, dir: dir, seen: make(map[string]struct{})}
}

// add takes in the answers to READDIRs and reports whether the last of them is
// the end of the directory.
func (g *listing) add(replies []reply) (end bool, err error) {
	for i := range replies {
		some, n, err := replies[i].entries(g.refused)
		if isStatus(err, fxEOF) {
			return true, g.strange
		}
		if err != nil {
			return false, err
		}
		had := len(g.all)
		for _, e := range some {
			if _, twice := g.seen[e.Name]; twice {
				continue // it was renamed under the server's cursor
			}
			g.seen[e.Name] = struct{}{}
			if e.Attr != nil {
				if err := g.l.squash(e.Attr); err != nil {
					g.strange = err // the others may be as well
				}
			}
			g.all = append(g.all, e)
		}
		if len(g.all) == had {
			n = max(n, nothingNew)
		}
		if g.came += n; g.came > maxEntries {
			return false, fmt.Errorf("more than %d names: %w", maxEntries, unix.EOVERFLOW)
		}
	}
	return false, nil
}

func (g *listing) refused(name string) {
	if g.odd++; g.odd > mostOdd {
		return
	}
	g.l.cfg.Logger.Warn("a name was left out that no path can hold", "layer", g.l.name,
		"dir", fmt.Sprintf("%q", string(g.dir)), "name", fmt.Sprintf("%q", name[:min(len(name), 300)]))
}

func askReaddirs(handle string, n int) []request {
	reqs := make([]request, n)
	for i := range reqs {
		reqs[i] = askReaddir(handle)
	}
	return reqs
}

// list reads names until the server says that there are no more: one burst that
// most directories fit in, and then two at a time.
func (l *Layer) list(ctx context.Context, c *conn, p layers.Path, handle string) ([]layers.Entry, error) {
	var flying []*burst
	defer func() {
		for _, b := range flying {
			b.abandon()
		}
	}()
	g := l.newListing(p)
	for n, most := firstReaddirs, 1; ; n, most = moreReaddirs, 2 {
		for len(flying) < most {
			b, err := (*burst)(nil), error(nil)
			if len(flying) == 0 {
				b, err = c.start(ctx, askReaddirs(handle, n)...)
			} else if !isShared(ctx, c) {
				b, err = c.tryStart(ctx, askReaddirs(handle, n)...)
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
		if end, err := g.add(replies); end || err != nil {
			return g.all, err
		}
	}
}
