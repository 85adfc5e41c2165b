package overlay

import (
	"errors"
	mathbits "math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// What a mount does is counted always, as that costs two atomic additions and two
// looks at the clock a request; who does it, and with which files, only while somebody
// wants to know (lookout.go). No count depends on names, so none grows.

// HistogramBuckets is how many buckets a Histogram has.
const HistogramBuckets = 12

// BucketBound is the longest time that is counted in bucket i: 16 us, and four times
// that of the one before. The last has no bound: 0.
func BucketBound(i int) time.Duration {
	if i >= HistogramBuckets-1 {
		return 0
	}
	return 1 << (bucketShift + 2*i)
}

const bucketShift = 14 // 16.384 us in ns

func bucketOf(ns int64) int {
	return min((mathbits.Len64(uint64(max(ns-1, 0))>>bucketShift)+1)/2, HistogramBuckets-1)
}

// Histogram is how often something took how long.
type Histogram struct {
	Buckets [HistogramBuckets]uint64 // each without those before it
	Sum     time.Duration
}

// Count is how often it was.
func (h *Histogram) Count() (n uint64) {
	for _, b := range h.Buckets {
		n += b
	}
	return n
}

// durations is a Histogram while it is counted.
type durations struct {
	buckets [HistogramBuckets]atomic.Uint64
	sum     atomic.Int64
	_       [3]uint64 // to two cache lines: what is counted at once is not beside each other
}

func (d *durations) add(ns int64) {
	d.buckets[bucketOf(ns)].Add(1)
	d.sum.Add(ns)
}

func (d *durations) read() (h Histogram) {
	for i := range d.buckets {
		h.Buckets[i] = d.buckets[i].Load()
	}
	h.Sum = time.Duration(d.sum.Load())
	return h
}

// op is a kind of request.
type op uint8

const (
	opLookup op = iota
	opGetattr
	opSetattr
	opMknod
	opMkdir
	opUnlink
	opRmdir
	opRename
	opLink
	opSymlink
	opReadlink
	opAccess
	opGetxattr
	opListxattr
	opSetxattr
	opRemovexattr
	opCreate
	opTmpfile
	opOpen
	opRead
	opWrite
	opLseek
	opGetlk
	opSetlk
	opSetlkw
	opRelease
	opCopyRange
	opIoctl
	opFlush
	opFsync
	opFallocate
	opOpendir
	opReaddir
	opReleasedir
	opFsyncdir
	opStatfs
	opStatx
	ops // how many there are
)

var opNames = [ops]string{
	"lookup", "getattr", "setattr", "mknod", "mkdir", "unlink", "rmdir", "rename", "link", "symlink", "readlink", "access",
	"getxattr", "listxattr", "setxattr", "removexattr", "create", "tmpfile", "open", "read", "write", "lseek",
	"getlk", "setlk", "setlkw", "release", "copy_file_range", "ioctl", "flush", "fsync", "fallocate",
	"opendir", "readdir", "releasedir", "fsyncdir", "statfs", "statx",
}

// errnos is how many error numbers there are: EHWPOISON is the last (errno.h).
const errnos = 134

// Why a request failed that its caller had not caused.
const (
	failOffline = iota
	failDenied
	failReplaced
	failStale
	failCorrupt
	failFull
	failHandles
	failOther
	failKinds
)

var failNames = [failKinds]string{"offline", "denied", "replaced", "stale", "corrupt", "full", "no_descriptors", "other"}

// meter counts what a mount does.
type meter struct {
	born   time.Time // immutable
	ops    [ops]durations
	errnos [errnos]atomic.Uint64
	fails  [failKinds]atomic.Uint64

	read, written atomic.Int64 // bytes, through us

	copies      durations // copy-ups
	copied      atomic.Int64
	copiesLost  atomic.Int64 // that failed
	fetches     durations    // from sources, that somebody waited for
	fetched     atomic.Int64 // bytes
	fetchedIdle atomic.Int64 // bytes, in the background

	slow    slowest
	lookout atomic.Pointer[lookout] // nil: nobody looks
	trace   atomic.Pointer[func(string, ...any)]
}

func (m *meter) init() {
	m.born = time.Now()
	m.slow.least.Store(int64(slowLeast))
}

// now is a time by a clock that does not jump, in ns.
func (m *meter) now() int64 { return int64(time.Since(m.born)) }

// asked is what a request was about, beside its header.
type asked struct {
	op       op
	name, to string
	off      int64
	size     int
}

// done counts a request that began at the time began.
func (m *meter) done(fs *FS, began int64, in *fuse.InHeader, a asked, s fuse.Status) {
	took := m.now() - began
	m.ops[a.op].add(took)
	if s > 0 && s < errnos {
		m.errnos[s].Add(1)
	}
	if s == fuse.OK && a.size > 0 {
		switch a.op {
		case opRead:
			m.read.Add(int64(a.size))
		case opWrite:
			m.written.Add(int64(a.size))
		}
	}
	if took >= m.slow.least.Load() && a.op != opSetlkw {
		m.slow.note(fs, took, in, &a)
	}
	if l := m.lookout.Load(); l != nil {
		l.note(fs, took, in, &a, s)
	}
	if t := m.trace.Load(); t != nil {
		(*t)(opNames[a.op], aboutRequest(fs, took, in, &a, s)...)
	}
}

// failed counts why a request failed that is complained about.
func (m *meter) failed(err error, errno unix.Errno) {
	kind := failOther
	switch {
	case errors.Is(err, layers.ErrOffline):
		kind = failOffline
	case errors.Is(err, layers.ErrDenied):
		kind = failDenied
	case errors.Is(err, layers.ErrReplaced):
		kind = failReplaced
	case errors.Is(err, layers.ErrCorrupt):
		kind = failCorrupt
	case errno == unix.ESTALE:
		kind = failStale
	case errno == unix.ENOSPC, errno == unix.EDQUOT:
		kind = failFull
	case errno == unix.EMFILE, errno == unix.ENFILE:
		kind = failHandles
	}
	m.fails[kind].Add(1)
}

// slowLeast is how long a request takes that is remembered as slow, at least.
const slowLeast = 50 * time.Millisecond

// slowMany is how many slow files are remembered.
const slowMany = 32

// slowest remembers the files whose requests took longest.
type slowest struct {
	least atomic.Int64 // ns: shorter ones are of no interest

	mu  sync.Mutex
	all []SlowFile // no order
}

// SlowFile is a file with a request that took long.
type SlowFile struct {
	Path    layers.Path
	Op      string
	Took    time.Duration // the longest
	When    time.Time     // of that
	PID     uint32        // that waited, 0 if it is not one that we see
	Times   uint64        // that such a request was slow
	Waited  time.Duration // together
	nodeID  uint64
	program string
}

// Program is what the process that waited longest was called.
func (s *SlowFile) Program() string { return s.program }

func (s *slowest) note(fs *FS, took int64, in *fuse.InHeader, a *asked) {
	now := time.Now()
	path := fs.asPath(in.NodeId, a.name)
	who := taskOf(in.Pid)
	s.mu.Lock()
	defer s.mu.Unlock()
	shortest := 0
	for i := range s.all {
		f := &s.all[i]
		if f.nodeID == in.NodeId && f.Op == opNames[a.op] && f.Path == path {
			f.Times++
			f.Waited += time.Duration(took)
			if time.Duration(took) > f.Took {
				f.Took, f.When, f.PID, f.program = time.Duration(took), now, who.pid, who.name
			}
			return
		}
		if f.Took < s.all[shortest].Took {
			shortest = i
		}
	}
	f := SlowFile{
		Path: path, Op: opNames[a.op], Took: time.Duration(took), When: now, PID: who.pid,
		Times: 1, Waited: time.Duration(took), nodeID: in.NodeId, program: who.name,
	}
	if len(s.all) < slowMany {
		s.all = append(s.all, f)
		return
	}
	if s.all[shortest].Took < f.Took {
		s.all[shortest] = f
	}
	least := s.all[0].Took
	for i := range s.all {
		least = min(least, s.all[i].Took)
	}
	s.least.Store(int64(max(least, slowLeast)))
}

// asPath is the path of the node id, or of a name in it; "" if it is not known any
// more.
func (fs *FS) asPath(id uint64, name string) layers.Path {
	n := fs.table.get(id)
	if n == nil {
		return layers.Path(name)
	}
	path, _ := n.path()
	if name != "" {
		path = path.Join(name)
	}
	return path
}
