package seed

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// A twin is this host's own copy of a program or library that the process had: same
// path, size, mtime, and the same build-id, which Inner's file has, too. Its bytes are
// read here instead of being fetched. It is held open and looked at with every read, so
// that a package upgrade, which puts another file in its place, does not matter; once it
// is not what it was, what is missing is fetched.
type twin struct {
	was  unix.Statx_t
	dead atomic.Bool

	mu sync.RWMutex // held for writing when fd is closed
	fd int          // -1 then
}

// maxTwins bounds how many are held open.
const maxTwins = 1024

const twinMask = unix.STATX_BASIC_STATS

// findTwins looks for the twins of nodes, which were compared with Inner.
func (l *Layer) findTwins(root string, nodes []*node, found []string) error {
	if root == "" || l.verify != Strict {
		return nil // without having looked nothing is known to be the same
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	for i, n := range nodes {
		a, seen := n.current()
		if n.entry == nil || n.entry.BuildID == nil || found[i] != "" || !seen || !a.IsRegular() || len(l.twins) == maxTwins {
			continue
		}
		if t := openTwin(dir, n.src, &a, n.entry.BuildID); t != nil {
			n.twin = t
			l.twins = append(l.twins, n)
		}
	}
	return nil
}

// openTwin returns the twin of p, or nil.
func openTwin(root int, p layers.Path, a *layers.Attr, id []byte) *twin {
	fd, err := unix.Openat2(root, string(p), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH,
	})
	if err != nil {
		return nil
	}
	t := &twin{fd: fd}
	if !t.look(&t.was) || !sameFile(&t.was, a) {
		unix.Close(fd)
		return nil
	}
	have, err := buildID(t.readAt)
	if err != nil || !sameBuild(have, id) || !t.same() {
		unix.Close(fd)
		return nil
	}
	return t
}

// sameFile compares what can be seen of two files from outside. A source that does not
// know nanoseconds has none.
func sameFile(st *unix.Statx_t, a *layers.Attr) bool {
	return uint32(st.Mode)&unix.S_IFMT == unix.S_IFREG && a.Has(layers.KnownSize|layers.KnownTimes) &&
		int64(st.Size) == a.Size && st.Mtime.Sec == a.Mtime.Sec && (a.Mtime.Nsec == 0 || a.Mtime.Nsec == st.Mtime.Nsec)
}

func (t *twin) look(st *unix.Statx_t) bool {
	return unix.Statx(t.fd, "", unix.AT_EMPTY_PATH, twinMask, st) == nil && st.Mask&twinMask == twinMask
}

// same reports whether nobody has changed the twin.
func (t *twin) same() bool {
	var st unix.Statx_t
	return t.look(&st) && st.Size == t.was.Size && st.Mtime == t.was.Mtime && st.Ctime.Sec == t.was.Ctime.Sec &&
		(st.Ctime.Nsec == t.was.Ctime.Nsec) || t.unlinked(&st)
}

// unlinked reports whether all that has changed is that the file lost its name, or got
// another, as in an upgrade.
func (t *twin) unlinked(st *unix.Statx_t) bool {
	return st.Size == t.was.Size && st.Mtime == t.was.Mtime && st.Nlink < t.was.Nlink
}

// read is readAt of a twin that is what it was when the read is over.
func (t *twin) read(b []byte, off int64) (n int, good bool, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.fd < 0 || t.dead.Load() {
		return 0, false, nil
	}
	n, err = t.readAt(b, off)
	return n, (err == nil || err == io.EOF) && t.same(), err
}

func (t *twin) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	unix.Close(t.fd)
	t.fd = -1
}

func (t *twin) readAt(b []byte, off int64) (int, error) {
	n := 0
	for n < len(b) {
		m, err := unix.Pread(t.fd, b[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// twinFile is a file that has a twin, open.
type twinFile struct {
	l    *Layer
	n    *node
	attr layers.Attr

	opening chan struct{} // a token
	inner   layers.File   // what is read once the twin is none; who has the token sets it
}

func (l *Layer) openTwinned(n *node, a layers.Attr) *twinFile {
	f := &twinFile{l: l, n: n, attr: a, opening: make(chan struct{}, 1)}
	f.opening <- struct{}{}
	return f
}

// Attr implements layers.File.
func (f *twinFile) Attr() layers.Attr { return f.attr }

// ReadAt implements layers.File.
func (f *twinFile) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	n, good, err := f.n.twin.read(b, off)
	if good {
		return n, err
	}
	if !f.n.twin.dead.Swap(true) {
		f.l.log.Info("this host's copy of a file is not the same any more: the rest is fetched", "path", "/"+string(f.n.src))
	}
	inner, err := f.open(ctx)
	if err != nil {
		return 0, err
	}
	return inner.ReadAt(ctx, b, off)
}

func (f *twinFile) open(ctx context.Context) (_ layers.File, err error) {
	select {
	case <-f.opening:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { f.opening <- struct{}{} }()
	if f.inner == nil {
		f.inner, err = f.l.inner.Open(ctx, f.n.src, &f.attr)
	}
	return f.inner, err
}

// Close implements layers.File.
func (f *twinFile) Close() error {
	<-f.opening
	if f.inner != nil {
		return f.inner.Close()
	}
	return nil
}

// Twins returns the files that are read here instead of fetched, as long as they are what
// they were, by their paths in this layer, and their size in bytes.
func (l *Layer) Twins() (paths []layers.Path, bytes int64) {
	for p, n := range l.nodes {
		if n.twin != nil && !n.twin.dead.Load() {
			a, _ := n.current()
			paths = append(paths, p)
			bytes += a.Size
		}
	}
	slices.Sort(paths)
	return paths, bytes
}
