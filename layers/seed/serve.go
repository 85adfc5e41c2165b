package seed

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// ID implements layers.Layer. With Tree names it is Inner's.
func (l *Layer) ID() string { return l.id }

// Stat implements layers.Layer: seeded names without asking anybody.
func (l *Layer) Stat(ctx context.Context, p layers.Path) (layers.Attr, error) {
	if l.closed.Load() {
		return layers.Attr{}, l.wrap("stat", p, unix.EBADF)
	}
	if n := l.nodes[p]; n != nil {
		a, err := l.stat(ctx, n)
		return a, l.wrap("stat", p, err)
	}
	if err := l.foreign(p); err != nil {
		return layers.Attr{}, l.wrap("stat", p, err)
	}
	return l.inner.Stat(ctx, p)
}

// stat returns the attributes of n. If they are the seed's only and the source
// is within reach, it asks now.
func (l *Layer) stat(ctx context.Context, n *node) (layers.Attr, error) {
	if a, seen := n.current(); seen && n.isGone() {
		return layers.Attr{}, unix.ENOENT
	} else if seen {
		return a, nil
	}
	if l.inner != nil && l.Offline() == nil {
		a, err := l.inner.Stat(ctx, n.src)
		if !errors.Is(err, layers.ErrOffline) {
			return l.compared(n, a, err)
		}
	}
	a, _ := n.current()
	if a.Mode == 0 {
		return layers.Attr{}, layers.ErrOffline // not even its type is known
	}
	return a, nil
}

// compared is what Inner says of n now; ErrStale if the seed says otherwise.
func (l *Layer) compared(n *node, a layers.Attr, err error) (layers.Attr, error) {
	what, err := l.learn(n, a, err)
	if err != nil {
		return layers.Attr{}, err
	}
	if what != "" {
		l.log.Error("a file of the checkpoint changed on the source since the dump", "path", "/"+string(n.src), "how", what)
	}
	if what != "" && l.verify == Strict {
		return layers.Attr{}, layers.ErrStale
	}
	if n.isGone() {
		return layers.Attr{}, unix.ENOENT
	}
	a, _ = n.current()
	return a, nil
}

// isGone reports whether Inner was seen not to have n.
func (n *node) isGone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

func (n *node) current() (a layers.Attr, seen bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attr, n.seen
}

// foreign says why p, which is not seeded, cannot be asked of Inner.
func (l *Layer) foreign(p layers.Path) error {
	if l.inner == nil || l.names == Flat || l.hidden(p) {
		return unix.ENOENT
	}
	return nil
}

func (l *Layer) wrap(op string, p layers.Path, err error) error {
	if err == nil {
		return nil
	}
	var pe *layers.PathError
	if errors.As(err, &pe) {
		return err
	}
	return &layers.PathError{Op: op, Layer: l.id, Path: p, Err: err}
}

// StatMany implements layers.BulkStater: one exchange for what is not seeded.
func (l *Layer) StatMany(ctx context.Context, paths []layers.Path) ([]layers.Attr, []error, error) {
	attrs, errs := make([]layers.Attr, len(paths)), make([]error, len(paths))
	var ask []layers.Path
	var at []int
	for i, p := range paths {
		n := l.nodes[p]
		if n == nil {
			if err := l.foreign(p); err != nil {
				errs[i] = l.wrap("stat", p, err)
				continue
			}
		} else if _, seen := n.current(); seen || l.inner == nil {
			attrs[i], errs[i] = l.Stat(ctx, p)
			continue
		} else {
			p = n.src
		}
		ask, at = append(ask, p), append(at, i)
	}
	if len(ask) == 0 {
		return attrs, errs, nil
	}
	got, gotErrs, err := statMany(ctx, l.inner, ask)
	offline := errors.Is(err, layers.ErrOffline)
	if err != nil && !offline {
		return nil, nil, err
	}
	for j, i := range at {
		n := l.nodes[paths[i]]
		switch {
		case offline && n == nil:
			errs[i] = l.wrap("stat", paths[i], err)
		case offline:
			attrs[i], errs[i] = l.Stat(ctx, paths[i])
		case n == nil:
			attrs[i], errs[i] = got[j], gotErrs[j]
		default:
			attrs[i], errs[i] = l.compared(n, got[j], gotErrs[j])
			errs[i] = l.wrap("stat", paths[i], errs[i])
		}
	}
	return attrs, errs, nil
}

// ReadDir implements layers.Layer: Inner's entries, with the seed's attributes
// for seeded names.
func (l *Layer) ReadDir(ctx context.Context, p layers.Path) ([]layers.Entry, error) {
	if l.closed.Load() {
		return nil, l.wrap("readdir", p, unix.EBADF)
	}
	n := l.nodes[p]
	if l.inner == nil || l.names == Flat {
		return l.readSeeded(p, n)
	}
	if l.hidden(p) {
		return nil, l.wrap("readdir", p, unix.ENOENT)
	}
	entries, err := l.inner.ReadDir(ctx, p)
	if err != nil {
		return nil, err
	}
	return l.seeded(p, entries), nil
}

// seeded is what p holds where Inner has entries in it.
func (l *Layer) seeded(p layers.Path, entries []layers.Entry) []layers.Entry {
	if p == layers.Root {
		entries = slices.DeleteFunc(entries, func(e layers.Entry) bool { return l.hide[e.Name] })
	}
	n := l.nodes[p]
	if n == nil || len(n.names) == 0 {
		return entries
	}
	at := make(map[string]int, len(entries))
	for i := range entries {
		at[entries[i].Name] = i
	}
	for _, name := range n.names {
		child := l.nodes[p.Join(name)]
		e := child.dirEntry(name)
		i, listed := at[name]
		switch {
		case child.isGone():
		case listed:
			e.Ino = entries[i].Ino
			entries[i] = e
		default:
			// Gone from the source since it was seen. It stays a name here:
			// who reads it learns what happened.
			entries = append(entries, e)
		}
	}
	return entries
}

// readSeeded lists what the seed has in p.
func (l *Layer) readSeeded(p layers.Path, n *node) ([]layers.Entry, error) {
	if n == nil {
		return nil, l.wrap("readdir", p, unix.ENOENT)
	}
	if a, _ := n.current(); !a.IsDir() {
		return nil, l.wrap("readdir", p, unix.ENOTDIR)
	}
	entries := make([]layers.Entry, 0, len(n.names))
	for _, name := range n.names {
		if child := l.nodes[p.Join(name)]; !child.isGone() {
			entries = append(entries, child.dirEntry(name))
		}
	}
	return entries, nil
}

func (n *node) dirEntry(name string) layers.Entry {
	a, _ := n.current()
	e := layers.Entry{Name: name, Type: a.Type(), Ino: a.Ino}
	if a.Mode != 0 {
		e.Attr = &a
	}
	return e
}

// source returns the path of p in Inner, for what only Inner can answer.
func (l *Layer) source(p layers.Path) (layers.Path, error) {
	n := l.nodes[p]
	if n == nil {
		return p, l.foreign(p)
	}
	if l.inner == nil {
		return "", layers.ErrOffline
	}
	return n.src, nil
}

// Readlink implements layers.Layer. Images hold no targets: Inner is asked.
func (l *Layer) Readlink(ctx context.Context, p layers.Path) (string, error) {
	src, err := l.source(p)
	if err != nil {
		return "", l.wrap("readlink", p, err)
	}
	return l.inner.Readlink(ctx, src)
}

// Xattrs implements layers.Layer. The seed has none.
func (l *Layer) Xattrs(ctx context.Context, p layers.Path) (layers.Xattrs, error) {
	src, err := l.source(p)
	if errors.Is(err, layers.ErrOffline) || l.names == Flat && p == layers.Root {
		return nil, nil
	}
	if err != nil {
		return nil, l.wrap("xattrs", p, err)
	}
	return l.inner.Xattrs(ctx, src)
}

// Open implements layers.Layer. A seeded file is opened only as the version that
// was compared with the seed.
func (l *Layer) Open(ctx context.Context, p layers.Path, want *layers.Attr) (layers.File, error) {
	n := l.nodes[p]
	if n == nil {
		if err := l.foreign(p); err != nil {
			return nil, l.wrap("open", p, err)
		}
		return l.inner.Open(ctx, p, want)
	}
	a, err := l.stat(ctx, n)
	switch {
	case err != nil:
	case !a.IsRegular():
		err = layers.ErrNotRegular
	case l.inner == nil:
		err = layers.ErrOffline
	case want != nil && !a.SameVersion(want):
		err = layers.ErrStale
	}
	if err != nil {
		return nil, l.wrap("open", p, err)
	}
	if _, seen := n.current(); !seen {
		return nil, l.wrap("open", p, layers.ErrOffline)
	}
	if n.twin != nil && !n.twin.dead.Load() {
		return l.openTwinned(n, a), nil
	}
	return l.inner.Open(ctx, n.src, &a)
}

// Statfs implements layers.Layer. Without a source there is nothing to tell.
func (l *Layer) Statfs(ctx context.Context) (layers.Statfs, error) {
	if l.inner == nil {
		return layers.Statfs{Bsize: 4096, Frsize: 4096, NameLen: layers.NameMax}, nil
	}
	return l.inner.Statfs(ctx)
}

// Offline implements layers.Offliner.
func (l *Layer) Offline() error {
	if l.inner == nil {
		return layers.ErrOffline
	}
	if o, ok := l.inner.(layers.Offliner); ok {
		return o.Offline()
	}
	return nil
}

// Close implements layers.Layer.
func (l *Layer) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	for _, n := range l.twins {
		n.twin.close()
	}
	if l.inner == nil {
		return nil
	}
	return l.inner.Close()
}

// ModifiedSince returns the seeded regular files that Inner has modified after t.
func (l *Layer) ModifiedSince(t layers.Time) (ps []layers.Path) {
	for _, p := range sorted(l.nodes) {
		n := l.nodes[p]
		a, seen := n.current()
		if n.entry != nil && seen && a.IsRegular() && a.Has(layers.KnownTimes) && later(a.Mtime, t) {
			ps = append(ps, n.src)
		}
	}
	return ps
}
