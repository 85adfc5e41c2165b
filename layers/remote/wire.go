package remote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote/extension"
)

// SFTP version 3, draft-ietf-secsh-filexfer-02. Extensions: OpenSSH's PROTOCOL
// file, section 4.
const (
	fxpInit          = 1
	fxpVersion       = 2
	fxpOpen          = 3
	fxpClose         = 4
	fxpRead          = 5
	fxpLstat         = 7
	fxpFstat         = 8
	fxpOpendir       = 11
	fxpReaddir       = 12
	fxpRealpath      = 16
	fxpStat          = 17
	fxpReadlink      = 19
	fxpStatus        = 101
	fxpHandle        = 102
	fxpData          = 103
	fxpName          = 104
	fxpAttrs         = 105
	fxpExtended      = 200
	fxpExtendedReply = 201

	openRead = 1 // SSH_FXF_READ

	attrSize     = 1 << 0
	attrOwner    = 1 << 1
	attrMode     = 1 << 2
	attrTimes    = 1 << 3
	attrExtended = 1 << 31
)

const (
	// maxPacket bounds what the server may send in one packet: OpenSSH's
	// SFTP_MAX_MSG_LENGTH is 256 KiB, and a little is granted to others.
	maxPacket = 256<<10 + 1<<10

	// maxHandle is the longest handle the draft allows, in bytes.
	maxHandle = 256

	// smallAnswer is as long as the answer to a request may be that does not ask
	// for more: two names and attributes.
	smallAnswer = 12 << 10

	// pathMax is Linux's PATH_MAX without its NUL.
	pathMax = 4095
)

// request is one packet to the server, without length and id. Weight is about
// how many bytes the answer will have.
type request struct {
	typ    byte
	body   []byte
	weight int
	closed bool // an OPEN whose handle, slot0, is closed in the same burst
}

// most is how long an answer may be. A server that answers small requests at length
// could fill our memory, as many of them are under way at once.
func (r *request) most() int {
	switch r.typ {
	case fxpRead, fxpReaddir:
		return maxPacket
	}
	return min(maxPacket, max(smallAnswer, 2*r.weight))
}

func str(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

func askPath(typ byte, path string) request {
	return request{typ: typ, body: str(nil, path), weight: 256 + len(path)}
}

func askHandle(typ byte, handle string) request {
	return request{typ: typ, body: str(nil, handle), weight: 256}
}

func askReaddir(handle string) request {
	return request{typ: fxpReaddir, body: str(nil, handle), weight: 32 << 10}
}

func askOpen(path string) request {
	b := str(make([]byte, 0, len(path)+12), path)
	b = binary.BigEndian.AppendUint32(b, openRead)
	b = binary.BigEndian.AppendUint32(b, 0) // no attributes
	return request{typ: fxpOpen, body: b, weight: 256}
}

func askRead(handle string, off int64, n int) request {
	b := str(make([]byte, 0, len(handle)+16), handle)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return request{typ: fxpRead, body: b, weight: n + 64}
}

func askStatvfs(path string) request {
	return request{typ: fxpExtended, body: str(str(nil, extStatvfs), path), weight: 256}
}

// appendTo encodes r with its id.
func (r *request) appendTo(b []byte, id uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.body)+5))
	b = append(b, r.typ)
	b = binary.BigEndian.AppendUint32(b, id)
	return append(b, r.body...)
}

// reply is one packet from the server, after length and id.
type reply struct {
	typ  byte
	body []byte
}

// decoder is extension.Decoder with what only this end decodes.
type decoder struct{ extension.Decoder }

func decode(b []byte) decoder { return decoder{extension.Decoder{B: b}} }

// protocolError says that the server broke the protocol. The channel on which
// that happened is not used again.
type protocolError struct{ what string }

func (e *protocolError) Error() string { return "the SFTP server sent " + e.what }
func (e *protocolError) Unwrap() error { return layers.ErrCorrupt }

func corrupt(format string, args ...any) error {
	return &protocolError{what: fmt.Sprintf(format, args...)}
}

// statusError is a failure that the server reported, or another end than the
// one asked for.
type statusError struct {
	code uint32
	text string // at most 256 bytes, as sent

	errno unix.Errno // of our own server; else 0
}

const (
	fxOK               = 0
	fxEOF              = 1
	fxNoSuchFile       = 2
	fxPermissionDenied = 3
	fxFailure          = 4
	fxBadMessage       = 5
	fxNoConnection     = 6
	fxConnectionLost   = 7
	fxUnsupported      = 8
)

func (e *statusError) Error() string {
	return fmt.Sprintf("%v (the server says %q)", e.Unwrap(), e.text)
}

// Unwrap maps the few codes of SFTP version 3 onto what sftp-server made them
// from. ENOENT also stands for ENOTDIR and ELOOP, EIO for everything that has
// no code of its own.
func (e *statusError) Unwrap() error {
	switch e.code {
	case fxNoSuchFile:
		return unix.ENOENT
	case fxPermissionDenied:
		return unix.EACCES
	case fxBadMessage:
		return unix.ENAMETOOLONG // or EINVAL, which nothing that is asked here gives
	case fxNoConnection, fxConnectionLost:
		return layers.ErrOffline
	case fxUnsupported:
		return unix.ENOSYS
	case fxFailure:
		if told[e.errno] {
			return e.errno
		}
	}
	return unix.EIO
}

// told are the errors that our server may tell from EIO.
var told = map[unix.Errno]bool{
	unix.EMFILE: true, unix.ENFILE: true, unix.ENOMEM: true, unix.EISDIR: true, unix.EOVERFLOW: true, unix.E2BIG: true, unix.ENODEV: true,
}

// leadsOut reports whether the server refused a path because of a symlink in it that
// leads out of what it serves.
func leadsOut(err error) bool {
	var e *statusError
	return errors.As(err, &e) && e.code == fxPermissionDenied && e.errno == unix.EXDEV
}

// isStatus reports whether err is the server's status code.
func isStatus(err error, code uint32) bool {
	var e *statusError
	return errors.As(err, &e) && e.code == code
}

// status decodes a STATUS packet. It is nil for SSH_FX_OK.
func (r *reply) status() error {
	d := decode(r.body)
	code := d.U32()
	if d.Bad {
		return corrupt("a STATUS packet of %d bytes", len(r.body))
	}
	if code == fxOK {
		return nil
	}
	text := d.Bytes() // old servers send none
	if len(text) > 256 {
		text = text[:256]
	}
	d.Bytes() // language
	return &statusError{code: code, text: string(text), errno: unix.Errno(d.U32())}
}

// expect returns a decoder of r's body if r has type typ, else the error that r
// means.
func (r *reply) expect(typ byte) (decoder, error) {
	switch r.typ {
	case typ:
		return decode(r.body), nil
	case fxpStatus:
		err := r.status()
		if err == nil {
			err = corrupt("success without the answer that was asked for (type %d)", typ)
		}
		return decoder{}, err
	}
	return decoder{}, corrupt("a packet of type %d where type %d was due", r.typ, typ)
}

func (r *reply) handle() (string, error) {
	d, err := r.expect(fxpHandle)
	if err != nil {
		return "", err
	}
	h := d.Bytes()
	if d.Bad || len(h) == 0 || len(h) > maxHandle {
		return "", corrupt("a malformed handle")
	}
	return string(h), nil
}

func (r *reply) data() ([]byte, error) {
	d, err := r.expect(fxpData)
	if err != nil {
		return nil, err
	}
	b := d.Bytes()
	if d.Bad || len(b) == 0 {
		return nil, corrupt("a malformed DATA packet")
	}
	return b, nil
}

func (r *reply) attrs() (layers.Attr, error) {
	d, err := r.expect(fxpAttrs)
	if err != nil {
		return layers.Attr{}, err
	}
	a, ok := d.attrs()
	if !ok {
		return a, corrupt("malformed attributes")
	}
	return a, nil
}

// name decodes a NAME packet that must hold exactly one name.
func (r *reply) name() (string, error) {
	d, err := r.expect(fxpName)
	if err != nil {
		return "", err
	}
	n := d.U32()
	s := d.Bytes()
	if d.Bad || n != 1 || len(s) == 0 || len(s) > maxPacket {
		return "", corrupt("a malformed NAME packet")
	}
	return string(s), nil
}

// vfs is what statvfs@openssh.com answers.
type vfs struct {
	layers.Statfs
	flag uint64

	// From our own server: the file itself. Ino is 0 where that is not known.
	ino   uint64
	btime layers.Time
}

func (r *reply) statvfs() (vfs, error) {
	d, err := r.expect(fxpExtendedReply)
	if err != nil {
		return vfs{}, err
	}
	var v vfs
	bsize, frsize := d.U64(), d.U64()
	v.Blocks, v.Bfree, v.Bavail = d.U64(), d.U64(), d.U64()
	v.Files, v.Ffree = d.U64(), d.U64()
	d.U64() // favail
	v.Fsid, v.flag = d.U64(), d.U64()
	namemax := d.U64()
	if d.Bad || bsize > math.MaxUint32 || frsize > math.MaxUint32 || namemax > math.MaxUint32 {
		return vfs{}, corrupt("a malformed statvfs answer")
	}
	v.Bsize, v.Frsize, v.NameLen = uint32(bsize), uint32(frsize), uint32(namemax)
	if len(d.B) >= 20 {
		v.ino = d.U64()
		v.btime, _ = extension.DecodeTime(d.B)
	}
	return v, nil
}
