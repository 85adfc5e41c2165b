package overlay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// turn is what one goroutine does of a directory at a time: files come up, then their
// names are made durable together, then their lower copies go.
type turn struct {
	d     *drain
	p     *place
	batch batch
	came  []arrival
	bytes int64
}

// arrival is a file that is in the upper. Whether its lower copy went shows later.
type arrival struct {
	name string
	a    layers.Attr
	size int64 // of what came up
	seen int64 // of that, what is counted
}

// turnBytes is after how much the lower copies go, however few the files are.
const turnBytes = 64 << 20

// batch has the lower copies that are left to remove by copy-ups of one context.
type batch struct {
	mu   sync.Mutex
	list []removal
}

type batchKey struct{}

// addTo leaves the removal of the lower copy of n to the batch that ctx has. The
// caller holds n.mu.
func (fs *FS) addTo(ctx context.Context, n *node, src *copyup.Source, d dentry) bool {
	b, ok := ctx.Value(batchKey{}).(*batch)
	if !ok || fs.cfg.AsCaller || src.Attr.Nlink > 1 {
		return false
	}
	m := fs.newRemoval(n, src, d)
	b.mu.Lock()
	b.list = append(b.list, m)
	b.mu.Unlock()
	return true
}

// files drains the names in the place, or counts them.
func (d *drain) files(ctx context.Context, p *place, names []string) {
	t := &turn{d: d, p: p}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		t.file(ctx, name)
		if t.bytes >= turnBytes {
			t.end(ctx)
		}
	}
	t.end(ctx)
}

func (t *turn) file(ctx context.Context, name string) {
	d, p := t.d, t.p
	var stx unix.Statx_t
	switch err := sys.Statx(p.fd, name, &stx); {
	case err == unix.ENOENT:
		return
	case err != nil:
		p.left.Add(1)
		d.fail(p.path.Join(name), err)
		return
	}
	f := arrival{name: name, a: local.AttrOf(&stx)}
	if !d.cfg.Select.wants(&f.a) {
		p.left.Add(1)
		d.seen.Other.Add(1)
		return
	}
	if d.fs == nil {
		p.left.Add(1)
		d.seen.Files.Add(1)
		d.seen.Bytes.Add(sizeOf(&f.a) / int64(max(f.a.Nlink, 1)))
		return
	}
	if d.cfg.Hold != nil {
		if err := d.cfg.Hold(ctx); err != nil {
			return // ctx has ended
		}
	}
	err := d.prepare(ctx, p)
	if err == nil {
		var seen atomic.Int64
		with := context.WithValue(d.careful(ctx, &seen), batchKey{}, &t.batch)
		f.size, err = d.steps(with, p, name, &f.a)
		f.seen = seen.Load()
	}
	if err != nil {
		d.ended(ctx, p, &f, err)
		return
	}
	t.came = append(t.came, f)
	t.bytes += f.size
}

// end has the lower copies removed of what came up, also when ctx has ended: that
// takes no time.
func (t *turn) end(ctx context.Context) {
	if len(t.batch.list) > 0 {
		t.d.fs.removeBatch(t.batch.list)
	}
	for i := range t.came {
		f := &t.came[i]
		t.d.ended(ctx, t.p, f, t.d.rest(ctx, t.p, f))
	}
	t.batch.list, t.came, t.bytes = nil, nil, 0
}

// careful is ctx for the copy of one file; seen is how much of it has been counted.
func (d *drain) careful(ctx context.Context, seen *atomic.Int64) context.Context {
	return copyup.WithCare(ctx, copyup.Care{Verify: d.cfg.Verify, Pace: func(ctx context.Context, n int64) error {
		seen.Add(n)
		d.seen.Bytes.Add(n)
		if d.cfg.Pace == nil {
			return ctx.Err()
		}
		return d.cfg.Pace(ctx, n)
	}})
}

// rest looks whether the lower copy of f has gone: a copy-up is no failure because it
// stayed. What is left to do is done.
func (d *drain) rest(ctx context.Context, p *place, f *arrival) error {
	for range 4 {
		var stx unix.Statx_t
		switch err := sys.Statx(p.fd, f.name, &stx); {
		case err == unix.ENOENT:
			return nil
		case err != nil:
			return err
		}
		now := local.AttrOf(&stx)
		if !idOf(&now).is(idOf(&f.a)) {
			return errMoved // another file: the next look at p finds it
		}
		f.a = now
		more, err := d.steps(ctx, p, f.name, &f.a)
		f.size += more
		if err != nil {
			return err
		}
	}
	return ErrRestless
}

// steps is step, again while the file is one that changes: of one with several names,
// drains of others take them away at the same time.
func (d *drain) steps(ctx context.Context, p *place, name string, a *layers.Attr) (size int64, err error) {
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		size, err = d.step(ctx, p, name, a)
		if !errors.Is(err, errChanged) && errnoOf(err) != unix.EBUSY || pause > time.Second {
			return size, err
		}
		select {
		case <-ctx.Done():
			return size, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// ended counts f.
func (d *drain) ended(ctx context.Context, p *place, f *arrival, err error) {
	if err != nil && !errors.Is(err, errKept) {
		f.size = 0
	}
	d.seen.Bytes.Add(f.size - f.seen)
	switch {
	case err == nil:
		p.gone.Add(1)
		d.seen.Files.Add(1)
	case ctx.Err() != nil:
	case errors.Is(err, errKept):
		p.left.Add(1)
		if f.size > 0 {
			d.seen.Files.Add(1)
		} else {
			d.seen.Other.Add(1)
		}
	case errors.Is(err, errMoved), nothing(err):
		// Somebody renamed or removed it, or a directory above: the next look at
		// the directory shows what is left.
	default:
		p.left.Add(1)
		d.fail(p.path.Join(f.name), err)
	}
}
