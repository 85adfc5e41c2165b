package remote

import (
	"context"
	"errors"

	"github.com/migratefs/migratefs/layers"
)

// Stat takes one exchange: LSTAT of p, and behind it in the same burst the proof
// that p's directory is one, that no symlink leads to it, and that the root is
// still the one that was mounted. So ENOENT comes only from a directory that
// was seen at that moment.
func (l *Layer) Stat(ctx context.Context, p layers.Path) (a layers.Attr, err error) {
	if err := l.check(p); err != nil {
		return a, l.fail("stat", p, err)
	}
	err = l.exchange(ctx, func(ctx context.Context, c *conn) error {
		a, err = l.lstat(ctx, c, p)
		return err
	})
	return a, l.fail("stat", p, err)
}

func (l *Layer) lstat(ctx context.Context, c *conn, p layers.Path) (layers.Attr, error) {
	if p == layers.Root {
		replies, err := c.do(ctx, l.askWhere(p, c)...)
		if err != nil {
			return layers.Attr{}, err
		}
		return l.where(replies, p)
	}
	dir, _ := p.Split()
	replies, err := c.do(ctx, append([]request{askPath(fxpLstat, l.path(p))}, l.askWhere(dir, c)...)...)
	if err != nil {
		return layers.Attr{}, err
	}
	_, err = l.where(replies[1:], dir)
	if errors.Is(err, errVague) {
		return layers.Attr{}, l.whyAbsent(ctx, c, dir)
	}
	if err != nil {
		return layers.Attr{}, err
	}
	return l.attrs(&replies[0])
}

// statBatch is how many paths go into one burst of StatMany. The server's
// answers to it fit the window several times.
const statBatch = 512

// StatMany asks for all paths at once, in as few exchanges as the window allows,
// and for each of their directories once per batch. errs[i] is as from Stat.
func (l *Layer) StatMany(ctx context.Context, paths []layers.Path) ([]layers.Attr, []error, error) {
	attrs, errs := make([]layers.Attr, len(paths)), make([]error, len(paths))
	var batches []*statMany
	for start := 0; start < len(paths); start += statBatch {
		end := min(start+statBatch, len(paths))
		batches = append(batches, l.newStatMany(paths[start:end], attrs[start:end], errs[start:end]))
	}
	err := l.exchange(ctx, func(ctx context.Context, c *conn) error {
		return pipeline(ctx, c, len(batches),
			func(i int) []request { return batches[i].ask(c) },
			func(i int, replies []reply) error { return batches[i].read(ctx, c, replies) })
	})
	if err != nil {
		return nil, nil, l.fail("stat", layers.Root, err)
	}
	for i := range errs {
		errs[i] = l.fail("stat", paths[i], errs[i])
	}
	return attrs, errs, nil
}

// statMany is one batch of StatMany.
type statMany struct {
	l     *Layer
	paths []layers.Path
	attrs []layers.Attr
	errs  []error

	asked []int         // indices of paths that were sent
	dirs  []layers.Path // their directories
	at    map[layers.Path]int
}

func (l *Layer) newStatMany(paths []layers.Path, attrs []layers.Attr, errs []error) *statMany {
	s := &statMany{l: l, paths: paths, attrs: attrs, errs: errs, at: make(map[layers.Path]int)}
	for i, p := range paths {
		if errs[i] = l.check(p); errs[i] != nil {
			continue
		}
		s.asked = append(s.asked, i)
		dir, _ := p.Split()
		if _, ok := s.at[dir]; !ok {
			s.at[dir] = len(s.dirs)
			s.dirs = append(s.dirs, dir)
		}
	}
	return s
}

// ask returns: LSTAT of each path, LSTAT and REALPATH of each directory, root.
func (s *statMany) ask(c *conn) []request {
	reqs := make([]request, 0, len(s.asked)+2*len(s.dirs)+1)
	for _, i := range s.asked {
		reqs = append(reqs, askPath(fxpLstat, s.l.path(s.paths[i])))
	}
	for _, dir := range s.dirs {
		reqs = append(reqs, askPath(fxpLstat, s.l.path(dir)), askPath(fxpRealpath, s.l.path(dir)))
	}
	return append(reqs, s.l.askRoot(c))
}

func (s *statMany) read(ctx context.Context, c *conn, replies []reply) error {
	l := s.l
	root := replies[len(replies)-1]
	if err := l.sameRoot(&root); err != nil {
		return err // about the layer, not about one path
	}
	byDir := replies[len(s.asked):]
	dirErrs := make([]error, len(s.dirs))
	for i, dir := range s.dirs {
		_, dirErrs[i] = l.where([]reply{byDir[2*i], byDir[2*i+1], root}, dir)
		if errors.Is(dirErrs[i], errVague) {
			dirErrs[i] = l.whyAbsent(ctx, c, dir)
		}
		if err := dirErrs[i]; concernsAll(err) {
			return err
		}
	}
	for k, i := range s.asked {
		dir, _ := s.paths[i].Split()
		if s.errs[i] = dirErrs[s.at[dir]]; s.errs[i] != nil {
			continue
		}
		if s.attrs[i], s.errs[i] = l.attrs(&replies[k]); concernsAll(s.errs[i]) {
			return s.errs[i]
		}
	}
	return nil
}

// pipeline sends n bursts and reads their answers in order, with as many under
// way as the window has room for, one if they stand before demand. While it holds
// answers that nobody has read yet it does not wait for more room.
func pipeline(ctx context.Context, c *conn, n int, ask func(i int) []request, read func(i int, replies []reply) error) error {
	var flying []*burst
	defer func() {
		for _, b := range flying {
			b.abandon()
		}
	}()
	sent := 0
	for i := range n {
		for sent < n {
			b, err := (*burst)(nil), error(nil)
			if len(flying) == 0 {
				b, err = c.start(ctx, ask(sent)...)
			} else if !isShared(ctx, c) {
				b, err = c.tryStart(ctx, ask(sent)...)
			}
			if err != nil {
				return err
			}
			if b == nil {
				break
			}
			flying = append(flying, b)
			sent++
		}
		replies, err := flying[0].wait(ctx)
		if err != nil {
			return err
		}
		flying = flying[1:]
		if err := read(i, replies); err != nil {
			return err
		}
	}
	return nil
}
