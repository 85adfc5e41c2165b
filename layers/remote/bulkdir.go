package remote

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

const (
	// manyDirs is how many directories go into one burst of ReadDirs, and
	// manyNames how many names one call returns at most.
	manyDirs  = 128
	manyNames = 1 << 20

	// fewReaddirs is how many READDIRs each directory of ReadDirs gets first:
	// most have less than 200 names. It is asked again, for more, if it has more.
	fewReaddirs = 3
)

// readDirAtOnce lists a directory of up to some 1,200 names in one exchange. Any
// error but the context's means that it is to be read in the ordinary way.
func (l *Layer) readDirAtOnce(ctx context.Context, c *conn, p layers.Path) ([]layers.Entry, error) {
	replies, err := c.do(ctx, l.askListing(c, []layers.Path{p}, firstReaddirs)...)
	if err != nil {
		return nil, err
	}
	if err := l.sameRoot(&replies[len(replies)-1]); err != nil {
		return nil, err
	}
	list, err := l.readListing(c, p, replies)
	l.distrust(c, err)
	return list, err
}

// askListing asks for each of dirs: a block of OPENDIR, n READDIRs and CLOSE, then
// LSTAT and REALPATH; and behind all of them for the root.
func (l *Layer) askListing(c *conn, dirs []layers.Path, n int) []request {
	reqs := make([]request, 0, len(dirs)*listingLen(n)+1)
	for _, p := range dirs {
		full := l.path(p)
		open := askPath(fxpOpendir, full)
		open.closed = true
		reqs = append(reqs, open)
		for k := range n {
			r := askReaddir(slot0)
			if k > 0 {
				r.weight = 4 << 10 // most often it brings the end
			}
			reqs = append(reqs, r)
		}
		reqs = append(reqs, askHandle(fxpClose, slot0), askPath(fxpLstat, full), askPath(fxpRealpath, full))
	}
	return append(reqs, l.askRoot(c))
}

// listingLen is how many requests askListing makes for each directory.
func listingLen(n int) int { return n + 4 }

// errMore: a directory has more names than were asked for.
var errMore = errors.New("more names")

// readListing reads the answers for one directory, with the root's as the last of
// replies.
func (l *Layer) readListing(c *conn, p layers.Path, replies []reply) ([]layers.Entry, error) {
	n := len(replies) - 5
	proof := replies[n+2:]
	if _, err := l.where(proof, p); err != nil {
		return nil, err
	}
	if err := l.openedBlock(c, &replies[0], &replies[n+1]); err != nil {
		if isStatus(err, fxNoSuchFile) {
			err = fmt.Errorf("%w: it was replaced while it was opened", layers.ErrStale)
		}
		return nil, err
	}
	g := l.newListing(p)
	end, err := g.add(replies[1 : n+1])
	switch {
	case err != nil:
		return nil, err
	case !end:
		return nil, errMore
	}
	l.count.predicted.Add(1)
	return g.all, nil
}

// ReadDirs takes one exchange for up to 128 directories of up to 198 names where
// handles can be predicted, one more if some have up to 1,200, and lists those that
// have more one by one. Where handles cannot be predicted it opens them all in one
// exchange and lists them in the next. It returns no more than a million names in
// all: what comes after that is EOVERFLOW.
func (l *Layer) ReadDirs(ctx context.Context, paths []layers.Path) ([]layers.Listing, error) {
	d := &readDirs{l: l, paths: paths, out: make([]layers.Listing, len(paths)), done: make([]bool, len(paths))}
	for i, p := range paths {
		if err := l.check(p); err != nil {
			d.finish(i, nil, err)
		}
	}
	var many operation = d.on
	if layers.IsBackground(ctx) {
		many = l.narrowly(many)
	}
	if err := l.exchangeOn(ctx, l.forMany, many); err != nil {
		return nil, l.fail("readdir", layers.Root, err)
	}
	for i, p := range paths { // the few that are large, or about which there is doubt
		if d.done[i] {
			continue
		}
		if d.names >= manyNames {
			d.finish(i, nil, unix.EOVERFLOW)
			continue
		}
		list, err := l.ReadDir(ctx, p)
		if isContext(err) {
			return nil, err
		}
		d.out[i] = layers.Listing{Entries: list, Err: err}
		d.names += len(list)
	}
	return d.out, nil
}

// readDirs is one call of ReadDirs.
type readDirs struct {
	l     *Layer
	paths []layers.Path
	out   []layers.Listing
	done  []bool
	names int
}

func (d *readDirs) finish(i int, list []layers.Entry, err error) {
	d.out[i], d.done[i] = layers.Listing{Entries: list, Err: d.l.fail("readdir", d.paths[i], err)}, true
	d.names += len(list)
}

// groups divides what is not done.
func (d *readDirs) groups(size int) (all [][]int) {
	var g []int
	for i := range d.paths {
		if d.done[i] {
			continue
		}
		if g = append(g, i); len(g) == size {
			all, g = append(all, g), nil
		}
	}
	if len(g) > 0 {
		all = append(all, g)
	}
	return all
}

// on lists on c what is not done. What it leaves undone is to be listed alone.
func (d *readDirs) on(ctx context.Context, c *conn) error {
	if c.predicts() {
		if err := d.inOne(ctx, c, fewReaddirs); err != nil {
			return err
		}
		return d.inOne(ctx, c, firstReaddirs)
	}
	size := min(c.opens.size, manyDirs)
	if isShared(ctx, c) {
		size = min(size, fewFiles)
	}
	for _, g := range d.groups(size) {
		if err := d.inTwo(ctx, c, g); err != nil {
			return err
		}
	}
	return nil
}

// inOne gives each directory a block with n READDIRs.
func (d *readDirs) inOne(ctx context.Context, c *conn, n int) error {
	groups := d.groups(max(1, manyDirs*fewReaddirs/n))
	return pipeline(ctx, c, len(groups), func(k int) []request {
		return d.l.askListing(c, d.of(groups[k]), n)
	}, func(k int, replies []reply) error {
		root := len(replies) - 1
		if err := d.l.sameRoot(&replies[root]); err != nil {
			return err
		}
		for j, i := range groups[k] {
			mine := replies[j*listingLen(n) : (j+1)*listingLen(n)]
			list, err := d.l.readListing(c, d.paths[i], append(mine[:len(mine):len(mine)], replies[root]))
			if concernsAll(err) {
				return err
			}
			d.settle(i, list, err)
		}
		return nil
	})
}

func (d *readDirs) of(group []int) []layers.Path {
	paths := make([]layers.Path, len(group))
	for k, i := range group {
		paths[k] = d.paths[i]
	}
	return paths
}

// settle takes an answer that is beyond doubt.
func (d *readDirs) settle(i int, list []layers.Entry, err error) {
	switch {
	case err == nil && d.names < manyNames:
		d.finish(i, list, nil)
	case isStatus(err, fxPermissionDenied):
		d.finish(i, nil, err)
	}
}

// inTwo opens a group of directories in one burst and reads the first names in the
// next, and more in those after that. What is in doubt is left undone.
func (d *readDirs) inTwo(ctx context.Context, c *conn, group []int) error {
	if err := c.opens.take(ctx, c.dead, len(group)); err != nil {
		return err
	}
	defer c.opens.give(len(group))
	var reqs []request
	for _, i := range group {
		full := d.l.path(d.paths[i])
		reqs = append(reqs, askPath(fxpOpendir, full), askPath(fxpLstat, full), askPath(fxpRealpath, full))
	}
	replies, err := c.do(ctx, append(reqs, d.l.askRoot(c))...)
	if err != nil {
		return err
	}
	var open []*openDir
	defer func() {
		for _, o := range open {
			c.post(askHandle(fxpClose, o.handle))
		}
	}()
	root := replies[len(replies)-1]
	for k, i := range group {
		h, err := replies[3*k].handle()
		_, bad := d.l.where([]reply{replies[3*k+1], replies[3*k+2], root}, d.paths[i])
		switch {
		case err == nil && bad == nil:
			open = append(open, &openDir{i: i, handle: h, g: d.l.newListing(d.paths[i])})
		case err == nil:
			open = append(open, &openDir{handle: h})
		case bad == nil:
			d.settle(i, nil, err)
		}
	}
	if err := d.l.sameRoot(&root); err != nil {
		return err
	}
	return d.rounds(ctx, c, open)
}

// openDir is a directory of ReadDirs that has a handle.
type openDir struct {
	i      int
	handle string
	g      *listing // nil when nothing more is to be read
}

// rounds reads names from all that are open, until all have ended.
func (d *readDirs) rounds(ctx context.Context, c *conn, open []*openDir) error {
	for n := fewReaddirs; ; n = firstReaddirs {
		var left []*openDir
		for _, o := range open {
			if o.g != nil {
				left = append(left, o)
			}
		}
		if len(left) == 0 {
			return nil
		}
		size := manyDirs * fewReaddirs / n
		part := func(k int) []*openDir { return left[k*size : min((k+1)*size, len(left))] }
		err := pipeline(ctx, c, (len(left)+size-1)/size, func(k int) (reqs []request) {
			for _, o := range part(k) {
				reqs = append(reqs, askReaddirs(o.handle, n)...)
			}
			return reqs
		}, func(k int, replies []reply) error {
			for j, o := range part(k) {
				end, err := o.g.add(replies[j*n : (j+1)*n])
				switch {
				case broken(err):
					return err
				case end:
					d.settle(o.i, o.g.all, nil)
					o.g = nil
				case err != nil || d.names+len(o.g.all) > manyNames:
					o.g = nil
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}
