package overlay

import (
	"fmt"
	"slices"
	"strings"

	"github.com/migratefs/migratefs/layers"
)

// ScopeKind says what a Scope holds.
type ScopeKind string

const (
	// ScopeNamed is the names that the mount was made for (those of a checkpoint, with
	// the directories that lead there), and every file that was opened and every symlink
	// that was followed since.
	ScopeNamed ScopeKind = "named"
	// ScopeAll is everything that the sources have and that shows in the mount.
	ScopeAll ScopeKind = "all"
	// ScopePaths is what shows at some paths, and below.
	ScopePaths ScopeKind = "paths"
	// ScopeChanged is what was changed here, and no more.
	ScopeChanged ScopeKind = "changed"
)

// Scope is what has to be here before a source may go. Whatever it says, what was
// changed here and what is open belong to it.
//
// There are two kinds of users. Who moves a process wants the files that it has and
// those that it has come to use: ScopeNamed, the default of a mount with a checkpoint.
// Who moves storage wants all of it: ScopeAll, the default of every other.
type Scope struct {
	What  ScopeKind
	Paths []layers.Path // of ScopePaths, in the mount

	Names  int // of ScopeNamed: how many names the mount was made for
	Opened int // of ScopeNamed: how many files and symlinks were used since
}

// String says it in words.
func (s Scope) String() string {
	switch s.What {
	case ScopeNamed:
		return fmt.Sprintf("the %d names of the checkpoint, %d that were opened since, and what was changed here", s.Names, s.Opened)
	case ScopeAll:
		return "everything the source has"
	case ScopeChanged:
		return "what was changed or is open here"
	}
	var b strings.Builder
	for i, p := range s.Paths {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", "/"+string(p))
	}
	return "what lies at " + b.String() + ", and what was changed or is open here"
}

// reach is a scope in terms of one lower: which of its paths are wanted, and into
// which directories one has to go for them. A file is called by its path in the lower,
// but what somebody names is meant in the mount, where directories may have moved.
type reach struct {
	all   bool
	trees []layers.Path        // in the mount: whole
	named map[layers.Path]bool // in the lower
	ways  map[layers.Path]bool // likewise: directories that lead to something named, or that are known
}

// wants reports whether what is at path in the mount, and at in the lower, is wanted.
func (r *reach) wants(path, at layers.Path) bool { return r.named[at] || r.wholly(path) }

// goesInto reports whether something wanted lies in that directory.
func (r *reach) goesInto(path, at layers.Path) bool {
	return r.ways[at] || r.wholly(path) || slices.ContainsFunc(r.trees, func(t layers.Path) bool { return isIn(t, path) })
}

// wholly reports whether all below path is wanted.
func (r *reach) wholly(path layers.Path) bool {
	return r.all || slices.ContainsFunc(r.trees, func(t layers.Path) bool { return isIn(path, t) })
}

// isIn reports whether p is dir or lies below it.
func isIn(p, dir layers.Path) bool {
	return dir == layers.Root || p == dir || strings.HasPrefix(string(p), string(dir)+"/")
}

// way notes the directories that lead to p.
func (r *reach) way(p layers.Path) {
	for p != layers.Root {
		p, _ = p.Split()
		if r.ways[p] {
			return
		}
		r.ways[p] = true
	}
}

// reachOf compiles scope for the lower l.
func (fs *FS) reachOf(scope *Scope, l *layer) *reach {
	r := &reach{all: scope.What == ScopeAll, named: map[layers.Path]bool{}, ways: map[layers.Path]bool{layers.Root: true}}
	if scope.What == ScopeNamed {
		for _, p := range l.seed {
			r.named[p] = true
		}
		fs.ending.mu.Lock()
		for p := range fs.ending.touched.names {
			r.named[p] = true
		}
		fs.ending.mu.Unlock()
	}
	for _, n := range fs.openedNodes() { // whatever the scope is
		if ref := n.lowerIn(l); ref != nil && !n.isUpper() {
			r.named[ref.path] = true
		}
	}
	if scope.What == ScopePaths {
		r.trees = append(r.trees, scope.Paths...)
	}
	for p := range r.named {
		r.way(p)
	}
	return r
}

// openedNodes returns the files that somebody has open.
func (fs *FS) openedNodes() (ns []*node) {
	fs.handles.mu.RLock()
	defer fs.handles.mu.RUnlock()
	for _, h := range fs.handles.m {
		if h, ok := h.(*handle); ok && !slices.Contains(ns, h.n) {
			ns = append(ns, h.n)
		}
	}
	return ns
}

// knownDirs notes in r the directories of l that the kernel knows: whoever works there
// needs to be told what is not there, too.
func (fs *FS) knownDirs(r *reach, l *layer) {
	fs.table.mu.Lock()
	var dirs []*node
	for _, n := range fs.table.byID {
		if n.isDir() {
			dirs = append(dirs, n)
		}
	}
	fs.table.mu.Unlock()
	for _, n := range dirs {
		if ref := n.lowerIn(l); ref != nil && !r.ways[ref.path] {
			r.ways[ref.path] = true
			r.way(ref.path)
		}
	}
}
