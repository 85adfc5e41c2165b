package seed

import (
	"cmp"
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

var (
	_ layers.BulkReader = (*Layer)(nil)
	_ layers.Scout      = (*Layer)(nil)
)

// ReadMany implements layers.BulkReader where Inner does; else it is
// errors.ErrUnsupported. As by Open, a seeded file is read only as the version that was
// compared with the seed.
func (l *Layer) ReadMany(ctx context.Context, files []layers.Wanted) ([]layers.Content, error) {
	if l.closed.Load() {
		return nil, l.wrap("read", layers.Root, unix.EBADF)
	}
	bulk, ok := l.inner.(layers.BulkReader)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	stale, err := l.compareMany(ctx, files)
	if err != nil {
		return nil, err
	}
	out := make([]layers.Content, len(files))
	var ask []layers.Wanted
	var at []int
	for i := range files {
		w, err := l.wanted(&files[i])
		if err = cmp.Or(stale[files[i].Path], err); err != nil {
			out[i].Err = l.wrap("open", files[i].Path, err)
			continue
		}
		ask, at = append(ask, w), append(at, i)
	}
	if len(ask) == 0 {
		return out, nil
	}
	got, err := bulk.ReadMany(ctx, ask)
	if err != nil {
		return nil, err
	}
	for k, i := range at {
		out[i] = got[k]
	}
	return out, nil
}

// compareMany compares those of files that were not yet, in one exchange. It returns
// what is wrong with each.
func (l *Layer) compareMany(ctx context.Context, files []layers.Wanted) (map[layers.Path]error, error) {
	var paths []layers.Path
	for i := range files {
		if n := l.nodes[files[i].Path]; n != nil {
			if _, seen := n.current(); !seen {
				paths = append(paths, files[i].Path)
			}
		}
	}
	if len(paths) == 0 {
		return nil, nil
	}
	_, errs, err := l.StatMany(ctx, paths)
	wrong := make(map[layers.Path]error)
	for i := range errs {
		wrong[paths[i]] = errs[i]
	}
	return wrong, err
}

// wanted is what Inner is to be asked for where w is wanted.
func (l *Layer) wanted(w *layers.Wanted) (layers.Wanted, error) {
	n := l.nodes[w.Path]
	if n == nil {
		return *w, l.foreign(w.Path)
	}
	a, seen := n.current()
	switch {
	case !seen:
		return *w, layers.ErrOffline
	case !a.IsRegular():
		return *w, layers.ErrNotRegular
	case w.Attr != nil && !a.SameVersion(w.Attr):
		return *w, layers.ErrStale
	}
	return layers.Wanted{Path: n.src, Attr: &a}, nil
}

// Coming implements layers.Scout where Inner does.
func (l *Layer) Coming(from layers.Path, names int) []layers.Listed {
	scout, ok := l.inner.(layers.Scout)
	if !ok || l.names == Flat {
		return nil
	}
	var next []layers.Listed
	for _, d := range scout.Coming(from, names) {
		if !l.hidden(d.Path) {
			next = append(next, layers.Listed{Path: d.Path, Entries: l.seeded(d.Path, d.Entries)})
		}
	}
	return next
}
