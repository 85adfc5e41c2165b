package copyup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// ErrChanged: the source is not as long as it was when its attributes were read.
// What was copied may be of two versions.
var ErrChanged = errors.New("the file changed while it was copied")

// bufSize is the buffer of who reads and writes, and with it how much lies between
// two looks at the context.
const bufSize = 1 << 20

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// cloneStep is how much is shared by one call: an interrupt is seen between two.
const cloneStep = 1 << 30

// copyData makes fd, which is empty, hold the first size bytes of src, holes kept.
// The whole of src has length bytes; ErrChanged if that is not so before and after.
func copyData(ctx context.Context, fd int, src layers.File, size, length int64, cfg Config) error {
	d, ok := src.(layers.Descriptor)
	if !ok {
		if err := copyReads(ctx, fd, src, 0, size); err != nil {
			return err
		}
		return sys.Truncate(fd, size)
	}
	c := &copying{dst: fd, src: d.Fd(), length: length, durable: !cfg.Volatile, pace: careOf(ctx).Pace}
	if err := c.unchanged(); err != nil {
		return err
	}
	off, err := c.clone(ctx, size)
	if err != nil {
		return err
	}
	if off < size {
		// The length first: no worker then writes beyond the end, where filesystems
		// let only one in at a time.
		if err := sys.Truncate(fd, size); err != nil {
			return err
		}
		if err := c.copy(ctx, off, size); err != nil {
			return err
		}
	}
	return c.unchanged()
}

// copying is one copy between two open files.
type copying struct {
	dst, src int
	length   int64 // of src
	durable  bool
	piece    pieceSize
	hand     flag // copy_file_range does not do it between these two
	pace     func(context.Context, int64) error
}

// unchanged compares the length of the source with what it was.
func (c *copying) unchanged() error {
	var stx unix.Statx_t
	if err := sys.Statx(c.src, "", &stx); err != nil {
		return err
	}
	if int64(stx.Size) != c.length {
		return fmt.Errorf("%w: it has %d bytes, and had %d", ErrChanged, stx.Size, c.length)
	}
	return nil
}

// clone makes dst share what it can of the first size bytes of src, and returns how
// much that is. A piece that does not reach the end of src shares whole blocks only.
// Errors of the ioctl are not errors here: a copy is tried instead, and fails with
// what is really wrong.
func (c *copying) clone(ctx context.Context, size int64) (done int64, err error) {
	for done < size {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n := min(size-done, cloneStep)
		if done+n < c.length {
			if n -= n % c.block(); n == 0 {
				break
			}
		}
		if sys.CloneRange(c.dst, done, c.src, done, n) != nil {
			break
		}
		done += n
	}
	return done, nil
}

// block is a multiple of the block size of the source's filesystem.
func (c *copying) block() int64 {
	var stx unix.Statx_t
	if sys.Statx(c.src, "", &stx) != nil || stx.Blksize < 4096 {
		return 4096
	}
	return int64(stx.Blksize)
}

// copy copies the data in [off, end), which dst has as a hole. A large one is cut
// into pieces for several workers: network storage wants many requests at once.
func (c *copying) copy(ctx context.Context, off, end int64) error {
	if end-off <= smallestPiece {
		return c.eachData(off, end, func(s span) error { return c.span(ctx, s) })
	}
	crew := newCrew(ctx, func(ctx context.Context) func(span) error {
		var last span
		return func(s span) error {
			err := c.piece.timed(s, func() error {
				if err := c.span(ctx, s); err != nil {
					return err
				}
				return c.writeOut(s, &last)
			})
			return err
		}
	})
	err := c.eachData(off, end, func(s span) error {
		for s.n > 0 {
			n := min(s.n, c.piece.size())
			if err := crew.give(span{s.off, n}); err != nil {
				return err
			}
			s.off, s.n = s.off+n, s.n-n
		}
		return nil
	})
	return crew.end(err)
}

// span is a range of a file.
type span struct{ off, n int64 }

// eachData calls f for each stretch of data in [off, end) of the source. What was
// allocated and never written is a hole.
func (c *copying) eachData(off, end int64, f func(span) error) error {
	for off < end {
		data, err := sys.Seek(c.src, off, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO:
			return nil // nothing but a hole up to the end
		case cannotSeek(err):
			data = off // all of it is data
		case err != nil:
			return err
		}
		if data >= end {
			return nil
		}
		hole, err := sys.Seek(c.src, data, unix.SEEK_HOLE)
		if err != nil && !cannotSeek(err) && err != unix.ENXIO {
			return err
		}
		if err != nil || hole > end {
			hole = end
		}
		if err := f(span{data, hole - data}); err != nil {
			return err
		}
		off = hole
	}
	return nil
}

func cannotSeek(err error) bool {
	return err == unix.EINVAL || err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.ENOTTY
}

// span copies s.
func (c *copying) span(ctx context.Context, s span) error {
	for s.n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := s
		if c.pace != nil {
			part.n = min(s.n, pacePiece)
		}
		n, err := c.some(part)
		if err != nil {
			return err
		}
		s.off, s.n = s.off+n, s.n-n
		if c.pace != nil {
			if err := c.pace(ctx, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// some copies the beginning of s, at least one byte.
func (c *copying) some(s span) (int64, error) {
	if c.hand.up() {
		return c.byHand(s)
	}
	n, err := sys.CopyRange(c.dst, s.off, c.src, s.off, int(s.n))
	switch {
	case err == nil && n > 0:
		return int64(n), nil
	case err == nil:
		// What some filesystems say where they cannot; a read tells.
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		c.hand.raise()
	default:
		return 0, err
	}
	return c.byHand(s)
}

func (c *copying) byHand(s span) (int64, error) {
	b := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(b)
	m, err := sys.Pread(c.src, b[:min(s.n, bufSize)], s.off)
	if err != nil {
		return 0, err
	}
	if m == 0 {
		return 0, fmt.Errorf("%w: it ends at %d", ErrChanged, s.off)
	}
	n, err := sys.Pwrite(c.dst, b[:m], s.off)
	return int64(n), err
}

// writeOut starts writing s to the disk, and waits for what the same worker wrote
// before it: the fsync at the end then finds little to do, and an interrupt need
// not wait for it.
func (c *copying) writeOut(s span, last *span) error {
	if !c.durable {
		return nil
	}
	if last.n > 0 {
		if err := sys.SyncRange(c.dst, last.off, last.n, true); err != nil {
			return err
		}
	}
	*last = s
	return sys.SyncRange(c.dst, s.off, s.n, false)
}

// copyReads copies [off, end) of a file that has no descriptor here.
func copyReads(ctx context.Context, dst int, src layers.File, off, end int64) error {
	b := buffers.Get().(*[bufSize]byte)
	defer buffers.Put(b)
	for off < end {
		n, err := src.ReadAt(ctx, b[:min(bufSize, end-off)], off)
		if n > 0 {
			if _, werr := sys.Pwrite(dst, b[:n], off); werr != nil {
				return werr
			}
			off += int64(n)
		}
		if errors.Is(err, io.EOF) && off < end {
			return fmt.Errorf("source ends at %d while it is copied: %w", off, layers.ErrStale)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	return nil
}
