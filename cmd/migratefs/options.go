package main

import (
	"os"
	"slices"
	"strings"
	"time"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers/seed"
	"github.com/migratefs/migratefs/overlay"
)

// options is what -o says.
type options struct {
	lowers []lowerSpec
	// lastLowers is the first of those that the last lowerdir named.
	lastLowers int

	upper   string
	work    string
	mode    string // "", "migrate", "overlay"
	hosts   string // of migrate mode: "", "many", "single"
	criu    string
	names   seed.Names
	viewAll bool // view=root: the live / of this host is the lowest lower

	viewPaths bool // view=paths: what the system consists of comes from there

	verify   seed.Verify
	noLocal  bool // programs of this host that are the same are fetched all the same
	imagesAt string
	maps     []string // KEY=/path, see splitMap

	readOnly   bool
	allowOther *bool
	noACL      bool
	userXattr  bool
	noRedirect bool
	noFollow   bool
	noMetacopy bool // changes of metadata bring files up whole
	volatile   bool
	lenient    bool // xattr=lenient
	keepLower  bool
	trashDays  int
	noAtime    bool
	// The kernel keeps these locks itself, for this mount alone.
	localFlock, localFcntl bool
	noPass                 bool
	noPrefetch             bool
	fsName                 string
	logFile                string
	entry                  *time.Duration
	attr                   *time.Duration
	negative               *time.Duration
	flags                  []string // suid, nodev, ... as given
	mountBits              uintptr  // of mount(2)
	remount                bool
	asCaller               bool // creds=caller
	ids                    overlay.IDs
	notes                  []string // what the user is to know of an option

	maxWrite, maxReadahead, maxBackground int

	sshConfig  string
	sshCommand string
	sshAs      string
	sshOptions []string
	timeout    time.Duration
	hard       bool
	immutable  bool // nobody changes the sources
	uid, gid   *uint32
	sftpServer string
	idmap      string
	rebase     bool // symlinks=rebase
	noGroup    bool // remote_group=none

	connections int   // to each source; 0: the default
	noFill      bool  // what pending files miss is fetched when it is read
	fillRate    int64 // bytes a second; 0: no limit

	cacheDir     string
	cacheSize    int64   // bytes; 0: no limit, -1: none
	cachePercent float64 // of the filesystem, unless 0

	given map[string]bool
}

// optionTable says what each option does with its value. An option without one
// gets "".
var optionTable = map[string]func(o *options, v string) error{
	"lowerdir":  func(o *options, v string) error { o.lastLowers = len(o.lowers); return o.addLowers(v) },
	"lowerdir+": func(o *options, v string) error { o.lastLowers = len(o.lowers); return o.addLower(v) },
	"upperdir":  once("upperdir", func(o *options) *string { return &o.upper }),
	"workdir":   once("workdir", func(o *options) *string { return &o.work }),
	"criu":      once("criu", func(o *options) *string { return &o.criu }),
	"mode":      func(o *options, v string) error { return oneOf(&o.mode, "mode", v, "migrate", "overlay") },
	"hosts":     func(o *options, v string) error { return oneOf(&o.hosts, "hosts", v, "many", "single") },
	"names":     setNames,
	"view":      setView,
	"verify":    setVerify,
	"no_local":  func(o *options, _ string) error { o.noLocal = true; return nil },
	"map": func(o *options, v string) error {
		_, _, err := splitMap(v)
		o.maps = append(o.maps, v)
		return err
	},
	"images_at": func(o *options, v string) error { o.imagesAt = v; return nil },
	"ro":        func(o *options, _ string) error { o.readOnly = true; return nil },
	"rw":        func(o *options, _ string) error { o.readOnly = false; return nil },
	"noacl":     func(o *options, _ string) error { o.noACL = true; return nil },
	"userxattr": func(o *options, _ string) error { o.userXattr = true; return nil },
	"volatile":  func(o *options, _ string) error { o.volatile = true; return nil },
	"fsname":    func(o *options, v string) error { o.fsName = v; return nil },
	"log":       func(o *options, v string) error { o.logFile = v; return nil },
	"no_remote_lock": func(o *options, _ string) error {
		o.localFlock, o.localFcntl = true, true
		return nil
	},
	"no_remote_flock":      func(o *options, _ string) error { o.localFlock = true; return nil },
	"no_remote_posix_lock": func(o *options, _ string) error { o.localFcntl = true; return nil },
	"hard":                 func(o *options, _ string) error { o.hard = true; return nil },
	"soft":                 func(o *options, _ string) error { o.hard = false; return nil },
	"immutable":            func(o *options, _ string) error { o.immutable = true; return nil },
	"ssh_config":           func(o *options, v string) error { o.sshConfig = v; return nil },
	"ssh_command": func(o *options, v string) error {
		o.sshCommand = v
		return nil
	},
	"ssh_as":     func(o *options, v string) error { o.sshAs = v; return nil },
	"ssh_option": func(o *options, v string) error { o.sshOptions = append(o.sshOptions, v); return nil },
	"timeout":    func(o *options, v string) error { return seconds(&o.timeout, "timeout", v) },
	"entry_timeout": func(o *options, v string) error {
		o.entry = new(time.Duration)
		return seconds(o.entry, "entry_timeout", v)
	},
	"attr_timeout": func(o *options, v string) error {
		o.attr = new(time.Duration)
		return seconds(o.attr, "attr_timeout", v)
	},
	"connections": func(o *options, v string) error {
		return number(&o.connections, "connections", v, 1, 32)
	},
	"uid":         func(o *options, v string) error { return id(&o.uid, "uid", v) },
	"gid":         func(o *options, v string) error { return id(&o.gid, "gid", v) },
	"sftp_server": func(o *options, v string) error { o.sftpServer = v; return nil },
	"idmap":       func(o *options, v string) error { return oneOf(&o.idmap, "idmap", v, "number", "name") },
	"symlinks": func(o *options, v string) error {
		var s string
		err := oneOf(&s, "symlinks", v, "keep", "rebase")
		o.rebase = s == "rebase"
		return err
	},
	"remote_group": func(o *options, v string) error {
		var s string
		err := oneOf(&s, "remote_group", v, "keep", "none")
		o.noGroup = s == "none"
		return err
	},
	"redirect_dir": func(o *options, v string) error {
		var s string
		err := oneOf(&s, "redirect_dir", v, "on", "off", "follow", "nofollow")
		o.noRedirect, o.noFollow = s != "on", s == "nofollow"
		return err
	},
	"passthrough": func(o *options, v string) error {
		var s string
		err := oneOf(&s, "passthrough", v, "on", "off")
		o.noPass = s == "off"
		return err
	},
	"prefetch": func(o *options, v string) error {
		var s string
		err := oneOf(&s, "prefetch", v, "on", "off")
		o.noPrefetch = s == "off"
		return err
	},
	"whiteout":    setWhiteout,
	"xattr":       setXattrPolicy,
	"keep_lower":  func(o *options, _ string) error { o.keepLower = true; return nil },
	"trash_days":  func(o *options, v string) error { return number(&o.trashDays, "trash_days", v, 0, 36500) },
	"enospc":      setEnospc,
	"fill":        setFill,
	"fill_rate":   setFillRate,
	"cache_size":  setCacheSize,
	"cachedir":    once("cachedir", func(o *options) *string { return &o.cacheDir }),
	"allow_other": func(o *options, _ string) error { t := true; o.allowOther = &t; return nil },
	// What is always so.
	"metacopy": setMetacopy,
	"index":    onlyOn("index", "without it the names of one lower file would become different files while programs have it open"),
	"xino":     onlyOn("xino", "a FUSE filesystem has one st_dev, so the numbers alone must tell files of different layers apart"),
	"creds": func(o *options, v string) error {
		var s string
		err := oneOf(&s, "creds", v, "daemon", "caller")
		o.asCaller = s == "caller"
		return err
	},
	"noatime":        func(o *options, _ string) error { o.noAtime = true; return nil },
	"remount":        func(o *options, _ string) error { o.remount = true; return nil },
	"nosymfollow":    func(o *options, _ string) error { o.mountBits |= mountBits["nosymfollow"]; return nil },
	"squash_to_root": func(o *options, _ string) error { o.ids.Root = true; return nil },
	"squash_to_uid":  func(o *options, v string) error { return id(&o.ids.UID, "squash_to_uid", v) },
	"squash_to_gid":  func(o *options, v string) error { return id(&o.ids.GID, "squash_to_gid", v) },
	"uidmapping":     func(o *options, v string) error { return mapping(&o.ids.UIDs, "uidmapping", v) },
	"gidmapping":     func(o *options, v string) error { return mapping(&o.ids.GIDs, "gidmapping", v) },
	"max_write":      func(o *options, v string) error { return number(&o.maxWrite, "max_write", v, 4096, 1<<20) },
	"max_readahead":  func(o *options, v string) error { return number(&o.maxReadahead, "max_readahead", v, 4096, 1<<30) },
	"max_background": func(o *options, v string) error { return number(&o.maxBackground, "max_background", v, 1, 65535) },
	"negative_timeout": func(o *options, v string) error {
		o.negative = new(time.Duration)
		return seconds(o.negative, "negative_timeout", v)
	},
}

// mountFlags are options that become flags of the mount.
var mountFlags = map[string]bool{
	"suid": true, "nosuid": true, "dev": true, "nodev": true, "exec": true, "noexec": true,
}

func onlyOn(name, why string) func(*options, string) error {
	return func(_ *options, v string) error {
		if v == "on" || v == "auto" || v == "" {
			return nil
		}
		return usageErrorf("option %s=%s: only %s=on is supported: %s", name, v, name, why)
	}
}

func setMetacopy(o *options, v string) error {
	var s string
	if v == "" || v == "auto" {
		v = "on"
	}
	err := oneOf(&s, "metacopy", v, "on", "off")
	o.noMetacopy = s == "off"
	return err
}

// metacopy reports whether what changes no data moves none. As in the kernel's
// overlayfs that needs redirects, and xattrs that users cannot make.
func (o *options) metacopy() bool {
	return o.mode == "overlay" && !o.noMetacopy && !o.noRedirect && !o.userXattr
}

// setWhiteout is for the lowers of the lowerdir before it.
func setWhiteout(o *options, v string) error {
	var s string
	if err := oneOf(&s, "whiteout", v, "oci", "overlay"); err != nil {
		return err
	}
	if len(o.lowers) == 0 {
		return usageErrorf("option whiteout=%s is for the lowers named before it, and there are none: give it after lowerdir= or lowerdir+=", v)
	}
	for i := o.lastLowers; i < len(o.lowers); i++ {
		o.lowers[i].oci = s == "oci"
	}
	return nil
}

func setNames(o *options, v string) error {
	var s string
	if err := oneOf(&s, "names", v, "tree", "flat"); err != nil {
		return err
	}
	o.names = seed.Tree
	if s == "flat" {
		o.names = seed.Flat
	}
	return nil
}

// parseOptions parses the values of all -o.
func parseOptions(values []string) (*options, error) {
	o := &options{given: make(map[string]bool), fsName: "migratefs"}
	var all []string
	for _, value := range values {
		all = append(all, splitEscaped(value, ',')...)
	}
	remount := slices.Contains(all, "remount")
	for _, opt := range all {
		name, _, _ := strings.Cut(opt, "=")
		if opt != "" && !(remount && shownByKernel[name]) {
			if err := o.set(opt); err != nil {
				return nil, err
			}
		}
	}
	return o, o.check()
}

func (o *options) set(opt string) error {
	name, v, hasValue := strings.Cut(opt, "=")
	o.given[name] = true
	if hasValue && flagOptions[name] {
		return usageErrorf("option %s=%s: %s has no value", name, v, name)
	}
	if mountFlags[name] {
		o.flags = append(o.flags, name)
		return nil
	}
	if ok, err := o.setKnown(name, strings.ReplaceAll(v, `\,`, ","), hasValue); ok {
		return err
	}
	f, ok := optionTable[name]
	if !ok || f == nil {
		return usageErrorf("unknown option %q: see 'migratefs --help' and migratefs(8)", name)
	}
	// An escaped comma ends here; colons and backslashes are the value's.
	return f(o, strings.ReplaceAll(v, `\,`, ","))
}

func (o *options) check() error {
	remote, oci := "", false
	for _, l := range o.lowers {
		if l.remote {
			remote = l.text
		}
		oci = oci || l.oci
	}
	switch {
	case o.remount:
		return nil
	case len(o.lowers) == 0 && o.criu == "":
		return usageErrorf("no lowerdir: give -o lowerdir=DIR, lowerdir=user@host:/DIR or criu=IMAGES")
	case o.mode == "migrate" && remote != "":
		return usageErrorf("mode=migrate removes files from its lowers, and the lower %q is on another host: use mode=overlay", remote)
	case len(o.maps) > 0 && o.criu == "":
		return usageErrorf("map=%s without criu=: it says where a mount of a checkpoint's processes lies", o.maps[0])
	case o.imagesAt != "" && !isRemote(o.criu):
		return usageErrorf("images_at= is for criu=user@host:/dir: the images are in %q already", o.criu)
	case o.mode == "migrate" && o.criu != "":
		return usageErrorf("mode=migrate and criu= exclude each other: use mode=overlay")
	case o.work != "" && o.upper == "":
		return usageErrorf("workdir=%s without upperdir: give upperdir too", o.work)
	case oci && o.mode == "migrate":
		return usageErrorf("whiteout=oci is for mode=overlay: in migrate mode, names that begin with .wh. are files like others")
	case o.given["metacopy"] && !o.noMetacopy && o.noRedirect:
		return usageErrorf("metacopy=on needs redirect_dir=on: leave one of them out")
	case o.given["metacopy"] && !o.noMetacopy && o.userXattr:
		return usageErrorf("metacopy=on and userxattr exclude each other: leave one of them out")
	case o.userXattr && o.mode == "migrate":
		return usageErrorf("userxattr is for mode=overlay: migrate mode has no extended attributes of its own")
	case o.readOnly && o.upper == "":
		o.readOnly = false // it is anyway
	}
	if o.criu != "" {
		// CRIU sees the locks that the kernel keeps, and no others: it would dump a
		// process without them.
		o.localFlock, o.localFcntl = true, true
	}
	if o.mode == "" {
		o.mode = "overlay"
		if remote == "" && o.criu == "" && o.upper != "" && !o.userXattr && !oci {
			o.mode = "migrate"
		}
	}
	if o.mode == "migrate" && o.upper == "" {
		o.mode = "overlay" // nothing is ever changed without an upper
	}
	if o.asCaller && o.mode == "migrate" && o.hosts == "" {
		// Others' copies are among the claims, which are the daemon's: it would need
		// rights that it is not said to have.
		o.hosts = "single"
	}
	if err := o.checkHosts(); err != nil {
		return err
	}
	if err := o.checkKeeping(); err != nil {
		return err
	}
	if err := o.checkCache(remote != "" || o.criu != ""); err != nil {
		return err
	}
	if o.mountBits != 0 && !isRoot() {
		return usageErrorf("nosymfollow needs root: leave it out")
	}
	if o.asCaller {
		if err := o.checkCaller(remote != "" || o.criu != ""); err != nil {
			return err
		}
	}
	if o.mode == "migrate" && o.volatile {
		return usageErrorf("volatile and mode=migrate exclude each other, since the lower copy is removed: leave volatile out, or use mode=overlay")
	}
	return nil
}

// checkHosts refuses what is not for the mode that was found.
func (o *options) checkHosts() error {
	switch {
	case o.mode == "migrate" && o.work != "":
		return usageErrorf("workdir=%s is for mode=overlay: migrate mode keeps what is unfinished in .migratefs of the upper: leave workdir out, or give mode=overlay, which leaves the lower as it is", o.work)
	case o.mode != "migrate" && o.hosts == "many":
		return usageErrorf("hosts=many is for mode=migrate: in overlay mode one mount owns its upper: leave it out")
	}
	return nil
}

// checkCaller refuses what does not go with creds=caller.
func (o *options) checkCaller(elsewhere bool) error {
	switch {
	case elsewhere:
		return usageErrorf("creds=caller is for layers of this host: leave it out")
	case o.mode != "migrate" && o.upper != "":
		return usageErrorf("creds=caller is for mode=migrate, or without upperdir: whiteouts are the daemon's")
	case o.given["default_permissions"]:
		return usageErrorf("creds=caller and default_permissions exclude each other: leave one out")
	case o.entry != nil && *o.entry != 0, o.attr != nil && *o.attr != 0, o.negative != nil && *o.negative != 0:
		return usageErrorf("creds=caller has the kernel keep no names and attributes: leave entry_timeout=, negative_timeout= and attr_timeout= out")
	case o.ids.Changed():
		return usageErrorf("creds=caller acts with the ids that there are: leave squash_* and *mapping= out")
	case !isRoot():
		return usageErrorf("creds=caller needs root: leave it out")
	case !sys.HasFaccessat2():
		return mountErrorf("creds=caller needs faccessat2(2), which Linux has from 5.8 on: leave it out")
	}
	return nil
}

// isRoot reports whether the daemon has root's rights, if only in its namespace.
func isRoot() bool { return os.Geteuid() == 0 }

// initialUserNS reports whether root is root everywhere, and may have trusted.*.
func initialUserNS() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || slices.Equal(strings.Fields(string(b)), []string{"0", "0", "4294967295"})
}
