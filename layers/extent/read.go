package extent

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// A Fetcher reads the source's version of an object: a layers.File, opened with
// Source().Attr() as what it must still be. It is asked for nothing at or beyond
// the limit, so io.EOF before the end of the request means that the source is
// another file now.
type Fetcher interface {
	ReadAt(ctx context.Context, b []byte, off int64) (n int, err error)
}

// A Settler is a Fetcher that knows whether its version is settled: whether a
// change made after this moment is sure to show in the version. Bytes fetched
// before that serve the read that wanted them and are not kept. For other
// Fetchers a version is settled two seconds after its mtime, by this host's
// clock (SFTP's mtime has whole seconds).
type Settler interface {
	Settled() bool
}

// window is how much of a read is handled at once, and the most that one fetch
// asks for.
const window = 1 << 20

// ReadAt reads as io.ReaderAt does, against the present size. What is missing is
// fetched through fetch, in whole pages, and kept; a store that fails (ENOSPC)
// does not fail the read. If fetch is nil, a missing byte is layers.ErrOffline.
// Readers that miss the same bytes share one fetch, which goes on while one of
// them waits.
func (o *Object) ReadAt(ctx context.Context, fetch Fetcher, b []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, unix.EINVAL
	}
	o.use(off, int64(len(b)))
	for n < len(b) {
		want := b[n:min(len(b), n+window)]
		m, err := o.readWindow(ctx, fetch, want, off+int64(n))
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// ReadBy has f read [off, off+n) from the data file by its own means, if all of that
// is present and lies within the file. It reports whether f did, and what it has read
// is the file's: if not, some of it may have gone meanwhile, and is to be dropped.
func (o *Object) ReadBy(off, n int64, f func(fd int) bool) bool {
	o.mu.RLock()
	here := !o.guest.Load() && off >= 0 && off <= o.size-n && o.presentLocked(off, off+n)
	drops := o.drops.Load()
	o.mu.RUnlock()
	if !here {
		return false
	}
	o.use(off, n)
	if !f(o.data) || drops != o.drops.Load() {
		return false
	}
	o.store.count.hit(n)
	return true
}

// readWindow is ReadAt for at most one window.
func (o *Object) readWindow(ctx context.Context, fetch Fetcher, b []byte, off int64) (int, error) {
	for {
		o.mu.RLock()
		size, cuts := o.size, o.cuts
		want := b[:max(0, min(int64(len(b)), size-off))]
		end := off + int64(len(want))
		drops := o.drops.Load()
		here, guest := o.presentLocked(off, end), o.guest.Load()
		doubts := !here && !guest && o.pieces.doubtful(off, end) != nil
		o.mu.RUnlock()
		if doubts {
			o.prove(off, end)
			continue
		}

		if len(want) == 0 && len(b) > 0 {
			return 0, io.EOF
		}
		var n int
		var err error
		if guest {
			n, err = o.readGuest(ctx, fetch, want, off)
		} else if here {
			n, err = sys.Pread(o.data, want, off)
			if drops != o.drops.Load() {
				continue // it may have gone while we read
			}
			o.store.count.hit(int64(n))
		} else {
			o.store.count.misses.Add(1)
			n, err = o.readMissing(ctx, fetch, want, off)
		}
		if err != nil {
			return n, err
		}
		if n == len(want) {
			if n < len(b) {
				return n, io.EOF
			}
			return n, nil
		}
		// The data file ended early: it was cut while we read.
		o.mu.RLock()
		same := cuts == o.cuts
		o.mu.RUnlock()
		if same {
			return n, fmt.Errorf("data file of %d bytes ends at %d: %w", size, off+int64(n), layers.ErrCorrupt)
		}
	}
}

// readMissing fills b, of which something was missing, from the data file and
// from fetches. n < len(b) without an error means that the file was cut.
func (o *Object) readMissing(ctx context.Context, fetch Fetcher, b []byte, off int64) (int, error) {
	if fetch == nil {
		return 0, layers.ErrOffline
	}
	// The first time, fetches of others will do. If one of those fails, we try
	// with our own: theirs may have been closed under it. If it was the source that
	// did not answer, who has waited does not do so for as long again.
	began := time.Now()
	for alone := false; ; alone = true {
		n, again, err := o.readFlights(ctx, fetch, b, off, alone)
		if !again {
			return n, err
		}
		if !alone {
			ctx = layers.WaitedSince(ctx, began)
		}
	}
}

// readFlights is one attempt of readMissing. Again says that something is still
// missing, and another attempt, alone, may bring it.
func (o *Object) readFlights(ctx context.Context, fetch Fetcher, b []byte, off int64, alone bool) (n int, again bool, err error) {
	flights := o.board(ctx, fetch, off, off+int64(len(b)), alone)
	defer leave(flights)
	if err := o.await(ctx, flights); err != nil && (alone || ctx.Err() != nil) {
		return 0, false, err
	}
	n, cut, err := o.assemble(flights, b, off)
	return n, err == nil && !cut && n < len(b), err
}

// assemble copies what is there now to b. It must look at the ranges after the
// flights have landed and use a flight's bytes only for what is missing still:
// a byte that was written here meanwhile wins. n is how far it came.
func (o *Object) assemble(flights []*flight, b []byte, off int64) (n int, cut bool, err error) {
	type piece struct {
		span
		src *flight // nil: the data file
	}
	var pieces []piece
	end := off + int64(len(b))
	o.mu.RLock()
	drops := o.drops.Load()
	at := off
	o.present.gaps(off, min(end, o.limit), func(from, to int64) bool {
		if at < from {
			pieces = append(pieces, piece{span: span{at, from}})
		}
		for at = from; at < to; {
			f := covering(flights, at)
			if f == nil {
				return false
			}
			next := min(to, f.to)
			pieces = append(pieces, piece{span{at, next}, f})
			at = next
		}
		return true
	})
	if o.presentLocked(at, end) {
		pieces = append(pieces, piece{span: span{at, end}})
	}
	o.mu.RUnlock()

	for _, p := range pieces {
		dst := b[p.from-off : p.to-off]
		if p.src != nil {
			n += copy(dst, p.src.buf[p.from-p.src.from:])
			continue
		}
		m, err := sys.Pread(o.data, dst, p.from)
		n += m
		if err != nil || m < len(dst) {
			return n, true, err
		}
	}
	if drops != o.drops.Load() {
		return 0, false, nil // some of it may have gone while we read
	}
	return n, false, nil
}

// covering returns the flight that has brought the byte at off.
func covering(flights []*flight, off int64) *flight {
	for _, f := range flights {
		if f.err == nil && f.from <= off && off < f.to {
			return f
		}
	}
	return nil
}
