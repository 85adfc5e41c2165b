package server

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers/remote/extension"
)

// serve answers q. An error ends the session.
func (s *server) serve(q *request) error {
	if q.typ == fxpInit {
		return s.init(q)
	}
	if !s.began {
		return fmt.Errorf("%w: type %d before INIT", errBadMessage, q.typ)
	}
	f := s.handler(q.typ)
	if f == nil {
		s.status(q.id, errUnsupported)
		return nil
	}
	start := len(s.out)
	err := f(s, q)
	if q.Bad {
		// It was acted upon only as far as it could be read: handlers look at bad
		// before they do anything.
		return fmt.Errorf("%w: type %d is too short", errBadMessage, q.typ)
	}
	if err != nil {
		s.out = s.out[:start] // what a handler had begun
		s.status(q.id, err)
		s.log.Debug("request failed", "type", q.typ, "err", err)
	}
	return nil
}

// init answers INIT, whose id is the version.
func (s *server) init(q *request) error {
	if s.began {
		return fmt.Errorf("%w: a second INIT", errBadMessage)
	}
	s.began = true
	s.log.Info("session begins", "version", q.id)
	start := len(s.out)
	s.out = u32(append(s.out, 0, 0, 0, 0, fxpVersion), 3)
	for _, e := range offered {
		s.out = str(str(s.out, e.name), e.version)
	}
	for _, name := range extension.All() {
		if name == extension.Xattrs && !s.tree.proc {
			continue
		}
		s.out = str(str(s.out, name), extension.Version)
	}
	s.end(start)
	return nil
}

type handler func(*server, *request) error

func (s *server) handler(typ byte) handler {
	switch typ {
	case fxpOpen:
		return (*server).openFile
	case fxpClose:
		return (*server).closeHandle
	case fxpRead:
		return (*server).readFile
	case fxpWrite:
		return (*server).writeFile
	case fxpLstat:
		return func(s *server, q *request) error { return s.stat(q, false) }
	case fxpStat:
		return func(s *server, q *request) error { return s.stat(q, true) }
	case fxpFstat:
		return (*server).fstat
	case fxpSetstat:
		return func(s *server, q *request) error { return s.setstat(q, true) }
	case fxpFsetstat:
		return (*server).fsetstat
	case fxpOpendir:
		return (*server).openDir
	case fxpReaddir:
		return (*server).readDir
	case fxpRemove:
		return (*server).remove
	case fxpMkdir:
		return (*server).mkdir
	case fxpRmdir:
		return (*server).rmdir
	case fxpRealpath:
		return (*server).realpath
	case fxpRename:
		return (*server).rename
	case fxpReadlink:
		return (*server).readlink
	case fxpSymlink:
		return (*server).symlink
	case fxpExtended:
		return (*server).extended
	}
	return nil
}

// done answers with the outcome of a change.
func (s *server) done(q *request, what, path string, err error) error {
	if err == nil {
		s.log.Info(what, "path", path)
		s.status(q.id, nil)
	}
	return err
}

// mayChange is nil if the request, which is complete, may change something.
func (s *server) mayChange(q *request, what, path string) error {
	switch {
	case q.Bad:
		return errBadMessage
	case s.cfg.ReadOnly:
		s.log.Warn("refused: read-only", "what", what, "path", path)
		return errRefused
	}
	return nil
}

// path reads a path, the last or only thing that is of interest.
func (q *request) path() (string, error) {
	p := q.Str()
	if q.Bad {
		return "", errBadMessage
	}
	return p, nil
}

func (s *server) stat(q *request, follow bool) error {
	p, err := q.path()
	if err != nil {
		return err
	}
	fd, err := s.tree.look(p, follow)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	a, err := s.attrOf(fd, "")
	if err != nil {
		return err
	}
	s.answer(fxpAttrs, q.id, func(b []byte) []byte { return s.appendAttrs(b, &a) })
	return nil
}

func (s *server) fstat(q *request) error {
	h, _, err := s.handles.get(q.Bytes())
	if err != nil {
		return err
	}
	if h.walk != nil {
		return unix.EBADF
	}
	a, err := s.attrOf(h.fd, "")
	if err != nil {
		return err
	}
	s.answer(fxpAttrs, q.id, func(b []byte) []byte { return s.appendAttrs(b, &a) })
	return nil
}

func (s *server) realpath(q *request) error {
	p, err := q.path()
	if err != nil {
		return err
	}
	real, err := s.tree.real(p)
	if err != nil {
		return err
	}
	s.name(q.id, real)
	return nil
}

// name answers with one name and no attributes.
func (s *server) name(id uint32, name string) {
	s.answer(fxpName, id, func(b []byte) []byte {
		return u32(str(str(u32(b, 1), name), name), 0)
	})
}
