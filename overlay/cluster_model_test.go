package overlay

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What many daemons may do to a small tree, and what each of them may be told: what
// one filesystem in one place would do, in some order that agrees with what was over
// before something else began.

// clusterNames are all names that work is done on. The directories d1 and d2 are
// always there, d3 comes and goes.
var clusterNames = []string{"a", "b", "c", "d1/a", "d1/b", "d2/a", "d3", "d3/a"}

const clusterDir = 6 // which of them is the directory

// inDir are the names in it.
var inDir = []int{7}

func parentThere(s *clusterState, name int) bool {
	return !slices.Contains(inDir, name) || s.names[name] != 0 || s.names[clusterDir] != 0
}

// A file begins with who it is and a value that is overwritten in place; then come
// records, which are appended. Nothing crosses a page, so reads are never torn.
const (
	headSize   = 32
	valueAt    = 9
	valueSize  = 22
	recordSize = 16
)

func clusterHead(id int, value uint64) string { return fmt.Sprintf("F%07d %022d\n", id, value) }

func clusterRecord(n uint64) string { return fmt.Sprintf("R%014d\n", n) }

// theDir is what stands for the directory among files.
const theDir = -1

// clusterFile is what is known of one file.
type clusterFile struct {
	value   uint64
	records string // as they are in the file
	mode    uint32 // 0: not looked at yet
	blank   bool   // created, and nothing written yet
}

func (f clusterFile) content(id int) string {
	if f.blank {
		return ""
	}
	return clusterHead(id, f.value) + f.records
}

// clusterState is a state of the whole tree. States are shared: with makes another.
type clusterState struct {
	names [8]int // 0: nothing
	files map[int]clusterFile
	key   string
}

func (s *clusterState) seal() *clusterState {
	var ids []int
	for id := range s.files {
		if !slices.Contains(s.names[:], id) {
			delete(s.files, id)
			continue
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	s.key = s.keyOf(ids)
	return s
}

// keyOf is equal for states that look alike: which empty file is which nobody sees.
func (s *clusterState) keyOf(ids []int) string {
	var b strings.Builder
	empty := map[int]int{}
	for _, id := range s.names {
		if id > 0 && s.files[id].blank {
			if empty[id] == 0 {
				empty[id] = -10 - len(empty)
			}
			fmt.Fprintf(&b, "%d/%o ", empty[id], s.files[id].mode)
			continue
		}
		fmt.Fprintf(&b, "%d ", id)
	}
	for _, id := range ids {
		f := s.files[id]
		if f.blank {
			continue
		}
		fmt.Fprintf(&b, "|%d %d %o ", id, f.value, f.mode)
		b.WriteString(f.records)
	}
	return b.String()
}

// with returns s with names changed, and files that have no name any more left out.
func (s *clusterState) with(names ...int) *clusterState {
	t := &clusterState{names: s.names, files: map[int]clusterFile{}}
	for i := 0; i < len(names); i += 2 {
		t.names[names[i]] = names[i+1]
	}
	for id, f := range s.files {
		t.files[id] = f
	}
	return t.seal()
}

// alter returns s with a file changed; what has no name is not known.
func (s *clusterState) alter(id int, f func(*clusterFile)) *clusterState {
	x, ok := s.files[id]
	if !ok {
		return s
	}
	f(&x)
	t := &clusterState{names: s.names, files: map[int]clusterFile{}}
	for id, f := range s.files {
		t.files[id] = f
	}
	t.files[id] = x
	return t.seal()
}

func (s *clusterState) String() string {
	var b strings.Builder
	for i, id := range s.names {
		if id == 0 {
			continue
		}
		fmt.Fprintf(&b, "\t%s: ", clusterNames[i])
		if id == theDir {
			b.WriteString("directory\n")
			continue
		}
		f := s.files[id]
		fmt.Fprintf(&b, "file %d mode %o value %d blank %t records %s\n", id, f.mode, f.value, f.blank, shortRecords(f.records))
	}
	return b.String()
}

func shortRecords(r string) string {
	var out []string
	for ; len(r) >= recordSize; r = r[recordSize:] {
		out = append(out, strings.TrimLeft(r[1:recordSize-1], "0"))
	}
	if r != "" {
		out = append(out, fmt.Sprintf("%q", r))
	}
	return strings.Join(out, ",")
}

type eventKind string

const (
	evOpen   eventKind = "open"   // name leads to id
	evRead   eventKind = "read"   // id holds got
	evAppend eventKind = "append" // and fsync
	evPoke   eventKind = "overwrite"
	evTrunc  eventKind = "truncate"
	evChmod  eventKind = "chmod"
	evTouch  eventKind = "utimes"
	evCreate eventKind = "create"
	evHead   eventKind = "first write"
	evUnlink eventKind = "unlink"
	evLink   eventKind = "link"
	evRename eventKind = "rename"
	evMkdir  eventKind = "mkdir"
	evRmdir  eventKind = "rmdir"
)

// event is one call: who did it when, and what came of it.
type event struct {
	who        int // which client
	kind       eventKind
	name, to   int
	id         int
	arg        uint64
	flags      uint32
	start, end int64
	res        unix.Errno
	dead       bool // nobody knows what came of it
	got        string
	took       time.Duration
}

// halfRename is a rename by link and unlink of which the second was not done.
const halfRename = 1 << 31

const blankFile = -2 // what evOpen found was empty

func (e *event) String() string {
	what := clusterNames[e.name]
	switch e.kind {
	case evOpen:
		what += fmt.Sprintf(" is %d", e.id)
	case evRead:
		what = fmt.Sprintf("%d holds %q %s", e.id, e.got[:min(len(e.got), headSize)], shortRecords(e.got[min(len(e.got), headSize):]))
	case evLink:
		what = fmt.Sprintf("%d to %s", e.id, clusterNames[e.to])
	case evRename:
		what += fmt.Sprintf(" to %s flags %d", clusterNames[e.to], e.flags)
	case evCreate:
		what += fmt.Sprintf(" as %d", e.id)
	case evAppend, evPoke, evChmod, evTouch, evTrunc, evHead:
		what = fmt.Sprintf("%d, %d", e.id, e.arg)
	}
	res := errno(e.res)
	if e.dead {
		res += ", dead"
	}
	return fmt.Sprintf("%5d-%5d  client %d: %s %s: %s (%v)", e.start, e.end, e.who, e.kind, what, res, e.took.Round(time.Microsecond))
}

// unsure reports whether e may have been done or not: who was told that a thing is
// stale or busy looks again.
func (e *event) unsure() bool {
	return e.dead || e.res == unix.ESTALE || e.res == unix.EBUSY
}

// pure reports whether e changes nothing.
func (e *event) pure() bool {
	return e.kind == evOpen || e.kind == evRead || e.res != 0 && !e.unsure()
}

// does returns what becomes of s by e, and what e would be told.
func (e *event) does(s *clusterState) (*clusterState, unix.Errno) {
	at := s.names[e.name]
	_, named := s.files[e.id]
	switch e.kind {
	case evOpen:
		switch {
		case at == 0:
			return s, unix.ENOENT
		case at == theDir:
			return s, unix.EISDIR
		}
	case evChmod:
		return s.alter(e.id, func(f *clusterFile) { f.mode = uint32(e.arg) }), 0
	case evAppend:
		return s.alter(e.id, func(f *clusterFile) { f.records += clusterRecord(e.arg) }), 0
	case evPoke:
		return s.alter(e.id, func(f *clusterFile) { f.value = e.arg }), 0
	case evTrunc:
		return s.alter(e.id, func(f *clusterFile) { f.records = "" }), 0
	case evHead:
		return s.alter(e.id, func(f *clusterFile) { f.blank = false }), 0
	case evCreate, evMkdir:
		switch {
		case !parentThere(s, e.name):
			return s, unix.ENOENT
		case at != 0:
			return s, unix.EEXIST
		case e.kind == evMkdir:
			return s.with(e.name, theDir), 0
		}
		t := &clusterState{names: s.names, files: map[int]clusterFile{e.id: {mode: 0o640, blank: true}}}
		t.names[e.name] = e.id
		for id, f := range s.files {
			t.files[id] = f
		}
		return t.seal(), 0
	case evUnlink:
		switch at {
		case 0:
			return s, unix.ENOENT
		case theDir:
			return s, unix.EISDIR
		}
		return s.with(e.name, 0), 0
	case evRmdir:
		switch {
		case at == 0:
			return s, unix.ENOENT
		case at != theDir:
			return s, unix.ENOTDIR
		}
		for _, i := range inDir {
			if s.names[i] != 0 {
				return s, unix.ENOTEMPTY
			}
		}
		return s.with(e.name, 0), 0
	case evLink:
		switch {
		case !parentThere(s, e.to):
			return s, unix.ENOENT
		case s.names[e.to] != 0:
			return s, unix.EEXIST
		case !named:
			return s, unix.ENOENT
		}
		return s.with(e.to, e.id), 0
	case evRename:
		dst := s.names[e.to]
		switch {
		case at == 0, !parentThere(s, e.to):
			return s, unix.ENOENT
		case e.flags&(unix.RENAME_NOREPLACE|halfRename) != 0 && dst != 0:
			return s, unix.EEXIST
		case e.flags == halfRename:
			return s.with(e.to, at), 0
		case e.flags&unix.RENAME_EXCHANGE != 0 && dst == 0:
			return s, unix.ENOENT
		case at == dst:
			return s, 0
		case e.flags&unix.RENAME_EXCHANGE != 0:
			return s.with(e.name, dst, e.to, at), 0
		}
		return s.with(e.name, 0, e.to, at), 0
	}
	return s, 0
}

// agrees reports whether e, if it is done in s, is told what it was told.
func (e *event) agrees(s *clusterState, would unix.Errno) bool {
	switch {
	case e.res != would:
		return false
	case e.res != 0:
		return true
	case e.kind == evOpen && e.id == blankFile:
		return s.files[s.names[e.name]].blank
	case e.kind == evOpen:
		// A blank file may have been written to before we read who it is.
		return s.names[e.name] == e.id
	case e.kind == evRead:
		f, named := s.files[e.id]
		return !named || f.content(e.id) == e.got
	}
	return true
}

// next returns the states that may follow s by e.
func (e *event) next(s *clusterState) []*clusterState {
	t, would := e.does(s)
	if e.unsure() {
		if would != 0 || t == s {
			return []*clusterState{s}
		}
		return []*clusterState{s, t}
	}
	if !e.agrees(s, would) {
		return nil
	}
	return []*clusterState{t}
}

// order looks for an order of events that leads from a state to one that is wanted.
type order struct {
	events []*event
	want   string
	seen   map[string]bool
	best   uint64 // most that could be ordered, to say so
	bestAt *clusterState
	ends   map[string]*clusterState // where all of them may lead
	end    *clusterState            // the one that is wanted
}

// explain reports whether the events lead from one state to another.
func explain(from *clusterState, events []*event, want *clusterState) (*order, bool) {
	events = slices.DeleteFunc(slices.Clone(events), func(e *event) bool {
		return e.kind == evOpen && e.id == blankFile && slices.ContainsFunc(events, e.isOfFailed)
	})
	o := &order{events: events, want: want.key, seen: map[string]bool{}, ends: map[string]*clusterState{}, bestAt: from}
	return o, o.search(from, 0)
}

// isOfFailed reports whether e may have found the file that f made, which was told that
// the name exists. On one filesystem, NFS too, nobody ever sees that file. Here it can be
// seen if f stood still so long that its claim of the name was broken: until it finds
// the file in the lower that has got the name, its own stands in the upper.
func (e *event) isOfFailed(f *event) bool {
	return f.kind == evCreate && f.name == e.name && f.res == unix.EEXIST && f.start < e.end && e.start < f.end
}

func (o *order) search(s *clusterState, done uint64) bool {
	if bits(done) > bits(o.best) {
		o.best, o.bestAt = done, s
	}
	if bits(done) == len(o.events) {
		o.ends[s.key], o.end = s, s
		return s.key == o.want
	}
	// Which empty file is which matters to who has it open.
	key := fmt.Sprintf("%x|%v|%s", done, s.names, s.key)
	if o.seen[key] {
		return false
	}
	o.seen[key] = true
	horizon := int64(1 << 62)
	for i, e := range o.events {
		if done&(1<<i) == 0 && !e.dead {
			horizon = min(horizon, e.end)
		}
	}
	// What changes nothing may as well come as soon as it can.
	for i, e := range o.events {
		if done&(1<<i) == 0 && e.start <= horizon && e.pure() && len(e.next(s)) > 0 {
			return o.search(s, done|1<<i)
		}
	}
	for i, e := range o.events {
		if done&(1<<i) != 0 || e.start > horizon || e.pure() {
			continue
		}
		for _, t := range e.next(s) {
			if o.search(t, done|1<<i) {
				return true
			}
		}
	}
	return false
}

func bits(x uint64) (n int) {
	for ; x != 0; x &= x - 1 {
		n++
	}
	return n
}
