package overlay

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Where others change files too, the kernel keeps what it has read of one from one
// open to the next if the file is the same then, as NFS does: who opens a file sees
// what was written before. The kernel drops what it has with an open that does not
// keep it. All it reads after that is of the file's version at that open, if an open
// finds that version again: a change would have left another, provided that it came a
// tick of the filesystem's clock after the change before. That is so if the version
// was a tick old at the open that dropped.
//
// What somebody stores through a mapping of a layer's file changes no time but with
// the first store to a page since that was written out; a direct look at the layer
// shows it sooner.

// pages is what the kernel's pages of a file are known to be of. Who finds another
// version makes another.
type pages struct {
	fileID
	size         int64
	mtime, ctime unix.Timespec
	since        time.Time // when this version was first seen

	// clean: the kernel has dropped what was older, at an open when this version had
	// settled.
	clean atomic.Bool
}

func (p *pages) is(st *unix.Stat_t) bool {
	return p != nil && p.fileID == (fileID{dev: st.Dev, ino: st.Ino}) && p.size == st.Size && p.mtime == st.Mtim && p.ctime == st.Ctim
}

// settled reports whether no change of the file can leave it in version p any more.
// Only a disk of this host has this host's clock.
func (p *pages) settled(now time.Time, disk bool) bool {
	return now.Sub(p.since) > tick || disk && now.Sub(time.Unix(p.ctime.Unix())) > tick
}

// keepPages reports whether the kernel may keep what it has read of h's file, which is
// being opened.
func (n *node) keepPages(h *handle) bool {
	fd, l := n.dataFd(h)
	var st unix.Stat_t
	if fd < 0 || unix.Fstat(fd, &st) != nil {
		return false
	}
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mapped {
		return false
	}
	if !n.pages.is(&st) {
		n.pages = &pages{fileID: fileID{dev: st.Dev, ino: st.Ino}, size: st.Size, mtime: st.Mtim, ctime: st.Ctim, since: now}
	}
	if n.pages.clean.Load() {
		return true
	}
	if n.pages.settled(now, l.disk && st.Dev == l.dev) {
		h.drops.Store(n.pages)
	}
	return false
}

// dataFd is the descriptor from which h reads a file of this host, and the layer that
// it lies in; -1 if there is none.
func (n *node) dataFd(h *handle) (int, *layer) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.dataInUpper() {
		return h.fd, n.fs.upper
	}
	if d, ok := h.lower.(layers.Descriptor); ok && n.src == nil {
		if r := n.dataRef(); r != nil {
			return d.Fd(), r.layer
		}
	}
	return -1, nil
}

// opened notes that the kernel has dropped what it had read of h's file before it was
// opened: it does so before it tells the caller of the open, so before it asks for
// anything with h. An earlier answer to another open could be overtaken by one that
// keeps what is about to be dropped.
func (h *handle) opened() {
	if p := h.drops.Load(); p != nil && !p.clean.Load() {
		p.clean.Store(true)
	}
}
