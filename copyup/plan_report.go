package copyup

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Plan is what NewPlan found. Byte counts of hard-linked files are counted once.
type Plan struct {
	Old string `json:"old"`
	New string `json:"new"`

	Names       int64            `json:"names"` // but for directories
	Directories int64            `json:"directories"`
	Files       Count            `json:"files"`
	Symlinks    int64            `json:"symlinks"`
	Special     map[string]int64 `json:"special,omitempty"`
	Sparse      Count            `json:"sparse"`
	Links       Links            `json:"hard_links"`
	Largest     *Largest         `json:"largest,omitempty"`
	Atime       []Age            `json:"by_atime"`
	Mtime       []Age            `json:"by_mtime"`
	Users       []Charge         `json:"users"`
	Groups      []Charge         `json:"groups"`

	// Need is what it takes on NEW, in whole blocks of its, without what NEW needs
	// for its own notes; Room what is free there, a negative number if that cannot
	// be told.
	Need Size `json:"need"`
	Room Size `json:"room"`
	// Same says that both are one filesystem: what moves frees what it takes, and
	// only the largest file must fit twice.
	Same bool `json:"same_filesystem"`

	Quotas []QuotaFit `json:"quotas"` // of those that have one, and of NEW itself
	// QuotaUnknown is why quotas could not be asked for; empty if they could.
	QuotaUnknown string `json:"quota_unknown,omitempty"`

	Issues []Issue  `json:"issues"`
	Unread *Issue   `json:"unread,omitempty"` // what of OLD is not counted
	Mounts []Quoted `json:"mounts,omitempty"` // other filesystems in OLD: not counted
	Fits   bool     `json:"fits"`
}

// Largest is the largest file.
type Largest struct {
	Path  Quoted `json:"path"`
	Bytes int64  `json:"bytes"`
}

// QuotaFit is a quota on NEW beside what comes: a user's, a group's, that of the project
// of NEW, or of a quota group of btrfs.
type QuotaFit struct {
	Kind string `json:"kind"` // "user", "group", "project", "qgroup" or "exclusive qgroup"
	ID   uint64 `json:"id"`
	Name string `json:"name,omitempty"`
	Need Size   `json:"need"`
	Used Size   `json:"used"`
	Hard Size   `json:"hard"` // 0: no limit
	Soft Size   `json:"soft"`
	Fits bool   `json:"fits"`  // below the hard limits
	Over bool   `json:"grace"` // above a soft one: the grace time begins
}

func (w *planWalk) plan() (*Plan, error) {
	t, pr := w.sum, w.probe
	t.finish()
	p := &Plan{
		Old: w.cfg.Old, New: w.cfg.New,
		Names: t.names, Directories: t.directories, Files: t.files, Symlinks: t.symlinks, Special: t.special, Sparse: t.sparse,
		Links: t.links, Atime: t.ages(t.atime), Mtime: t.ages(t.mtime), Users: charges(t.users), Groups: charges(t.groups),
		Need: t.need, Same: w.dev == pr.dev, Mounts: t.mounts, Quotas: []QuotaFit{}, Issues: []Issue{},
	}
	if t.files.Files > 0 {
		p.Largest = &Largest{Quoted(t.largestPath), t.largest}
	}
	if t.unreadable.Names > 0 {
		p.Unread = &t.unreadable
	}
	p.Room = Size{Bytes: int64(pr.fs.Bavail) * int64(pr.fs.Frsize), Inodes: int64(pr.fs.Ffree)}
	if pr.fs.Files == 0 {
		p.Room.Inodes = -1 // made as needed, as btrfs does
	}
	w.tryRest(t)
	for _, x := range t.issues {
		p.Issues = append(p.Issues, *x)
	}
	sort.Slice(p.Issues, func(i, j int) bool {
		a, b := &p.Issues[i], &p.Issues[j]
		if a.Kind != b.Kind {
			return a.Kind < b.Kind
		}
		return a.What < b.What
	})
	if !p.Same {
		w.quotas(p)
	}
	p.Fits = p.fits()
	return p, nil
}

// tryRest tries what depends on all that was seen.
func (w *planWalk) tryRest(t *tally) {
	for _, c := range charges(t.users) {
		if c.ID == 0 {
			continue
		}
		if err := w.probe.owner(c.ID, 0); err != nil {
			t.issues["owner"] = &Issue{Kind: "owner", What: fmt.Sprintf("files cannot be given to user %d: %v", c.ID, err), Names: c.Files, Fatal: true}
			break
		}
	}
	if t.links.Files > 0 {
		if err := w.probe.links(); err != nil {
			t.issues["links"] = &Issue{Kind: "link", What: "hard links cannot be made: " + err.Error(), Names: t.links.Names, Fatal: true}
		}
	}
	for _, sec := range t.times {
		if err := w.probe.time(sec); err != nil {
			when := time.Unix(sec, 0).UTC().Format(time.RFC3339)
			t.issues["time "+when] = &Issue{Kind: "time", What: fmt.Sprintf("the modification time %s cannot be kept: %v", when, err), Names: 1}
		}
	}
}

// quotas asks for the quotas of NEW, and of everybody to whom something comes.
func (w *planWalk) quotas(p *Plan) {
	w.qgroups(p)
	var project []Charge
	var x sys.Fsxattr
	if sys.GetFsxattr(w.probe.root, &x) == nil && x.Inherits() {
		project = []Charge{{ID: x.Project(), Need: p.Need}}
	}
	for _, k := range []struct {
		name string
		kind int
		of   []Charge
	}{{"project", sys.ProjectQuota, project}, {"user", sys.UserQuota, p.Users}, {"group", sys.GroupQuota, p.Groups}} {
		for _, c := range k.of {
			q, err := w.cfg.Quota(w.probe.root, k.kind, c.ID)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
				continue // none for this one; or none of this kind
			}
			if err != nil {
				p.QuotaUnknown = fmt.Sprintf("the kernel cannot tell %s quotas of %s: %v", k.name, p.New, err)
				return
			}
			p.addQuota(QuotaFit{
				Kind: k.name, ID: uint64(c.ID), Need: c.Need,
				Used: Size{int64(q.Bytes), int64(q.Inodes)},
				Hard: Size{int64(q.BytesHard), int64(q.InodesHard)},
				Soft: Size{int64(q.BytesSoft), int64(q.InodesSoft)},
			})
		}
	}
}

// qgroups asks for the quota groups that NEW is in on btrfs, but for those that OLD is in,
// too: what moves within a group takes nothing of it.
func (w *planWalk) qgroups(p *Plan) {
	_ = sys.Syncfs(w.probe.root) // what they use is counted then
	all, err := sys.Qgroups(w.probe.root)
	if err != nil {
		return // no btrfs, or one without quotas: the kernel is asked for those of users next, and says if nobody may know
	}
	var old []sys.Qgroup
	if fd, err := sys.OpenAt(w.old.Root(), ".", unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
		old, _ = sys.Qgroups(fd)
		unix.Close(fd)
	}
	for _, g := range all {
		if slices.ContainsFunc(old, func(o sys.Qgroup) bool { return o.FS == g.FS && o.ID == g.ID }) {
			continue
		}
		f := QuotaFit{Kind: "qgroup", ID: g.ID, Name: fmt.Sprintf("%d/%d", g.ID>>48, g.ID&(1<<48-1)), Need: p.Need}
		f.Used.Bytes, f.Hard.Bytes = int64(g.Referenced), int64(g.MaxReferenced)
		p.addQuota(f)
		f.Kind, f.Used.Bytes, f.Hard.Bytes = "exclusive qgroup", int64(g.Exclusive), int64(g.MaxExclusive)
		p.addQuota(f)
	}
}

// addQuota adds f if it is a limit at all.
func (p *Plan) addQuota(f QuotaFit) {
	if f.Hard == (Size{}) && f.Soft == (Size{}) {
		return
	}
	then := f.Used
	then.add(f.Need)
	f.Fits = !then.above(f.Hard)
	f.Over = then.above(f.Soft)
	p.Quotas = append(p.Quotas, f)
}

// above reports whether s exceeds one of the limits, of which 0 is none.
func (s Size) above(limit Size) bool {
	return limit.Bytes > 0 && s.Bytes > limit.Bytes || limit.Inodes > 0 && s.Inodes > limit.Inodes
}

func (p *Plan) fits() bool {
	need := p.Need
	if p.Same {
		need = Size{Inodes: 1}
		if p.Largest != nil {
			need.Bytes = p.Largest.Bytes
		}
	}
	if need.Bytes > p.Room.Bytes || p.Room.Inodes >= 0 && need.Inodes > p.Room.Inodes {
		return false
	}
	for _, x := range p.Issues {
		if x.Fatal {
			return false
		}
	}
	for _, q := range p.Quotas {
		if !q.Fits {
			return false
		}
	}
	return true
}
