package overlay

import (
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Where the kernel keeps what was listed of a directory until a name in it changes, it need
// not tell us of opens and closes of directories either: two requests less for each that is
// walked, of three. It asks for names by the directory alone then, and all that read it
// share one listing.
//
// Whoever begins has the directory read anew, for all. The kernel puts what it keeps
// together from the answers to all readers, as of the time when one began: so nobody
// who goes on may get what was read before that.

// maxListings is how many listings are kept that nobody reads from right now.
const maxListings = 64

// listingKept is how long a listing is kept that nobody goes on with.
const listingKept = time.Minute

// listings has those of directories that are being read without an open.
type listings struct {
	mu    sync.Mutex
	m     map[*node]*dirHandle
	idle  []*dirHandle // that no request uses, the one that was used last at the end
	timer *time.Timer  // drops idle
}

func (l *listings) init() {
	l.m = make(map[*node]*dirHandle)
	l.timer = time.AfterFunc(listingKept, l.dropIdle)
}

// of returns what n is listed with. While it is used there is no second one: what is read
// later is never replaced by what was read before. The caller calls done.
func (l *listings) of(n *node) *dirHandle {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.m[n]
	if h == nil {
		h = &dirHandle{n: n}
		l.m[n] = h
	}
	if h.users++; h.users == 1 {
		l.idle = slices.DeleteFunc(l.idle, func(i *dirHandle) bool { return i == h })
	}
	return h
}

// done ends a use of h. Who has got to the end needs it no more; who goes on in the
// middle has the directory read again.
func (l *listings) done(h *dirHandle, end bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.ended = h.ended || end
	if h.users--; h.users > 0 {
		return
	}
	if h.ended {
		delete(l.m, h.n)
		return
	}
	if l.idle = append(l.idle, h); len(l.idle) > maxListings {
		delete(l.m, l.idle[0].n)
		l.idle = slices.Delete(l.idle, 0, 1)
	}
	l.timer.Reset(listingKept)
}

func (l *listings) dropIdle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.idle {
		delete(l.m, h.n)
	}
	l.idle = nil
}

// listed returns what a READDIR asks for, and what ends its use, told whether it was
// the end of the directory; nil if there is no such handle.
func (fs *FS) listed(in *fuse.ReadIn) (*dirHandle, func(end bool)) {
	if in.Fh == 0 && fs.unopened {
		if n := fs.table.get(in.NodeId); n != nil && n.isDir() {
			h := fs.listings.of(n)
			return h, func(end bool) { fs.listings.done(h, end) }
		}
		return nil, nil
	}
	h, _ := fs.handles.get(in.Fh).(*dirHandle)
	return h, func(bool) {}
}
