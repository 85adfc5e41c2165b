package server

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

const (
	// waitingRoom bounds the paths of directories that a walk remembers to list, in
	// bytes: those that it has no room for are names only, as if they were too deep.
	waitingRoom = 4 << 20

	// mostWalks bounds how many walks a client has at once.
	mostWalks = 16

	// treeRoom is how much of a packet a walk fills before it answers.
	treeRoom = 128 << 10
)

// walk is the listing of a tree, one level after the other.
type walk struct {
	s     *server
	root  int // descriptor of the directory at the top
	depth uint32

	waiting []place // still to be listed
	room    int     // bytes that waiting may still take
	at      place   // being listed
	fd      int     // its descriptor, or -1
	names   []string
	failed  bool // it could not be listed to its end
}

// place is a directory in a walk.
type place struct {
	path  string // from the top, "" itself
	depth uint32 // 1: the top
}

// openTree serves tree@migratefs.
func (s *server) openTree(q *request) error {
	p, depth := q.Str(), q.U32()
	if q.Bad {
		return errBadMessage
	}
	if s.walks >= mostWalks {
		return unix.EMFILE
	}
	fd, err := s.tree.openPlain(p, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	s.walks++
	w := &walk{s: s, root: fd, depth: max(depth, 1), room: waitingRoom, fd: -1, waiting: []place{{depth: 1}}}
	return s.addDir(q, &handle{fd: -1, path: p, walk: w})
}

func (w *walk) close() {
	w.s.walks--
	unix.Close(w.root)
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
}

// readTree serves READDIR of a walk.
func (s *server) readTree(q *request, w *walk) error {
	start := s.begin(fxpName, q.id)
	at := len(s.out)
	s.out = u32(s.out, 0)
	n := uint32(0)
	for len(s.out)-at < treeRoom && w.next(&n) {
	}
	if n == 0 {
		return errEOF
	}
	binary.BigEndian.PutUint32(s.out[at:], n)
	s.end(start)
	return nil
}

// next appends one entry, or makes one step towards it. It is false at the end.
func (w *walk) next(n *uint32) bool {
	switch {
	case w.fd < 0:
		if len(w.waiting) == 0 {
			return false
		}
		w.at, w.waiting = w.waiting[0], w.waiting[1:]
		w.room += len(w.at.path) + 64
		w.begin(n)
	case len(w.names) > 0:
		name := w.names[0]
		w.names = w.names[1:]
		w.entry(name, n)
	default:
		names, err := w.s.getdents(w.fd)
		w.names, w.failed = names, err != nil
		if len(names) == 0 {
			w.finish(n)
		}
	}
	return true
}

// begin opens the directory w.at, and says so.
func (w *walk) begin(n *uint32) {
	fd, err := sys.OpenBeneath(w.root, w.at.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return // it is a name only
	}
	if _, ok := w.s.appendEntry(fd, "", w.called(".")); !ok {
		unix.Close(fd)
		return
	}
	w.fd = fd
	*n++
}

// entry appends one name of the directory.
func (w *walk) entry(name string, n *uint32) {
	if name == "." || name == ".." {
		return
	}
	called := w.called(name)
	mode, ok := w.s.appendEntry(w.fd, name, called)
	if !ok {
		return
	}
	*n++
	size := len(called) + 64
	if mode&unix.S_IFMT == unix.S_IFDIR && w.at.depth < w.depth && w.room >= size {
		w.room -= size
		w.waiting = append(w.waiting, place{called, w.at.depth + 1})
	}
}

// finish appends the end of the directory's listing.
func (w *walk) finish(n *uint32) {
	if !w.failed {
		if _, ok := w.s.appendEntry(w.fd, "", w.called("..")); ok {
			*n++
		}
	}
	unix.Close(w.fd)
	w.fd = -1
}

func (w *walk) called(name string) string {
	if w.at.path == "" {
		return name
	}
	return w.at.path + "/" + name
}
