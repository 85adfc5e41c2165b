// Package remember is a layer around a layer whose storage can go out of reach:
// what was seen of names and attributes is remembered, and answers while the
// storage cannot be asked. Contents are not its business.
//
// It never turns "cannot look" into "is not there": a name is absent only if its
// directory was listed, while the storage was in reach, without it. And it never
// answers instead of storage that can be asked.
//
// Start reading at New.
package remember

import (
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// maxPaths bounds what is remembered: some 40 MB with names of usual length. Past
// it, what is forgotten first is arbitrary.
const maxPaths = 1 << 17

// Layer remembers for another layer.
type Layer struct {
	layers.Layer // asked first

	mu    sync.Mutex
	paths map[layers.Path]*memory // protected by mu
}

// memory is what was last seen of one path.
type memory struct {
	attr    *layers.Attr
	target  *string         // of a symlink
	entries []layers.Entry  // of a directory; not changed once set
	names   map[string]bool // of entries
}

var (
	_ layers.Layer      = (*Layer)(nil)
	_ layers.BulkStater = (*Layer)(nil)
	_ layers.Offliner   = (*Layer)(nil)
)

// New wraps inner, which it closes.
func New(inner layers.Layer) *Layer {
	return &Layer{Layer: inner, paths: make(map[layers.Path]*memory)}
}

// Offline implements layers.Offliner.
func (l *Layer) Offline() error {
	if o, ok := l.Layer.(layers.Offliner); ok {
		return o.Offline()
	}
	return nil
}

// away reports whether err says that the storage could not be asked.
func away(err error) bool {
	return errors.Is(err, layers.ErrOffline) || errors.Is(err, layers.ErrDenied)
}

func (l *Layer) note(p layers.Path, f func(m *memory)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.paths[p]
	if m == nil {
		for old := range l.paths {
			if len(l.paths) < maxPaths {
				break
			}
			delete(l.paths, old)
		}
		m = &memory{}
		l.paths[p] = m
	}
	f(m)
}

func (l *Layer) forget(p layers.Path) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.paths, p)
}

// recall runs f on what is remembered of p, if anything is.
func (l *Layer) recall(p layers.Path, f func(m *memory) bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.paths[p]
	return m != nil && f(m)
}

// Stat implements layers.Layer.
func (l *Layer) Stat(ctx context.Context, p layers.Path) (layers.Attr, error) {
	if err := l.Offline(); err != nil {
		if a, known := l.statMemory(p); known != nil {
			return a, ignore(known, errRemembered)
		}
	}
	a, err := l.Layer.Stat(ctx, p)
	return l.noteStat(p, a, err)
}

// errRemembered stands for "known, and there".
var errRemembered = errors.New("remembered")

func ignore(err, what error) error {
	if err == what {
		return nil
	}
	return err
}

// statMemory answers from memory: errRemembered with attributes, ENOENT, or nil
// if nothing is known.
func (l *Layer) statMemory(p layers.Path) (a layers.Attr, known error) {
	if l.recall(p, func(m *memory) bool {
		if m.attr != nil {
			a = *m.attr
		}
		return m.attr != nil
	}) {
		return a, errRemembered
	}
	dir, name := p.Split()
	if name != "" && l.recall(dir, func(m *memory) bool { return m.names != nil && !m.names[name] }) {
		return a, &layers.PathError{Op: "stat", Layer: l.ID(), Path: p, Err: unix.ENOENT}
	}
	return a, nil
}

func (l *Layer) noteStat(p layers.Path, a layers.Attr, err error) (layers.Attr, error) {
	switch {
	case err == nil:
		l.note(p, func(m *memory) {
			if m.attr != nil && m.attr.Type() != a.Type() {
				*m = memory{}
			}
			m.attr = &a
		})
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		l.forget(p)
	case away(err):
		if a, known := l.statMemory(p); known != nil {
			return a, ignore(known, errRemembered)
		}
	}
	return a, err
}

// StatMany implements layers.BulkStater, one by one where the layer under it
// does not.
func (l *Layer) StatMany(ctx context.Context, paths []layers.Path) ([]layers.Attr, []error, error) {
	b, ok := l.Layer.(layers.BulkStater)
	if !ok {
		attrs, errs := make([]layers.Attr, len(paths)), make([]error, len(paths))
		for i, p := range paths {
			attrs[i], errs[i] = l.Stat(ctx, p)
		}
		return attrs, errs, ctx.Err()
	}
	attrs, errs, err := b.StatMany(ctx, paths)
	if err != nil {
		return nil, nil, err
	}
	for i, p := range paths {
		attrs[i], errs[i] = l.noteStat(p, attrs[i], errs[i])
	}
	return attrs, errs, nil
}

// ReadDir implements layers.Layer.
func (l *Layer) ReadDir(ctx context.Context, p layers.Path) (entries []layers.Entry, err error) {
	remembered := func() bool {
		return l.recall(p, func(m *memory) bool { entries = slices.Clone(m.entries); return m.names != nil })
	}
	if l.Offline() != nil && remembered() {
		return entries, nil
	}
	entries, err = l.Layer.ReadDir(ctx, p)
	if err != nil {
		if away(err) && remembered() {
			return entries, nil
		}
		return nil, err
	}
	names := make(map[string]bool, len(entries))
	for _, e := range entries {
		names[e.Name] = true
		if e.Attr != nil {
			_, _ = l.noteStat(p.Join(e.Name), *e.Attr, nil)
		}
	}
	mine := slices.Clone(entries) // the caller may change what it gets
	l.note(p, func(m *memory) { m.entries, m.names = mine, names })
	return entries, nil
}

// Readlink implements layers.Layer.
func (l *Layer) Readlink(ctx context.Context, p layers.Path) (target string, err error) {
	remembered := func() bool {
		return l.recall(p, func(m *memory) bool {
			if m.target != nil {
				target = *m.target
			}
			return m.target != nil
		})
	}
	if l.Offline() != nil && remembered() {
		return target, nil
	}
	target, err = l.Layer.Readlink(ctx, p)
	if err != nil {
		if away(err) && remembered() {
			return target, nil
		}
		return "", err
	}
	t := target
	l.note(p, func(m *memory) { m.target = &t })
	return target, nil
}
