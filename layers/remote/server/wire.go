package server

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote/extension"
)

// SFTP version 3, draft-ietf-secsh-filexfer-02. What OpenSSH adds is in its
// PROTOCOL file, section 4.
const (
	fxpInit          = 1
	fxpVersion       = 2
	fxpOpen          = 3
	fxpClose         = 4
	fxpRead          = 5
	fxpWrite         = 6
	fxpLstat         = 7
	fxpFstat         = 8
	fxpSetstat       = 9
	fxpFsetstat      = 10
	fxpOpendir       = 11
	fxpReaddir       = 12
	fxpRemove        = 13
	fxpMkdir         = 14
	fxpRmdir         = 15
	fxpRealpath      = 16
	fxpStat          = 17
	fxpRename        = 18
	fxpReadlink      = 19
	fxpSymlink       = 20
	fxpStatus        = 101
	fxpHandle        = 102
	fxpData          = 103
	fxpName          = 104
	fxpAttrs         = 105
	fxpExtended      = 200
	fxpExtendedReply = 201

	openRead   = 1 << 0
	openWrite  = 1 << 1
	openAppend = 1 << 2
	openCreate = 1 << 3
	openTrunc  = 1 << 4
	openExcl   = 1 << 5

	attrSize     = 1 << 0
	attrOwner    = 1 << 1
	attrMode     = 1 << 2
	attrTimes    = 1 << 3
	attrExtended = 1 << 31

	fxOK               = 0
	fxEOF              = 1
	fxNoSuchFile       = 2
	fxPermissionDenied = 3
	fxFailure          = 4
	fxBadMessage       = 5
	fxUnsupported      = 8
)

// request is one packet, behind its length.
type request struct {
	typ byte
	id  uint32
	decoder
}

// decoder is extension.Decoder with what only this end decodes.
type decoder struct{ extension.Decoder }

func decode(b []byte) decoder { return decoder{extension.Decoder{B: b}} }

// changes is an ATTRS structure in a request.
type changes struct {
	flags        uint32
	size         uint64
	uid, gid     uint32
	mode         uint32
	atime, mtime uint32
}

func (d *decoder) changes() (c changes) {
	c.flags = d.U32()
	if c.flags&attrSize != 0 {
		c.size = d.U64()
	}
	if c.flags&attrOwner != 0 {
		c.uid, c.gid = d.U32(), d.U32()
	}
	if c.flags&attrMode != 0 {
		c.mode = d.U32()
	}
	if c.flags&attrTimes != 0 {
		c.atime, c.mtime = d.U32(), d.U32()
	}
	if c.flags&attrExtended != 0 {
		for n := d.U32(); n > 0 && !d.Bad; n-- {
			d.Bytes()
			d.Bytes()
		}
	}
	return c
}

func u32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func u64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

func str[T string | []byte](b []byte, s T) []byte { return append(u32(b, uint32(len(s))), s...) }

// begin starts an answer, which end completes: its length is put in front.
func (s *server) begin(typ byte, id uint32) (start int) {
	start = len(s.out)
	s.out = u32(append(s.out, 0, 0, 0, 0, typ), id)
	return start
}

func (s *server) end(start int) {
	binary.BigEndian.PutUint32(s.out[start:], uint32(len(s.out)-start-4))
}

// answer sends a packet with the body that f appends.
func (s *server) answer(typ byte, id uint32, f func(b []byte) []byte) {
	start := s.begin(typ, id)
	s.out = f(s.out)
	s.end(start)
}

// appendAttrs encodes a as an ATTRS structure.
func (s *server) appendAttrs(b []byte, a *layers.Attr) []byte {
	flags := uint32(attrSize | attrOwner | attrMode | attrTimes)
	if s.full {
		flags |= attrExtended
	}
	b = u64(u32(b, flags), uint64(a.Size))
	b = u32(u32(u32(b, a.UID), a.GID), a.Mode)
	b = u32(u32(b, wireTime(a.Atime)), wireTime(a.Mtime))
	if s.full {
		b = str(u32(b, 1), extension.StatPair)
		at := len(b)
		b = extension.AppendStat(u32(b, 0), a)
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	return b
}

// errEOF is SSH_FX_EOF.
var errEOF = errors.New("end of file")

// errUnsupported is SSH_FX_OP_UNSUPPORTED.
var errUnsupported = errors.New("unsupported")

// errRefused is SSH_FX_PERMISSION_DENIED for what the server was told not to do.
var errRefused = errors.New("not allowed here")

// status answers with what err means, or with SSH_FX_OK.
func (s *server) status(id uint32, err error) {
	code, errno := codeOf(err)
	text := "Success"
	if err != nil {
		text = err.Error()
	}
	s.answer(fxpStatus, id, func(b []byte) []byte {
		b = str(str(u32(b, code), text), "")
		if s.full {
			b = u32(b, uint32(errno))
		}
		return b
	})
}

// codeOf maps errors as OpenSSH's server does.
func codeOf(err error) (code uint32, errno unix.Errno) {
	switch {
	case err == nil:
		return fxOK, 0
	case errors.Is(err, errEOF):
		return fxEOF, 0
	case errors.Is(err, errUnsupported):
		return fxUnsupported, unix.EOPNOTSUPP
	case errors.Is(err, errRefused):
		return fxPermissionDenied, unix.EACCES
	case !errors.As(err, &errno):
		return fxFailure, unix.EIO
	}
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.EBADF, unix.ELOOP:
		return fxNoSuchFile, errno
	case unix.EPERM, unix.EACCES, unix.EFAULT, unix.EXDEV:
		return fxPermissionDenied, errno
	case unix.ENAMETOOLONG, unix.EINVAL:
		return fxBadMessage, errno
	case unix.ENOSYS:
		return fxUnsupported, errno
	}
	return fxFailure, errno
}
