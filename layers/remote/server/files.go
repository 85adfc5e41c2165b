package server

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// openFile serves OPEN. What is there is looked at before it is opened.
func (s *server) openFile(q *request) error {
	p, flags := q.Str(), q.U32()
	c := q.changes()
	writes := flags&(openWrite|openAppend|openCreate|openTrunc|openExcl) != 0
	if writes {
		if err := s.mayChange(q, "open", p); err != nil {
			return err
		}
	}
	if q.Bad {
		return errBadMessage
	}
	fd, err := s.tree.look(p, true)
	switch {
	case err == nil && flags&openCreate != 0 && flags&openExcl != 0:
		unix.Close(fd)
		return unix.EEXIST
	case err == unix.ENOENT && flags&openCreate != 0:
		return s.createFile(q, p, flags, &c)
	case err != nil:
		return err
	}
	defer unix.Close(fd)
	var opened int
	if how := openFlags(flags); how == unix.O_RDONLY {
		opened, err = s.tree.reopenQuietly(fd, p)
	} else {
		opened, err = s.tree.reopen(fd, p, how)
	}
	if err != nil {
		return err
	}
	if flags&openTrunc != 0 && flags&openWrite != 0 {
		if err := sys.Truncate(opened, 0); err != nil {
			unix.Close(opened)
			return err
		}
	}
	return s.opened(q, p, flags, opened)
}

// createFile makes a file where there was none.
func (s *server) createFile(q *request, p string, flags uint32, c *changes) error {
	mode := uint32(0o666)
	if c.flags&attrMode != 0 {
		mode = c.mode & 0o7777
	}
	how := openFlags(flags) | unix.O_CREAT | unix.O_NONBLOCK | unix.O_NOCTTY
	if flags&openExcl != 0 {
		how |= unix.O_EXCL
	}
	fd, err := s.tree.open(p, how, mode)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd) // it came just now, and is something else
		return unix.EOPNOTSUPP
	}
	return s.opened(q, p, flags, fd)
}

func (s *server) opened(q *request, p string, flags uint32, fd int) error {
	h := &handle{fd: fd, path: p, write: flags&openWrite != 0, append: flags&openAppend != 0}
	name, err := s.handles.add(h)
	if err != nil {
		unix.Close(fd)
		return err
	}
	s.log.Info("open", "path", p, "write", h.write)
	s.answer(fxpHandle, q.id, func(b []byte) []byte { return str(b, name) })
	return nil
}

func openFlags(flags uint32) int {
	how := unix.O_RDONLY
	switch {
	case flags&openRead != 0 && flags&openWrite != 0:
		how = unix.O_RDWR
	case flags&openWrite != 0:
		how = unix.O_WRONLY
	}
	if flags&openAppend != 0 {
		how |= unix.O_APPEND
	}
	return how
}

func (s *server) closeHandle(q *request) error {
	h, n, err := s.handles.get(q.Bytes())
	if err != nil {
		return err
	}
	if !h.dir && h.walk == nil {
		s.log.Info("close", "path", h.path, "read", h.out, "written", h.in)
	}
	if err := s.handles.remove(n); err != nil {
		return err
	}
	s.status(q.id, nil)
	return nil
}

// readFile serves READ: straight into the answer.
func (s *server) readFile(q *request) error {
	name, off, n := q.Bytes(), q.U64(), q.U32()
	h, err := s.handles.file(name)
	if err != nil || q.Bad {
		return err
	}
	start := s.begin(fxpData, q.id)
	got, err := s.appendData(h.fd, off, n)
	if err != nil {
		return err
	}
	if got == 0 {
		return errEOF
	}
	h.out += int64(got)
	s.end(start)
	return nil
}

// appendData appends up to n bytes of fd at off as a string, and returns how many
// they are.
func (s *server) appendData(fd int, off uint64, n uint32) (int, error) {
	if off > 1<<63-1-maxData {
		return 0, nil // no file reaches so far
	}
	n = min(n, maxData)
	s.out = u32(s.out, 0)
	at := len(s.out)
	s.out = append(s.out, make([]byte, n)...)
	got, err := sys.Pread(fd, s.out[at:], int64(off))
	if err != nil {
		return 0, err
	}
	s.out = s.out[:at+got]
	copy(s.out[at-4:], u32(nil, uint32(got)))
	return got, nil
}

func (s *server) writeFile(q *request) error {
	name, off, data := q.Bytes(), q.U64(), q.Bytes()
	if err := s.mayChange(q, "write", ""); err != nil {
		return err
	}
	h, err := s.handles.file(name)
	switch {
	case err != nil:
		return err
	case !h.write:
		return unix.EBADF
	case off > 1<<63-1-maxPacket:
		return unix.EFBIG
	}
	var n int
	if h.append {
		n, err = sys.Append(h.fd, data)
	} else {
		n, err = sys.Pwrite(h.fd, data, int64(off))
	}
	h.in += int64(n)
	if err != nil {
		return err
	}
	s.status(q.id, nil)
	return nil
}

// setstat serves SETSTAT and lsetstat@openssh.com.
func (s *server) setstat(q *request, follow bool) error {
	p := q.Str()
	c := q.changes()
	if err := s.mayChange(q, "setstat", p); err != nil {
		return err
	}
	fd, err := s.tree.look(p, follow)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if c.flags&attrSize != 0 && follow {
		w, err := s.tree.reopen(fd, p, unix.O_WRONLY)
		if err != nil {
			return err
		}
		defer unix.Close(w)
		if err := c.truncate(w); err != nil {
			return err
		}
	}
	return s.done(q, "setstat", p, c.apply(fd))
}

func (s *server) fsetstat(q *request) error {
	name := q.Bytes()
	c := q.changes()
	if err := s.mayChange(q, "fsetstat", ""); err != nil {
		return err
	}
	h, err := s.handles.file(name)
	if err != nil {
		return err
	}
	if c.flags&attrSize != 0 {
		if err := c.truncate(h.fd); err != nil {
			return err
		}
	}
	return s.done(q, "setstat", h.path, c.apply(h.fd))
}

func (c *changes) truncate(fd int) error {
	if c.size > 1<<62 {
		return unix.EFBIG
	}
	return sys.Truncate(fd, int64(c.size))
}

// apply makes all changes but that of the size. Owners go first: they take suid
// off.
func (c *changes) apply(fd int) error {
	if c.flags&attrOwner != 0 {
		if err := sys.Fchown(fd, int(c.uid), int(c.gid)); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
	}
	if c.flags&attrMode != 0 {
		if err := sys.Chmod(fd, "", c.mode&0o7777); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
	}
	if c.flags&attrTimes != 0 {
		ts := [2]unix.Timespec{timeOf(c.atime), timeOf(c.mtime)}
		if err := sys.Utimes(fd, "", ts); err != nil {
			return fmt.Errorf("times: %w", err)
		}
	}
	return nil
}
