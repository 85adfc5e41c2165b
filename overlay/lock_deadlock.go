package overlay

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// deadlocks knows which of our clients wait for whom, over all files, so that
// fcntl(F_SETLKW) can fail with EDEADLK, as it does where the kernel keeps the
// locks. It does so for processes' locks alone: an open file's lock (flock,
// F_OFD_SETLKW) can be let go of by another thread, or another process.
type deadlocks struct {
	mu    sync.Mutex // after fileLocks.mu
	waits map[lockOwner][]*lockWaiter
}

// blocked notes for whom w waits by now, and reports whether that ends with one
// who waits for w; unsure, if that cannot be told yet.
func (d *deadlocks) blocked(w *lockWaiter, by []lockOwner) (dead, unsure bool) {
	if w.r.flock {
		return false, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !w.listed {
		w.listed = true
		if d.waits == nil {
			d.waits = make(map[lockOwner][]*lockWaiter)
		}
		d.waits[w.r.lockOwner] = append(d.waits[w.r.lockOwner], w)
	}
	w.by = by
	way := d.way(w, w.r.lockOwner, make(map[lockOwner]bool))
	for _, v := range way {
		switch waitsAsProcess(v.r.caller.Pid) {
		case no:
			return false, false
		case unknown:
			unsure = true
		}
	}
	return len(way) > 0 && !unsure, unsure
}

// way follows who waits for whom from w to the owner to, and returns who waits on
// the way.
func (d *deadlocks) way(w *lockWaiter, to lockOwner, seen map[lockOwner]bool) []*lockWaiter {
	for _, o := range w.by {
		if o == to {
			return []*lockWaiter{w}
		}
		if seen[o] {
			continue
		}
		seen[o] = true
		for _, next := range d.waits[o] {
			if rest := d.way(next, to, seen); rest != nil {
				return append(rest, w)
			}
		}
	}
	return nil
}

// over forgets that w waited.
func (d *deadlocks) over(w *lockWaiter) {
	if !w.listed {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	rest := d.waits[w.r.lockOwner][:0]
	for _, v := range d.waits[w.r.lockOwner] {
		if v != w {
			rest = append(rest, v)
		}
	}
	if d.waits[w.r.lockOwner] = rest; len(rest) == 0 {
		delete(d.waits, w.r.lockOwner)
	}
}

type answer int

const (
	no answer = iota
	yes
	unknown
)

// waitsAsProcess says whether thread tid is in F_SETLKW. FUSE does not tell that
// from F_OFD_SETLKW; the thread does, by the system call that it sleeps in
// (proc_pid_syscall(5)).
func waitsAsProcess(tid uint32) answer {
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/syscall")
	if err != nil {
		return no // of another pid namespace, or hidden from us: it waits
	}
	f := strings.Fields(string(b)) // the call's number and arguments, or "running"
	if len(f) < 4 {
		return unknown
	}
	cmd, err := strconv.ParseUint(f[2], 0, 64)
	if err == nil && (cmd == unix.F_SETLKW || cmd == fSetlkw64) {
		return yes
	}
	return no
}

// fSetlkw64 is what a 32-bit program calls F_SETLKW.
const fSetlkw64 = 14
