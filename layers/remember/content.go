package remember

import (
	"context"
	"errors"

	"github.com/migratefs/migratefs/layers"
)

// contradicts reports whether err, of a file that was found at a path, says that what
// is remembered of the path is wrong.
func contradicts(err error) bool {
	return errors.Is(err, layers.ErrStale) || errors.Is(err, layers.ErrNotRegular) || gone(err)
}

// Open implements layers.Layer. The storage says whether the file is the one that was
// remembered.
func (l *Layer) Open(ctx context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	f, err := l.Layer.Open(ctx, p, want)
	if err != nil {
		if contradicts(err) {
			l.Forget(p)
		}
		return nil, err
	}
	return &file{f, l, p}, nil
}

// file is an open file that may turn out to be another one.
type file struct {
	layers.File
	l *Layer
	p layers.Path
}

// ReadAt implements layers.File.
func (f *file) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(ctx, b, off)
	if errors.Is(err, layers.ErrStale) {
		f.l.Forget(f.p)
	}
	return n, err
}

// Settled reports whether a change after the file was opened is sure to show in its
// version. A file that does not know has not settled.
func (f *file) Settled() bool {
	s, ok := f.File.(interface{ Settled() bool })
	return ok && s.Settled()
}

// ReadMany implements layers.BulkReader where the layer under it does; else it is
// errors.ErrUnsupported.
func (l *Layer) ReadMany(ctx context.Context, files []layers.Wanted) ([]layers.Content, error) {
	b, ok := l.Layer.(layers.BulkReader)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	contents, err := b.ReadMany(ctx, files)
	for i := range contents {
		if contradicts(contents[i].Err) {
			l.Forget(files[i].Path)
		}
	}
	return contents, err
}

// StatMany implements layers.BulkStater, one by one where the layer under it does not.
// What is known is not asked for.
func (l *Layer) StatMany(ctx context.Context, paths []layers.Path) ([]layers.Attr, []error, error) {
	attrs, errs := make([]layers.Attr, len(paths)), make([]error, len(paths))
	b, ok := l.Layer.(layers.BulkStater)
	if !ok {
		for i, p := range paths {
			attrs[i], errs[i] = l.Stat(ctx, p)
		}
		return attrs, errs, ctx.Err()
	}
	off := away(l.Offline())
	var ask []layers.Path
	var where []int
	l.mu.Lock()
	for i, p := range paths {
		a, at, known, err := l.recallStat(p, off)
		if !known {
			ask, where = append(ask, p), append(where, i)
			continue
		}
		attrs[i], errs[i] = a, err
		l.stats.Known++
		l.tell(ctx, at)
	}
	asked, forgotten := l.now(), l.forgotten
	l.mu.Unlock()
	if len(ask) == 0 {
		return attrs, errs, nil
	}
	l.tell(ctx, asked)
	got, gotErrs, err := b.StatMany(ctx, ask)
	if err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Waits++
	for k, i := range where {
		attrs[i], errs[i] = l.statedLocked(ask[k], asked, got[k], gotErrs[k], forgotten == l.forgotten)
	}
	return attrs, errs, nil
}

// statedLocked remembers one answer of StatMany if that is still good, and answers for
// storage that is away.
func (l *Layer) statedLocked(p layers.Path, asked moment, a layers.Attr, err error, good bool) (layers.Attr, error) {
	if away(err) {
		if old, _, known, oldErr := l.recallStat(p, true); known {
			return old, oldErr
		}
	}
	if good {
		l.rememberLocked(question{aboutAttr, p}, &flight{asked: asked, attr: a, err: err}, newListing{})
	}
	return a, err
}
