package remote

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/remote/extension"
)

// maxSize bounds a file's size so that no sum of an offset and a length can
// overflow.
const maxSize = 1 << 62

// attrs decodes an ATTRS structure to its end. The answer is not ok if it does not
// tell the type of the file or cannot be true.
//
// Times are 32 bits and unsigned on the wire, whole seconds: files from before
// 1970 seem to be from after 2106.
func (d *decoder) attrs() (a layers.Attr, ok bool) {
	flags := d.U32()
	bad := flags&attrMode == 0
	if flags&attrSize != 0 {
		size := d.U64()
		bad = bad || size > maxSize
		a.Size = int64(size)
		a.Known |= layers.KnownSize
	}
	if flags&attrOwner != 0 {
		a.UID, a.GID = d.U32(), d.U32()
		a.Known |= layers.KnownOwner
	}
	if flags&attrMode != 0 {
		a.Mode = d.U32() & (unix.S_IFMT | 0o7777)
	}
	if flags&attrTimes != 0 {
		a.Atime.Sec, a.Mtime.Sec = int64(d.U32()), int64(d.U32())
		a.Known |= layers.KnownTimes
	}
	if flags&attrExtended != 0 {
		for n := d.U32(); n > 0 && !d.Bad; n-- {
			name, value := d.Bytes(), d.Bytes()
			if string(name) == extension.StatPair && !extension.DecodeStat(value, &a) {
				bad = true
			}
		}
	}
	switch a.Type() {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
		return a, !d.Bad && !bad
	}
	return a, false
}

// nlink reads the link count out of a longname, which OpenSSH makes like a line
// of ls -l: mode, links, owner and the rest. The draft promises nothing, and
// owners may hold spaces, so only the first two fields are looked at, and only if
// the first one fits the mode that the attributes give.
func nlink(longname []byte, mode uint32) (uint32, bool) {
	perms, rest, ok := bytes.Cut(longname, []byte(" "))
	if !ok || len(perms) < 10 || len(perms) > 11 || perms[0] != typeLetter(mode) {
		return 0, false
	}
	count, _, ok := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
	if !ok || len(count) == 0 || count[0] < '0' || count[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(count), 10, 32)
	if err != nil || n == 0 {
		return 0, false
	}
	return uint32(n), true
}

// typeLetter is the first letter that ls -l shows for mode.
func typeLetter(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return '-'
	case unix.S_IFDIR:
		return 'd'
	case unix.S_IFLNK:
		return 'l'
	case unix.S_IFIFO:
		return 'p'
	case unix.S_IFSOCK:
		return 's'
	case unix.S_IFCHR:
		return 'c'
	case unix.S_IFBLK:
		return 'b'
	}
	return 0
}

// entries decodes a NAME packet of READDIR. Names that cannot be one component
// of a path are handed to refused instead; "." and ".." are left out silently.
// Count is how many there were, all of these included.
func (r *reply) entries(refused func(name string)) (list []layers.Entry, count int, err error) {
	d, err := r.expect(fxpName)
	if err != nil {
		return nil, 0, err
	}
	n := d.U32()
	if uint64(n)*12 > uint64(len(d.B)) { // two strings and flags are 12 bytes at least
		return nil, 0, corrupt("a NAME packet that claims %d names in %d bytes", n, len(r.body))
	}
	list = make([]layers.Entry, 0, n)
	for range n {
		name, longname := d.Str(), d.Bytes()
		a, ok := d.attrs()
		if d.Bad {
			return nil, 0, corrupt("a malformed NAME packet")
		}
		if name == "." || name == ".." {
			continue
		}
		if !layers.ValidName(name) {
			refused(name)
			continue
		}
		e := layers.Entry{Name: name}
		if ok {
			// sftp-server leaves the attributes zero if its lstat failed.
			if n, ok := nlink(longname, a.Mode); ok && !a.Has(layers.KnownNlink) {
				a.Nlink = n
				a.Known |= layers.KnownNlink
			}
			e.Type, e.Attr = a.Type(), &a
		}
		list = append(list, e)
	}
	return list, int(n), nil
}
