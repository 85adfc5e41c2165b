package main

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Options of mount(8), overlayfs, fuse and fuse-overlayfs that need no code of
// their own. Every option that their manuals name is in optionTable or in one of
// these (options_known_test.go has the list), so that none is ignored in silence
// and none is refused without a reason. migratefs(8) documents them all.

// alreadySo are options that say what is so anyway, and options that are for
// mount(8), systemd and the like. They change nothing.
var alreadySo = names(`
	defaults auto noauto user nouser users owner group nofail _netdev comment
	async atime diratime relatime norelatime nostrictatime nolazytime nomand noiversion
	silent loud symfollow
	helper uhelper
	auto_cache hard_remove use_ino readdir_ino async_read big_writes intr nonempty
	nooverride_creds default_permissions
`)

// hints are options whose only effect is on the speed of programs that are built
// otherwise. They are accepted, and the mount says that they do nothing.
var hints = map[string]string{
	"max_idle_threads": "threads come and go with requests",
	"max_threads":      "threads come and go with requests",
	"clone_fd":         "one descriptor of /dev/fuse serves all threads",
	"fast_ino":         "inode numbers cost nothing here",
}

// onlyAs are options of which one value says what is so anyway.
var onlyAs = map[string]struct{ value, why string }{
	"subtype":    {"migratefs", "the type is always fuse.migratefs"},
	"verity":     {"off", "digests of the kernel's overlayfs are not checked"},
	"uuid":       {"auto", "files of lowers are named with the UUIDs of their filesystems, and the mount has none of its own"},
	"nfs_export": {"off", "a mount cannot be exported yet"},
	"threaded":   {"1", "one request that waits for a source would stop all others"},
	"writeback":  {"0", "a write is in the upper when it returns"},
	"fsync":      {"1", "give volatile (overlay mode) not to wait for the disk"},
	"noxattrs":   {"0", "extended attributes are part of a file; noacl leaves ACLs out"},

	"xattr_permissions": {"0", "owner and mode are the files' own; see squash_to_uid= and uidmapping="},
}

// refused says, for each option that is known and not supported, what to do.
var refused = map[string]string{
	// mount(8)
	"sync":        "use fsync(2), or open with O_SYNC, where it matters",
	"dirsync":     "use fsync(2) on directories where it matters",
	"mand":        "Linux has had no mandatory locks since 5.15: leave it out",
	"iversion":    "FUSE has no change counter: leave it out",
	"strictatime": "access times are what the upper's filesystem makes them: mount that with strictatime",
	"lazytime":    "times are kept by the upper's filesystem: mount that with lazytime",
	"nodiratime":  "give noatime, which is for directories too",
	"encryption":  "mount an encrypted filesystem and name it as upperdir",
	"loop":        "mount the image and name its directory as a layer",
	"offset":      "mount the image and name its directory as a layer",
	"sizelimit":   "mount the image and name its directory as a layer",
	"move":        "that is an operation of mount(8) on mounts: use mount --move",
	"bind":        "that is an operation of mount(8) on mounts: use mount --bind",
	"rbind":       "that is an operation of mount(8) on mounts: use mount --rbind",
	"shared":      "that is an operation of mount(8) on mounts: use mount --make-shared",
	"rshared":     "that is an operation of mount(8) on mounts: use mount --make-rshared",
	"slave":       "that is an operation of mount(8) on mounts: use mount --make-slave",
	"rslave":      "that is an operation of mount(8) on mounts: use mount --make-rslave",
	"private":     "that is an operation of mount(8) on mounts: use mount --make-private",
	"rprivate":    "that is an operation of mount(8) on mounts: use mount --make-rprivate",
	"unbindable":  "that is an operation of mount(8) on mounts: use mount --make-unbindable",
	"runbindable": "that is an operation of mount(8) on mounts: use mount --make-runbindable",
	// overlayfs
	"datadir+":       "data-only layers are not supported: give it as a lowerdir",
	"override_creds": "see creds=",
	// the kernel's part of FUSE
	"fd":       "migratefs opens /dev/fuse itself: leave it out",
	"rootmode": "migratefs sets it: leave it out",
	"user_id":  "migratefs sets it: leave it out",
	"group_id": "migratefs sets it: leave it out",
	"blkdev":   "there is no block device: leave it out",
	"blksize":  "there is no block device: leave it out",
	"max_read": "it is what max_write= says: give that",
	// libfuse and fusermount3
	"allow_root":           "give allow_other, or leave it out",
	"auto_unmount":         "the next mount, or 'migratefs umount', takes a dead mount away",
	"umask":                "modes are the files' own: leave it out",
	"kernel_cache":         "what cannot change without the mount is kept over an open already: see attr_timeout=",
	"noauto_cache":         "what may have changed is always read anew: leave it out",
	"direct_io":            "programs choose it, with O_DIRECT: leave it out",
	"intr_signal":          "no signals are used: leave it out",
	"noforget":             "inodes are kept for as long as the kernel knows them: leave it out",
	"remember":             "inodes are kept for as long as the kernel knows them: leave it out",
	"modules":              "libfuse's modules are not supported: name the directory itself",
	"subdir":               "name the directory itself",
	"setuid":               "run migratefs as that user, or see ssh_as= and creds=",
	"sync_read":            "reads of one file run side by side: leave it out",
	"plugins":              "plugins of fuse-overlayfs are not supported: leave it out",
	"static_nlink":         "directories with parts in several layers show 1 already: leave it out",
	"ino32_t":              "inode numbers have 64 bits: leave it out",
	"large_read":           "reads are as large as the kernel makes them: leave it out",
	"ac_attr_timeout":      "what may have changed is told by attributes as old as attr_timeout=: give that",
	"drop_privileges":      "migratefs needs the rights it was started with; it drops what it does not",
	"debug":                "give -d",
	"atomic_o_trunc":       "opening with O_TRUNC is two requests, and the file is only truncated by the second: leave it out",
	"congestion_threshold": "it is three quarters of max_background=: give that",
	"splice_read":          "how data reaches the kernel is not for options: leave it out",
	"splice_write":         "how data reaches the kernel is not for options: leave it out",
	"splice_move":          "how data reaches the kernel is not for options: leave it out",
	"no_splice_read":       "how data reaches the kernel is not for options: leave it out",
	"no_splice_write":      "how data reaches the kernel is not for options: leave it out",
	"no_splice_move":       "how data reaches the kernel is not for options: leave it out",
}

// shownByKernel are options that the kernel adds to those of a FUSE mount that it
// shows, which are what mount(8) gives for a remount. They cannot change.
var shownByKernel = names(`user_id group_id max_read blksize`)

func names(list string) map[string]bool {
	m := make(map[string]bool)
	for _, n := range strings.Fields(list) {
		m[n] = true
	}
	return m
}

// setKnown handles an option that is in one of the lists above; ok is false if it
// is in none.
func (o *options) setKnown(name, v string, hasValue bool) (ok bool, err error) {
	switch {
	case strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"):
		return true, nil // comments, and what mount(8) does itself
	case alreadySo[name]:
		if hasValue && name != "user" && name != "comment" && name != "helper" && name != "uhelper" {
			return true, usageErrorf("option %s=%s: %s has no value", name, v, name)
		}
		return true, nil
	case hints[name] != "":
		o.notes = append(o.notes, "option "+name+" has no effect: "+hints[name])
		return true, nil
	case securityContext[name]:
		if v == "" {
			return true, usageErrorf("option %s= is empty: give a security context", name)
		}
		o.flags = append(o.flags, name+"="+v)
		return true, nil
	}
	if as, known := onlyAs[name]; known {
		if v != as.value {
			return true, usageErrorf("option %s=%s: only %s=%s is supported: %s", name, v, name, as.value, as.why)
		}
		return true, nil
	}
	if why, known := refused[name]; known {
		return true, usageErrorf("option %q is not supported: %s", name, why)
	}
	return false, nil
}

// securityContext are labels that the kernel's security module takes, or, where
// there is none, refuses.
var securityContext = names("context fscontext defcontext rootcontext")

// mountBits are flags of mount(2) that go-fuse does not know by name, and their
// opposites.
var mountBits = map[string]uintptr{"nosymfollow": unix.MS_NOSYMFOLLOW}

// flagOptions have no value: ro=0 would not be what it looks like.
var flagOptions = names(`
	ro rw remount noacl userxattr volatile hard soft allow_other default_permissions noatime nosymfollow
	suid nosuid dev nodev exec noexec squash_to_root keep_lower immutable
	no_local
`)
