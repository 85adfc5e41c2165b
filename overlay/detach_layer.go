package overlay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

// ErrDetached: the file was left on a source that the mount was detached from.
var ErrDetached = errors.New("it was left on the source when this mount was detached from it")

// leaving is a lower on another host, for as long as the mount is attached to it.
// Afterwards it answers from what was written down then, and asks nobody.
type leaving struct {
	inner layers.Layer // nil, if the mount began detached
	close sync.Once
	gone  atomic.Pointer[departed] // nil: attached
}

// newLeaving wraps inner, which it closes, and keeps its abilities.
func newLeaving(inner layers.Layer) (*leaving, layers.Layer) {
	if l, ok := inner.(*leaving); ok {
		return l, l
	}
	l := &leaving{inner: inner}
	if b, ok := inner.(layers.BulkReader); ok {
		return l, &leavingBulk{l, b}
	}
	return l, l
}

// leavingBulk is a leaving of a layer that reads many files at once.
type leavingBulk struct {
	*leaving
	bulk layers.BulkReader
}

var (
	_ layers.Layer      = (*leaving)(nil)
	_ layers.BulkStater = (*leaving)(nil)
	_ layers.Offliner   = (*leaving)(nil)
	_ layers.Scout      = (*leaving)(nil)
	_ layers.BulkReader = (*leavingBulk)(nil)
)

// departed is what is known of a source that is not asked any more: directories of
// which all names are known, and the names in them that stayed behind. A name in such
// a directory that is neither is not there: it is in the upper, or never was.
type departed struct {
	id   string
	dirs map[layers.Path]*departedDir
}

type departedDir struct {
	attr layers.Attr
	left map[string]layers.Attr
}

func (d *departed) left() (n int64) {
	for _, dir := range d.dirs {
		n += int64(len(dir.left))
	}
	return n
}

func (d *departed) stat(op string, p layers.Path) (layers.Attr, error) {
	if dir := d.dirs[p]; dir != nil {
		return dir.attr, nil
	}
	if p == layers.Root {
		return layers.Attr{Mode: unix.S_IFDIR | 0o755}, nil
	}
	up, name := p.Split()
	dir, err := d.dirs[up], ErrDetached
	if dir != nil {
		if a, ok := dir.left[name]; ok {
			return a, nil
		}
		err = unix.ENOENT
	}
	return layers.Attr{}, &layers.PathError{Op: op, Layer: d.id, Path: p, Err: err}
}

// refuse is the answer to who wants more of p than its attributes.
func (d *departed) refuse(op string, p layers.Path) error {
	if _, err := d.stat(op, p); err != nil {
		return err
	}
	return &layers.PathError{Op: op, Layer: d.id, Path: p, Err: ErrDetached}
}

// ID implements layers.Layer.
func (l *leaving) ID() string {
	if d := l.gone.Load(); d != nil {
		return d.id
	}
	if l.inner == nil {
		return "detached"
	}
	return l.inner.ID()
}

// ended makes err, of something that began while the mount was attached, what it is
// once it is not.
func (l *leaving) ended(err error) error {
	if err != nil && l.gone.Load() != nil {
		return fmt.Errorf("%w: %w", ErrDetached, err)
	}
	return err
}

// Stat implements layers.Layer.
func (l *leaving) Stat(ctx context.Context, p layers.Path) (layers.Attr, error) {
	if d := l.gone.Load(); d != nil {
		return d.stat("stat", p)
	}
	a, err := l.inner.Stat(ctx, p)
	return a, l.ended(err)
}

// StatMany implements layers.BulkStater.
func (l *leaving) StatMany(ctx context.Context, paths []layers.Path) ([]layers.Attr, []error, error) {
	if b, ok := l.inner.(layers.BulkStater); ok && l.gone.Load() == nil {
		attrs, errs, err := b.StatMany(ctx, paths)
		return attrs, errs, l.ended(err)
	}
	attrs, errs := make([]layers.Attr, len(paths)), make([]error, len(paths))
	for i, p := range paths {
		attrs[i], errs[i] = l.Stat(ctx, p)
	}
	return attrs, errs, nil
}

// ReadDir implements layers.Layer.
func (l *leaving) ReadDir(ctx context.Context, p layers.Path) ([]layers.Entry, error) {
	d := l.gone.Load()
	if d == nil {
		es, err := l.inner.ReadDir(ctx, p)
		return es, l.ended(err)
	}
	dir := d.dirs[p]
	if dir == nil {
		return nil, d.refuse("readdir", p)
	}
	es := make([]layers.Entry, 0, len(dir.left))
	for name, a := range dir.left {
		es = append(es, layers.Entry{Name: name, Type: a.Type(), Attr: &a})
	}
	return es, nil
}

// Readlink implements layers.Layer.
func (l *leaving) Readlink(ctx context.Context, p layers.Path) (string, error) {
	if d := l.gone.Load(); d != nil {
		return "", d.refuse("readlink", p)
	}
	target, err := l.inner.Readlink(ctx, p)
	return target, l.ended(err)
}

// Xattrs implements layers.Layer. Of what stayed behind they are not known, and the
// kernel asks for some before an unlink.
func (l *leaving) Xattrs(ctx context.Context, p layers.Path) (layers.Xattrs, error) {
	if d := l.gone.Load(); d != nil {
		_, err := d.stat("getxattr", p)
		return nil, err
	}
	x, err := l.inner.Xattrs(ctx, p)
	return x, l.ended(err)
}

// Open implements layers.Layer.
func (l *leaving) Open(ctx context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	if d := l.gone.Load(); d != nil {
		return nil, d.refuse("open", p)
	}
	f, err := l.inner.Open(ctx, p, want)
	if err != nil {
		return nil, l.ended(err)
	}
	return &leavingFile{f, l}, nil
}

// leavingFile is a file of a leaving.
type leavingFile struct {
	layers.File
	l *leaving
}

var _ extent.Settler = (*leavingFile)(nil)

// ReadAt implements layers.File.
func (f *leavingFile) ReadAt(ctx context.Context, b []byte, off int64) (int, error) {
	if f.l.gone.Load() != nil {
		return 0, ErrDetached
	}
	n, err := f.File.ReadAt(ctx, b, off)
	return n, f.l.ended(err)
}

// Settled implements extent.Settler.
func (f *leavingFile) Settled() bool {
	if k, ok := f.File.(extent.Settler); ok {
		return k.Settled()
	}
	a := f.Attr()
	return time.Since(time.Unix(a.Mtime.Sec, 0)) > 2*time.Second
}

// ReadMany implements layers.BulkReader.
func (l *leavingBulk) ReadMany(ctx context.Context, files []layers.Wanted) ([]layers.Content, error) {
	if l.gone.Load() != nil {
		return nil, ErrDetached
	}
	got, err := l.bulk.ReadMany(ctx, files)
	return got, l.ended(err)
}

// Coming implements layers.Scout where the layer does.
func (l *leaving) Coming(from layers.Path, names int) []layers.Listed {
	if s, ok := l.inner.(layers.Scout); ok && l.gone.Load() == nil {
		return s.Coming(from, names)
	}
	return nil
}

// Statfs implements layers.Layer.
func (l *leaving) Statfs(ctx context.Context) (layers.Statfs, error) {
	if l.gone.Load() != nil {
		return layers.Statfs{}, ErrDetached
	}
	st, err := l.inner.Statfs(ctx)
	return st, l.ended(err)
}

// Offline implements layers.Offliner: nobody waits for a source that is not asked.
func (l *leaving) Offline() error {
	if o, ok := l.inner.(layers.Offliner); ok && l.gone.Load() == nil {
		return o.Offline()
	}
	return nil
}

// Close implements layers.Layer.
func (l *leaving) Close() (err error) {
	l.close.Do(func() {
		if l.inner != nil {
			err = l.inner.Close()
		}
	})
	return err
}
