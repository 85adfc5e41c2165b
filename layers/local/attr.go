package local

import (
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// AttrOf turns what statx(2) filled in into a layers.Attr.
func AttrOf(s *unix.Statx_t) layers.Attr {
	a := layers.Attr{
		Known: layers.KnownSize | layers.KnownOwner | layers.KnownTimes | layers.KnownCtime |
			layers.KnownNlink | layers.KnownIno | layers.KnownAlloc,
		Mode:    uint32(s.Mode),
		UID:     s.Uid,
		GID:     s.Gid,
		Nlink:   s.Nlink,
		Size:    int64(s.Size),
		Blocks:  int64(s.Blocks),
		Blksize: s.Blksize,
		Rdev:    unix.Mkdev(s.Rdev_major, s.Rdev_minor),
		Dev:     unix.Mkdev(s.Dev_major, s.Dev_minor),
		Ino:     s.Ino,
		Atime:   timeOf(s.Atime),
		Mtime:   timeOf(s.Mtime),
		Ctime:   timeOf(s.Ctime),

		Immutable:  s.Attributes&unix.STATX_ATTR_IMMUTABLE != 0,
		AppendOnly: s.Attributes&unix.STATX_ATTR_APPEND != 0,
	}
	if s.Mask&unix.STATX_BTIME != 0 {
		a.Known |= layers.KnownBtime
		a.Btime = timeOf(s.Btime)
	}
	return a
}

func timeOf(t unix.StatxTimestamp) layers.Time { return layers.Time{Sec: t.Sec, Nsec: t.Nsec} }
