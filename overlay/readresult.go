package overlay

import (
	"os"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// spliceMin is the size from which a read of a local file goes to the kernel
// through a pipe, which saves a copy and costs two more system calls, and six when
// the file ends within the read: most small files do.
const spliceMin = 64 << 10

// pageSize is what a splice has to begin at: go-fuse makes its pipe large enough for
// the bytes, not for one more page that they lie on, and takes what does not fit for
// the end of the file.
var pageSize = int64(os.Getpagesize())

// readFile answers a read of the local file fd.
func readFile(fd int, buf []byte, off int64) (fuse.ReadResult, error) {
	if len(buf) >= spliceMin && off%pageSize == 0 {
		r := inFiles.Get().(*inFile)
		r.fd, r.off, r.size = fd, off, len(buf)
		return r, nil
	}
	var n int
	err := sys.Retry(func() (err error) { n, err = unix.Pread(fd, buf, off); return err })
	if err != nil {
		return nil, err
	}
	return readInto(buf[:n]), nil
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

// inFile is what go-fuse splices, for it has Seekable.
type inFile struct {
	fd   int
	off  int64
	size int
}

var inFiles = sync.Pool{New: func() any { return new(inFile) }}

// Bytes implements fuse.ReadResult, for where splicing does not work.
func (r *inFile) Bytes(buf []byte) ([]byte, fuse.Status) {
	var n int
	err := sys.Retry(func() (err error) { n, err = unix.Pread(r.fd, buf[:min(len(buf), r.size)], r.off); return err })
	return buf[:max(n, 0)], fuse.ToStatus(err)
}

// Seekable is what go-fuse looks for.
func (r *inFile) Seekable() (fd uintptr, off int64, size int) { return uintptr(r.fd), r.off, r.size }

// Size implements fuse.ReadResult.
func (r *inFile) Size() int { return r.size }

// Done implements fuse.ReadResult.
func (r *inFile) Done() { inFiles.Put(r) }
