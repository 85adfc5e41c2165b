package copyup

import (
	"encoding/binary"
	"errors"
)

// ACLs travel as xattrs of these names.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// The tags of ACL entries (include/uapi/linux/posix_acl.h).
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

var errOpens = errors.New("without it the file would be open to more people")

// withoutACL makes up for the loss of xattr n, if that is an ACL. A mode without
// its ACL means something else: the bits of the group are the ACL's mask, and who
// was named to have less than others is not kept out any more. The group gets what
// the ACL gave it; whom that would let in makes it fail.
func withoutACL(src *Source, n string, to xattrTarget) error {
	switch n {
	case aclDefault: // says who may use what is made in the directory, in place of a umask
		return errOpens
	case aclAccess:
		group, err := groupWithout(src.Xattrs[n])
		if err != nil {
			return err
		}
		return to.chmod(src.Attr.Mode&0o7707 | group<<3)
	}
	return nil
}

// groupWithout returns what the owning group may do by the ACL acl, if nobody may
// do more by a mode of that alone.
func groupWithout(acl []byte) (group uint32, err error) {
	if len(acl) < 4 || (len(acl)-4)%8 != 0 || binary.LittleEndian.Uint32(acl) != 2 {
		return 0, errOpens
	}
	all := uint16(7)
	var obj, other uint16
	mask, users, groups := all, []uint16{}, []uint16{}
	for e := acl[4:]; len(e) > 0; e = e[8:] {
		perm := binary.LittleEndian.Uint16(e[2:]) & all
		switch binary.LittleEndian.Uint16(e) {
		case aclUserObj:
		case aclUser:
			users = append(users, perm)
		case aclGroupObj:
			obj = perm
		case aclGroup:
			groups = append(groups, perm)
		case aclMask:
			mask = perm
		case aclOther:
			other = perm
		default:
			return 0, errOpens
		}
	}
	obj &= mask
	for _, perm := range users { // who may be of the owning group
		if (obj|other)&^(perm&mask) != 0 {
			return 0, errOpens
		}
	}
	for _, perm := range groups {
		if other&^(perm&mask) != 0 {
			return 0, errOpens
		}
	}
	return uint32(obj), nil
}
