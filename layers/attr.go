package layers

import (
	"golang.org/x/sys/unix"
)

// Time is a point in time as a filesystem stores it: seconds since the epoch,
// which may be negative, and 0 <= Nsec < 1e9. A layer whose clock has whole
// seconds (SFTP) leaves Nsec zero.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Before reports whether t is earlier than u.
func (t Time) Before(u Time) bool {
	return t.Sec < u.Sec || t.Sec == u.Sec && t.Nsec < u.Nsec
}

// Known says which fields of an Attr the layer knows beyond Mode.
type Known uint16

const (
	KnownSize  Known = 1 << iota // Size
	KnownOwner                   // UID, GID
	KnownTimes                   // Atime, Mtime
	KnownCtime                   // Ctime
	KnownBtime                   // Btime
	KnownNlink                   // Nlink
	KnownIno                     // Dev, Ino
	KnownAlloc                   // Blocks, Blksize

	// KnownSettled: a change made after this moment is sure to show in size and
	// times. Without it two seconds must have passed since Mtime.
	KnownSettled

	// KnownBare: the file has no extended attributes, ACLs included.
	KnownBare
)

// Attr is what stat(2) tells of a file, as far as its layer knows it.
type Attr struct {
	Known Known

	Mode    uint32 // file type (S_IFMT) and permission bits, suid, sgid and sticky
	UID     uint32
	GID     uint32
	Nlink   uint32
	Size    int64  // bytes
	Blocks  int64  // of 512 bytes
	Blksize uint32 // bytes
	Rdev    uint64 // as in stat(2), for device nodes
	Dev     uint64 // st_dev of the filesystem the file lies on
	Ino     uint64
	Atime   Time
	Mtime   Time
	Ctime   Time
	Btime   Time // birth

	Immutable  bool // nothing about the file may change (chattr +i)
	AppendOnly bool // but for what is appended to it (chattr +a)
}

// Has reports whether all fields of k are known.
func (a *Attr) Has(k Known) bool { return a.Known&k == k }

// Type returns the file type: Mode & S_IFMT.
func (a *Attr) Type() uint32 { return a.Mode & unix.S_IFMT }

// IsDir reports whether a describes a directory.
func (a *Attr) IsDir() bool { return a.Type() == unix.S_IFDIR }

// IsRegular reports whether a describes a regular file.
func (a *Attr) IsRegular() bool { return a.Type() == unix.S_IFREG }

// Version is what tells two contents of one file apart where nothing better is
// known: size and modification time.
type Version struct {
	Size  int64
	Mtime Time
}

// Version returns the version of the content that a describes.
func (a *Attr) Version() Version { return Version{Size: a.Size, Mtime: a.Mtime} }

// SameVersion reports whether a and b can be the same file with the same
// content: same type, same inode where both know it, same owner and mode where
// both know them, and same version.
func (a *Attr) SameVersion(b *Attr) bool {
	both := a.Known & b.Known
	switch {
	case a.Mode != b.Mode:
		return false
	case both&KnownOwner != 0 && (a.UID != b.UID || a.GID != b.GID):
		return false
	case both&KnownIno != 0 && (a.Dev != b.Dev || a.Ino != b.Ino):
		return false
	case both&KnownSize != 0 && a.Size != b.Size:
		return false
	case both&KnownTimes != 0 && a.Mtime != b.Mtime:
		return false
	}
	return true
}

// Entry is one name in a directory.
type Entry struct {
	Name string
	Type uint32 // S_IFMT bits; 0 when the layer does not know it without a Stat
	Ino  uint64 // 0 when unknown
	Attr *Attr  // nil unless the layer had it for free
}

// Xattrs are extended attributes by full name ("user.note").
type Xattrs map[string][]byte

// Statfs is what statfs(2) tells of a filesystem.
type Statfs struct {
	Bsize   uint32 // bytes per block
	Frsize  uint32 // bytes per fragment, the unit of Blocks
	Blocks  uint64
	Bfree   uint64
	Bavail  uint64
	Files   uint64
	Ffree   uint64
	NameLen uint32
	Fsid    uint64 // 0 when unknown
}
