package seed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Config is what New makes a Layer of.
type Config struct {
	Seed  Seed
	Inner layers.Layer // where the files are; nil: nowhere within reach, ever
	Names Names

	// Hide are names in the root directory that Inner may have and nobody gets
	// to see (proc, sys, dev, run of another host).
	Hide []layers.Path

	Verify Verify

	// Since is when the seed was made, by the clock of the files' times: a regular
	// file with a later mtime has changed. Zero: not known.
	Since layers.Time

	// Local is a directory of this host ("/") in which programs and libraries may lie
	// that are the same as Inner's, under the same paths: those are not fetched.
	// "" is none.
	Local string

	Logger *slog.Logger // nil: slog.Default()
}

// Verify says what becomes of files that are not as the seed has them.
type Verify uint8

const (
	Strict Verify = iota // New fails, and who meets one later gets ErrStale
	Warn                 // they are served as the source has them; see Layer.Changed
	Off                  // nobody looks
)

// Layer serves a Seed on top of another layer. It owns Inner and closes it.
type Layer struct {
	inner layers.Layer // immutable; may be nil
	names Names        // immutable
	hide  map[string]bool
	log   *slog.Logger

	verify  Verify      // immutable; so is since
	since   layers.Time //
	changed []Mismatch  // with Warn; immutable after New
	local   string
	twins   []*node // immutable after New

	// nodes are all seeded names and the directories that lead to them, by the
	// path they have in this layer. The map is immutable, each node guards
	// itself.
	nodes map[layers.Path]*node
	id    string

	closed atomic.Bool
}

var (
	_ layers.Layer      = (*Layer)(nil)
	_ layers.BulkStater = (*Layer)(nil)
	_ layers.Offliner   = (*Layer)(nil)
)

// node is one seeded name.
type node struct {
	src   layers.Path // in Inner; immutable
	entry *Entry      // nil for a directory of which only the name is known; immutable
	names []string    // of seeded names in this directory; immutable

	mu   sync.Mutex
	seen bool        // attr is Inner's, and was compared with the seed
	attr layers.Attr // protected by mu until seen, immutable then
	gone bool        // protected by mu: Inner does not have it, and nobody minds
	twin *twin       // of this host; immutable after New
}

// New makes a layer of c.Seed. With an Inner that can be reached it returns
// after one exchange with it; a file that is not as the seed has it is a
// *MismatchError that lists all of them. If Inner cannot be reached the layer
// serves what the seed says, and a warning is logged.
func New(ctx context.Context, c Config) (*Layer, error) {
	if err := c.Seed.check(); err != nil {
		return nil, err
	}
	l := &Layer{
		inner: c.Inner,
		names: c.Names,
		hide:  make(map[string]bool),
		log:   c.Logger,

		verify: c.Verify, since: c.Since, local: c.Local,
	}
	if l.log == nil {
		l.log = slog.Default()
	}
	for _, p := range c.Hide {
		if dir, name := p.Split(); dir != layers.Root || name == "" {
			return nil, fmt.Errorf("seed: only names in the root directory can be hidden, not %q", string(p))
		} else {
			l.hide[name] = true
		}
	}
	if err := l.plant(&c.Seed); err != nil {
		return nil, err
	}
	l.id = l.makeID()
	if l.inner == nil {
		return l, nil
	}
	return l, l.ask(ctx)
}

// plant makes the nodes.
func (l *Layer) plant(s *Seed) error {
	l.nodes = make(map[layers.Path]*node, len(s.Entries))
	if l.names == Flat {
		return l.plantFlat(s)
	}
	for _, d := range sorted(s.parents()) {
		l.nodes[d] = &node{src: d, attr: layers.Attr{Mode: unix.S_IFDIR | 0o755}}
	}
	for i := range s.Entries {
		e := &s.Entries[i]
		if e.Mode == 0 && l.nodes[e.Path] != nil {
			continue // others lie in it: a directory
		}
		if e.Mode == 0 && l.inner == nil {
			// Neither a file nor a directory that anybody could look at.
			l.log.Warn("not even the type of a file of the checkpoint is known, and there is no source to ask", "path", "/"+string(e.Path))
			continue
		}
		l.nodes[e.Path] = &node{src: e.Path, entry: e, attr: e.attr()}
	}
	for p := range l.nodes {
		if l.hidden(p) {
			return fmt.Errorf("seed: %q lies in a directory that every host has of its own", "/"+string(p))
		}
		if p != layers.Root {
			dir, name := p.Split()
			l.nodes[dir].names = append(l.nodes[dir].names, name)
		}
	}
	return nil
}

// plantFlat makes one directory of all regular files, as LazyFS did.
func (l *Layer) plantFlat(s *Seed) error {
	root := &node{seen: true, attr: layers.Attr{Mode: unix.S_IFDIR | 0o755}}
	l.nodes[layers.Root] = root
	for i := range s.Entries {
		e := &s.Entries[i]
		if e.Mode&unix.S_IFMT != unix.S_IFREG || e.Path == layers.Root {
			continue
		}
		name := flatName(e.Path)
		if !layers.ValidName(name) {
			return fmt.Errorf("%q cannot be a file name, as names=flat wants it: use names=tree", name)
		}
		if other := l.nodes[layers.Path(name)]; other != nil {
			return &CollisionError{Name: name, A: other.src, B: e.Path}
		}
		l.nodes[layers.Path(name)] = &node{src: e.Path, entry: e, attr: e.attr()}
		root.names = append(root.names, name)
	}
	return nil
}

func (l *Layer) makeID() string {
	switch {
	case l.inner != nil && l.names == Tree:
		return l.inner.ID() // same paths, same files: what is cached of it is good here
	case l.inner != nil:
		return "flat:" + l.inner.ID()
	}
	h := sha256.New()
	for _, p := range sorted(l.nodes) {
		n := l.nodes[p]
		_, _ = fmt.Fprintf(h, "%q %q %o %d\n", p, n.src, n.attr.Mode, n.attr.Size)
	}
	return "seed:" + hex.EncodeToString(h.Sum(nil)[:16])
}

// ask is the burst: it stats every node on Inner and compares.
func (l *Layer) ask(ctx context.Context) error {
	var nodes []*node
	var paths []layers.Path
	for _, p := range sorted(l.nodes) {
		if n := l.nodes[p]; !n.seen {
			nodes = append(nodes, n)
			paths = append(paths, n.src)
		}
	}
	attrs, errs, err := statMany(ctx, l.inner, paths)
	if errors.Is(err, layers.ErrOffline) {
		l.log.Warn("the source is not reachable: serving what the checkpoint says", "source", l.inner.ID(), "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	found := make([]string, len(nodes)) // how each differs
	for i, n := range nodes {
		found[i], err = l.learn(n, attrs[i], errs[i])
		if errors.Is(err, layers.ErrOffline) {
			continue // it went away meanwhile; compared when it is back
		}
		if err != nil {
			return &layers.PathError{Op: "stat", Layer: l.inner.ID(), Path: n.src, Err: err}
		}
	}
	if err := l.compareBuilds(ctx, nodes, found); err != nil {
		return err
	}
	bad := &MismatchError{Layer: l.inner.ID()}
	for i, n := range nodes {
		if found[i] != "" {
			bad.Files = append(bad.Files, Mismatch{Path: n.src, What: found[i]})
		}
	}
	if len(bad.Files) > 0 && l.verify == Strict {
		return bad
	}
	l.changed = bad.Files
	return l.findTwins(l.local, nodes, found)
}

// Changed lists what was not as the seed has it when New looked, with Warn.
func (l *Layer) Changed() []Mismatch { return l.changed }

// learn takes what Inner says of n. It returns how that differs from the seed,
// or an error if Inner said nothing of use.
func (l *Layer) learn(n *node, a layers.Attr, err error) (what string, _ error) {
	missing := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
	switch {
	case missing:
		what = "missing"
	case err != nil:
		return "", err
	case l.verify == Off:
	case n.entry != nil:
		what = n.entry.compare(&a, l.since)
	case !a.IsDir():
		what = typeName(a.Mode) + ", was a directory"
	}
	if what != "" && l.verify == Strict {
		return what, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.seen {
		n.attr, n.gone, n.seen = a, missing, true
	}
	if l.verify == Off {
		what = ""
	}
	return what, nil
}

// statMany asks l about all paths, in one exchange if it can.
func statMany(ctx context.Context, l layers.Layer, paths []layers.Path) ([]layers.Attr, []error, error) {
	if b, ok := l.(layers.BulkStater); ok {
		return b.StatMany(ctx, paths)
	}
	attrs, errs := make([]layers.Attr, len(paths)), make([]error, len(paths))
	for i, p := range paths {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if attrs[i], errs[i] = l.Stat(ctx, p); errors.Is(errs[i], layers.ErrOffline) {
			return nil, nil, errs[i]
		}
	}
	return attrs, errs, nil
}

// hidden reports whether p is, or lies below, a name that nobody gets to see.
func (l *Layer) hidden(p layers.Path) bool {
	if len(l.hide) == 0 || p == layers.Root {
		return false
	}
	for i := range len(p) {
		if p[i] == '/' {
			return l.hide[string(p[:i])]
		}
	}
	return l.hide[string(p)]
}
