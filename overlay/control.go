package overlay

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/layers"
)

// Until a mount has a control socket, commands reach its daemon by extended attributes
// of files in the mount, under a prefix that no filesystem has. They are for root and
// for who runs the daemon; nobody sees them listed.
const (
	controlPrefix = "migratefs."

	// ControlConflict of a file in conflict is a ConflictReport; ENODATA of others.
	ControlConflict = controlPrefix + "conflict"
	// ControlConflicts and a number from 0 on, of any file of the mount, is a page of
	// the list of all conflicts: ConflictReports, one on a line. ENODATA after the last.
	ControlConflicts = controlPrefix + "conflicts."
	// ControlResolve is set to a Resolution to end the conflict of a file.
	ControlResolve = controlPrefix + "resolve"
	// ControlState of any file of the mount is a StateReport: how far the end of the
	// migration is.
	ControlState = controlPrefix + "state"
	// ControlMissing and a number from 0 on is a page of what the scope misses:
	// MissingReports, one on a line. ENODATA after the last.
	ControlMissing = controlPrefix + "missing."
	// ControlEnd is set to an EndOrder; what comes of it ControlState tells.
	ControlEnd = controlPrefix + "end"
)

// controlPage is how long a page may be: XATTR_SIZE_MAX is 64 KiB.
const controlPage = 60 << 10

// ConflictReport is a Conflict as it is told.
type ConflictReport struct {
	Path    copyup.Quoted `json:"path"` // from the root of the mount; empty if it is not known
	Source  copyup.Quoted `json:"source"`
	Layer   string        `json:"layer"`
	Since   time.Time     `json:"since"`
	Why     string        `json:"why"`
	Size    int64         `json:"size"`
	Missing int64         `json:"missing"` // bytes that only the former version had
	Written int64         `json:"written"` // bytes that were written here
}

func isControl(attr string) bool { return strings.HasPrefix(attr, controlPrefix) }

// mayControl returns EPERM for who may not command the daemon.
func (fs *FS) mayControl(c *fuse.Caller) error {
	if c.Uid == 0 || int(c.Uid) == os.Geteuid() {
		return nil
	}
	return unix.EPERM
}

// controlGet answers a question to the daemon.
func (fs *FS) controlGet(ctx context.Context, n *node, attr string, c *fuse.Caller) ([]byte, error) {
	if err := fs.mayControl(c); err != nil {
		return nil, err
	}
	if attr == ControlConflict {
		n.mu.RLock()
		id := n.pending
		n.mu.RUnlock()
		if !hasObject(id) {
			return nil, unix.ENODATA
		}
		conflict, ok, err := fs.conflict(id)
		if err != nil || !ok {
			return nil, orNoData(err)
		}
		conflict.Path, _ = n.path()
		return json.Marshal(conflict.Report())
	}
	if attr == ControlState || strings.HasPrefix(attr, ControlMissing) {
		return fs.controlEnding(ctx, attr)
	}
	page, isPage := strings.CutPrefix(attr, ControlConflicts)
	number, err := strconv.Atoi(page)
	if !isPage || err != nil || number < 0 || fs.store == nil {
		return nil, unix.ENODATA
	}
	all, err := fs.Conflicts(ctx)
	if err != nil {
		return nil, err
	}
	return pageOf(all, number)
}

func orNoData(err error) error {
	if err == nil {
		return unix.ENODATA
	}
	return err
}

// pageOf returns the page of the given number of the list of all.
func pageOf(all []Conflict, number int) ([]byte, error) {
	var b bytes.Buffer
	for _, c := range all {
		line, err := json.Marshal(c.Report())
		if err != nil {
			return nil, err
		}
		if b.Len()+len(line) >= controlPage {
			if number--; number < 0 {
				break
			}
			b.Reset()
		}
		b.Write(append(line, '\n'))
	}
	if number > 0 || b.Len() == 0 {
		return nil, unix.ENODATA
	}
	return b.Bytes(), nil
}

// Report is c as it is told.
func (c *Conflict) Report() ConflictReport {
	return ConflictReport{
		Path: copyup.Quoted(c.Path), Source: copyup.Quoted(c.Source), Layer: c.LayerID, Since: c.Since.UTC(), Why: c.Why,
		Size: c.Size, Missing: c.Missing, Written: c.Written,
	}
}

// controlSet does what the daemon is told.
func (fs *FS) controlSet(ctx context.Context, n *node, attr string, value []byte, c *fuse.Caller) error {
	if err := fs.mayControl(c); err != nil {
		return err
	}
	if attr == ControlEnd {
		return fs.endOrder(value)
	}
	if attr != ControlResolve {
		return unix.EOPNOTSUPP
	}
	if fs.ReadOnly() {
		return unix.EROFS
	}
	var how Resolution
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(&how); err != nil {
		return fmt.Errorf("%w: %w", unix.EINVAL, err)
	}
	if how.Aside != "" && !layers.ValidName(how.Aside) {
		return unix.EINVAL
	}
	return fs.resolve(ctx, n, how)
}
