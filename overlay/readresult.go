package overlay

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// readBelow is readFile for a lower file, of which the bytes before the offset within
// may go by a pipe.
func readBelow(fd int, buf []byte, off, within int64) (fuse.ReadResult, error) {
	if len(buf) >= spliceMin && off+int64(len(buf)) <= within {
		if r := spliceFile(fd, len(buf), off); r != nil {
			return r, nil
		}
	}
	return readFile(fd, buf, off)
}

// readFile answers a read of the local file fd. It is short at the end of the file
// only: the kernel takes a short answer for the end, so what is cut off by an error
// has to be the error. What came in pieces is read again in one, if it can be: between
// two of them somebody may have written, and a read shows that whole or not at all.
func readFile(fd int, buf []byte, off int64) (fuse.ReadResult, error) {
	whole := true // buf[:n] is of one pread(2)
	for n := 0; ; {
		got, err := pread(fd, buf[n:], off+int64(n))
		if err != nil {
			return nil, err
		}
		if got == 0 || n == 0 && got == len(buf) {
			return readInto(buf[:n+got]), nil
		}
		if n > 0 && whole {
			again, err := pread(fd, buf, off)
			if err != nil {
				return nil, err
			}
			whole, n = again > n, again // else this filesystem gives no more at once
		} else {
			n += got
		}
		if n == len(buf) {
			return readInto(buf), nil
		}
	}
}

func pread(fd int, b []byte, off int64) (n int, err error) {
	err = sys.Retry(func() (err error) { n, err = unix.Pread(fd, b, off); return err })
	return n, err
}

// readInto answers a read with bytes in the request's own buffer.
func readInto(b []byte) fuse.ReadResult {
	r := inBuffers.Get().(*inBuffer)
	r.parts[0] = b
	return r
}

// inBuffer is what go-fuse sends with one writev(2), for it has Slices; its own
// ReadResultData makes a detour by a pipe.
type inBuffer struct{ parts [1][]byte }

var inBuffers = sync.Pool{New: func() any { return new(inBuffer) }}

// Bytes implements fuse.ReadResult.
func (r *inBuffer) Bytes([]byte) ([]byte, fuse.Status) { return r.parts[0], fuse.OK }

// Slices is what go-fuse looks for.
func (r *inBuffer) Slices() ([][]byte, fuse.Status) { return r.parts[:], fuse.OK }

// Size implements fuse.ReadResult.
func (r *inBuffer) Size() int { return len(r.parts[0]) }

// Done implements fuse.ReadResult.
func (r *inBuffer) Done() {
	r.parts[0] = nil
	inBuffers.Put(r)
}
