package server

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote/extension"
)

// xattrRoom is how much of a packet extended attributes may take. One has 64 KiB
// at most, and so have all names of a file.
const xattrRoom = 192 << 10

// xattrs serves xattrs@migratefs: all there are, as a client without rights here could
// list them too. What they mean on its host the client decides.
func (s *server) xattrs(q *request) error {
	p, first := q.Str(), q.U32()
	if q.Bad {
		return errBadMessage
	}
	fd, err := s.tree.openPlain(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := sys.Listxattr(fd, "")
	if err == unix.EOPNOTSUPP {
		names, err = nil, nil
	}
	if err != nil {
		return err
	}
	names = told(names)
	slices.Sort(names)
	start := s.begin(fxpExtendedReply, q.id)
	at, n, next := len(s.out), uint32(0), uint32(0)
	s.out = u64(s.out, 0)
	for i := int(min(first, uint32(len(names)))); i < len(names); i++ {
		value, err := sys.Getxattr(fd, "", names[i])
		if err == unix.ENODATA || err == unix.EOPNOTSUPP {
			continue // gone, or listed and not readable, as lustre.lov
		}
		if err != nil {
			return err
		}
		if n > 0 && len(s.out)-at+len(value) > xattrRoom {
			next = uint32(i)
			break
		}
		s.out = str(str(s.out, names[i]), value)
		n++
	}
	binary.BigEndian.PutUint32(s.out[at:], next)
	binary.BigEndian.PutUint32(s.out[at+4:], n)
	s.end(start)
	return nil
}

// extents serves extents@migratefs.
func (s *server) extents(q *request) error {
	name, off := q.Bytes(), q.U64()
	h, err := s.handles.file(name)
	switch {
	case err != nil:
		return err
	case q.Bad:
		return errBadMessage
	case off > 1<<62:
		return unix.EINVAL
	}
	start := s.begin(fxpExtendedReply, q.id)
	head := len(s.out)
	s.out = u32(u64(s.out, 0), 0)
	end, n := off, uint32(0)
	for {
		data, err := sys.Seek(h.fd, int64(end), unix.SEEK_DATA)
		if err == unix.ENXIO {
			end = extension.End
			break
		}
		if err != nil {
			return err
		}
		if n == extension.MaxExtents {
			end = uint64(data)
			break
		}
		hole, err := sys.Seek(h.fd, data, unix.SEEK_HOLE)
		if err == unix.ENXIO {
			end = extension.End // it was cut just now
			break
		}
		if err != nil {
			return err
		}
		s.out = u64(u64(s.out, uint64(data)), uint64(hole-data))
		end = uint64(hole)
		n++
	}
	binary.BigEndian.PutUint64(s.out[head:], end)
	binary.BigEndian.PutUint32(s.out[head+8:], n)
	s.end(start)
	return nil
}

// openPlainFile opens the regular file p, on the way to which there is no symlink.
func (s *server) openPlainFile(p string) (int, error) {
	fd, err := s.tree.openPlain(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	return s.tree.reopenQuietly(fd, p)
}

// get serves get@migratefs: a file, or a part of it, in one exchange.
func (s *server) get(q *request) error {
	p, off, n := q.Str(), q.U64(), q.U32()
	if q.Bad {
		return errBadMessage
	}
	fd, err := s.openPlainFile(p)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	start := s.begin(fxpExtendedReply, q.id)
	// The attributes go first and are taken last: their length is known.
	at := len(s.out)
	s.out = s.appendAttrs(s.out, &layers.Attr{})
	if _, err := s.appendData(fd, off, n); err != nil {
		return err
	}
	a, err := s.attrOf(fd, "")
	if err != nil {
		return err
	}
	copy(s.out[at:], s.appendAttrs(nil, &a))
	s.end(start)
	return nil
}

// hash serves hash@migratefs.
func (s *server) hash(q *request) error {
	p, algorithm, off, n := q.Str(), q.Str(), q.U64(), q.U64()
	switch {
	case q.Bad:
		return errBadMessage
	case algorithm != extension.SHA256:
		return errUnsupported
	case n > extension.MaxHash || off > 1<<62:
		return unix.EINVAL
	}
	fd, err := s.openPlainFile(p)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	sum := sha256.New()
	buf := make([]byte, 1<<20)
	for n > 0 {
		got, err := sys.Pread(fd, buf[:min(n, uint64(len(buf)))], int64(off))
		if err != nil {
			return err
		}
		if got == 0 {
			break
		}
		_, _ = sum.Write(buf[:got])
		off += uint64(got)
		n -= uint64(got)
	}
	a, err := s.attrOf(fd, "")
	if err != nil {
		return err
	}
	s.answer(fxpExtendedReply, q.id, func(b []byte) []byte {
		return str(s.appendAttrs(b, &a), sum.Sum(nil))
	})
	return nil
}
