package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/whiteout"
)

// Check looks at layers that no mount uses, and says what in them is not as a mount
// leaves it: what a crash left that the next mount would sweep, and what no mount
// can mend because something else changed the layers, or a disk lost part of them.
//
// It looks through clones of the mounts that are read-only, so that looking
// changes nothing, access times included. What is mended is mended through
// descriptors of its own, and only where there is one right answer, which Finding
// says beforehand.

// CheckConfig says what Check looks at. The directories must be locked against
// mounts.
type CheckConfig struct {
	Mode   Mode
	Upper  string   // the directory
	Work   string   // overlay mode: the work directory; "" for none
	Lowers []string // as many as there are at hand, highest first
	Format whiteout.Format
	// Repair mends what has one right answer.
	Repair bool
	// KeepLower says that lower copies stay by intent: the mounts have keep_lower.
	KeepLower bool
	// TrashDays is how long the mounts keep what is in the trash; negative: it is
	// not known, and nothing is too old.
	TrashDays int
	Found     func(Finding) // called for each as it is found
}

// Finding is one thing that is not as it should be.
type Finding struct {
	Kind  string        `json:"kind"`
	Where string        `json:"where"` // "upper", "work", "lower 1" ...
	Path  copyup.Quoted `json:"path"`  // from there
	Means string        `json:"means"`
	// Mends is what a repair does about it; empty: nothing, it is for people.
	Mends string `json:"repair,omitempty"`
	// Done says that it was done, Error why not.
	Done  bool   `json:"repaired,omitempty"`
	Error string `json:"error,omitempty"`
	// Note: nothing is wrong, it says where things stand.
	Note bool `json:"note,omitempty"`
}

// Kinds of findings.
const (
	FoundTemp      = "temporary"      // a crash left it: nothing leads to it
	FoundUnknown   = "unknown"        // in a directory of ours, and not ours
	FoundPending   = "pending"        // a file that is still to be fetched (a note)
	FoundOrphan    = "orphan"         // of a pending file that has no name
	FoundLost      = "lost data"      // a name whose content is gone
	FoundDamaged   = "damaged"        // it contradicts itself
	FoundMark      = "mark"           // a note of ours or the kernel's that leads nowhere or says nothing
	FoundIndex     = "index"          // of hard links
	FoundLinks     = "link count"     // other than there are names
	FoundUnread    = "unreadable"     // it could not be looked at
	FoundClaim     = "claim"          // of a host that is not there any more
	FoundDaemon    = "daemon"         // a work directory of one that is gone
	FoundTrash     = "trash"          // what lies there and should not, or cannot be told
	FoundMarker    = "marker"         // LOWER/.migratefs/hl
	FoundIntent    = "intent"         // a rename in several layers that was not ended
	FoundUnmoved   = "two layers"     // a name is in two layers: its removal is to be finished
	FoundDifferent = "two contents"   // a name is in two layers, with different content
	FoundTypes     = "two types"      // a name is in two layers, as different things
	FoundDirectory = "two attributes" // a directory is in two layers, with different rights
)

// CheckReport is what a Check adds up to.
type CheckReport struct {
	Looked   int64 `json:"looked"`   // names
	Found    int64 `json:"found"`    // but for notes
	Repaired int64 `json:"repaired"` // of these
	Notes    int64 `json:"notes"`
}

// check is one Check.
type check struct {
	cfg    CheckConfig
	report CheckReport
	upper  *checked
	work   *checked // overlay mode; nil without
	lowers []*checked

	objects map[string]*pendingObject // by id, overlay mode
}

// checked is a directory that is looked at.
type checked struct {
	name string
	*local.Layer
	change *local.Layer // of the same directory, to mend through; nil: not mended

	// strange: what it has as Reserved may be another user's, and says nothing.
	strange bool
}

// Check looks at the layers. The error is for what it could not look at at all.
func Check(ctx context.Context, cfg CheckConfig) (CheckReport, error) {
	c := &check{cfg: cfg, objects: map[string]*pendingObject{}}
	defer c.close()
	if err := c.open(); err != nil {
		return c.report, err
	}
	run := c.overlay
	if cfg.Mode == Migrate {
		run = c.migrate
	}
	err := run(ctx)
	return c.report, err
}

func (c *check) open() (err error) {
	if c.upper, err = c.openOne("upper", c.cfg.Upper); err != nil {
		return err
	}
	if c.cfg.Work != "" {
		if c.work, err = c.openOne("work", c.cfg.Work); err != nil {
			return err
		}
	}
	for i, dir := range c.cfg.Lowers {
		l, err := c.openOne(fmt.Sprintf("lower %d", i+1), dir)
		if err != nil {
			return err
		}
		c.lowers = append(c.lowers, l)
	}
	return nil
}

func (c *check) openOne(name, dir string) (l *checked, err error) {
	l = &checked{name: name}
	if l.Layer, err = local.Open(dir, local.Config{Private: true}); err != nil {
		return nil, err
	}
	// In overlay mode nothing ever changes a lower.
	if c.cfg.Repair && (c.cfg.Mode == Migrate || name == "upper" || name == "work") {
		if l.change, err = local.Open(dir, local.Config{}); err != nil {
			l.Layer.Close()
			return nil, err
		}
	}
	return l, nil
}

func (c *check) close() {
	for _, l := range append([]*checked{c.upper, c.work}, c.lowers...) {
		if l == nil {
			continue
		}
		l.Layer.Close()
		if l.change != nil {
			l.change.Close()
		}
	}
}

// found reports something. mend, if not nil, does what mends says; it gets the
// descriptor of the directory to mend in and the name there.
func (c *check) found(kind string, l *checked, path layers.Path, means, mends string, mend func(dir int, name string) error) {
	f := Finding{Kind: kind, Where: l.name, Path: copyup.Quoted(path), Means: means, Mends: mends}
	c.report.Found++
	if mend != nil && l.change != nil {
		switch err := inParent(l.change.Root(), path, c.guarded(l, path, mend)); {
		case err == nil:
			f.Done = true
			c.report.Repaired++
		default:
			f.Error = err.Error()
		}
	}
	c.tell(f)
}

func (c *check) tell(f Finding) {
	if f.Note {
		c.report.Notes++
	}
	if c.cfg.Found != nil {
		c.cfg.Found(f)
	}
}

// unread reports what could not be looked at.
func (c *check) unread(l *checked, path layers.Path, err error) {
	c.found(FoundUnread, l, path, "it cannot be looked at: "+cause(err).Error(), "", nil)
}

// cause takes off an error what the finding says already.
func cause(err error) error {
	var pe *layers.PathError
	var oe *os.PathError
	switch {
	case errors.As(err, &pe):
		return pe.Err
	case errors.As(err, &oe):
		return oe.Err
	}
	return err
}

func inParent(root int, path layers.Path, f func(dir int, name string) error) error {
	if path == layers.Root {
		return f(root, ".")
	}
	dir, name, err := sys.OpenParent(root, string(path))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return f(dir, name)
}

// remove is a mend for what leads nowhere.
func remove(dir int, name string) error {
	err := sys.Unlink(dir, name)
	if err == unix.EISDIR || err == unix.EPERM {
		copyup.RemoveTemp(dir, name)
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return unix.ENOTEMPTY
		}
		return nil
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// each calls f with every entry of a directory of l, after its descriptor. A
// directory that is not there has none.
func (c *check) each(ctx context.Context, l *checked, path layers.Path, f func(dir int, e *layers.Entry) error) error {
	fd, err := sys.OpenBeneath(l.Root(), string(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		c.unread(l, path, err)
		return nil
	}
	defer unix.Close(fd)
	err = local.EachPart(ctx, fd, func(es []layers.Entry) error {
		for i := range es {
			c.report.Looked++
			if err := f(fd, &es[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil && isErrno(err) {
		c.unread(l, path, err)
		return nil
	}
	return err
}

func isErrno(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno)
}

// discard is a logger for those parts of the filesystem that Check uses.
var discard = slog.New(slog.DiscardHandler)

// ago says how old something is.
func ago(t layers.Time) string {
	d := time.Since(time.Unix(t.Sec, 0))
	if d < 48*time.Hour {
		return d.Round(time.Minute).String() + " ago"
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}
