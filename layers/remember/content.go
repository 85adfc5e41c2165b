package remember

import (
	"context"
	"errors"
	"io"

	"github.com/migratefs/migratefs/layers"
)

// heed forgets what err, of a file that was found at p, says is wrong.
func (l *Layer) heed(p layers.Path, err error) {
	switch {
	case err == nil:
	case errors.Is(err, layers.ErrStale), errors.Is(err, layers.ErrNotRegular), gone(err):
		l.Forget(p)
	case errors.Is(err, layers.ErrReplaced):
		l.mu.Lock()
		l.note(err)
		l.mu.Unlock()
	}
}

// Open implements layers.Layer. The storage says whether the file is the one that was
// remembered.
func (l *Layer) Open(ctx context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	f, err := l.Layer.Open(ctx, p, want)
	if err != nil {
		l.heed(p, err)
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
	if err != nil && !errors.Is(err, io.EOF) {
		f.l.heed(f.p, err)
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
		l.heed(files[i].Path, contents[i].Err)
	}
	l.heed(layers.Root, err)
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
		l.heed(layers.Root, err)
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
