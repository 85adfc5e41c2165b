package remote

import (
	"encoding/binary"

	"github.com/migratefs/migratefs/layers"
)

// POSIX ACLs as extended attributes, linux/posix_acl_xattr.h: a version, then
// entries of tag, permissions and id, little-endian.
const (
	xattrAccess  = "system.posix_acl_access"
	xattrDefault = "system.posix_acl_default"

	aclVersion = 2
	aclEntry   = 8
	aclUser    = 0x02
	aclGroup   = 0x08
)

// ownACLs gives the users and groups that ACLs name the ids that they have here, as
// squash does with owners. Those who are nobody here are left out: there is nobody
// whom their entries are about.
func (l *Layer) ownACLs(x layers.Xattrs) error {
	if l.ids == nil && l.cfg.UID == nil && l.cfg.GID == nil {
		return nil
	}
	for _, name := range []string{xattrAccess, xattrDefault} {
		v, ok := x[name]
		if !ok {
			continue
		}
		mine, err := l.ownACL(v)
		if err != nil {
			return err
		}
		x[name] = mine
	}
	return nil
}

func (l *Layer) ownACL(v []byte) ([]byte, error) {
	if len(v) < 4 || (len(v)-4)%aclEntry != 0 || binary.LittleEndian.Uint32(v) != aclVersion {
		return nil, corrupt("a malformed ACL")
	}
	out := append([]byte(nil), v[:4]...)
	seen := make(map[uint64]bool)
	for v = v[4:]; len(v) > 0; v = v[aclEntry:] {
		e := append([]byte(nil), v[:aclEntry]...)
		tag, id := binary.LittleEndian.Uint16(e), binary.LittleEndian.Uint32(e[4:])
		if tag == aclUser || tag == aclGroup {
			here, named, err := l.namedInACL(tag, id)
			if err != nil {
				return nil, err
			}
			key := uint64(tag)<<32 | uint64(here)
			if !named || seen[key] {
				continue
			}
			seen[key] = true
			binary.LittleEndian.PutUint32(e[4:], here)
		}
		out = append(out, e...)
	}
	return out, nil
}

// namedInACL returns who here the user or group id of an ACL is.
func (l *Layer) namedInACL(tag uint16, id uint32) (here uint32, named bool, err error) {
	set, squashed := (*ids)(nil), l.cfg.UID != nil
	if tag == aclGroup {
		squashed = l.cfg.GID != nil
	}
	switch {
	case l.ids == nil:
		// By number; where all are squashed into one, a number means nobody.
		return id, !squashed, nil
	case tag == aclUser:
		set = &l.ids.users
	default:
		set = &l.ids.groups
	}
	here, named, ok := set.of(id)
	if !ok {
		return 0, false, errNames
	}
	return here, named, nil
}
