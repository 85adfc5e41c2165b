package overlay

import (
	"slices"
	"strings"
	"sync"

	"github.com/migratefs/migratefs/layers"
)

// trail is what comes after the directory in which somebody reads small files: while he
// walks through a tree (grep -r, tar, a compiler), the files of the directories that he
// comes to next are fetched as well, as far as the source has them listed
// (layers.Scout).
//
// Each costs a credit, and gives it back when it is opened. There are a few to begin
// with, and three for each small file that is opened: no more is fetched in vain.
type trail struct {
	mu     sync.Mutex
	layer  layers.Layer // of which source
	dirs   []stage      // that he comes to next, of which files were asked for
	files  int          // so many
	bytes  int64
	credit int // less what there is to begin with
}

// stage is a directory of a trail.
type stage struct {
	dir   layers.Path
	files int
	bytes int64
}

// came notes that a file of f is opened, and whether it was asked for before anybody came.
func (t *trail) came(f *family, early bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.credit += siblingsMore
	if early {
		t.credit++
	}
	t.credit = min(t.credit, siblingsMost-siblingsFirst)
	i := -1
	if t.layer == f.layer {
		i = slices.IndexFunc(t.dirs, func(g stage) bool { return g.dir == f.dir })
	}
	switch {
	case i >= 0:
		t.pass(i + 1)
	case len(t.dirs) > 0 && (t.layer != f.layer || !isAbove(f.dir, t.dirs[0].dir)):
		t.pass(len(t.dirs)) // he is elsewhere
	}
	t.layer = f.layer
}

// isAbove reports whether q lies in the directory p, at whatever depth.
func isAbove(p, q layers.Path) bool {
	return p == layers.Root || strings.HasPrefix(string(q), string(p)+"/")
}

// pass forgets the first n directories: he has come to them, or has not. The caller
// holds t.mu.
func (t *trail) pass(n int) {
	for _, g := range t.dirs[:n] {
		t.files -= g.files
		t.bytes -= g.bytes
	}
	t.dirs = slices.Delete(t.dirs, 0, n)
}

// room returns how many files of how many bytes may be asked for now: between half of
// what may be under way at once and all of it is. The caller holds t.mu.
func (t *trail) room(mostBytes int64) (files int, bytes int64) {
	credit := siblingsFirst + t.credit
	if t.files > min(credit, siblingsMost/2) || t.bytes > mostBytes/2 {
		return 0, 0
	}
	return min(credit, siblingsMost-t.files, batchFiles), mostBytes - t.bytes
}

// end is the last directory of which files were asked for; there is none: from. The
// caller holds t.mu.
func (t *trail) end(from layers.Path) layers.Path {
	if n := len(t.dirs); n > 0 {
		return t.dirs[n-1].dir
	}
	return from
}

// chooseEarly asks for files before anybody has come to f, in the order in which p was
// read: no more than most, and no more bytes than that.
func (f *family) chooseEarly(order, most int, mostBytes int64) (which []int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sort()
	if f.prev < 0 {
		f.order = order
	}
	for k := range f.files {
		i := k
		if f.order > 0 {
			i = f.byName[k]
		}
		s := &f.files[i]
		if s.come != nil {
			continue
		}
		if len(which) == most || bytes+s.attr.Size > mostBytes {
			break
		}
		f.ask(s)
		s.early = true
		which = append(which, i)
		bytes += s.attr.Size
	}
	return which, bytes
}

// isAsked reports whether nothing of f is left to ask for, and in which order it is read.
func (f *family) isAsked() (all bool, order int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left == 0, f.order
}

// bringTrail begins to fetch what comes after f, where somebody reads, if there is nothing
// left to ask for in f.
func (fs *FS) bringTrail(f *family, l *link) {
	scout, ok := f.layer.(layers.Scout)
	all, order := f.isAsked()
	if !ok || !all {
		return
	}
	a, t := &fs.ahead, &fs.ahead.trail
	t.mu.Lock()
	defer t.mu.Unlock()
	files, bytes := t.room(a.share(siblingsBytes))
	if files <= 0 {
		return
	}
	bytes = min(bytes, max(batchLeast, min(l.within(batchDelay, batchLeast), batchBytes)))
	var stages []stage
	var bs []*burst
	sum := int64(0)
	for _, next := range scout.Coming(t.end(f.dir), files) {
		g := a.listedAs(familyKey{f.layer, next.Path}, f.id, next.Entries)
		which, n := g.chooseEarly(order, files, bytes-sum)
		files -= len(which)
		sum += n
		stages = append(stages, stage{next.Path, len(which), n})
		if len(which) > 0 {
			bs = append(bs, &burst{f: g, which: which})
		}
		if all, _ := g.isAsked(); !all {
			break // as much as may be, or what somebody else asks for
		}
	}
	if len(bs) > 0 && !a.begin(sum, func() error { return fs.fetchSiblings(bs, l) }) {
		for _, b := range bs {
			b.forgo()
		}
		return
	}
	for _, g := range stages {
		t.credit -= g.files
		t.files += g.files
		t.bytes += g.bytes
	}
	t.dirs = append(t.dirs, stages...)
}
