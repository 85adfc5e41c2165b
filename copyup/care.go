package copyup

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// Care is what who drains asks of its own copies, and not of those that a user
// waits for: so it comes with the context.
type Care struct {
	// Pace, if not nil, is told of each piece that was copied, and returns when the
	// next may be.
	Pace func(ctx context.Context, n int64) error
	// Verify reads copy and source again, from where they are stored, and compares.
	Verify bool
}

type careKey struct{}

// WithCare returns ctx for copies that take care.
func WithCare(ctx context.Context, c Care) context.Context {
	return context.WithValue(ctx, careKey{}, c)
}

func careOf(ctx context.Context) Care {
	c, _ := ctx.Value(careKey{}).(Care)
	return c
}

// pacePiece is how much is copied at once where somebody watches the pace.
const pacePiece = 4 << 20

// ErrDiffers: what the upper stored is not what the lower has.
var ErrDiffers = errors.New("the copy read back differs from the lower file")

// verify compares the first size bytes of the copy fd with src, if ctx asks for it.
// Both are read past the page cache, as far as the kernel lets go of it: what is
// compared shall be what is stored.
func verify(ctx context.Context, fd int, src layers.File, size int64) error {
	d, ok := src.(layers.Descriptor)
	if !careOf(ctx).Verify || !ok {
		return nil
	}
	if err := sys.Fdatasync(fd); err != nil {
		return err
	}
	for _, f := range []int{fd, d.Fd()} {
		_ = unix.Fadvise(f, 0, 0, unix.FADV_DONTNEED)
	}
	return Compare(ctx, fd, d.Fd(), size)
}

// Compare compares the first size bytes of two open files; what is a hole in both
// is not read. ErrDiffers says where.
func Compare(ctx context.Context, a, b int, size int64) error {
	x, y := buffers.Get().(*[bufSize]byte), buffers.Get().(*[bufSize]byte)
	defer buffers.Put(x)
	defer buffers.Put(y)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if off = min(nextData(a, off, size), nextData(b, off, size)); off == size {
			return nil
		}
		want := min(bufSize, size-off)
		n, err := sys.Pread(a, x[:want], off)
		if err != nil {
			return err
		}
		m, err := sys.Pread(b, y[:want], off)
		if err != nil {
			return err
		}
		if n != m || n == 0 || !bytes.Equal(x[:n], y[:n]) {
			return fmt.Errorf("%w: after byte %d", ErrDiffers, off)
		}
		off += int64(n)
	}
	return nil
}

// nextData is where data begins in fd from off on, at most end.
func nextData(fd int, off, end int64) int64 {
	data, err := sys.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		return end
	case err != nil:
		return off // it says nothing of holes
	}
	return min(data, end)
}
