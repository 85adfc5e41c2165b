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

	// The most in one call of a layers.BulkReader.
	batchFiles = 256
	batchBytes = 4 << 20
	batchDelay = 100 * time.Millisecond // by time, as who opens one of the files may wait for all
	batchLeast = 256 << 10

	// familiesMost bounds the listings that are kept, by the names in them.
	familiesMost = 1 << 16
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

	mu      sync.Mutex
	listed  []layers.Entry // until it is needed: most directories are never read from
	files   []sibling      // the small ones, in the order in which we list them
	at      map[string]int
	byName  []int // the same in the order of names
	rank    []int // the inverse of byName
	prev    int   // the one that was opened last, or -1
	order   int   // above 0: files are opened in the order of names, not of the listing
	sent    int   // how many were asked for
	used    int   // how many of those were opened since
	first   int   // how many may be asked for before any is used
	nothing bool  // is left to ask for
}

// sibling is a small file of a family.
type sibling struct {
	name string
	attr *layers.Attr
	come chan struct{} // nil until it was asked for; closed when it has come, or will not
	used bool
}

// listed notes what a source has said of a directory. es is not changed any more.
func (a *ahead) listed(l *layer, dir layers.Path, es []layers.Entry) {
	if _, ok := l.Layer.(layers.BulkReader); !ok || a.off || len(es) < 2 {
		return
	}
	f := &family{familyKey: familyKey{l.Layer, dir}, id: l.ID(), names: len(es), listed: es, prev: -1}
	a.mu.Lock()
	defer a.mu.Unlock()
	fs := &a.families
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

// family returns the directory dir, if it is known, in which a file is being opened.
func (a *ahead) family(l layers.Layer, dir layers.Path) *family {
	a.mu.Lock()
	defer a.mu.Unlock()
	fs := &a.families
	e := fs.at[familyKey{l, dir}]
	if e == nil {
		return nil
	}
	f := e.Value.(*family)
	if fs.last != f {
		first := fs.last.next()
		f.mu.Lock()
		f.first = max(f.first, first)
		f.mu.Unlock()
		fs.last = f
	}
	return f
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
		if a := e.Attr; a != nil && a.IsRegular() && a.Has(layers.KnownSize|layers.KnownTimes) && a.Size > 0 && a.Size <= smallMost {
			f.files = append(f.files, sibling{name: e.Name, attr: a})
		}
	}
	f.listed = nil
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
		f.sent = f.used // what else was asked for was asked for in vain
	}
}

// opened notes that the file name is being opened, as what want describes. It returns
// what is closed once the file has come, if it was asked for, and whether there may
// be more to ask for.
func (f *family) opened(name string, want *layers.Attr) (come <-chan struct{}, more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sort()
	i, ok := f.at[name]
	if !ok {
		return nil, false
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
	case !s.used:
		f.used++
	}
	s.used = true
	if s.attr.SameVersion(want) {
		come = s.come
	}
	return come, !f.nothing
}

// choose returns which files are to be asked for now, of no more than most bytes.
func (f *family) choose(most int64) (which []int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.prev < 0 || f.nothing {
		return nil, 0
	}
	// What is asked for and not opened yet is kept between half and all of this.
	out, want := f.sent-f.used, min(max(f.first, siblingsFirst)+siblingsMore*f.used, siblingsMost)
	if out > want/2 {
		return nil, 0
	}
	i := f.prev
	for range f.files {
		i = f.after(i)
		s := &f.files[i]
		if s.come != nil {
			continue
		}
		if len(which) == min(want-out, batchFiles) || bytes+s.attr.Size > most && len(which) > 0 {
			return which, bytes
		}
		s.come = make(chan struct{})
		f.sent++
		which = append(which, i)
		bytes += s.attr.Size
	}
	f.nothing = true
	return which, bytes
}

// forgo takes back what choose returned.
func (f *family) forgo(which []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range which {
		close(f.files[i].come)
		f.files[i].come = nil
	}
	f.sent = max(f.sent-len(which), f.used)
	f.nothing = false
}

// bringSmall makes obj, the file of h that is being opened, whole if it is small, and
// has small files beside it fetched meanwhile. It reports whether obj is whole: then
// nothing needs to be asked of the source.
func (fs *FS) bringSmall(ctx context.Context, h *handle, obj *extent.Object, src *source) bool {
	a := &fs.ahead
	bulk, ok := src.layer.(layers.BulkReader)
	if !ok || a.off || src.want.Size > smallMost || !src.Settled() {
		return obj.Missing() == 0
	}
	l := a.link(src.layer)
	var come <-chan struct{}
	if dir, name := src.path.Split(); name != "" {
		if f := a.family(src.layer, dir); f != nil {
			var more bool
			if come, more = f.opened(name, &src.want); more {
				fs.bringSiblings(f, l)
			}
		}
	}
	if obj.Missing() == 0 {
		return true
	}
	if come != nil {
		t := time.NewTimer(l.patience())
		defer t.Stop()
		select {
		case <-come:
		case <-t.C: // the link is slower for what nobody waits for
		case <-ctx.Done():
		}
		if obj.Missing() == 0 {
			return true
		}
	}
	if h.writable() || src.want.Size > max(smallLeast, l.within(smallDelay, smallMost)) {
		return false // it may not be read, or not all of it
	}
	return bringOne(ctx, bulk, l, obj, src)
}

// bringOne fetches a small file whole: in one exchange, where opening it takes
// another.
func bringOne(ctx context.Context, bulk layers.BulkReader, l *link, obj *extent.Object, src *source) bool {
	began := time.Now()
	l.sent()
	got, err := bulk.ReadMany(ctx, []layers.Wanted{{Path: src.path, Attr: &src.want}})
	if err != nil || len(got) != 1 || got[0].Err != nil || int64(len(got[0].Data)) != src.want.Size {
		l.landed(0, began)
		return false // opening it tells why
	}
	l.landed(src.want.Size, began)
	return got[0].Settled && obj.Put(0, got[0].Data) == nil && obj.Missing() == 0
}

// bringSiblings begins to fetch what is to be here of f.
func (fs *FS) bringSiblings(f *family, l *link) {
	which, bytes := f.choose(max(batchLeast, min(l.within(batchDelay, batchLeast), batchBytes)))
	if len(which) == 0 {
		return
	}
	if !fs.ahead.begin(bytes, func() error { return fs.fetchSiblings(f, l, which) }) {
		f.forgo(which)
	}
}

// fetchSiblings brings the files which of f that are not here.
func (fs *FS) fetchSiblings(f *family, l *link, which []int) error {
	var ask []layers.Wanted
	var as []int
	f.mu.Lock()
	files := f.files // which are ours until come is closed
	f.mu.Unlock()
	arrived := 0
	done := func(upto int) {
		for ; arrived < upto; arrived++ {
			close(files[which[arrived]].come)
		}
	}
	defer func() { done(len(which)) }()

	source := func(i int) extent.Source {
		s := &files[i]
		return extent.Source{LayerID: f.id, Path: f.dir.Join(s.name), Version: s.attr.Version(), Mode: s.attr.Mode}
	}
	for j, i := range which {
		if !fs.store.Holds(source(i)) {
			ask = append(ask, layers.Wanted{Path: f.dir.Join(files[i].name), Attr: files[i].attr})
			as = append(as, j)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	began := time.Now()
	l.sent()
	got, err := f.layer.(layers.BulkReader).ReadMany(fs.ahead.ctx, ask)
	if err == nil && len(got) != len(ask) {
		err = layers.ErrCorrupt
	}
	if err != nil {
		l.landed(0, began)
		return err
	}
	var sum int64
	for k := range got {
		sum += int64(len(got[k].Data))
	}
	l.landed(sum, began)
	for k, j := range as {
		done(j)
		c, a := &got[k], ask[k].Attr
		if c.Err != nil || !c.Settled || int64(len(c.Data)) != a.Size {
			continue // who opens it learns why
		}
		err = errors.Join(err, keepWhole(fs.store, source(which[j]), c.Data))
		c.Data = nil
	}
	return err
}
