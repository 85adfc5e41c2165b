package criu

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"google.golang.org/protobuf/proto"
)

// An image file is one or two little-endian 32-bit magic numbers, then entries:
// a 32-bit size and that many bytes of protobuf (criu/image.c and protobuf.c).
// Some images carry raw data after an entry; none of those is read here beyond
// its first entry.
const (
	magicCommon  = 0x54564319 // IMG_COMMON_MAGIC, since 1.1 first in all but inventory
	magicService = 0x55105940 // IMG_SERVICE_MAGIC, likewise in stats and caches

	magicInventory  = 0x58313116
	magicPstree     = 0x50273030
	magicCore       = 0x55053847
	magicIDs        = 0x54432030
	magicMm         = 0x57492820
	magicFs         = 0x51403912
	magicFdinfo     = 0x56213732
	magicFiles      = 0x56303138
	magicRegFiles   = 0x50363636
	magicRemapFpath = 0x59133954
	magicMnts       = 0x55563928
	magicUnixSk     = 0x54373943
	magicInotify    = 0x48424431
	magicInotifyWd  = 0x54562009
	magicFanotify   = 0x55096122
	magicFanoMark   = 0x56506035
	magicPipes      = 0x56513555
	magicExtFiles   = 0x59255641
	magicFifo       = 0x58364939
	magicTTY        = 0x59433025
	magicTTYInfo    = 0x59453036
	magicInetSk     = 0x56443851
	magicGhost      = 0x52583605
	magicFileLocks  = 0x54323616
	magicVmas       = 0x54123737
)

// Bounds on one entry. CRIU writes one entry for a descriptor (a path of at
// most 4 KiB, or the watches of one inotify), one for all mappings of a task.
// Small messages take some fifty times their encoded size in memory, so the
// bound on those that are decoded as a whole is what bounds a hostile image.
const (
	maxEntry   = 2 << 20
	maxMmEntry = 64 << 20 // decoded mapping by mapping
)

// ImageError says what is wrong with which image file, and where.
type ImageError struct {
	File   string // name inside the image directory
	Offset int64  // of the entry or magic number that could not be used, in bytes
	Err    error
}

func (e *ImageError) Error() string {
	return fmt.Sprintf("image %q, byte %d: %v: the checkpoint is damaged, dump or copy it again", e.File, e.Offset, e.Err)
}

func (e *ImageError) Unwrap() error { return e.Err }

// ErrTruncated: an image ends inside an entry.
var ErrTruncated = errors.New("truncated")

// image reads the entries of one image file.
type image struct {
	name string
	f    fs.File
	r    *bufio.Reader
	left int64 // bytes after off
	off  int64 // of the next unread byte
}

// openImage opens the image name, which must carry the given magic number.
// A file that does not exist is fs.ErrNotExist, bare.
func openImage(fsys fs.FS, name string, magic uint32) (*image, error) {
	st, err := fs.Stat(fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fs.ErrNotExist
	}
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	var f fs.File
	if err == nil {
		f, err = fsys.Open(name)
	}
	if err != nil {
		return nil, &ImageError{File: name, Err: bare(err)}
	}
	im := &image{name: name, f: f, r: bufio.NewReader(f), left: st.Size()}
	if err := im.readMagic(magic); err != nil {
		_ = f.Close()
		return nil, err
	}
	return im, nil
}

// bare takes the path off an error that is reported with the image's name.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (im *image) readMagic(want uint32) error {
	m, err := im.uint32()
	if err != nil {
		return im.fail(0, err)
	}
	if m == magicCommon || m == magicService {
		if m, err = im.uint32(); err != nil {
			return im.fail(4, err)
		}
	}
	if m != want {
		return im.fail(0, fmt.Errorf("magic number %#x, expected %#x", m, want))
	}
	return nil
}

// entry returns the next entry's bytes, at most limit of them, or io.EOF, bare,
// after the last.
func (im *image) entry(limit int64) ([]byte, error) {
	if im.left == 0 {
		return nil, io.EOF
	}
	start := im.off
	n, err := im.uint32()
	if err != nil {
		return nil, im.fail(start, err)
	}
	if int64(n) > im.left {
		return nil, im.fail(start, fmt.Errorf("%w: an entry of %d bytes with %d left", ErrTruncated, n, im.left))
	}
	if int64(n) > limit {
		return nil, im.fail(start, fmt.Errorf("an entry of %d bytes; no more than %d are expected", n, limit))
	}
	b := make([]byte, n)
	if err := im.full(b); err != nil {
		return nil, im.fail(start, err)
	}
	return b, nil
}

// next decodes the next entry into m, or returns io.EOF, bare.
func (im *image) next(m proto.Message) error {
	start := im.off
	b, err := im.entry(maxEntry)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return im.fail(start, fmt.Errorf("not an entry of its kind (%v)", err))
	}
	return nil
}

func (im *image) close() { _ = im.f.Close() }

func (im *image) fail(off int64, err error) error {
	return &ImageError{File: im.name, Offset: off, Err: err}
}

func (im *image) uint32() (uint32, error) {
	var b [4]byte
	if im.left < int64(len(b)) {
		return 0, ErrTruncated
	}
	if err := im.full(b[:]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b[:]), nil
}

// full reads all of b, of which im.left says that it is there.
func (im *image) full(b []byte) error {
	n, err := io.ReadFull(im.r, b)
	im.off += int64(n)
	im.left -= int64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrTruncated // it shrank since it was opened
	}
	if err != nil {
		return bare(err)
	}
	return nil
}

// each decodes every entry of the image name and hands it to use together with
// a function that turns an error into one that names the entry. It returns
// fs.ErrNotExist, bare, if there is no such image.
func each[T any, M interface {
	*T
	proto.Message
}](fsys fs.FS, name string, magic uint32, use func(M) error) error {
	im, err := openImage(fsys, name, magic)
	if err != nil {
		return err
	}
	defer im.close()
	for {
		start := im.off
		m := M(new(T))
		if err := im.next(m); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := use(m); err != nil {
			return im.fail(start, err)
		}
	}
}

// one decodes the first entry of the image name.
func one(fsys fs.FS, name string, magic uint32, m proto.Message) error {
	im, err := openImage(fsys, name, magic)
	if err != nil {
		return err
	}
	defer im.close()
	if err := im.next(m); err == io.EOF {
		return im.fail(im.off, ErrTruncated)
	} else if err != nil {
		return err
	}
	return nil
}
