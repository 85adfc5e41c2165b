package copyup

import (
	"sort"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// Quoted is a path or a name as a report shows it: escaped as in Go and C, so
// that it stays on its line and in its encoding whatever bytes are in it.
type Quoted string

// MarshalText implements encoding.TextMarshaler.
func (q Quoted) MarshalText() ([]byte, error) {
	s := strconv.Quote(string(q))
	return []byte(s[1 : len(s)-1]), nil
}

// Count is so many files, each counted once whatever names it has.
type Count struct {
	Files     int64 `json:"files"`
	Bytes     int64 `json:"bytes"`     // as ls -l has it
	Allocated int64 `json:"allocated"` // as du has it
}

func (c *Count) add(d Count) {
	c.Files += d.Files
	c.Bytes += d.Bytes
	c.Allocated += d.Allocated
}

// Age is the files up to Days old, and older than those before. Days is 0 for what
// lies in the future and -1 for the rest.
type Age struct {
	Days int `json:"days"`
	Count
}

// ages are the bounds of the buckets, in days.
var ages = []int{0, 1, 7, 30, 90, 180, 365, 2 * 365, 5 * 365, -1}

// Charge is what one user or group has of inodes, and would be charged with.
type Charge struct {
	ID   uint32 `json:"id"`
	Name string `json:"name,omitempty"`
	Count
	Need Size `json:"need"`
}

// Size is space in a filesystem.
type Size struct {
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
}

func (s *Size) add(t Size) {
	s.Bytes += t.Bytes
	s.Inodes += t.Inodes
}

// Links are files with several names.
type Links struct {
	Files int64 `json:"files"`
	Names int64 `json:"names"`
	// Outside is how many names lie elsewhere, and OutsideFiles of how many files:
	// migrating does not keep those linked.
	Outside      int64 `json:"outside"`
	OutsideFiles int64 `json:"outside_files"`
}

// Issue is something that does not come across, or that could not be looked at.
type Issue struct {
	Kind  string   `json:"kind"`
	What  string   `json:"what"`
	Names int64    `json:"names"`
	Paths []Quoted `json:"paths"` // some of them
	// Fatal: bringing these files up fails.
	Fatal bool `json:"fatal"`
}

// examples is how many paths an issue names.
const examples = 5

// fileID tells the files of the old storage apart; they lie on one filesystem.
type fileID = uint64

// tally is what a part of the old storage adds up to.
type tally struct {
	now         time.Time
	files       Count
	names       int64 // but for directories
	directories int64
	symlinks    int64
	special     map[string]int64
	sparse      Count
	need        Size
	largest     int64
	largestPath layers.Path
	atime       []Count
	mtime       []Count
	users       map[uint32]*Charge
	groups      map[uint32]*Charge
	links       Links
	partial     map[fileID]*group // hard-linked files of which names are missing
	times       [2]int64          // the earliest and latest second
	issues      map[string]*Issue
	unreadable  Issue
	mounts      []Quoted
}

// group is a file with several names.
type group struct {
	nlink, seen int64
	part        *tally // what it adds, until it is known to be counted once
}

func newTally(now time.Time) *tally {
	return &tally{
		now: now, special: map[string]int64{}, users: map[uint32]*Charge{}, groups: map[uint32]*Charge{},
		partial: map[fileID]*group{}, issues: map[string]*Issue{},
		atime: make([]Count, len(ages)), mtime: make([]Count, len(ages)),
		unreadable: Issue{Kind: "unread", Fatal: true},
	}
}

// add counts one name. data is how many of its bytes are not holes.
func (t *tally) add(pr *probe, p layers.Path, a *layers.Attr, data int64) {
	if a.IsDir() {
		t.directories++
	} else {
		t.names++
	}
	if !a.IsDir() && a.Nlink > 1 {
		g := t.partial[a.Ino]
		if g == nil {
			g = &group{nlink: int64(a.Nlink)}
			t.partial[a.Ino] = g
		}
		if g.seen++; g.seen > 1 {
			return
		}
		g.part = newTally(t.now)
		t = g.part
	}
	c := Count{Files: 1, Bytes: a.Size, Allocated: a.Blocks * 512}
	need := Size{Bytes: pr.space(a, data), Inodes: 1}
	t.need.add(need)
	charge(t.users, a.UID, c, need)
	charge(t.groups, a.GID, c, need)
	t.times[0], t.times[1] = min(t.times[0], a.Mtime.Sec), max(t.times[1], a.Mtime.Sec)
	switch a.Type() {
	case unix.S_IFREG:
		t.files.add(c)
		t.atime[t.age(a.Atime)].add(c)
		t.mtime[t.age(a.Mtime)].add(c)
		if data < a.Size {
			t.sparse.add(c)
		}
		if a.Size > t.largest || t.largestPath == "" {
			t.largest, t.largestPath = a.Size, p
		}
		pr.size(t, p, a.Size)
	case unix.S_IFLNK:
		t.symlinks++
	case unix.S_IFDIR:
	default:
		t.special[specialName(a.Type())]++
		pr.special(t, p, a)
	}
}

func charge(m map[uint32]*Charge, id uint32, c Count, need Size) {
	x := m[id]
	if x == nil {
		x = &Charge{ID: id}
		m[id] = x
	}
	x.add(c)
	x.Need.add(need)
}

func specialName(typ uint32) string {
	switch typ {
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return "unknown"
}

// age is the bucket of a time.
func (t *tally) age(at layers.Time) int {
	old := t.now.Sub(time.Unix(at.Sec, int64(at.Nsec)))
	for i, days := range ages {
		if days >= 0 && old <= time.Duration(days)*24*time.Hour {
			return i
		}
	}
	return len(ages) - 1
}

// issue counts p among the files with the issue of this kind and cause.
func (t *tally) issue(kind, what string, fatal bool, p layers.Path) {
	x := t.issues[kind+what]
	if x == nil {
		x = &Issue{Kind: kind, What: what, Fatal: fatal}
		t.issues[kind+what] = x
	}
	x.merge(&Issue{Names: 1, Paths: []Quoted{Quoted(p)}})
}

func (t *tally) unread(p layers.Path, err error) {
	t.unreadable.What = err.Error()
	t.unreadable.merge(&Issue{Names: 1, Paths: []Quoted{Quoted(p)}})
}

func (x *Issue) merge(y *Issue) {
	x.Names += y.Names
	x.Paths = append(x.Paths, y.Paths[:min(len(y.Paths), examples-len(x.Paths))]...)
}

// merge adds u to t.
func (t *tally) merge(u *tally) {
	t.files.add(u.files)
	t.sparse.add(u.sparse)
	t.need.add(u.need)
	t.names += u.names
	t.directories += u.directories
	t.symlinks += u.symlinks
	if u.largest > t.largest || t.largestPath == "" {
		t.largest, t.largestPath = u.largest, u.largestPath
	}
	for k, n := range u.special {
		t.special[k] += n
	}
	for i := range ages {
		t.atime[i].add(u.atime[i])
		t.mtime[i].add(u.mtime[i])
	}
	for id, c := range u.users {
		charge(t.users, id, c.Count, c.Need)
	}
	for id, c := range u.groups {
		charge(t.groups, id, c.Count, c.Need)
	}
	t.times[0], t.times[1] = min(t.times[0], u.times[0]), max(t.times[1], u.times[1])
	for k, x := range u.issues {
		if t.issues[k] == nil {
			t.issues[k] = &Issue{Kind: x.Kind, What: x.What, Fatal: x.Fatal}
		}
		t.issues[k].merge(x)
	}
	if u.unreadable.Names > 0 {
		t.unreadable.What = u.unreadable.What
		t.unreadable.merge(&u.unreadable)
	}
	t.mounts = append(t.mounts, u.mounts...)
	for ino, g := range u.partial {
		t.mergeGroup(ino, g)
	}
}

// mergeGroup counts a hard-linked file when its first name comes, and forgets it
// when the last has: only what has names elsewhere stays in memory.
func (t *tally) mergeGroup(ino fileID, g *group) {
	have := t.partial[ino]
	if have == nil {
		have = &group{nlink: g.nlink}
		t.partial[ino] = have
		t.links.Files++
		t.merge(g.part)
	}
	have.seen += g.seen
	t.links.Names += g.seen
	if have.seen >= have.nlink {
		delete(t.partial, ino)
	}
}

// finish counts the names that lie elsewhere.
func (t *tally) finish() {
	for _, g := range t.partial {
		t.links.OutsideFiles++
		t.links.Outside += g.nlink - g.seen
	}
}

func (t *tally) ages(of []Count) []Age {
	out := make([]Age, len(ages))
	for i := range ages {
		out[i] = Age{Days: ages[i], Count: of[i]}
	}
	return out
}

// charges lists who has most first.
func charges(m map[uint32]*Charge) []Charge {
	out := make([]Charge, 0, len(m))
	for _, c := range m {
		out = append(out, *c)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Need.Bytes != out[j].Need.Bytes {
			return out[i].Need.Bytes > out[j].Need.Bytes
		}
		return out[i].ID < out[j].ID
	})
	return out
}
