package main

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// statfsBits are flags as statfs(2) shows them, and as mount(2) takes them.
var statfsBits = []struct {
	shown int64
	bit   uintptr
}{
	{unix.ST_RDONLY, unix.MS_RDONLY}, {unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV},
	{unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_NOATIME, unix.MS_NOATIME}, {unix.ST_NODIRATIME, unix.MS_NODIRATIME},
	{unix.ST_RELATIME, unix.MS_RELATIME}, {stNoSymfollow, unix.MS_NOSYMFOLLOW},
}

// stNoSymfollow is ST_NOSYMFOLLOW of linux/statfs.h.
const stNoSymfollow = 0x2000

// remount changes the flags of a mount that is there: read-only or not, and what
// may be done with programs, devices and symlinks on it. mount(8) gives the
// options of fstab too; what the layers are cannot change.
func (m *mountCommand) remount() error {
	point, err := realDir("mountpoint", m.point)
	if err != nil {
		return err
	}
	if at, ok := mountAt(point); !ok || at.fsType != fsType {
		return mountErrorf("remount: %q is not a mount of migratefs: name the mountpoint of one", m.point)
	}
	if err := remountWith(point, m.opts.changed); err != nil {
		return mountErrorf("remount %q: %v", m.point, err)
	}
	fmt.Printf("migratefs: %s is remounted\n", point)
	return nil
}

// remountWith gives the mount on point the flags that changed makes of those that
// it has.
func remountWith(point string, changed func(old uintptr) uintptr) error {
	var st unix.Statfs_t
	if err := unix.Statfs(point, &st); err != nil {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT)
	for _, b := range statfsBits {
		if st.Flags&b.shown != 0 {
			flags |= b.bit
		}
	}
	return unix.Mount("", point, "", changed(flags), "")
}

// changed returns the mount flags that are left of old when o is applied.
func (o *options) changed(old uintptr) uintptr {
	set := func(given bool, bit uintptr, on bool) {
		if given && on {
			old |= bit
		} else if given {
			old &^= bit
		}
	}
	set(o.given["ro"] || o.given["rw"], unix.MS_RDONLY, o.readOnly)
	set(o.given["nosymfollow"], unix.MS_NOSYMFOLLOW, true)
	set(o.given["symfollow"], unix.MS_NOSYMFOLLOW, false)
	for _, f := range []struct {
		name string
		bit  uintptr
	}{{"suid", unix.MS_NOSUID}, {"dev", unix.MS_NODEV}, {"exec", unix.MS_NOEXEC}} {
		set(slices.Contains(o.flags, f.name), f.bit, false)
		set(slices.Contains(o.flags, "no"+f.name), f.bit, true)
	}
	return old
}
