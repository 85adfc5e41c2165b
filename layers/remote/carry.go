package remote

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/migratefs/migratefs/layers"
)

const (
	// carryMost is the size of the largest file whose content comes along when it
	// is opened: what the kernel reads ahead of the first page.
	carryMost = 128 << 10

	// carryAll bounds what all open files hold of that, in bytes.
	carryAll = 32 << 20
)

// openWhole opens a small file and reads it, in one exchange, on a channel where
// handles can be predicted. What it returns has no handle: reads are answered out of
// memory, which is one version whatever happens on the source. Should the memory be
// needed for others, a read opens the file by its path, as after a disconnect.
//
// It returns nil if the file is too large, if there is no such channel, or if
// anything went wrong: then it is to be opened in the ordinary way, which finds
// out what is the matter. The error only says why.
//
// While the main connection is held up a large file is opened so as well, and nothing
// of it read.
func (l *Layer) openWhole(ctx context.Context, p layers.Path, want *layers.Attr) (*File, error) {
	small := want.Has(layers.KnownSize) && want.Size <= carryMost
	if !small && !l.isHeldUp() {
		return nil, nil
	}
	c := l.predicting(ctx)
	if c == nil {
		return nil, nil
	}
	full, n := l.path(p), 0
	if small {
		n = int(want.Size)
	}
	before := time.Now()
	reqs := append(askBlock(c, full, 0, n), askPath(fxpLstat, full), askPath(fxpRealpath, full), l.askRoot(c))
	replies, err := c.do(ctx, reqs...)
	if err != nil {
		return nil, err
	}
	rest := len(replies) - 3
	a, err := l.vouch(replies[rest:], full, want)
	var parts [][]byte
	if err == nil {
		parts, err = l.readBlock(c, replies[:rest], &a, n)
	}
	if err != nil {
		l.distrust(c, err)
		return nil, err
	}
	f := l.newFile(p, a, wasSettled(want, &a, before))
	if small {
		f.whole = joined(parts, n)
		l.carried.add(f)
	}
	return f, nil
}

// predicting returns a channel for blocks, or nil.
func (l *Layer) predicting(ctx context.Context) *conn {
	if !layers.IsBackground(ctx) {
		return l.swift()
	}
	if c := l.bulk(nil); c != nil && c.predicts() {
		return c
	}
	return nil
}

// distrust gives up a channel besides the main one whose server broke the protocol.
func (l *Layer) distrust(c *conn, err error) {
	if broken(err) {
		l.cfg.Logger.Warn("a connection was given up", "layer", l.name, "err", err)
		c.fail(err, nil)
	}
}

// carried bounds the content that open files have in memory. The file that was
// read least recently loses its own.
//
// Lock order: carried.mu, File.mu.
type carried struct {
	mu    sync.Mutex
	size  int64
	files list.List // of *File, most recently used first
	at    map[*File]*list.Element
}

// add takes in f, which has its content.
func (h *carried) add(f *File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at == nil {
		h.at = make(map[*File]*list.Element)
	}
	h.at[f] = h.files.PushFront(f)
	h.size += f.attr.Size
	for h.size > carryAll {
		old := h.files.Back().Value.(*File)
		h.forget(old)
		old.mu.Lock()
		old.whole = nil
		old.mu.Unlock()
	}
}

// get returns f's content, if it is there.
func (h *carried) get(f *File) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, ok := h.at[f]
	if !ok {
		return nil
	}
	h.files.MoveToFront(e)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.whole
}

func (h *carried) remove(f *File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(f)
}

// forget takes f off the list. The caller holds mu.
func (h *carried) forget(f *File) {
	if e, ok := h.at[f]; ok {
		h.files.Remove(e)
		delete(h.at, f)
		h.size -= f.attr.Size
	}
}
