package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

const (
	// direntsLen is how much of a directory is read at once: its names, with all
	// that is said of each, fit into a packet.
	direntsLen = 16 << 10

	// direntHeader is the size of linux_dirent64 before the name.
	direntHeader = 19
)

func (s *server) openDir(q *request) error {
	p, err := q.path()
	if err != nil {
		return err
	}
	fd, err := s.tree.open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return s.addDir(q, &handle{fd: fd, path: p, dir: true})
}

func (s *server) addDir(q *request, h *handle) error {
	name, err := s.handles.add(h)
	if err != nil {
		_ = h.close()
		return err
	}
	s.answer(fxpHandle, q.id, func(b []byte) []byte { return str(b, name) })
	return nil
}

// readDir answers with the names that one getdents(2) gives, "." and ".." too.
func (s *server) readDir(q *request) error {
	h, _, err := s.handles.get(q.Bytes())
	if err != nil {
		return err
	}
	if h.walk != nil {
		return s.readTree(q, h.walk)
	}
	if !h.dir {
		return unix.EBADF
	}
	start := s.begin(fxpName, q.id)
	at := len(s.out)
	s.out = u32(s.out, 0)
	n := uint32(0)
	for n == 0 {
		names, err := s.getdents(h.fd)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return errEOF
		}
		for _, name := range names {
			if _, ok := s.appendEntry(h.fd, name, name); ok {
				n++
			}
		}
	}
	binary.BigEndian.PutUint32(s.out[at:], n)
	s.end(start)
	return nil
}

// appendEntry appends name in dirfd to a NAME packet, called so, and returns its
// mode. A name that is gone by now is left out.
func (s *server) appendEntry(dirfd int, name, called string) (mode uint32, ok bool) {
	a, err := s.attrOf(dirfd, name)
	if err == unix.ENOENT {
		return 0, false
	}
	s.out = str(s.out, called)
	if err != nil {
		s.out = u32(str(s.out, called), 0) // there, and that is all we can tell
		return 0, true
	}
	if s.full {
		s.out = str(s.out, "")
	} else {
		s.out = str(s.out, s.longname(&a, called))
	}
	s.out = s.appendAttrs(s.out, &a)
	return a.Mode, true
}

// getdents returns the next names of the directory fd, which are good until the next
// call.
func (s *server) getdents(fd int) (names []string, err error) {
	if s.dirents == nil {
		s.dirents = make([]byte, direntsLen)
	}
	var n int
	err = sys.Retry(func() error {
		n, err = unix.Getdents(fd, s.dirents)
		return err
	})
	if err != nil {
		return nil, err
	}
	for b := s.dirents[:n]; len(b) >= direntHeader; {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size < direntHeader || size > len(b) {
			return nil, unix.EIO
		}
		name, _, _ := bytes.Cut(b[direntHeader:size], []byte{0})
		names = append(names, string(name))
		b = b[size:]
	}
	return names, nil
}

// longname is a line as of ls -l, as OpenSSH makes it.
func (s *server) longname(a *layers.Attr, name string) string {
	when := time.Unix(a.Mtime.Sec, 0)
	format := "Jan _2 15:04"
	if age := time.Since(when); age > 365*24*time.Hour/2 || age < 0 {
		format = "Jan _2  2006"
	}
	return fmt.Sprintf("%s %4d %-8s %-8s %8d %s %s", modeString(a.Mode), a.Nlink,
		s.owners.user(a.UID), s.owners.group(a.GID), a.Size, when.Format(format), name)
}

// modeString is the first column of ls -l.
func modeString(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		b[0] = '-'
	case unix.S_IFDIR:
		b[0] = 'd'
	case unix.S_IFLNK:
		b[0] = 'l'
	case unix.S_IFIFO:
		b[0] = 'p'
	case unix.S_IFSOCK:
		b[0] = 's'
	case unix.S_IFCHR:
		b[0] = 'c'
	case unix.S_IFBLK:
		b[0] = 'b'
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	for _, x := range []struct {
		bit      uint32
		at       int
		set, not byte
	}{{unix.S_ISUID, 3, 's', 'S'}, {unix.S_ISGID, 6, 's', 'S'}, {unix.S_ISVTX, 9, 't', 'T'}} {
		if mode&x.bit != 0 {
			if b[x.at] == 'x' {
				b[x.at] = x.set
			} else {
				b[x.at] = x.not
			}
		}
	}
	return string(b)
}
