package overlay

import (
	"os"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/migratefs/migratefs/internal/sys"
)

// IDs says how the owners that are shown differ from those in the layers, as
// fuse-overlayfs has it. ACLs and the root ids of capabilities are not mapped.
type IDs struct {
	UIDs, GIDs Mapping
	Root       bool    // everything is shown as root's
	UID, GID   *uint32 // everything is shown as theirs; comes before Root
}

// Mapping maps the ids in the layers to those shown. Where ranges overlap the
// last one counts. What is in no range is the kernel's overflow id, both ways.
type Mapping []MappedRange

// MappedRange shows Count ids from ID on as those from Shown on.
type MappedRange struct{ ID, Shown, Count uint32 }

// Changed reports whether an id can differ from what it is in the layers.
func (ids *IDs) Changed() bool {
	return ids.UIDs != nil || ids.GIDs != nil || ids.Root || ids.UID != nil || ids.GID != nil
}

func (ids *IDs) squash() bool { return ids.Root || ids.UID != nil || ids.GID != nil }

func (ids *IDs) showUID(id uint32) uint32 { return ids.show(id, ids.UIDs, ids.UID, overflowUID) }
func (ids *IDs) showGID(id uint32) uint32 { return ids.show(id, ids.GIDs, ids.GID, overflowGID) }

func (ids *IDs) show(id uint32, m Mapping, all *uint32, overflow uint32) uint32 {
	switch {
	case all != nil:
		return *all
	case ids.Root:
		return 0
	}
	return m.convert(id, overflow, func(r MappedRange) (from, to uint32) { return r.ID, r.Shown })
}

// storeUID and storeGID are the way back. What is squashed is not known any more:
// the id itself is stored.
func (ids *IDs) storeUID(id uint32) uint32 { return ids.UIDs.store(id, overflowUID) }
func (ids *IDs) storeGID(id uint32) uint32 { return ids.GIDs.store(id, overflowGID) }

func (m Mapping) store(id, overflow uint32) uint32 {
	return m.convert(id, overflow, func(r MappedRange) (from, to uint32) { return r.Shown, r.ID })
}

func (m Mapping) convert(id, overflow uint32, ends func(MappedRange) (from, to uint32)) uint32 {
	if m == nil {
		return id
	}
	for i := len(m) - 1; i >= 0; i-- {
		if from, to := ends(m[i]); id >= from && id-from < m[i].Count {
			return to + (id - from)
		}
	}
	return overflow
}

// cred is who acts in the layers for the caller of a request.
func (fs *FS) cred(c *fuse.Caller) sys.Cred {
	cred := sys.Cred{UID: c.Uid, GID: c.Gid, Groups: sys.GroupsOf(c.Pid, c.Uid, c.Gid)}
	ids := &fs.cfg.IDs
	if ids.Changed() {
		cred.UID, cred.GID = ids.storeUID(c.Uid), ids.storeGID(c.Gid)
		for i, g := range cred.Groups {
			cred.Groups[i] = ids.storeGID(g)
		}
	}
	return cred
}

var (
	overflowUID = overflowID("/proc/sys/kernel/overflowuid")
	overflowGID = overflowID("/proc/sys/kernel/overflowgid")
)

func overflowID(path string) uint32 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 65534
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return 65534
	}
	return uint32(n)
}
