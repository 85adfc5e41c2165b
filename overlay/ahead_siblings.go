package overlay

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/extent"
)

const (
	// A file that is not longer comes whole when it is opened, and with it small ones
	// beside it. On a slow link what is small is what comes in smallDelay.
	smallMost  = 128 << 10
	smallLeast = 16 << 10
	smallDelay = 10 * time.Millisecond

	// How many files may be fetched ahead in a directory when the first is opened, how
	// many more for each one that is opened after it was, and how many at all.
	// Somebody who walks a tree begins with what served in the directory before.
	siblingsFirst = 16
	siblingsMore  = 3
	siblingsMost  = 512
	siblingsBytes = 32 << 20

	// The most in one call of a layers.BulkReader.
	batchFiles = 256
	batchBytes = 4 << 20
	batchDelay = 100 * time.Millisecond // by time, as who opens one of the files may wait for all
	batchLeast = 256 << 10
	burstBytes = 128 << 10 // with the first file, which somebody waits for

	// familiesMost bounds the listings that are kept, by the names in them. A directory
	// takes as much as some names.
	familiesMost = 1 << 16
	familyNames  = 4
)

// families are the directories of sources that were listed last: what is known to lie
// beside a file. It is protected by ahead.mu.
type families struct {
	at    map[familyKey]*list.Element
	order list.List // of *family; the one that was listed last first
	names int       // in all
	last  *family   // in which a file was opened last
}

type familyKey struct {
	layer layers.Layer
	dir   layers.Path
}

// family is a directory of a source, as it was listed.
type family struct {
	familyKey
	id    string // the layer's
	names int    // in it

	mu     sync.Mutex
	listed []layers.Entry // until it is needed: most directories are never read from
	files  []sibling      // the small ones, in the order in which we list them
	at     map[string]int
	byName []int // the same in the order of names
	rank   []int // the inverse of byName
	prev   int   // the one that was opened last, or -1
	order  int   // above 0: files are opened in the order of names, not of the listing
	left   int   // how many nobody has asked for
	sent   int   // how many were asked for
	used   int   // how many of those were opened since
	out    int64 // bytes of those that were not
	first  int   // how many may be asked for before any is used
}

// sibling is a small file of a family.
type sibling struct {
	name string
	attr *layers.Attr

	come  chan struct{} // nil until it was asked for; closed when it has come, or will not
	since time.Time     // when that was
	early bool          // it was, before anybody was in its directory
	used  bool
}

// listed notes what a source has said of a directory. es is not changed any more.
func (a *ahead) listed(l *layer, dir layers.Path, es []layers.Entry) {
	if _, ok := l.Layer.(layers.BulkReader); !ok || a.off || len(es) == 0 {
		return
	}
	a.listedAs(familyKey{l.Layer, dir}, l.ID(), es)
}

// listedAs returns the family of k, which holds es.
func (a *ahead) listedAs(k familyKey, id string, es []layers.Entry) *family {
	if f := a.family(k); f != nil && f.isStill(es) {
		return f
	}
	f := &family{familyKey: k, id: id, names: familyNames + len(es), listed: es, prev: -1}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.families.add(f)
	return f
}

// family returns the directory k as it was listed last, or nil.
func (a *ahead) family(k familyKey) *family {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.families.at[k]; e != nil {
		a.families.order.MoveToFront(e)
		return e.Value.(*family)
	}
	return nil
}

// add is called with ahead.mu held.
func (fs *families) add(f *family) {
	if fs.at == nil {
		fs.at = make(map[familyKey]*list.Element)
	}
	if e := fs.at[f.familyKey]; e != nil {
		fs.drop(e)
	}
	fs.at[f.familyKey] = fs.order.PushFront(f)
	fs.names += f.names
	for e := fs.order.Back(); fs.names > familiesMost && e != fs.order.Front(); e = fs.order.Back() {
		fs.drop(e)
	}
}

func (fs *families) drop(e *list.Element) {
	f := fs.order.Remove(e).(*family)
	delete(fs.at, f.familyKey)
	fs.names -= f.names
}

// familyOf returns the directory of the file that is being opened, if it was listed,
// else nil, and what the file is called in it.
func (a *ahead) familyOf(src *source) (*family, string) {
	dir, name := src.path.Split()
	a.mu.Lock()
	defer a.mu.Unlock()
	fs := &a.families
	e := fs.at[familyKey{src.layer, dir}]
	if e == nil {
		return nil, name
	}
	f := e.Value.(*family)
	if fs.last != f {
		first := fs.last.next()
		f.mu.Lock()
		f.first = max(f.first, first)
		f.mu.Unlock()
		fs.last = f
	}
	return f, name
}

// next is how many may be asked for in the directory after f: more if those of f were
// opened.
func (f *family) next() int {
	if f == nil {
		return siblingsFirst
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.sent == 0:
		return max(f.first, siblingsFirst)
	case 2*f.used >= f.sent:
		return min(4*f.first, siblingsMost)
	}
	return siblingsFirst
}

// sort makes files of what was listed. The caller holds f.mu.
func (f *family) sort() {
	if f.listed == nil {
		return
	}
	for _, e := range newListing(f.listed).entries {
		if isSmall(&e) {
			f.files = append(f.files, sibling{name: e.Name, attr: e.Attr})
		}
	}
	f.listed, f.left = nil, len(f.files)
	f.at = make(map[string]int, len(f.files))
	f.byName, f.rank = make([]int, len(f.files)), make([]int, len(f.files))
	for i := range f.files {
		f.at[f.files[i].name] = i
		f.byName[i] = i
	}
	slices.SortFunc(f.byName, func(i, j int) int { return compare(f.files[i].name, f.files[j].name) })
	for r, i := range f.byName {
		f.rank[i] = r
	}
}

func isSmall(e *layers.Entry) bool {
	a := e.Attr
	return a != nil && a.IsRegular() && a.Has(layers.KnownSize|layers.KnownTimes) && a.Size > 0 && a.Size <= smallMost
}

// isStill reports whether f is being fetched and what es shows: then what is on its way
// is waited for.
func (f *family) isStill(es []layers.Entry) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent == f.used {
		return false
	}
	small := 0
	for j := range es {
		if !isSmall(&es[j]) {
			continue
		}
		small++
		if i, ok := f.at[es[j].Name]; !ok || !f.files[i].attr.SameVersion(es[j].Attr) {
			return false
		}
	}
	return small == len(f.files)
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// after returns the file that is read after i, by the order in which files have been
// read. The caller holds f.mu.
func (f *family) after(i int) int {
	if f.order > 0 {
		return f.byName[(f.rank[i]+1)%len(f.files)]
	}
	return (i + 1) % len(f.files)
}

// learnOrder notes that the file i was opened after p. The caller holds f.mu.
func (f *family) learnOrder(p, i int) {
	near := func(from, to int) bool { return to > from && to <= from+4 }
	names, list := near(f.rank[p], f.rank[i]), near(p, i)
	before := f.order > 0
	switch {
	case names && !list:
		f.order = min(f.order+1, 4)
	case list && !names:
		f.order = max(f.order-1, -4)
	}
	if before != (f.order > 0) {
		f.sent, f.out = f.used, 0 // what else was asked for was asked for in vain
	}
}

// opened notes that the file name is being opened, as what want describes. It returns
// what is known of it, nothing if it was listed as something else.
func (f *family) opened(name string, want *layers.Attr) (known sibling) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sort()
	i, ok := f.at[name]
	if !ok {
		return known
	}
	s := &f.files[i]
	if p := f.prev; p >= 0 && p != i {
		f.learnOrder(p, i)
	}
	f.prev = i
	switch {
	case s.come == nil:
		s.come = make(chan struct{}) // who opens it brings it
		close(s.come)
		f.left--
	case !s.used:
		f.used++
		f.out = max(f.out-s.attr.Size, 0)
	}
	s.used = true
	if s.attr.SameVersion(want) {
		known = *s
	}
	s.early = false
	return known
}

// choose returns which files are to be asked for now: no more than most, and no more
// bytes than that, with those that were asked for and not opened yet no more than kept.
func (f *family) choose(most int, mostBytes, kept int64) (which []int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.prev < 0 || f.left == 0 {
		return nil, 0
	}
	// What is asked for and not opened yet is kept between half and all of this.
	out, want := f.sent-f.used, min(max(f.first, siblingsFirst)+siblingsMore*f.used, siblingsMost)
	if out > want/2 {
		return nil, 0
	}
	most, mostBytes = min(most, want-out), min(mostBytes, kept-f.out)
	i := f.prev
	for range f.files {
		i = f.after(i)
		s := &f.files[i]
		if s.come != nil {
			continue
		}
		if len(which) == most || bytes+s.attr.Size > mostBytes {
			return which, bytes
		}
		f.ask(s)
		which = append(which, i)
		bytes += s.attr.Size
	}
	return which, bytes
}

// ask notes that s is asked for. The caller holds f.mu.
func (f *family) ask(s *sibling) {
	s.come, s.since = make(chan struct{}), time.Now()
	f.left--
	f.sent++
	f.out += s.attr.Size
}

// walked reports whether what was asked for is being opened, here or in the directory
// before.
func (f *family) walked() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used > 0 || f.first > siblingsFirst
}

// bringSmall makes obj, the file of h that is being opened, whole if it is small, and
// has small files beside it fetched. It reports whether obj is whole: then nothing
// needs to be asked of the source. The error is why it could not be asked.
func (fs *FS) bringSmall(ctx context.Context, h *handle, obj *extent.Object, src *source) (whole bool, err error) {
	a := &fs.ahead
	bulk, ok := src.layer.(layers.BulkReader)
	if !ok || a.off || src.want.Size > smallMost || !src.Settled() {
		return obj.Missing() == 0, nil
	}
	l := a.link(src.layer)
	f, name := a.familyOf(src)
	if f != nil {
		s := f.opened(name, &src.want)
		if f.walked() {
			fs.bringSiblings(f, l)
		}
		a.trail.came(f, s.early)
		fs.bringTrail(f, l)
		if obj.Missing() > 0 && s.come != nil {
			s.wait(ctx, l.patience())
		}
	}
	switch {
	case obj.Missing() == 0:
		return true, nil
	case h.writable() || src.want.Size > max(smallLeast, l.within(smallDelay, smallMost)):
		return false, nil // it may not be read, or not all of it
	}
	return fs.bringOne(ctx, bulk, l, obj, src, f)
}

// wait waits until s has come, though no longer than patience after it was asked for:
// the link may be slower for what nobody waits for.
func (s *sibling) wait(ctx context.Context, patience time.Duration) {
	t := time.NewTimer(patience - time.Since(s.since))
	defer t.Stop()
	select {
	case <-s.come:
	case <-t.C:
	case <-ctx.Done():
	}
}

// bringOne fetches a small file whole, where opening it takes an exchange and reading it
// another, and in the same exchange the first of those beside it.
func (fs *FS) bringOne(ctx context.Context, bulk layers.BulkReader, l *link, obj *extent.Object, src *source, f *family) (whole bool, err error) {
	ask := []layers.Wanted{{Path: src.path, Attr: &src.want}}
	b := burst{f: f}
	if f != nil {
		b.which, _ = f.choose(siblingsFirst, burstBytes, fs.ahead.share(siblingsBytes))
		ask = append(ask, fs.wanted(&b)...)
		fs.bringTrail(f, l)
	}
	got, err := readMany(ctx, bulk, l, ask)
	if err != nil {
		b.forgo()
		return false, err
	}
	// Those beside it are kept by somebody else.
	if !fs.ahead.begin(0, func() error { return fs.keepSiblings(&b, got[1:]) }) {
		b.done(len(b.which))
	}
	c := &got[0]
	if c.Err != nil || !c.Settled || int64(len(c.Data)) != src.want.Size {
		return false, c.Err
	}
	return obj.Put(0, c.Data) == nil && obj.Missing() == 0, nil
}

// readMany is bulk.ReadMany over l.
func readMany(ctx context.Context, bulk layers.BulkReader, l *link, ask []layers.Wanted) ([]layers.Content, error) {
	began := time.Now()
	l.sent()
	got, err := bulk.ReadMany(ctx, ask)
	if err == nil && len(got) != len(ask) {
		err = layers.ErrCorrupt
	}
	var sum int64
	for i := range got {
		sum += int64(len(got[i].Data))
	}
	if err != nil {
		sum = 0
	}
	l.landed(sum, began)
	return got, err
}

// bringSiblings begins to fetch what is to be here of f.
func (fs *FS) bringSiblings(f *family, l *link) {
	most := max(batchLeast, min(l.within(batchDelay, batchLeast), batchBytes))
	which, bytes := f.choose(batchFiles, most, fs.ahead.share(siblingsBytes))
	if len(which) == 0 {
		return
	}
	b := &burst{f: f, which: which}
	if !fs.ahead.begin(bytes, func() error { return fs.fetchSiblings([]*burst{b}, l) }) {
		b.forgo()
	}
}

// burst is some files of a family that were asked for together. They are its own until
// their come is closed.
type burst struct {
	f     *family
	which []int // in f.files
	asked []int // in which: those that were not here
	over  int   // so many of which have come, or will not
}

// done notes that the first n files of b have come, or will not.
func (b *burst) done(n int) {
	for ; b.over < n; b.over++ {
		close(b.f.files[b.which[b.over]].come)
	}
}

// forgo takes b back: its files may be asked for again.
func (b *burst) forgo() {
	if len(b.which) == 0 {
		return
	}
	f := b.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range b.which {
		s := &f.files[i]
		close(s.come)
		s.come, s.early = nil, false
		f.left++
		if !s.used {
			f.sent--
			f.out -= s.attr.Size
		}
	}
	f.sent, f.out = max(f.sent, f.used), max(f.out, 0)
}

func (b *burst) source(i int) extent.Source {
	s := &b.f.files[b.which[i]]
	return extent.Source{LayerID: b.f.id, Path: b.f.dir.Join(s.name), Version: s.attr.Version(), Mode: s.attr.Mode}
}

// wanted returns what is to be asked for of b: what is not here.
func (fs *FS) wanted(b *burst) (ask []layers.Wanted) {
	for i, j := range b.which {
		if src := b.source(i); !fs.cache().Holds(src) {
			ask = append(ask, layers.Wanted{Path: src.Path, Attr: b.f.files[j].attr})
			b.asked = append(b.asked, i)
		}
	}
	return ask
}

// fetchSiblings brings the files of bs that are not here, of one source.
func (fs *FS) fetchSiblings(bs []*burst, l *link) error {
	var ask []layers.Wanted
	for _, b := range bs {
		ask = append(ask, fs.wanted(b)...)
	}
	var got []layers.Content
	var err error
	if len(ask) > 0 {
		got, err = readMany(fs.ahead.ctx, bs[0].f.layer.(layers.BulkReader), l, ask)
	}
	var errs error
	for _, b := range bs {
		if err != nil {
			b.forgo()
			continue
		}
		errs = errors.Join(errs, fs.keepSiblings(b, got))
		got = got[len(b.asked):]
	}
	return errors.Join(err, errs)
}

// keepSiblings keeps what was asked for of b, with which got begins.
func (fs *FS) keepSiblings(b *burst, got []layers.Content) (err error) {
	defer func() { b.done(len(b.which)) }()
	for k, i := range b.asked {
		b.done(i)
		c, src := &got[k], b.source(i)
		if c.Err != nil || !c.Settled || int64(len(c.Data)) != src.Version.Size {
			continue // who opens it learns why
		}
		err = errors.Join(err, keepWhole(fs.cache(), src, c.Data))
		c.Data = nil
	}
	return err
}
