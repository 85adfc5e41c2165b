package overlay

import (
	"context"
	"errors"
	"time"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// A tree of small files that somebody has chmodded is as many pending files. Where the
// source can, they come many in one exchange.

const (
	fillSmall = 64 << 10 // a file that is not larger comes with others
	fillMany  = 64       // at once, and of all at most as many bytes as one call may bring
)

// small is a small file that all is missing of, or all but what was written here.
type small struct {
	*filling
	obj *extent.Object
	src *source
}

// serve does for f what there is to do and, where it is small, for others like it.
func (q *fill) serve(ctx context.Context, f *filling) {
	ctx, end := q.whileFetching(ctx)
	defer end()
	batch := []*filling{f}
	if q.fetches() {
		batch = q.gather(ctx, f)
	}
	for i, f := range batch {
		err := q.work(ctx, f, q.fetches())
		q.done(f, err)
		if errors.Is(err, layers.ErrOffline) || ctx.Err() != nil {
			q.giveBack(batch[i+1:]) // each would wait for the source
			return
		}
	}
}

func (q *fill) giveBack(files []*filling) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, f := range files {
		f.busy = false
	}
}

// gather returns f and, if it is small, others that are due: what those miss has come
// with it, or is looked for one by one.
func (q *fill) gather(ctx context.Context, f *filling) []*filling {
	one := []*filling{f}
	first, ok := q.asSmall(f)
	if !ok {
		return one
	}
	defer func() { first.close() }()
	bulk, ok := first.src.layer.(layers.BulkReader)
	if !ok {
		return one
	}
	batch := []small{first}
	defer func() {
		for _, s := range batch[1:] {
			s.close()
		}
	}()
	var others []*filling
	defer func() { q.giveBack(others) }()
	for len(batch) < fillMany && len(others) < fillMany {
		g, _ := q.pick(time.Now())
		if g == nil {
			break
		}
		s, ok := q.asSmall(g)
		if ok && s.src.layer == first.src.layer {
			batch = append(batch, s)
			continue
		}
		if ok {
			s.close()
		}
		others = append(others, g)
	}
	files := make([]*filling, len(batch))
	for i, s := range batch {
		files[i] = s.filling
	}
	if len(batch) > 1 {
		q.fetchMany(ctx, bulk, batch)
	}
	return files
}

// asSmall opens f if it is small.
func (q *fill) asSmall(f *filling) (small, bool) {
	q.mu.Lock()
	id, conflict := f.id, f.conflict
	q.mu.Unlock()
	if conflict {
		return small{}, false
	}
	obj, err := q.fs.store.Pending(id)
	if err != nil {
		return small{}, false // work will tell
	}
	if obj.Source().Version.Size > fillSmall || obj.Missing() == 0 || obj.Clean() > 0 {
		obj.Close()
		return small{}, false
	}
	s := small{f, obj, q.fs.sourceOf(id, obj)}
	if s.src.layer == nil {
		s.close()
		return small{}, false
	}
	return s, true
}

func (s *small) close() {
	s.src.close()
	s.obj.Close()
}

// fetchMany brings what the files of a batch miss, in one exchange. What does not come
// so is left missing.
func (q *fill) fetchMany(ctx context.Context, bulk layers.BulkReader, batch []small) {
	ask := make([]layers.Wanted, len(batch))
	sum := int64(0)
	for i, s := range batch {
		ask[i] = layers.Wanted{Path: s.src.path, Attr: &s.src.want}
		sum += s.src.want.Size
	}
	if q.enter(ctx, sum) != nil {
		return
	}
	defer func() { <-q.pieces }()
	got, err := bulk.ReadMany(ctx, ask)
	if err != nil || len(got) != len(ask) {
		return
	}
	for i, s := range batch {
		c := &got[i]
		if c.Err != nil {
			_ = s.src.note(staleIfGone(c.Err))
			continue
		}
		if c.Settled && int64(len(c.Data)) == s.src.want.Size && s.obj.Put(0, c.Data) == nil {
			q.fetched.Add(int64(len(c.Data)))
			s.proven = true
		}
	}
}
