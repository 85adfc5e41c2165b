package overlay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// Missing is something of a scope that is not here.
type Missing struct {
	Path  layers.Path // in the mount, or in the lower where it shows nowhere in the mount
	Bytes int64       // that are missing; of a directory that cannot be listed, unknown: 0
	Why   error       // why it could not be brought; nil: nobody has tried
}

// missingMost is how many are told by name.
const missingMost = 10000

// look is one walk through a scope. It goes by the lowers' listings, and looks each name
// up as a program would: what the upper has is here, what something hides is no matter.
// Pending files are no matter of it either: what they miss is counted as it comes
// (FS.Progress), wherever they lie.
type look struct {
	fs    *FS
	scope Scope
	bring bool                  // what is not in the upper comes up
	why   map[layers.Path]error // why something could not be brought before
	notes []*departed           // of each source, what is there: to be written down; nil: is not
	crew  chan struct{}
	under sync.WaitGroup

	mu    sync.Mutex
	when  time.Time // when it ended; zero: under way
	total Amount    // what there is in the scope
	below Amount    // of that, what is not in the upper
	list  []Missing // of below
}

// counted returns what there is in the scope, what of it is not in the upper, and when
// the look ended: zero while it is under way.
func (k *look) counted() (total, below Amount, when time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.total, k.below, k.when
}

// whole reports whether it has ended, and found all of the scope in the upper.
func (k *look) whole() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.when.IsZero() && k.below.Files == 0
}

// lookCrew is how many files come up at once.
const lookCrew = 8

// run walks. An error is that ctx has ended; what else goes wrong is missing.
func (k *look) run(ctx context.Context) error {
	k.crew = make(chan struct{}, lookCrew)
	for i, l := range k.fs.sources() {
		r := k.fs.reachOf(&k.scope, l)
		w := &lookAt{look: k, l: l, r: r}
		if k.notes != nil {
			k.fs.knownDirs(r, l)
			w.note = k.notes[i]
		}
		root := k.fs.root
		k.fs.table.ref(root)
		w.dir(ctx, root, layers.Root)
		k.fs.Forget(root.id, 1)
		k.under.Wait()
	}
	k.orphans()
	if err := ctx.Err(); err != nil {
		return err
	}
	k.mu.Lock()
	k.when = time.Now()
	k.mu.Unlock()
	return nil
}

// found counts something of the scope that is here.
func (k *look) found(bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.total.add(bytes)
}

// lacks counts something of the scope that is not.
func (k *look) lacks(path layers.Path, bytes int64, why error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if why == nil {
		why = k.why[path]
	}
	k.total.add(bytes)
	k.below.add(bytes)
	if len(k.list) < missingMost {
		k.list = append(k.list, Missing{path, bytes, why})
	}
}

// whys returns why what is missing could not be brought.
func (k *look) whys() map[layers.Path]error {
	k.mu.Lock()
	defer k.mu.Unlock()
	why := make(map[layers.Path]error, len(k.list))
	for _, m := range k.list {
		why[m.Path] = m.Why
	}
	return why
}

// stuck reports whether only somebody can end that what is missing is: it was tried,
// and the source was there.
func (k *look) stuck() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.list {
		if !isForLater(m.Why) {
			return false
		}
	}
	return true
}

// lookAt is the part of a look that is one source's.
type lookAt struct {
	*look
	l    *layer
	r    *reach
	note *departed

	waited time.Duration // for the source while it was away
}

// dir goes through the directory n, which is at path in the mount and has a part in the
// source.
func (w *lookAt) dir(ctx context.Context, n *node, path layers.Path) {
	ref := n.lowerIn(w.l)
	if ref == nil || ctx.Err() != nil {
		return
	}
	es, err := patiently(ctx, w, func(ctx context.Context) ([]layers.Entry, error) { return w.l.ReadDir(ctx, ref.path) })
	switch {
	case err != nil:
		if !nothing(err) && ctx.Err() == nil && (w.r.goesInto(path, ref.path) || w.r.wants(path, ref.path)) {
			w.lacks(path, 0, err)
		}
		w.moved(ctx, n, path, nil)
		return
	}
	var note *departedDir
	if w.note != nil {
		note = &departedDir{attr: *ref.attr, left: map[string]layers.Attr{}}
		w.mu.Lock()
		w.note.dirs[ref.path] = note
		w.mu.Unlock()
	}
	seen := make(map[string]bool, len(es))
	for i := range es {
		if ctx.Err() != nil {
			return
		}
		e := &es[i]
		if n == w.fs.root && e.Name == Reserved {
			continue
		}
		there, at := path.Join(e.Name), ref.path.Join(e.Name)
		if w.r.wants(there, at) || w.r.goesInto(there, at) || note != nil {
			seen[e.Name] = w.name(ctx, n, there, e, at, note)
		}
	}
	w.moved(ctx, n, path, seen)
}

// name looks at the name e of the directory n, which is at path in the mount and at in
// the source. It reports whether all there is to know of it is known.
func (w *lookAt) name(ctx context.Context, n *node, path layers.Path, e *layers.Entry, at layers.Path, note *departedDir) (seen bool) {
	fs := w.fs
	f, err := patiently(ctx, w, func(ctx context.Context) (*found, error) { return w.lookup(ctx, n, e) })
	if nothing(err) {
		return true // a whiteout hides it, or it has gone
	}
	if err != nil {
		if ctx.Err() != nil {
			return false
		}
		if w.r.wants(path, at) || w.r.goesInto(path, at) {
			w.lacks(path, entrySize(e), err)
		}
		if note != nil {
			w.leave(note, e, nil)
		}
		return false
	}
	var part *lowerRef
	for i := range f.lowers {
		if f.lowers[i].layer == w.l {
			part = &f.lowers[i]
		}
	}
	if part != nil {
		at = part.path // the directory may be another that has taken this name
	}
	wanted := w.r.wants(path, at)
	shows := !f.upper && len(f.lowers) > 0 && f.lowers[0].layer == w.l
	switch {
	case !shows && part == nil && !f.upper:
		return true // another lower has it
	case hasObject(f.pending):
	case !shows && wanted:
		w.found(sizeOf(&f.attr))
	case shows && note != nil:
		w.leave(note, e, &f.attr)
	}
	// Who works in a directory that is here is told what it has not.
	into := f.attr.IsDir() && part != nil && (w.r.goesInto(path, at) || note != nil && f.upper)
	if !into && (!shows || !wanted) {
		return !f.attr.IsDir()
	}
	child := fs.table.adopt(fs, f, n, e.Name)
	if !f.attr.IsDir() {
		w.file(ctx, child, path, &f.attr)
		return true
	}
	defer fs.Forget(child.id, 1)
	if shows && wanted {
		w.up(ctx, child, path, &f.attr)
	}
	if into {
		w.dir(ctx, child, path)
	}
	return into
}

// lookup looks e up, as it was just listed if nothing but the upper can hide it.
func (w *lookAt) lookup(ctx context.Context, n *node, e *layers.Entry) (*found, error) {
	n.mu.RLock()
	highest := len(n.lowers) > 0 && n.lowers[0].layer == w.l
	n.mu.RUnlock()
	if highest && e.Attr != nil {
		if f, err := w.fs.lookupEntry(ctx, n, e); err == nil {
			return f, nil
		}
	}
	return w.fs.lookup(ctx, n, e.Name)
}

// lookPatience is how long a look waits for a source that is known to be away, of all
// it asks for together: what it has told before it tells again at once.
const lookPatience = 2 * time.Second

// patiently asks. A drain waits for a source that is away; who wants to know what is
// missing wants to know it without.
func patiently[T any](ctx context.Context, w *lookAt, ask func(context.Context) (T, error)) (T, error) {
	why := w.l.leave.Offline()
	if w.bring || why == nil {
		return ask(ctx)
	}
	const least = 20 * time.Millisecond
	began := time.Now()
	short, cancel := context.WithTimeout(ctx, max(lookPatience-w.waited, least))
	defer cancel()
	v, err := ask(short)
	w.waited += time.Since(began)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", layers.ErrOffline, why)
	}
	return v, err
}

func entrySize(e *layers.Entry) int64 {
	if e.Attr == nil {
		return 0
	}
	return sizeOf(e.Attr)
}

// leave notes a name that stays behind.
func (w *lookAt) leave(note *departedDir, e *layers.Entry, a *layers.Attr) {
	switch {
	case a != nil:
	case e.Attr != nil:
		a = e.Attr
	default:
		a = &layers.Attr{Mode: e.Type}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	note.left[e.Name] = *a
}

// file brings the file up, if it is to be, beside others. It forgets the node.
func (w *lookAt) file(ctx context.Context, n *node, path layers.Path, a *layers.Attr) {
	if !w.bring {
		w.fs.Forget(n.id, 1)
		w.lacks(path, sizeOf(a), nil)
		return
	}
	if w.fs.fill.roomFor(ctx) != nil {
		w.fs.Forget(n.id, 1)
		return
	}
	w.crew <- struct{}{}
	w.under.Add(1)
	go func() {
		defer w.under.Done()
		defer func() { <-w.crew }()
		defer w.fs.Forget(n.id, 1)
		w.up(ctx, n, path, a)
	}()
}

// up brings n up, if it is to be; of a file of a source that is its stub.
func (w *lookAt) up(ctx context.Context, n *node, path layers.Path, a *layers.Attr) {
	if !w.bring {
		w.lacks(path, sizeOf(a), nil)
		return
	}
	err := w.fs.up(ctx, n, whole)
	switch {
	case err == nil && n.isPending(): // it is counted once it is whole
	case err == nil:
		w.found(sizeOf(a))
	case nothing(err) || ctx.Err() != nil:
	default:
		w.lacks(path, sizeOf(a), err)
	}
}

// moved goes through the directories that the upper has in n, but for those that were
// seen: they, or what is in them, may have been moved here from elsewhere in the source.
func (w *lookAt) moved(ctx context.Context, n *node, path layers.Path, seen map[string]bool) {
	fs := w.fs
	if !n.isUpper() || ctx.Err() != nil {
		return
	}
	d, err := fs.upperDir(n)
	if nothing(err) {
		return
	}
	var es []layers.Entry
	if err == nil {
		es, err = local.ReadDirAt(ctx, d.fd)
		fs.dirs.release(d)
	}
	if err != nil {
		w.lacks(path, 0, err)
		return
	}
	for i := range es {
		e := &es[i]
		if e.Type != unix.S_IFDIR || seen[e.Name] || n == fs.root && e.Name == Reserved {
			continue
		}
		there := path.Join(e.Name)
		f, err := patiently(ctx, w, func(ctx context.Context) (*found, error) { return fs.lookup(ctx, n, e.Name) })
		if nothing(err) || ctx.Err() != nil {
			continue
		}
		if err != nil {
			w.lacks(there, 0, err)
			continue
		}
		child := fs.table.adopt(fs, f, n, e.Name)
		if ref := child.lowerIn(w.l); ref != nil && (w.r.goesInto(there, ref.path) || w.note != nil) {
			w.dir(ctx, child, there)
		} else {
			w.moved(ctx, child, there, nil)
		}
		fs.Forget(child.id, 1)
	}
}

// orphans counts the files that somebody has open and that have no name any more: what
// the source has of them is missed as well.
func (k *look) orphans() {
	for _, n := range k.fs.openedNodes() {
		n.mu.RLock()
		obj, size, lost := n.obj, int64(0), n.dead != nil && !n.upper && n.src != nil
		if lost {
			size = n.src.want.Size
			if obj != nil {
				size = obj.Missing()
			}
		}
		n.mu.RUnlock()
		if lost && size > 0 {
			k.lacks("", size, errOrphan)
		}
	}
}

var errOrphan = errors.New("a file without a name that is open still: end or wait for who has it open")
