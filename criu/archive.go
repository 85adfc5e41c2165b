package criu

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Container engines hand checkpoints on as one file: a tar, mostly compressed,
// with CRIU's images in the directory "checkpoint" and what the engine knows
// beside it (podman's pkg/checkpoint, checkpointctl's lib/metadata.go).
const (
	archiveImages = "checkpoint"

	rootfsDiff   = "rootfs-diff.tar"
	deletedFiles = "deleted.files"
	devShm       = "devshm-checkpoint.tar"
)

// Bounds on what is kept of an archive in memory: not the content of pages, of
// deleted files and of tmpfs, but all that Load reads.
const (
	maxKept      = 256 << 20
	maxKeptGhost = 64 << 10
	maxNames     = 1 << 20

	// An archive that unpacks to this many times its size was made to keep us
	// busy: nothing compresses memory like that but memory of zeros, which CRIU
	// does not dump.
	maxRatio  = 2000
	freeRatio = 1 << 30 // bytes for which nobody asks

	maxWindow = 128 << 20 // zstd --long=27
)

// errNotArchive: a file is no tar, compressed or not.
var errNotArchive = errors.New("not a directory of images, nor an archive with one")

// archive is a checkpoint archive that has been read once. It is an fs.FS of
// CRIU's images.
type archive struct {
	images map[string]*member // by name
	beside map[string]*member // what is not in the images' directory
}

// member is one file of an archive.
type member struct {
	name string
	size int64
	data []byte // may be less: the rest was not kept
}

// readArchive reads the archive at name.
func readArchive(name string) (*archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return newArchive(f, st.Size())
}

func newArchive(r io.Reader, size int64) (*archive, error) {
	un, err := decompress(r, size)
	if err != nil {
		return nil, err
	}
	defer un.Close()
	a := &archive{images: make(map[string]*member), beside: make(map[string]*member)}
	kept, names := int64(0), 0
	err = eachMember(un, func(h *tar.Header, r io.Reader) error {
		if names++; names > maxNames {
			return fmt.Errorf("more than %d files", maxNames)
		}
		m := &member{name: h.Name, size: h.Size}
		if keep := keepOf(h.Name, h.Size); keep > 0 {
			b, err := io.ReadAll(io.LimitReader(r, keep))
			if err != nil {
				return err
			}
			if kept += int64(len(b)); kept > maxKept {
				return fmt.Errorf("images of more than %d bytes, without memory", maxKept)
			}
			m.data = b
		}
		if dir, base := path.Split(h.Name); dir == archiveImages+"/" {
			m.name = base
			a.images[base] = m
		} else {
			a.beside[h.Name] = m
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if a.images["inventory.img"] == nil && a.beside["inventory.img"] != nil {
		// Somebody's tar of an image directory.
		a.images, a.beside = a.beside, a.images
	}
	return a, nil
}

// keepOf is how much of a file is kept.
func keepOf(name string, size int64) int64 {
	base := path.Base(name)
	switch {
	case strings.HasPrefix(base, "pages-"), strings.HasSuffix(base, ".tar"), strings.HasSuffix(base, ".tar.gz.img"), strings.Contains(name, "volumes/"):
		return 0
	case strings.HasPrefix(base, "ghost-file-"):
		return min(size, maxKeptGhost)
	}
	return size
}

// eachMember hands every regular file of a tar to use. Names are clean and
// relative; those that are not valid, and whatever is no regular file, are left
// out.
func eachMember(r io.Reader, use func(h *tar.Header, r io.Reader) error) error {
	t := tar.NewReader(r)
	for first := true; ; first = false {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil && first {
			return errNotArchive
		}
		if err != nil {
			return fmt.Errorf("the archive is damaged (%w): copy it again", err)
		}
		if h.Name = strings.TrimPrefix(h.Name, "./"); h.Typeflag != tar.TypeReg || !fs.ValidPath(h.Name) || strings.IndexByte(h.Name, 0) >= 0 {
			continue
		}
		if err := use(h, t); err != nil {
			return err
		}
	}
}

// decompress looks at how r begins.
func decompress(r io.Reader, size int64) (io.ReadCloser, error) {
	b := bufio.NewReader(r)
	head, _ := b.Peek(4)
	var un io.ReadCloser
	var err error
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		un, err = gzip.NewReader(b)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow)); err == nil {
			un = d.IOReadCloser()
		}
	default:
		return io.NopCloser(b), nil
	}
	if err != nil {
		return nil, errNotArchive
	}
	most := int64(freeRatio)
	if size > freeRatio/maxRatio {
		most = size * maxRatio
	}
	return &bounded{un, most}, nil
}

// bounded refuses to go on after left bytes.
type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("it unpacks to more than %d times its size", maxRatio)
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

// Open implements fs.FS.
func (a *archive) Open(name string) (fs.File, error) {
	m := a.images[name]
	if name == "." {
		m = &member{name: "."}
	}
	if m == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memberFile{member: m, Reader: bytes.NewReader(m.data)}, nil
}

// ReadDir implements fs.ReadDirFS.
func (a *archive) ReadDir(name string) ([]fs.DirEntry, error) {
	if name != "." {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	var out []fs.DirEntry
	for _, m := range a.images {
		out = append(out, fs.FileInfoToDirEntry(m))
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}

var errNotKept = errors.New("this part of the archive is not read")

// memberFile is a member that is being read.
type memberFile struct {
	*member
	*bytes.Reader
}

// Stat implements fs.File.
func (f *memberFile) Stat() (fs.FileInfo, error) { return f.member, nil }

// Read implements fs.File.
func (f *memberFile) Read(b []byte) (int, error) {
	n, err := f.Reader.Read(b)
	if err == io.EOF && int64(len(f.data)) < f.member.size {
		err = errNotKept
	}
	return n, err
}

// Size settles whose Size it is: both embedded types have one.
func (f *memberFile) Size() int64 { return f.member.size }

// Close implements fs.File.
func (f *memberFile) Close() error { return nil }

// A member is its own fs.FileInfo.
func (m *member) Name() string       { return path.Base(m.name) }
func (m *member) Size() int64        { return m.size }
func (m *member) ModTime() time.Time { return time.Time{} }
func (m *member) IsDir() bool        { return m.name == "." }
func (m *member) Sys() any           { return nil }
func (m *member) Mode() fs.FileMode {
	if m.IsDir() {
		return fs.ModeDir | 0o500
	}
	return 0o400
}
