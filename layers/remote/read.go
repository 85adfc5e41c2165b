package remote

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// segment is about how much of a file one burst asks for: several chunks, and an
// FSTAT of the handle behind them.
const segment = 1 << 20

// segment is a whole number of chunks.
func (c *conn) segment() int { return max(1, segment/c.caps.chunk) * c.caps.chunk }

// ReadAt reads len(b) bytes at off: all chunks at once, and behind them FSTAT,
// so that what is returned was read before the file was seen to be still the
// version that was opened. See layers.File.
func (f *File) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	n, err := f.readAt(ctx, b, off)
	if err != nil && err != io.EOF {
		return 0, f.l.fail("read", f.path, err)
	}
	return n, err
}

func (f *File) readAt(ctx context.Context, b []byte, off int64) (int, error) {
	switch {
	case f.isClosed():
		return 0, errClosed
	case off < 0:
		return 0, unix.EINVAL
	case len(b) == 0:
		return 0, nil
	case off >= f.attr.Size:
		return 0, io.EOF
	}
	short := int64(len(b)) > f.attr.Size-off
	if short {
		b = b[:f.attr.Size-off]
	}
	if err := f.read(ctx, b, off); err != nil {
		return 0, err
	}
	f.l.count.bytesRead.Add(int64(len(b)))
	if short {
		return len(b), io.EOF
	}
	return len(b), nil
}

// read reads all of b, which lies within the file's version: out of what came
// along when it was opened; for the background, and where another file holds up the
// main connection, over the bulk lanes as far as they get; else through the handle
// on the main connection.
func (f *File) read(ctx context.Context, b []byte, off int64) error {
	if whole := f.l.carried.get(f); whole != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		copy(b, whole[off:])
		return nil
	}
	if f.sparse() {
		return f.readSparse(ctx, b, off)
	}
	return f.readDense(ctx, b, off)
}

// readDense is read for what did not come along.
func (f *File) readDense(ctx context.Context, b []byte, off int64) error {
	if layers.IsBackground(ctx) || f.isKeptWaiting() {
		n, err := f.readAside(ctx, b, off)
		if err != nil || n == len(b) {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return f.l.exchangeOn(ctx, f.l.session, f.l.narrowly(func(ctx context.Context, c *conn) error {
		handle, err := f.acquire(ctx, c)
		if err != nil {
			return err
		}
		defer f.release(c, handle)
		f.l.handles.add(f, c.caps.handles)
		return f.fill(ctx, c, handle, b, off)
	}))
}

// isKeptWaiting reports whether a file that the server cannot read keeps this one waiting.
// If it may be this one, it is not to hold up the lanes as well.
func (f *File) isKeptWaiting() bool {
	if !f.l.isHeldUp() {
		return false
	}
	f.mu.Lock()
	busy := f.users > 0
	f.mu.Unlock()
	c := f.l.bulk(nil)
	return !busy && c != nil && c.silent() < slow
}

// fill reads all of b, which lies within the file's version.
func (f *File) fill(ctx context.Context, c *conn, handle string, b []byte, off int64) error {
	size := c.segment()
	n := (len(b) + size - 1) / size
	part := func(i int) ([]byte, int64) {
		start := i * size
		return b[start:min(start+size, len(b))], off + int64(start)
	}
	return pipeline(ctx, c, n,
		func(i int) []request {
			b, off := part(i)
			return f.ask(c, handle, b, off)
		},
		func(i int, replies []reply) error {
			b, off := part(i)
			return f.take(ctx, c, handle, b, off, replies)
		})
}

// ask returns a READ for each chunk of b and FSTAT.
func (f *File) ask(c *conn, handle string, b []byte, off int64) []request {
	reqs := make([]request, 0, len(b)/c.caps.chunk+2)
	for at := 0; at < len(b); at += c.caps.chunk {
		reqs = append(reqs, askRead(handle, off+int64(at), min(c.caps.chunk, len(b)-at)))
	}
	return append(reqs, askHandle(fxpFstat, handle))
}

// take reads the answers to ask into b. What short reads left out is asked for
// again, as often as the server makes progress.
func (f *File) take(ctx context.Context, c *conn, handle string, b []byte, off int64, replies []reply) error {
	last := len(replies) - 1
	if err := f.sameVersion(&replies[last]); err != nil {
		return err
	}
	for i := range replies[:last] {
		at := i * c.caps.chunk
		chunk := b[at:min(at+c.caps.chunk, len(b))]
		n, err := f.put(chunk, &replies[i])
		for err == nil && n < len(chunk) {
			var more []reply
			if more, err = c.do(ctx, f.ask(c, handle, chunk[n:], off+int64(at+n))...); err != nil {
				return err
			}
			if err = f.sameVersion(&more[1]); err != nil {
				return err
			}
			var m int
			m, err = f.put(chunk[n:], &more[0])
			n += m
		}
		if err != nil {
			return err
		}
	}
	recycle(replies)
	return nil
}

// put copies the DATA in r to b and returns how much it was, at least one byte.
func (f *File) put(b []byte, r *reply) (int, error) {
	data, err := r.data()
	switch {
	case isStatus(err, fxEOF):
		return 0, fmt.Errorf("%w: it ends early", layers.ErrStale)
	case isStatus(err, fxNoSuchFile): // of a handle: EBADF
		return 0, fmt.Errorf("%w: its handle is gone", layers.ErrStale)
	case err != nil:
		return 0, err
	case len(data) > len(b):
		return 0, corrupt("%d bytes where %d were asked for", len(data), len(b))
	}
	return copy(b, data), nil
}

func (f *File) sameVersion(r *reply) error { return f.l.isVersion(r, &f.attr) }

// isVersion compares what FSTAT says of a handle with what was to be opened. Mode
// and owner count as well: this is also what shows that the handle, whose OPEN
// followed symlinks, is the file that LSTAT described.
func (l *Layer) isVersion(r *reply, want *layers.Attr) error {
	a, err := l.attrs(r)
	if isStatus(err, fxNoSuchFile) {
		return fmt.Errorf("%w: its handle is gone", layers.ErrStale)
	}
	if err != nil {
		return err
	}
	if !same(&a, want) || !a.Has(layers.KnownSize|layers.KnownTimes) {
		return layers.ErrStale
	}
	return nil
}
