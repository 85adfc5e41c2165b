package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// every names the options of each program that a user may come from: the manuals
// of mount(8) (util-linux 2.40), overlayfs (Linux 6.18), fuse(4) and mount.fuse3(8)
// (libfuse 3.17) and fuse-overlayfs(1) 1.14 with what its source accepts.
var every = map[string]string{
	"migratefs": "mode= criu= names= creds= log= timeout= hard soft ssh_config= ssh_option= ssh_as= connections= xattr= enospc= keep_lower trash_days= fill= fill_rate=",
	"mount(8)": `async atime noatime auto noauto context= fscontext= defcontext= rootcontext= defaults dev nodev
		diratime nodiratime dirsync exec noexec group iversion noiversion mand nomand _netdev nofail relatime norelatime
		strictatime nostrictatime lazytime nolazytime suid nosuid silent loud owner remount ro rw sync user nouser users
		x-systemd.automount X-mount.mkdir= nosymfollow symfollow comment= helper= uhelper= loop offset= sizelimit= encryption=
		bind rbind move shared rshared slave rslave private rprivate unbindable runbindable`,
	"overlayfs": `lowerdir= lowerdir+= datadir+= upperdir= workdir= default_permissions redirect_dir= index= xino= metacopy= uuid=
		nfs_export= userxattr verity= volatile override_creds nooverride_creds`,
	"fuse": `default_permissions allow_other rootmode= blkdev blksize= max_read= fd= user_id= group_id= fsname= subtype=
		allow_root auto_unmount kernel_cache auto_cache noauto_cache umask= uid= gid= entry_timeout= negative_timeout=
		attr_timeout= ac_attr_timeout= noforget remember= modules= subdir= setuid= drop_privileges direct_io hard_remove
		use_ino readdir_ino intr intr_signal= max_write= max_readahead= max_background= congestion_threshold= async_read
		sync_read atomic_o_trunc big_writes large_read no_remote_lock no_remote_flock no_remote_posix_lock nonempty
		splice_write splice_move splice_read no_splice_write no_splice_move no_splice_read clone_fd max_idle_threads=
		max_threads= debug`,
	"fuse-overlayfs": `redirect_dir= context= lowerdir= upperdir= workdir= uidmapping= gidmapping= timeout= threaded=
		fsync= fast_ino= writeback= noxattrs= plugins= xattr_permissions= squash_to_root squash_to_uid= squash_to_gid=
		static_nlink volatile noacl ino32_t`,
}

// Every option of those is accepted with its meaning, says what is so anyway, or
// is refused by name with what to do. Each is in one table, and in the manual.
func TestEveryOptionIsKnown(t *testing.T) {
	page, err := os.ReadFile("../../packaging/migratefs.5")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.FieldsFunc(string(page), func(r rune) bool { return strings.ContainsRune(" \n,|=", r) })
	for program, list := range every {
		for _, option := range strings.Fields(list) {
			name := strings.TrimSuffix(option, "=")
			tables := 0
			for _, known := range []bool{
				optionTable[name] != nil, mountFlags[name], alreadySo[name], hints[name] != "",
				onlyAs[name].value != "", refused[name] != "", securityContext[name],
				strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"),
			} {
				if known {
					tables++
				}
			}
			if tables != 1 {
				t.Errorf("%s: %s is in %d tables", program, name, tables)
			}
			inPage := slices.Contains(words, name)
			if prefix, _, ok := strings.Cut(name, "-"); ok && strings.EqualFold(prefix, "x") {
				inPage = slices.Contains(words, "x-*")
			}
			if !inPage {
				t.Errorf("%s: %s is not in migratefs(5)", program, name)
			}
		}
	}
}

func TestKnownOptions(t *testing.T) {
	const layers = "lowerdir=/a,upperdir=/b,mode=overlay,"
	for in, want := range map[string]string{ // "": accepted
		"relatime,silent,nonempty,nomand,symfollow": "",
		"max_idle_threads=4,clone_fd":               "",
		"threaded=1,fsync=1,noxattrs=0":             "",
		"threaded=0":                                "other",
		"fsync=0":                                   "volatile",
		"sync":                                      "fsync(2)",
		"allow_root":                                "allow_other",
		"max_read=65536":                            "max_write",
		"bind":                                      "mount --bind",
		"ro=0":                                      "no value",
		"relatime=1":                                "no value",
		"creds=daemon":                              "",
		"creds=caller":                              "mode=migrate",
		"creds=x":                                   "daemon or caller",
		"squash_to_uid=x":                           "number",
		"uidmapping=0:1000:1:1:110000:65536":        "",
		"gidmapping=0:1000":                         "ID:SHOWN:COUNT",
		"gidmapping=0:1000:-1":                      "number",
		"max_write=1":                               "4096",
		"context=system_u:object_r:tmp_t:s0":        "",
		"context=":                                  "empty",
		"user=joe,x-systemd.automount,X-mount.mkdir=0755": "",
	} {
		o, err := parseOptions([]string{layers + in})
		var ce *codeError
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", in, err)
		case want != "" && (!errors.As(err, &ce) || ce.code != exitUsage || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want a usage error that says %q", in, err, want)
		case strings.HasPrefix(in, "max_idle") && len(o.notes) != 2:
			t.Errorf("%s: the user is told %q", in, o.notes)
		}
	}
}
