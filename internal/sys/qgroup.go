package sys

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Qgroup is a quota group of btrfs; a limit of zero is none.
type Qgroup struct {
	FS                          [16]byte // the filesystem's id
	ID                          uint64   // its level in the upper 16 bits; at level 0 the rest is a subvolume
	Referenced, Exclusive       uint64   // bytes
	MaxReferenced, MaxExclusive uint64
}

// Of linux/btrfs.h and linux/btrfs_tree.h.
const (
	btrfsTreeSearch = 0xd0009411 // BTRFS_IOC_TREE_SEARCH
	btrfsInoLookup  = 0xd0009412 // BTRFS_IOC_INO_LOOKUP
	btrfsFSInfo     = 0x8400941f // BTRFS_IOC_FS_INFO

	btrfsQuotaTree = 8
	btrfsFirstFree = 256 // the objectid of a subvolume's root

	qgroupInfo     = 242
	qgroupLimit    = 244
	qgroupRelation = 246
	qgroupLevel    = 48 // bits below the level
)

// Qgroups returns the quota groups of btrfs that are charged for what is made in the
// directory fd: that of its subvolume, and those that it is in. ENOTTY, EINVAL: it lies
// on no btrfs; ENOENT: that has no quotas; EPERM: only root may ask.
func Qgroups(fd int) ([]Qgroup, error) {
	// struct btrfs_ioctl_ino_lookup_args
	in := struct {
		tree, object uint64
		name         [4080]byte
	}{object: btrfsFirstFree}
	if err := ioctl(fd, btrfsInoLookup, unsafe.Pointer(&in)); err != nil {
		return nil, err
	}
	// struct btrfs_ioctl_fs_info_args
	var info struct {
		_  [2]uint64
		id [16]byte
		_  [992]byte
	}
	if err := ioctl(fd, btrfsFSInfo, unsafe.Pointer(&info)); err != nil {
		return nil, err
	}
	var all []Qgroup
	ids := []uint64{in.tree}
	for i := 0; i < len(ids); i++ {
		g := Qgroup{FS: info.id, ID: ids[i]}
		known := false
		if err := quotaItems(fd, 0, qgroupInfo, g.ID, g.ID, func(_ uint64, item []uint64) {
			known = true
			g.Referenced, g.Exclusive = item[1], item[3]
		}); err != nil {
			return nil, err
		}
		if !known {
			return nil, unix.ENOENT
		}
		if err := quotaItems(fd, 0, qgroupLimit, g.ID, g.ID, func(_ uint64, item []uint64) {
			if item[0]&1 != 0 {
				g.MaxReferenced = item[1]
			}
			if item[0]&2 != 0 {
				g.MaxExclusive = item[2]
			}
		}); err != nil {
			return nil, err
		}
		all = append(all, g)
		// What it is in is of a higher level; a relation of a lower one is a member.
		above := (g.ID>>qgroupLevel + 1) << qgroupLevel
		if err := quotaItems(fd, g.ID, qgroupRelation, above, ^uint64(0), func(id uint64, _ []uint64) {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// quotaItems tells f the items of a type in the quota tree of the btrfs of fd whose
// objectid is object and whose offset is one of first to last, as far as one answer
// holds them, which is 80 relations.
func quotaItems(fd int, object uint64, typ uint32, first, last uint64, f func(offset uint64, item []uint64)) error {
	// struct btrfs_ioctl_search_args
	a := struct {
		tree                     uint64
		minObject, maxObject     uint64
		minOffset, maxOffset     uint64
		minTransid, maxTransid   uint64
		minType, maxType, n, pad uint32
		unused                   [4]uint64
		items                    [3992]byte
	}{
		tree: btrfsQuotaTree, minObject: object, maxObject: object, minOffset: first, maxOffset: last,
		maxTransid: ^uint64(0), minType: typ, maxType: typ, n: 100,
	}
	if err := ioctl(fd, btrfsTreeSearch, unsafe.Pointer(&a)); err != nil {
		return err
	}
	b := a.items[:]
	for range a.n {
		// struct btrfs_ioctl_search_header
		offset, size := binary.NativeEndian.Uint64(b[16:]), binary.NativeEndian.Uint32(b[28:])
		item := make([]uint64, 5)
		data := make([]byte, 40)
		copy(data, b[32:32+size])
		if err := binary.Read(bytes.NewReader(data), binary.LittleEndian, item); err != nil {
			return err
		}
		f(offset, item)
		b = b[32+size:]
	}
	return nil
}
