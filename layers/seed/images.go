package seed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Images is the directory of a checkpoint that lies on a layer, as a layer of its own:
// regular files in one directory. All but the memory of large processes (pages-*) is
// small, and is read in one burst when it is opened; the rest comes when it is read.
type Images struct {
	inner layers.Layer // not ours: not closed
	dir   layers.Path
	attr  layers.Attr // of the directory
	files map[string]*image
	names []string // in the order of the listing
}

var _ layers.Layer = (*Images)(nil)

// image is one file among Images; immutable.
type image struct {
	attr layers.Attr
	data []byte // all of it; nil: it comes when it is read
}

// Bounds on what is read at once. A checkpoint of a thousand processes has some ten
// megabytes of small images.
const (
	imageMost  = 4 << 20  // that is read whole
	otherMost  = 64 << 10 // of what is no image: the dump's log
	pagesMost  = 1 << 20  // of a process's memory
	imagesMost = 256 << 20
	imagesName = 1 << 20 // names in the directory
)

// OpenImages reads what is small of the images in dir.
func OpenImages(ctx context.Context, inner layers.Layer, dir layers.Path) (*Images, error) {
	im := &Images{inner: inner, dir: dir, files: make(map[string]*image)}
	var err error
	if im.attr, err = inner.Stat(ctx, dir); err != nil {
		return nil, err
	}
	if !im.attr.IsDir() {
		return nil, &layers.PathError{Op: "open", Layer: inner.ID(), Path: dir, Err: unix.ENOTDIR}
	}
	entries, err := inner.ReadDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > imagesName {
		return nil, fmt.Errorf("%d names are no checkpoint", len(entries))
	}
	if err := im.list(ctx, entries); err != nil {
		return nil, err
	}
	return im, im.read(ctx)
}

// list notes the regular files among entries.
func (im *Images) list(ctx context.Context, entries []layers.Entry) error {
	var ask []layers.Path
	for _, e := range entries {
		switch {
		case e.Name == "parent":
			return errors.New(`an incremental checkpoint, which needs the one that its "parent" names: copy both here, and restore from the copy`)
		case e.Attr != nil && e.Attr.IsRegular():
			im.files[e.Name] = &image{attr: *e.Attr}
			im.names = append(im.names, e.Name)
		case e.Attr == nil && (e.Type == 0 || e.Type == unix.S_IFREG):
			ask = append(ask, im.dir.Join(e.Name))
		}
	}
	if len(ask) == 0 {
		return nil
	}
	attrs, errs, err := statMany(ctx, im.inner, ask)
	if err != nil {
		return err
	}
	for i, p := range ask {
		_, name := p.Split()
		if errs[i] == nil && attrs[i].IsRegular() {
			im.files[name] = &image{attr: attrs[i]}
			im.names = append(im.names, name)
		}
	}
	return nil
}

// read reads what is small.
func (im *Images) read(ctx context.Context) error {
	var wanted []layers.Wanted
	var to []*image
	left := int64(imagesMost)
	for _, name := range im.names {
		f := im.files[name]
		most := int64(otherMost)
		switch {
		case strings.HasPrefix(name, "pages-"):
			most = pagesMost
		case strings.HasSuffix(name, ".img"):
			most = imageMost
		}
		if f.attr.Size > min(most, left) {
			continue
		}
		left -= f.attr.Size
		wanted = append(wanted, layers.Wanted{Path: im.dir.Join(name), Attr: &f.attr})
		to = append(to, f)
	}
	if b, ok := im.inner.(layers.BulkReader); ok && len(wanted) > 0 {
		contents, err := b.ReadMany(ctx, wanted)
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		for i := range contents {
			if contents[i].Err == nil && int64(len(contents[i].Data)) == to[i].attr.Size {
				to[i].data = contents[i].Data
			}
		}
	}
	return nil // what has not come comes when it is read, or says then why not
}

// Made is when the checkpoint was made: the time of the image that CRIU writes last
// of all that it cannot do without.
func (im *Images) Made() layers.Time {
	if f := im.files["inventory.img"]; f != nil {
		return f.attr.Mtime
	}
	return layers.Time{}
}

// ID implements layers.Layer.
func (im *Images) ID() string { return im.inner.ID() + "/" + string(im.dir) }

func (im *Images) at(op string, p layers.Path) (*image, error) {
	if f := im.files[string(p)]; f != nil {
		return f, nil
	}
	err := unix.ENOENT
	if p == layers.Root {
		err = unix.EISDIR
	}
	return nil, &layers.PathError{Op: op, Layer: im.ID(), Path: p, Err: err}
}

// Stat implements layers.Layer.
func (im *Images) Stat(_ context.Context, p layers.Path) (layers.Attr, error) {
	if p == layers.Root {
		return im.attr, nil
	}
	f, err := im.at("stat", p)
	if err != nil {
		return layers.Attr{}, err
	}
	return f.attr, nil
}

// ReadDir implements layers.Layer.
func (im *Images) ReadDir(_ context.Context, p layers.Path) ([]layers.Entry, error) {
	if p != layers.Root {
		_, err := im.at("readdir", p)
		if err == nil {
			err = &layers.PathError{Op: "readdir", Layer: im.ID(), Path: p, Err: unix.ENOTDIR}
		}
		return nil, err
	}
	entries := make([]layers.Entry, 0, len(im.names))
	for _, name := range im.names {
		a := im.files[name].attr
		entries = append(entries, layers.Entry{Name: name, Type: a.Type(), Ino: a.Ino, Attr: &a})
	}
	return entries, nil
}

// Readlink implements layers.Layer: there are no symlinks.
func (im *Images) Readlink(_ context.Context, p layers.Path) (string, error) {
	return "", &layers.PathError{Op: "readlink", Layer: im.ID(), Path: p, Err: unix.EINVAL}
}

// Xattrs implements layers.Layer. Images need none.
func (im *Images) Xattrs(context.Context, layers.Path) (layers.Xattrs, error) { return nil, nil }

// Open implements layers.Layer.
func (im *Images) Open(ctx context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	f, err := im.at("open", p)
	switch {
	case p == layers.Root:
		return nil, &layers.PathError{Op: "open", Layer: im.ID(), Path: p, Err: layers.ErrNotRegular}
	case err != nil:
		return nil, err
	case want != nil && !f.attr.SameVersion(want):
		return nil, &layers.PathError{Op: "open", Layer: im.ID(), Path: p, Err: layers.ErrStale}
	case f.data != nil:
		return &imageFile{f, bytes.NewReader(f.data)}, nil
	}
	return im.inner.Open(ctx, im.dir.Join(string(p)), &f.attr)
}

// imageFile is a small image, open.
type imageFile struct {
	f *image
	r *bytes.Reader
}

func (f *imageFile) ReadAt(_ context.Context, b []byte, off int64) (int, error) {
	return f.r.ReadAt(b, off)
}
func (f *imageFile) Attr() layers.Attr { return f.f.attr }
func (f *imageFile) Close() error      { return nil }

// Statfs implements layers.Layer.
func (im *Images) Statfs(ctx context.Context) (layers.Statfs, error) { return im.inner.Statfs(ctx) }

// Offline implements layers.Offliner.
func (im *Images) Offline() error {
	if o, ok := im.inner.(layers.Offliner); ok {
		return o.Offline()
	}
	return nil
}

// Close implements layers.Layer. The layer below is not ours.
func (im *Images) Close() error { return nil }

// FS returns the images as criu.LoadFS reads them. It is good for as long as ctx is.
func (im *Images) FS(ctx context.Context) fs.FS { return imagesFS{ctx, im} }

type imagesFS struct {
	ctx context.Context
	im  *Images
}

func (f imagesFS) Open(name string) (fs.File, error) {
	lf, err := f.im.Open(f.ctx, pathOf(name), nil)
	if err != nil {
		return nil, notThere("open", name, err)
	}
	return &fsFile{f.ctx, lf, name, 0}, nil
}

func (f imagesFS) Stat(name string) (fs.FileInfo, error) {
	a, err := f.im.Stat(f.ctx, pathOf(name))
	if err != nil {
		return nil, notThere("stat", name, err)
	}
	return fsInfo{name, a}, nil
}

func (f imagesFS) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := f.im.ReadDir(f.ctx, pathOf(name))
	if err != nil {
		return nil, notThere("readdir", name, err)
	}
	ds := make([]fs.DirEntry, 0, len(entries))
	for _, e := range entries {
		ds = append(ds, fs.FileInfoToDirEntry(fsInfo{e.Name, *e.Attr}))
	}
	return ds, nil
}

func pathOf(name string) layers.Path {
	if name == "." {
		return layers.Root
	}
	return layers.Path(name)
}

func notThere(op, name string, err error) error {
	if errors.Is(err, unix.ENOENT) {
		err = fs.ErrNotExist
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// fsFile is a layers.File as an fs.File.
type fsFile struct {
	ctx  context.Context
	f    layers.File
	name string
	off  int64
}

func (f *fsFile) Stat() (fs.FileInfo, error) { return fsInfo{f.name, f.f.Attr()}, nil }
func (f *fsFile) Close() error               { return f.f.Close() }

func (f *fsFile) Read(b []byte) (int, error) {
	n, err := f.f.ReadAt(f.ctx, b, f.off)
	f.off += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// fsInfo is an Attr as an fs.FileInfo.
type fsInfo struct {
	name string
	a    layers.Attr
}

func (i fsInfo) Name() string       { return i.name }
func (i fsInfo) Size() int64        { return i.a.Size }
func (i fsInfo) ModTime() time.Time { return time.Unix(i.a.Mtime.Sec, int64(i.a.Mtime.Nsec)) }
func (i fsInfo) IsDir() bool        { return i.a.IsDir() }
func (i fsInfo) Sys() any           { return nil }

func (i fsInfo) Mode() fs.FileMode {
	mode := fs.FileMode(i.a.Mode & 0o777)
	switch {
	case i.a.IsDir():
		mode |= fs.ModeDir
	case !i.a.IsRegular():
		mode |= fs.ModeIrregular
	}
	return mode
}
