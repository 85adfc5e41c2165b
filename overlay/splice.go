package overlay

import (
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"
	"golang.org/x/sys/unix"
)

// Bytes that are answered from a buffer are copied twice, into it and out of it, which
// is most of what a big read costs. By way of a pipe they are copied once: what the
// pipe holds is the pages of the file.

// spliceMin is the least that is worth the system calls that a pipe takes more.
const spliceMin = 64 << 10

// spliceFile answers a read of all of the size bytes at off of the local file fd. It is
// nil if that cannot be, whatever the cause: at the end of the file and before an error
// a pipe takes less than it is asked for and does not say why, as pread(2) does.
func spliceFile(fd, size int, off int64) fuse.ReadResult {
	pair, err := splice.Get()
	if err != nil {
		return nil
	}
	// A page more where the range begins within one, and one for go-fuse's header.
	if pair.Grow(size+2*os.Getpagesize()) != nil {
		splice.Done(pair)
		return nil
	}
	for w, n := int(pair.WriteFd()), 0; n < size; {
		at := off + int64(n)
		got, err := unix.Splice(fd, &at, w, nil, size-n, unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			splice.Done(pair)
			return nil
		}
		n += int(got)
	}
	return &inPipe{pair, size}
}

// inPipe is what go-fuse sends by splice(2), for it has Stateful.
type inPipe struct {
	pair *splice.Pair
	size int
}

// Stateful is what go-fuse looks for.
func (r *inPipe) Stateful() (fd uintptr, size int) { return r.pair.ReadFd(), r.size }

// Bytes implements fuse.ReadResult, for a go-fuse that cannot splice. If it tried, and
// the pipe is empty, the read has failed: fewer bytes would be the end of the file.
func (r *inPipe) Bytes(buf []byte) ([]byte, fuse.Status) {
	for n := 0; n < r.size; {
		got, err := r.pair.Read(buf[n:r.size])
		if err != nil || got <= 0 {
			return nil, fuse.EIO
		}
		n += got
	}
	return buf[:r.size], fuse.OK
}

// Size implements fuse.ReadResult.
func (r *inPipe) Size() int { return r.size }

// Done implements fuse.ReadResult.
func (r *inPipe) Done() { splice.Done(r.pair) }
