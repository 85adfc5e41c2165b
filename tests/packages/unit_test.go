package packages

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

func unit(t *testing.T) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testbed.ModuleDir(), "packaging", "migratefs@.service"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != ';' {
			lines = append(lines, line)
		}
	}
	return lines
}

// What gives a service a mount namespace of its own makes its mounts invisible to
// everybody else; what hides devices or filters calls makes them fail.
var notInUnit = regexp.MustCompile(`^(Protect\w+|Private\w+|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|ExecPaths|NoExecPaths|` +
	`BindPaths|BindReadOnlyPaths|TemporaryFileSystem|MountFlags|MountAPIVFS|Root\w+|DynamicUser|StateDirectory|RuntimeDirectory|` +
	`CacheDirectory|LogsDirectory|ConfigurationDirectory|DevicePolicy|DeviceAllow|RestrictSUIDSGID|RestrictNamespaces|` +
	`RestrictFileSystems|RemoveIPC|LoadCredential\w*|SetCredential\w*|User|Group)=|@mount|@privileged|@file-system|Restart=(always|on-)`)

func TestUnitHidesNothing(t *testing.T) {
	has := map[string]bool{}
	for _, line := range unit(t) {
		has[line] = true
		if notInUnit.MatchString(line) {
			t.Errorf("%s: see the head of the unit", line)
		}
	}
	for _, want := range []string{"Type=notify", "NoNewPrivileges=yes", "LimitCORE=0", "LockPersonality=yes", "RestrictRealtime=yes", "EnvironmentFile=-/etc/sysconfig/migratefs"} {
		if !has[want] {
			t.Errorf("the unit does not say %s", want)
		}
	}
}

// unitCapabilities are those that the unit leaves, as setpriv(1) names them.
func unitCapabilities(t *testing.T) (all []string) {
	for _, line := range unit(t) {
		if list, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			for _, c := range strings.Fields(list) {
				all = append(all, strings.ToLower(strings.TrimPrefix(c, "CAP_")))
			}
		}
	}
	if len(all) == 0 {
		t.Fatal("the unit bounds no capabilities")
	}
	return all
}

// confined is the program with what the unit leaves it, as an executable file.
func confined(t *testing.T, before ...string) string {
	t.Helper()
	wrapper := filepath.Join(testbed.TempDir(t), "migratefs")
	text := fmt.Sprintf("#!/bin/sh\nexec %s %s \"$@\"\n", strings.Join(before, " "), testbed.BuildRace(t))
	if err := os.WriteFile(wrapper, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return wrapper
}

// work is what the daemons of these tests are asked to do: $1 is the mount, $2 the
// lower that it comes of. It prints what a mount must print, in either mode.
const work = `
	cd "$1"
	stat -c '%n %U %a' suid; getcap -n caps 2>/dev/null | grep -o 'cap_net.*'
	echo more >>plain; echo more >>suid; touch caps; chown 1000:1000 caps; chmod 2750 sub
	ln plain link; mv plain sub/moved; mknod node c 1 3; mkfifo fifo; ln -s sub/moved sym
	rm gone; mkdir -p new/dir; echo x >new/dir/f; mv new/dir new/other; chattr +a big 2>/dev/null || :
	chattr -a big 2>/dev/null || :
	dd if=/dev/zero of=big bs=1k count=1 seek=5 conv=notrunc status=none
	setpriv --reuid=1000 --regid=1000 --clear-groups sh -c 'echo mine >theirs/f; echo no >suid' 2>&1 | grep -o 'Permission denied'
	ls -1R . | xargs
	cat sym; stat -c '%n %u %a %h' sub/moved suid caps sub theirs/f; stat -c %s big
	grep -r secret . || echo "no secret"`

// prepared makes a lower for work.
const prepared = `
	mkdir lower upper point; cd lower
	echo plain >plain; echo suid >suid; chmod 4755 suid; echo gone >gone; head -c 100000 /dev/zero >big
	echo caps >caps; setcap cap_net_raw+ep caps; mkdir sub; mkdir -m 777 theirs
	echo secret >../secret; ln -s ../secret out`

// worked runs work on a mount by program with options, and returns what it printed.
func worked(t *testing.T, program, mode string) string {
	t.Helper()
	dir := testbed.TempDir(t)
	sh := exec.Command("sh", "-ec", prepared)
	sh.Dir = dir
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := testbed.Mount(t, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,mode="+mode, dir+"/point", testbed.MountConfig{Binary: program})
	out, err := exec.Command("sh", "-c", work, "sh", m.Point).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, m.Log())
	}
	m.Unmount()
	return string(out)
}

// The daemon needs no more than the unit leaves it.
func TestUnitLeavesWhatIsNeeded(t *testing.T) {
	set := "-all"
	for _, c := range unitCapabilities(t) {
		set += ",+" + c
	}
	program := confined(t, "setpriv", "--no-new-privs", "--bounding-set="+set, "--inh-caps=-all")
	for _, mode := range []string{"migrate", "overlay"} {
		free, bound := worked(t, "", mode), worked(t, program, mode)
		if free != bound {
			t.Errorf("%s: with what the unit leaves:\n%s\nwith all:\n%s", mode, bound, free)
		}
		if !strings.Contains(free, "Permission denied") || !strings.Contains(free, "caps 1000") {
			t.Errorf("%s: the work is not what it is meant to be:\n%s", mode, free)
		}
	}
}

// A kernel that has no call that came after Linux 5.4 does the same.
func TestOldKernel(t *testing.T) {
	old := testbed.BuildProgram(t, "./tests/packages/oldkernel")
	program := confined(t, old)
	for _, mode := range []string{"migrate", "overlay"} {
		if now, then := worked(t, "", mode), worked(t, program, mode); now != then {
			t.Errorf("%s: as on Linux 5.4:\n%s\non this kernel:\n%s", mode, then, now)
		}
	}
	out, err := exec.Command(old, testbed.Build(t), "doctor").CombinedOutput()
	for _, want := range []string{"no  openat2(2): Linux has it since 5.6, so has this kernel: a seccomp filter hides it", "no  faccessat2(2)", "no  clones that are read-only", "yes private clones of layers", "yes a mount"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("doctor does not say %q: %v\n%s", want, err, out)
		}
	}
	dir := testbed.TempDir(t)
	out, err = exec.Command(old, testbed.Build(t), "-f", "-o", "lowerdir="+dir+",creds=caller", dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "creds=caller needs faccessat2(2)") {
		t.Errorf("creds=caller: %v\n%s", err, out)
	}
}
