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
// has to be the error.
func readFile(fd int, buf []byte, off int64) (fuse.ReadResult, error) {
	for n := 0; ; {
		var got int
		err := sys.Retry(func() (err error) { got, err = unix.Pread(fd, buf[n:], off+int64(n)); return err })
		if err != nil {
			return nil, err
		}
		if n += got; got == 0 || n == len(buf) {
			return readInto(buf[:n]), nil
		}
	}
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
