package copyup

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// Origin tells one lower inode from all others, at any time and on every host: it
// is made of the lower's id, the inode number and, against reuse, the birth time.
type Origin string

// XattrOrigin is where an upper file says of which lower inode it is the
// successor. It stays: another host may hold the lower inode open for days.
const XattrOrigin = "trusted.migratefs.origin"

// OriginOf returns the origin of the file a of the lower that is called lower.
func OriginOf(lower string, a *layers.Attr) Origin {
	return Origin(fmt.Sprintf("%s-%x-%x.%x", lower, a.Ino, a.Btime.Sec, a.Btime.Nsec))
}

// ReadOrigin returns the origin of name in dirfd, or of dirfd if name is empty;
// none if the file is no copy, or its filesystem has no room to say so.
func ReadOrigin(dirfd int, name string) (Origin, error) {
	v, err := sys.Getxattr(dirfd, name, XattrOrigin)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil
	}
	return Origin(v), err
}

// XattrOver is where an upper file says over which lower files it was renamed: noted
// before the rename, since they are removed after it, and a crash may come between. They
// are these only where the file has their name.
const XattrOver = "trusted.migratefs.over"

// NoteOver notes that name in dirfd is about to be renamed over the lower files of these
// origins.
func NoteOver(dirfd int, name string, over []Origin) error {
	var v []string
	for _, o := range over {
		v = append(v, string(o))
	}
	return sys.Setxattr(dirfd, name, XattrOver, []byte(strings.Join(v, " ")), 0)
}

// ReadOver returns the origins of what name in dirfd was renamed over.
func ReadOver(dirfd int, name string) (over []Origin, err error) {
	v, err := sys.Getxattr(dirfd, name, XattrOver)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	for _, o := range strings.Fields(string(v)) {
		over = append(over, Origin(o))
	}
	return over, err
}

// Succeeds reports whether name in dirfd, in the upper, is what the lower file o of that
// name has become: its copy, or what was renamed over it.
func Succeeds(dirfd int, name string, o Origin) (bool, error) {
	is, err := ReadOrigin(dirfd, name)
	if err != nil || is == o {
		return err == nil, err
	}
	over, err := ReadOver(dirfd, name)
	return slices.Contains(over, o), err
}

// setOrigin sets the origin of src with set. Without it a copy is as good; only
// hosts that have the lower file open do not find it.
func setOrigin(src *Source, set func(name string, value []byte) error) error {
	if src.Origin == "" {
		return nil
	}
	err := set(XattrOrigin, []byte(src.Origin))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) { // EPERM: root, of a namespace of users
		return nil
	}
	return err
}
