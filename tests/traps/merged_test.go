package traps

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// The attributes that show decide, whatever a lower has: a directory that is open
// in the upper is open, and one that is closed there is closed.
func TestMergedAttributesDecide(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	for name, modes := range map[string][2]os.FileMode{"opened": {0, 0o755}, "closed": {0o755, 0o700}} {
		low, up := filepath.Join(s.lower, name), filepath.Join(s.upper, name)
		must(t, os.MkdirAll(filepath.Join(low, "d"), 0o755))
		put(t, filepath.Join(low, "f"), "below", 0o644)
		put(t, filepath.Join(low, "d", "g"), "deep", 0o644)
		must(t, os.Chown(low, 4000, 4000))
		must(t, os.Chmod(low, modes[0]))
		must(t, os.Mkdir(up, 0o755))
		must(t, os.Chmod(up, modes[1]))
	}
	must(t, os.Chown(filepath.Join(s.upper, "opened"), 1000, 1001))
	s.mount(t, "overlay")
	mustBe(t, sh(t, user, s.Path(), `ls opened; cat opened/f opened/d/g; echo " more" >opened/new; rm opened/f; cat opened/new; ls opened`),
		"d\nf\nbelowdeep more\nd\nnew\n")
	mustBe(t, sh(t, user, s.Path(), `for c in "ls closed" "cat closed/f" "stat closed/d" "touch closed/new"; do $c >/dev/null 2>&1 && echo "$c works"; done`), "")
	st := lstat(t, filepath.Join(s.lower, "opened"))
	if st.Mode&0o777 != 0 || st.Uid != 4000 {
		t.Errorf("the lower has changed: %o", st.Mode)
	}
}

// fallocate and copy_file_range by a stranger take suid and sgid, root's do not,
// and chown and chmod drop them, as on ext4.
func TestSuidAsOnExt4(t *testing.T) {
	const script = `f=$1; cap="setfattr -n security.capability -v 0x0100000200200000000000000000000000000000"
		set_() { chown 1000:2000 $f; chmod ${1%+} $f; [ "$1" = "${1%+}" ] || $cap $f; }
		show() { stat -c "$1 %a %u:%g" $f; getfattr -n security.capability $f 2>/dev/null | grep -o "^sec[^=]*" && setfattr -x security.capability $f; }
		for m in 6777 2767 4766 6666 6775+ 755+; do
			for who in 0 1000 1002; do
				u="setpriv --reuid $who --regid $who --clear-groups"
				set_ $m; $u fallocate -l 100 $f; show "fallocate $who"
				set_ $m; $u fallocate -p -o 0 -l 50 $f; show "punch $who"
				set_ $m; $u xfs_io -c "copy_range src" $f >/dev/null 2>&1 || $u dd if=src of=$f conv=notrunc status=none; show "copy $who"
				set_ $m; $u sh -c "echo x >>$f"; show "append $who"
				set_ $m; $u truncate -s 10 $f; show "truncate $who"
				set_ $m; $u chown 1000 $f 2>/dev/null; show "chown $who"
				set_ $m; $u chgrp $who $f 2>/dev/null; show "chgrp $who"
				set_ $m; $u chmod 6755 $f 2>/dev/null; show "chmod $who"
				set_ $m; $u perl -e 'chown -1, -1, @ARGV' $f; show "chown to nobody $who"
			done
		done`
	fill := func(t *testing.T, dir string) {
		must(t, os.Chmod(dir, 0o777))
		put(t, filepath.Join(dir, "f"), "content", 0o777)
		put(t, filepath.Join(dir, "src"), "source", 0o644)
	}
	inBothModes(t, fill, func(t *testing.T, s *stack) {
		twin := filepath.Join(s.dir, "twin")
		must(t, os.Mkdir(twin, 0o755))
		fill(t, twin)
		root := &syscall.Credential{}
		want := sh(t, root, twin, "set -- f\n"+script)
		mustBe(t, sh(t, root, s.Dir, "set -- f\n"+script), want)
		if len(want) < 1000 {
			t.Error(want)
		}
	})
}

// A caller whom the daemon cannot see, in a pid namespace beside its own, has no
// supplementary groups: what only those allow in a layer fails, and no other
// groups, the daemon's least of all, take their place.
func TestCallerInAnotherPidNamespace(t *testing.T) {
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			shared(t, s.lower)
			// The daemon is the one that is in a namespace: it sees no caller's pid.
			binary := filepath.Join(s.dir, "migratefs")
			put(t, binary, "#!/bin/sh\nexec unshare -pf --kill-child -- "+testbed.BuildRace(t)+" \"$@\"\n", 0o755)
			s.mount(t, mode+",fsname=x", testbed.MountConfig{Binary: binary})
			mustBe(t, sh(t, user, s.Path(), `echo x >own/new && stat -c %u:%g own/new
				(echo x >bygroup/new) 2>/dev/null && echo "made by a group that is not known"`), "1000:1001\n")
		})
	}
}

// mount -o remount makes a mount read-only, and writable again.
func TestRemount(t *testing.T) {
	inBothModes(t, shared, func(t *testing.T, s *stack) {
		run := func(options string) {
			t.Helper()
			mustBe(t, sh(t, &syscall.Credential{}, s.dir, testbed.BuildRace(t)+" -o "+options+" "+s.Point), "migratefs: "+s.Point+" is remounted\n")
		}
		run("remount,ro,nosuid,lowerdir=" + s.lower)
		var st unix.Statfs_t
		must(t, unix.Statfs(s.Point, &st))
		if st.Flags&(unix.ST_RDONLY|unix.ST_NOSUID) != unix.ST_RDONLY|unix.ST_NOSUID {
			t.Errorf("flags %#x", st.Flags)
		}
		if err := os.WriteFile(s.Path("f"), nil, 0o600); err == nil {
			t.Error("a read-only mount was written to")
		}
		run("remount,rw")
		put(t, s.Path("f"), "x", 0o600)
		must(t, unix.Statfs(s.Point, &st))
		if st.Flags&(unix.ST_RDONLY|unix.ST_NOSUID) != unix.ST_NOSUID {
			t.Errorf("flags %#x", st.Flags)
		}
	})
}
