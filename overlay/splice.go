package overlay

import (
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/hanwen/go-fuse/v2/splice"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Bytes that are answered from a buffer are copied twice, into it and out of it, which
// is most of what a big read costs. By way of a pipe they are copied once: what the
// pipe holds is the pages of the file.

// spliceMin is the least that is worth the system calls that a pipe takes more.
const spliceMin = 64 << 10

// spliceFile answers a read of all of the size bytes at off of the file fd, which lies on
// a disk of this host. It is nil if that cannot be, whatever the cause: at the end of the
// file and before an error a pipe takes less than it is asked for and does not say why,
// as pread(2) does. A range that begins within a page is not for it: go-fuse moves the
// bytes to a pipe that has room for the pages of an aligned one and its header, and what
// does not fit there would be cut off. So is what does not come in whole pages.
func spliceFile(fd, size int, off int64) fuse.ReadResult {
	page := os.Getpagesize()
	if off%int64(page) != 0 {
		return nil
	}
	pair, err := splice.Get()
	if err != nil {
		return nil
	}
	if pair.Grow(size+2*page) != nil {
		splice.Done(pair)
		return nil
	}
	for w, n := int(pair.WriteFd()), 0; n < size; {
		at := off + int64(n)
		got, err := unix.Splice(fd, &at, w, nil, size-n, unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		n += int(max(got, 0))
		if err != nil || got <= 0 || n < size && n%page != 0 {
			splice.Done(pair)
			return nil
		}
	}
	return &inPipe{pair, size}
}

// spliceObject is spliceFile for what an object has of h's file.
func (h *handle) spliceObject(size int, off int64) fuse.ReadResult {
	if size < spliceMin {
		return nil
	}
	h.n.mu.RLock()
	obj := h.n.obj
	h.n.mu.RUnlock()
	if obj == nil {
		return nil
	}
	var r fuse.ReadResult
	if obj.ReadBy(off, int64(size), func(fd int) bool {
		var st unix.Statfs_t
		if unix.Fstatfs(fd, &st) == nil && isDisk(&st) {
			r = spliceFile(fd, size, off)
		}
		return r != nil
	}) {
		return r
	}
	if r != nil {
		r.Done()
	}
	return nil
}

// pipes returns before which offset of f, n's data in a lower, spliceFile may be asked.
func (n *node) pipes(f layers.File) int64 {
	a := f.Attr()
	n.mu.RLock()
	defer n.mu.RUnlock()
	if r := n.dataRef(); r != nil && r.layer.disk && a.Dev == r.layer.dev {
		return a.Size
	}
	return 0
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
