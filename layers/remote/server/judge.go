package server

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

const (
	// tick is more than the steps in which the kernel's clock for files goes
	// (a jiffy, 10 ms at most).
	tick = 50 * time.Millisecond

	// slowTick is the same where times have whole seconds, or are another host's.
	slowTick = 3 * time.Second
)

// exact are filesystems whose times are this kernel's, with nanoseconds. (One that
// was made with small inodes has seconds: their nanoseconds are zero.)
var exact = map[int64]bool{
	unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true,
	unix.TMPFS_MAGIC: true, unix.F2FS_SUPER_MAGIC: true, unix.OVERLAYFS_SUPER_MAGIC: true,
}

// judge adds to a, which describes name in dirfd, whether a later change is sure to
// show in it, and whether there are extended attributes.
func (s *server) judge(a *layers.Attr, dirfd int, name string) {
	last := a.Mtime
	if last.Before(a.Ctime) {
		last = a.Ctime
	}
	step := slowTick
	if last.Nsec != 0 && s.isExact(a, dirfd) {
		step = tick
	}
	if time.Since(time.Unix(last.Sec, int64(last.Nsec))) >= step {
		a.Known |= layers.KnownSettled
	}
	if !s.tree.proc {
		return
	}
	names, err := sys.ListxattrAt(dirfd, name)
	if err == unix.EOPNOTSUPP || err == nil && len(told(names)) == 0 {
		a.Known |= layers.KnownBare
	}
}

// isExact reports whether a, found in dirfd, lies on an exact filesystem.
func (s *server) isExact(a *layers.Attr, dirfd int) bool {
	if s.exactKnown && s.exactDev == a.Dev {
		return s.exactIs
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(dirfd, &st) != nil || st.Dev != a.Dev || unix.Fstatfs(dirfd, &fs) != nil {
		return false // something is mounted there
	}
	s.exactKnown, s.exactDev, s.exactIs = true, a.Dev, exact[fs.Type]
	return s.exactIs
}

// told leaves out the names of attributes that mean something to this host's kernel
// only: labels of security modules, and what a module of integrity signs.
func told(names []string) []string {
	keep := names[:0]
	for _, n := range names {
		if !strings.HasPrefix(n, "security.") || n == "security.capability" {
			keep = append(keep, n)
		}
	}
	return keep
}
