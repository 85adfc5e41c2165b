package overlay

import (
	"context"
	"errors"
	"time"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// bringSmall makes obj, the file of h that is being opened, whole if it is small, and
// has small files beside it fetched. It reports whether obj is whole: then nothing
// needs to be asked of the source. The error is why it could not be asked.
func (fs *FS) bringSmall(ctx context.Context, h *handle, obj *extent.Object, src *source) (whole bool, err error) {
	a := &fs.ahead
	bulk, ok := src.layer.(layers.BulkReader)
	if !ok || a.off || src.want.Size > smallMost || !src.Settled() {
		return obj.Missing() == 0, nil
	}
	l := a.link(src.layer)
	f, name := a.familyOf(src)
	if f != nil {
		s := f.opened(name, &src.want)
		if f.walked() {
			fs.bringSiblings(f, l)
		}
		a.trail.came(f, s.early)
		fs.bringTrail(f, l)
		if obj.Missing() > 0 && s.come != nil {
			s.wait(ctx, l.patience())
		}
	}
	switch {
	case obj.Missing() == 0:
		return true, nil
	case h.writable() || src.want.Size > max(smallLeast, l.within(smallDelay, smallMost)):
		return false, nil // it may not be read, or not all of it
	}
	return fs.bringOne(ctx, bulk, l, obj, src, f)
}

// wait waits until s has come, though no longer than patience after it was asked for:
// the link may be slower for what nobody waits for.
func (s *sibling) wait(ctx context.Context, patience time.Duration) {
	t := time.NewTimer(patience - time.Since(s.since))
	defer t.Stop()
	select {
	case <-s.come:
	case <-t.C:
	case <-ctx.Done():
	}
}

// bringOne fetches a small file whole, where opening it takes an exchange and reading it
// another, and in the same exchange the first of those beside it.
func (fs *FS) bringOne(ctx context.Context, bulk layers.BulkReader, l *link, obj *extent.Object, src *source, f *family) (whole bool, err error) {
	ask := []layers.Wanted{{Path: src.path, Attr: &src.want}}
	b := burst{f: f}
	if f != nil {
		b.which, _ = f.choose(siblingsFirst, burstBytes, fs.ahead.share(siblingsBytes))
		ask = append(ask, fs.wanted(&b)...)
		fs.bringTrail(f, l)
	}
	got, err := readMany(ctx, bulk, l, ask)
	if err != nil {
		b.forgo()
		return false, err
	}
	// Those beside it are kept by somebody else.
	if !fs.ahead.begin(0, func() error { return fs.keepSiblings(&b, got[1:]) }) {
		b.done(len(b.which))
	}
	c := &got[0]
	if c.Err != nil || !c.Settled || int64(len(c.Data)) != src.want.Size {
		return false, c.Err
	}
	return obj.Put(0, c.Data) == nil && obj.Missing() == 0, nil
}

// readMany is bulk.ReadMany over l.
func readMany(ctx context.Context, bulk layers.BulkReader, l *link, ask []layers.Wanted) ([]layers.Content, error) {
	began := time.Now()
	l.sent()
	got, err := bulk.ReadMany(ctx, ask)
	if err == nil && len(got) != len(ask) {
		err = layers.ErrCorrupt
	}
	var sum int64
	for i := range got {
		sum += int64(len(got[i].Data))
	}
	if err != nil {
		sum = 0
	}
	l.landed(sum, began)
	return got, err
}

// bringSiblings begins to fetch what is to be here of f.
func (fs *FS) bringSiblings(f *family, l *link) {
	most := max(batchLeast, min(l.within(batchDelay, batchLeast), batchBytes))
	which, bytes := f.choose(batchFiles, most, fs.ahead.share(siblingsBytes))
	if len(which) == 0 {
		return
	}
	b := &burst{f: f, which: which}
	if !fs.ahead.begin(bytes, func() error { return fs.fetchSiblings([]*burst{b}, l) }) {
		b.forgo()
	}
}

// burst is some files of a family that were asked for together. They are its own until
// their come is closed.
type burst struct {
	f     *family
	which []int // in f.files
	asked []int // in which: those that were not here
	over  int   // so many of which have come, or will not
}

// done notes that the first n files of b have come, or will not.
func (b *burst) done(n int) {
	for ; b.over < n; b.over++ {
		close(b.f.files[b.which[b.over]].come)
	}
}

// forgo takes b back: its files may be asked for again.
func (b *burst) forgo() {
	if len(b.which) == 0 {
		return
	}
	f := b.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range b.which {
		s := &f.files[i]
		close(s.come)
		s.come, s.early = nil, false
		f.left++
		if !s.used {
			f.sent--
			f.out -= s.attr.Size
		}
	}
	f.sent, f.out = max(f.sent, f.used), max(f.out, 0)
}

func (b *burst) source(i int) extent.Source {
	s := &b.f.files[b.which[i]]
	return extent.Source{LayerID: b.f.id, Path: b.f.dir.Join(s.name), Version: s.attr.Version(), Mode: s.attr.Mode}
}

// wanted returns what is to be asked for of b: what is not here.
func (fs *FS) wanted(b *burst) (ask []layers.Wanted) {
	for i, j := range b.which {
		if src := b.source(i); !fs.cache().Holds(src) {
			ask = append(ask, layers.Wanted{Path: src.Path, Attr: b.f.files[j].attr})
			b.asked = append(b.asked, i)
		}
	}
	return ask
}

// fetchSiblings brings the files of bs that are not here, of one source.
func (fs *FS) fetchSiblings(bs []*burst, l *link) error {
	var ask []layers.Wanted
	for _, b := range bs {
		ask = append(ask, fs.wanted(b)...)
	}
	var got []layers.Content
	var err error
	if len(ask) > 0 {
		got, err = readMany(fs.ahead.ctx, bs[0].f.layer.(layers.BulkReader), l, ask)
	}
	var errs error
	for _, b := range bs {
		if err != nil {
			b.forgo()
			continue
		}
		errs = errors.Join(errs, fs.keepSiblings(b, got))
		got = got[len(b.asked):]
	}
	return errors.Join(err, errs)
}

// keepSiblings keeps what was asked for of b, with which got begins.
func (fs *FS) keepSiblings(b *burst, got []layers.Content) (err error) {
	defer func() { b.done(len(b.which)) }()
	for k, i := range b.asked {
		b.done(i)
		c, src := &got[k], b.source(i)
		if c.Err != nil || !c.Settled || int64(len(c.Data)) != src.Version.Size {
			continue // who opens it learns why
		}
		err = errors.Join(err, keepWhole(fs.cache(), src, c.Data))
		c.Data = nil
	}
	return err
}
