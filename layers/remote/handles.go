package remote

import (
	"container/list"
	"sync"
)

const (
	// someHandles is how many files keep their handle where the server does not
	// say how many it can hold, and spareHandles how many of those it can hold
	// are left for directories, for opens under way and for ReadMany.
	someHandles  = 336
	spareHandles = 64 + manyFiles
)

// bulkHandles is how many handles may be open on c for a few exchanges only.
func (c *conn) bulkHandles() int {
	if c.caps.handles <= 0 {
		return manyFiles
	}
	return min(manyFiles, max(c.caps.handles/4, 1))
}

// handlePool bounds how many handles are open on the server, which has as many
// as its RLIMIT_NOFILE lets it. The file that was used least recently loses its
// handle and is opened anew, by its path, when it is read again.
//
// Lock order: handlePool.mu, File.mu, conn.mu.
type handlePool struct {
	mu    sync.Mutex
	files list.List // of *File, most recently used first
	at    map[*File]*list.Element
}

// add takes f in as the most recently used file, and a handle from another one
// if there are more than the server can hold.
func (h *handlePool) add(f *File, most int) {
	if most <= 0 {
		most = someHandles
	} else {
		most = max(most-spareHandles, most/2, 1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at == nil {
		h.at = make(map[*File]*list.Element)
	}
	if e, ok := h.at[f]; ok {
		h.files.MoveToFront(e)
		return
	}
	if f.isClosed() {
		return // Close came between, and does not look here again
	}
	h.at[f] = h.files.PushFront(f)
	for e := h.files.Back(); h.files.Len() > most && e != nil && e.Value != f; {
		old, prev := e.Value.(*File), e.Prev()
		if old.rest() {
			h.files.Remove(e)
			delete(h.at, old)
		}
		e = prev
	}
}

// remove forgets f.
func (h *handlePool) remove(f *File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, ok := h.at[f]; ok {
		h.files.Remove(e)
		delete(h.at, f)
	}
}

func (f *File) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// rest closes f's handle unless it is in use, which it reports.
func (f *File) rest() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.users > 0 {
		return false
	}
	f.dropLocked()
	return true
}
