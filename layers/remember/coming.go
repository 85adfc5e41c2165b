package remember

import (
	"slices"

	"github.com/migratefs/migratefs/layers"
)

var _ layers.Scout = (*Layer)(nil)

// Coming implements layers.Scout, from what was listed ahead.
func (l *Layer) Coming(from layers.Path, names int) []layers.Listed {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.walkAt(from)
	if w == nil {
		return nil
	}
	s := scout{l: l, w: w, order: asListed, names: names, steps: 4096}
	if w.named > 0 {
		s.order = byName
	}
	s.below(l.dirs[from], "")
	for p := from; !s.stop && p != w.root && inside(p, w.root); p = parentOf(p) {
		s.below(l.dirs[parentOf(p)], baseOf(p))
	}
	return s.found
}

// scout looks for what a walker comes to in what is listed.
type scout struct {
	l     *Layer
	w     *walk
	order order
	found []layers.Listed
	names int // for so many that are no directories
	steps int // after so many looks
	stop  bool
}

// below goes through the directories in d, behind the one that is called after, with
// what is below them.
func (s *scout) below(d *dir, after string) {
	if d == nil || d.listed == 0 {
		return
	}
	subs := s.l.subsLocked(d, s.order)
	if after != "" {
		subs = subs[slices.Index(subs, after)+1:]
	}
	for _, base := range subs {
		if s.steps--; s.steps < 0 {
			s.stop = true
		}
		if s.stop {
			return
		}
		if d.names[base].walk == s.w.id {
			continue // he was there
		}
		s.dir(d.path.Join(base))
	}
}

// mostScouted is how many names a directory may have to be told of: the files in a larger
// one are known when somebody is there.
const mostScouted = 4096

func (s *scout) dir(p layers.Path) {
	d := s.l.listedLocked(p)
	if d == nil {
		// What is being listed has to show what comes first.
		s.stop = s.l.flights[question{aboutNames, p}] != nil
		return
	}
	if files := len(d.names) - len(s.l.subsLocked(d, s.order)); files > 0 && files <= mostScouted {
		if s.stop = files > s.names && len(s.found) > 0; s.stop {
			return
		}
		if entries, _, known, _ := s.l.recallDir(p, false); known {
			s.names -= files
			s.found = append(s.found, layers.Listed{Path: p, Entries: entries})
		}
	}
	s.below(d, "")
	s.stop = s.stop || s.names <= 0
}
