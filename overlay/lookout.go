package overlay

import (
	"bytes"
	"cmp"
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/migratefs/migratefs/layers"
)

// While somebody looks, it is noted who does what with which file: in two tables of
// at most lookoutMost rows each, from which the least busy go when they are full. What
// the kernel reads and writes by itself (passthrough), or has in its cache, is not seen.

// lookoutMost is how many processes, and how many files, are told apart.
const lookoutMost = 1024

// lookoutPatience is how long nobody has to ask for it to end.
const lookoutPatience = 15 * time.Second

// Doing is what one process, or with one file, was done while somebody looked.
type Doing struct {
	PID     uint32      // of a process; 0 if it is not one that we see
	Program string      // what it is called
	Path    layers.Path // of a file

	Requests      uint64
	Failed        uint64
	Waited        time.Duration // for answers
	Longest       time.Duration
	Read, Written int64 // bytes
	Fetched       int64 // bytes that came from a source for it
	FetchWaited   time.Duration
	CopyUps       uint64
	Copied        int64 // bytes
}

// Seen is what was seen so far.
type Seen struct {
	Since     time.Time
	Processes []Doing // those that waited most first
	Files     []Doing
	Dropped   uint64 // rows that there was no room for
}

type lookout struct {
	since time.Time

	mu      sync.Mutex
	asked   time.Time
	tasks   map[uint32]task // by thread
	procs   map[uint32]*Doing
	files   map[layers.Path]*Doing
	dropped uint64
}

// task is a process.
type task struct {
	pid  uint32
	name string
}

// taskOf finds the process of a thread, which may have ended.
func taskOf(tid uint32) task {
	if tid == 0 {
		return task{name: "?"} // in a pid namespace that is not below ours, or the kernel
	}
	t := task{tid, "?"}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return t
	}
	for line := range bytes.Lines(b) {
		key, value, _ := strings.Cut(string(line), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Name":
			t.name = value
		case "Tgid":
			if pid, err := strconv.ParseUint(value, 10, 32); err == nil {
				t.pid = uint32(pid)
			}
			return t
		}
	}
	return t
}

// Look returns what was seen since it was first called, and has it noted until
// nobody has called it for a while.
func (fs *FS) Look() Seen {
	m := &fs.meter
	l := m.lookout.Load()
	if l == nil {
		l = &lookout{since: time.Now(), tasks: map[uint32]task{}, procs: map[uint32]*Doing{}, files: map[layers.Path]*Doing{}}
		l.asked = l.since
		if !m.lookout.CompareAndSwap(nil, l) {
			return fs.Look()
		}
		time.AfterFunc(lookoutPatience, func() { fs.endLook(l) })
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = time.Now()
	s := Seen{Since: l.since, Dropped: l.dropped}
	for _, d := range l.procs {
		s.Processes = append(s.Processes, *d)
	}
	for _, d := range l.files {
		s.Files = append(s.Files, *d)
	}
	slices.SortFunc(s.Processes, busier)
	slices.SortFunc(s.Files, busier)
	return s
}

func busier(a, b Doing) int {
	return cmp.Or(cmp.Compare(b.weight(), a.weight()), cmp.Compare(a.PID, b.PID), cmp.Compare(a.Path, b.Path))
}

func (d *Doing) weight() time.Duration { return d.Waited + d.FetchWaited }

// endLook ends l unless somebody has asked lately.
func (fs *FS) endLook(l *lookout) {
	l.mu.Lock()
	left := lookoutPatience - time.Since(l.asked)
	l.mu.Unlock()
	if left > 0 {
		time.AfterFunc(left, func() { fs.endLook(l) })
		return
	}
	fs.meter.lookout.CompareAndSwap(l, nil)
}

// rows returns the rows of a process and of a file. l.mu is held.
func (l *lookout) rows(tid uint32, path layers.Path) (proc, file *Doing) {
	t, ok := l.tasks[tid]
	if !ok {
		t = taskOf(tid)
		if len(l.tasks) >= 4*lookoutMost {
			clear(l.tasks)
		}
		l.tasks[tid] = t
	}
	if proc = l.procs[t.pid]; proc == nil {
		l.dropped += thin(l.procs)
		proc = &Doing{PID: t.pid, Program: t.name}
		l.procs[t.pid] = proc
	}
	if file = l.files[path]; file == nil {
		l.dropped += thin(l.files)
		file = &Doing{Path: path}
		l.files[path] = file
	}
	return proc, file
}

// thin drops the less busy half of a full table.
func thin[K comparable](m map[K]*Doing) (dropped uint64) {
	if len(m) < lookoutMost {
		return 0
	}
	var weights []time.Duration
	for _, d := range m {
		weights = append(weights, d.weight())
	}
	slices.Sort(weights)
	least := weights[len(weights)/2]
	for k, d := range m {
		if d.weight() <= least {
			delete(m, k)
			dropped++
		}
	}
	return dropped
}

// note notes a request.
func (l *lookout) note(fs *FS, took int64, in *fuse.InHeader, a *asked, s fuse.Status) {
	path := fs.asPath(in.NodeId, a.name)
	l.mu.Lock()
	defer l.mu.Unlock()
	proc, file := l.rows(in.Pid, path)
	for _, d := range []*Doing{proc, file} {
		d.Requests++
		if s > 0 {
			d.Failed++
		}
		d.Waited += time.Duration(took)
		d.Longest = max(d.Longest, time.Duration(took))
		if s == fuse.OK && a.op == opRead {
			d.Read += int64(a.size)
		}
		if s == fuse.OK && a.op == opWrite {
			d.Written += int64(a.size)
		}
	}
}

// whoAsks is a key of contexts: the thread that a request is for.
type whoAsks struct{}

// askerOf is the thread for which ctx is; false: none waits.
func askerOf(ctx context.Context) (tid uint32, ok bool) {
	tid, ok = ctx.Value(whoAsks{}).(uint32)
	return tid, ok && !layers.IsBackground(ctx)
}

// fetchedFor counts n bytes that came from a source.
func (m *meter) fetchedFor(ctx context.Context, path layers.Path, n int, took time.Duration) {
	tid, waited := askerOf(ctx)
	if !waited {
		m.fetchedIdle.Add(int64(n))
		return
	}
	m.fetched.Add(int64(n))
	m.fetches.add(int64(took))
	if l := m.lookout.Load(); l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		proc, file := l.rows(tid, path)
		for _, d := range []*Doing{proc, file} {
			d.Fetched += int64(n)
			d.FetchWaited += took
		}
	}
}

// bytesBelow is how many bytes of a file lie in its lower.
func (n *node) bytesBelow() int64 {
	n.mu.RLock()
	defer n.mu.RUnlock()
	switch {
	case n.data != nil:
		return n.data.size
	case !n.isRegular() || len(n.lowers) == 0:
		return 0
	}
	return n.lowers[0].attr.Size
}

// cameUp counts a copy-up of n, of so many bytes, that began at the time began.
func (m *meter) cameUp(ctx context.Context, n *node, bytes, began int64, err error) {
	if err != nil {
		m.copiesLost.Add(1)
		return
	}
	took := m.now() - began
	n.mu.RLock()
	if n.data != nil || hasObject(n.pending) {
		bytes = 0 // they are still below
	}
	n.mu.RUnlock()
	m.copies.add(took)
	m.copied.Add(bytes)
	l := m.lookout.Load()
	if l == nil {
		return
	}
	tid, _ := askerOf(ctx)
	path, _ := n.path()
	l.mu.Lock()
	defer l.mu.Unlock()
	proc, file := l.rows(tid, path)
	for _, d := range []*Doing{proc, file} {
		d.CopyUps++
		d.Copied += bytes
	}
}

// Trace has every request told to f, as the kind of it and what it was about, in the
// form of slog; f must not use the mount. nil: none.
func (fs *FS) Trace(f func(kind string, about ...any)) {
	if f == nil {
		fs.meter.trace.Store(nil)
		return
	}
	fs.meter.trace.Store(&f)
}

// aboutRequest is what a trace tells of a request: which file, what came of it, how
// long that took, and for whom it was.
func aboutRequest(fs *FS, took int64, in *fuse.InHeader, a *asked, s fuse.Status) []any {
	about := []any{"path", "/" + string(fs.asPath(in.NodeId, a.name))}
	if a.to != "" {
		about = append(about, "to", a.to)
	}
	if a.off != 0 || a.size != 0 {
		about = append(about, "at", a.off)
	}
	if a.size != 0 {
		about = append(about, "bytes", a.size)
	}
	result := "ok"
	if s > 0 {
		result = nameOfErrno(s)
	}
	return append(about, "result", result, "took", time.Duration(took).Round(time.Microsecond), "uid", in.Uid, "pid", in.Pid)
}

// Traces reports whether Trace has every request told.
func (fs *FS) Traces() bool { return fs.meter.trace.Load() != nil }
