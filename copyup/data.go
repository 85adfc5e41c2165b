package copyup

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// chunk is how much is copied between two looks at the context: small enough
// that an interrupt is answered at once on any storage, large enough that the
// calls do not show.
const chunk = 4 << 20

// copyData makes fd hold the first size bytes of src, holes kept.
func copyData(ctx context.Context, fd int, src layers.File, size int64) error {
	if d, ok := src.(layers.Descriptor); ok {
		return copyFd(ctx, fd, d.Fd(), size)
	}
	if err := copyReads(ctx, fd, src, 0, size); err != nil {
		return err
	}
	return sys.Truncate(fd, size)
}

func copyFd(ctx context.Context, dst, src int, size int64) error {
	if sys.Clone(dst, src) == nil {
		// The clone has the length of the source at that instant.
		return sys.Truncate(dst, size)
	}
	for off := int64(0); off < size; {
		data, err := unix.Seek(src, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // nothing but a hole up to the end
		}
		if err != nil {
			data = off // no SEEK_DATA here: all of it is data
		}
		hole, err := unix.Seek(src, data, unix.SEEK_HOLE)
		if err != nil || hole > size {
			hole = size
		}
		for off = data; off < hole; {
			n, err := copyPiece(ctx, dst, src, off, int(min(hole-off, chunk)))
			if err != nil {
				return err
			}
			off += int64(n)
		}
	}
	return sys.Truncate(dst, size)
}

// copyPiece copies up to n bytes at off, at least one.
func copyPiece(ctx context.Context, dst, src int, off int64, n int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	copied, err := sys.CopyRange(dst, off, src, off, n)
	switch {
	case err == nil && copied > 0:
		return copied, nil
	case err == nil, errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		// Zero is also what some filesystems say where they cannot; a read tells.
		return copyByHand(dst, src, off, min(n, 1<<20))
	default:
		return 0, err
	}
}

func copyByHand(dst, src int, off int64, n int) (int, error) {
	b := make([]byte, n)
	m, err := sys.Pread(src, b, off)
	if err != nil {
		return 0, err
	}
	if m == 0 {
		return 0, fmt.Errorf("source ends at %d while it is copied: %w", off, layers.ErrStale)
	}
	return sys.Pwrite(dst, b[:m], off)
}

// copyReads copies [off, end) of a file that has no descriptor here.
func copyReads(ctx context.Context, dst int, src layers.File, off, end int64) error {
	b := make([]byte, 1<<20)
	for off < end {
		n, err := src.ReadAt(ctx, b[:min(int64(len(b)), end-off)], off)
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
