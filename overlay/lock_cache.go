package overlay

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Who has a lock relies on seeing what the last one to have it wrote. In migrate
// mode that may have been another host, and what the kernel keeps of the file is
// of no use then: it is told to forget it before the lock is granted, as NFS does.
// Attributes tell whether the file is as it was, but for two changes within one
// tick of its filesystem's clock.

// tick is longer than any filesystem's clock stands still.
const tick = 2 * time.Second

// notifier is how the kernel is told: a *fuse.Server.
type notifier interface {
	InodeNotify(node uint64, off, length int64) fuse.Status
}

// contents is when and as what a locked file was seen. It is protected by
// fileLocks.mu.
type contents struct {
	mtime, ctime unix.Timespec
	size         int64

	since time.Time // when it was first seen as this
	last  time.Time // and last
}

// changed reports whether the file fd may be another than when this was last
// asked.
func (c *contents) changed(fd int, now time.Time) bool {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return true
	}
	if st.Mtim != c.mtime || st.Ctim != c.ctime || st.Size != c.size {
		*c = contents{mtime: st.Mtim, ctime: st.Ctim, size: st.Size, since: now, last: now}
		return true
	}
	// What was kept since then was read a tick after the last change, so it is
	// what that left.
	sure := c.last.Sub(c.since) > tick
	c.last = now
	return !sure
}

// refresh has the kernel forget what it keeps of the file that r has just
// locked, if others may have changed it.
func (fs *FS) refresh(l *fileLocks, r *lockRequest) {
	if fs.cfg.Mode != Migrate || fs.notify == nil {
		return
	}
	l.mu.Lock()
	h := l.holders[r.lockOwner]
	changed := h == nil || h.fd < 0 || l.contents.changed(h.fd, time.Now())
	l.mu.Unlock()
	if changed {
		fs.notify.InodeNotify(r.h.n.id, 0, 0)
	}
}
