package overlay

import (
	"container/list"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/migratefs/migratefs/layers"
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
	slices.SortFunc(f.byName, func(i, j int) int { return strings.Compare(f.files[i].name, f.files[j].name) })
	for r, i := range f.byName {
		f.rank[i] = r
	}
}

// begin lets some of f be asked for although none was opened.
func (f *family) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sort()
	if f.prev < 0 {
		f.prev = len(f.files) - 1
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
