package traps

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// shared makes directories that the user may write to for one reason each.
func shared(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []struct {
		name string
		gid  int
		mode uint32
	}{
		{"own", 0, 0o777},
		{"bygroup", 2000, 0o770}, // a supplementary group of the user
		{"setgid", 2001, 0o2770},
		{"acl", 0, 0o777},
		{"aclsetgid", 2001, 0o2777},
		{"closed", 0, 0o755},
		{"sticky", 0, 0o1777},
	} {
		p := filepath.Join(dir, d.name)
		must(t, os.Mkdir(p, 0o700))
		must(t, os.Chown(p, 0, d.gid))
		put(t, filepath.Join(p, "old"), "old", 0o644)
		if strings.HasPrefix(d.name, "acl") {
			must(t, unix.Setxattr(p, "system.posix_acl_default", acl(7, 6, 5, 7, 4), 0))
		}
		must(t, unix.Chmod(p, d.mode))
	}
}

// makeAll makes one of everything in each directory that lets it, over names that
// are new and names that were deleted (in overlay mode: over whiteouts).
const makeAll = `
for d in own bygroup setgid acl aclsetgid closed sticky; do
	rm -f $d/old 2>/dev/null
	for n in new old; do
		for mask in 000 022 027 077; do
			umask $mask
			echo text >$d/$n-$mask
			mkdir $d/$n-dir-$mask
			mkfifo $d/$n-fifo-$mask
			ln -s target $d/$n-link-$mask
			echo below >$d/$n-dir-$mask/file
		done
		umask 022
		[ -e $d/$n ] || mkdir $d/$n
		rmdir $d/$n && echo again >$d/$n && rm $d/$n && ln -s target $d/$n && rm $d/$n && mkfifo $d/$n
	done
done 2>/dev/null
true`

// What a user makes has the owner, group, mode and ACL that it has anywhere else.
func TestOwnersOfWhatIsMade(t *testing.T) {
	for _, c := range []struct {
		name string
		cred *syscall.Credential
	}{
		{"user", user},
		{"root", &syscall.Credential{}},
		{"root of another group", &syscall.Credential{Gid: 2001}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBothModes(t, shared, func(t *testing.T, s *stack) {
				twin := filepath.Join(s.dir, "twin")
				must(t, os.Mkdir(twin, 0o755))
				shared(t, twin)
				for _, dir := range []string{twin, s.Dir} {
					if out := sh(t, c.cred, dir, makeAll); out != "" {
						t.Error(out)
					}
				}
				want := testbed.Snapshot(t, twin, testbed.Usual)
				if want.Len() < 200 {
					t.Fatalf("only %d files were made", want.Len())
				}
				testbed.Same(t, "a plain filesystem", want, "the mount", testbed.Snapshot(t, s.Dir, testbed.Usual, ".migratefs"))
				asNobodyElse(t, s)
			})
		})
	}
}

// asNobodyElse checks that no thread of the daemon has kept anybody's rights.
func asNobodyElse(t *testing.T, s *stack) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.Pid()))
	must(t, err)
	if len(tasks) < 2 {
		t.Fatalf("%d threads", len(tasks))
	}
	want := rights(content(t, "/proc/thread-self/status"))
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended
		}
		if got := rights(string(b)); got != want {
			t.Errorf("%s has %s, the daemon was started with %s", task, got, want)
		}
	}
}

func rights(status string) string {
	var lines []string
	for line := range strings.SplitSeq(status, "\n") {
		name, value, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Uid", "Gid", "Groups"}, name) {
			lines = append(lines, name+":"+strings.Join(strings.Fields(value), " "))
		}
	}
	return strings.Join(lines, " ")
}

// Many requests of many users at once: everything belongs to who made it, and
// afterwards no thread of the daemon is anybody but itself.
func TestManyUsersAtOnce(t *testing.T) {
	inBothModes(t, func(t *testing.T, lower string) {
		must(t, os.Chmod(lower, 0o755))
		must(t, os.Mkdir(filepath.Join(lower, "d"), 0o755))
		must(t, os.Chmod(filepath.Join(lower, "d"), 0o1777))
	}, func(t *testing.T, s *stack) {
		var all sync.WaitGroup
		const users = 8
		for i := range users {
			all.Go(func() {
				c := &syscall.Credential{Uid: uint32(1000 + i), Gid: uint32(3000 + i), Groups: []uint32{uint32(4000 + i)}}
				if out := sh(t, c, s.Path("d"), fmt.Sprintf(`for n in $(seq 60); do
					echo x >%[1]d-$n; mkdir %[1]d-dir-$n; ln -s x %[1]d-link-$n; mv %[1]d-$n %[1]d-moved-$n; rm %[1]d-link-$n; ln -s x %[1]d-link-$n
				done`, i)); out != "" {
					t.Error(out)
				}
			})
		}
		all.Wait()
		es, err := os.ReadDir(s.Path("d"))
		must(t, err)
		if len(es) != users*60*3 {
			t.Errorf("%d files", len(es))
		}
		for _, e := range es {
			var i uint32
			_, err := fmt.Sscanf(e.Name(), "%d-", &i)
			must(t, err)
			if st := lstat(t, s.Path("d", e.Name())); st.Uid != 1000+i || st.Gid != 3000+i {
				t.Errorf("%s belongs to %d:%d", e.Name(), st.Uid, st.Gid)
			}
		}
		asNobodyElse(t, s)
	})
}

// A daemon that cannot take a user's rights refuses what it would have to do with
// them: it never does it with its own.
func TestFailedSwitch(t *testing.T) {
	for _, capability := range []string{"setuid", "setgid"} {
		t.Run(capability, func(t *testing.T) {
			inBothModesWithout(t, capability, func(t *testing.T, s *stack) {
				out := sh(t, user, s.Path("own"), `echo x >new; mkdir dir; ln -s x link; mkfifo fifo; rm old; echo x >old; echo more >>mine || echo append`)
				if es, err := os.ReadDir(s.Path("own")); err != nil || len(es) > 1 {
					t.Errorf("%v, %v was made:\n%s", err, es, out)
				}
				if !strings.Contains(out, "not permitted") {
					t.Errorf("no request failed:\n%s", out)
				}
				// Root needs no switch.
				put(t, s.Path("own", "root"), "root", 0o644)
			})
		})
	}
}

func inBothModesWithout(t *testing.T, capability string, f func(t *testing.T, s *stack)) {
	setpriv, err := exec.LookPath("setpriv")
	must(t, err)
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			shared(t, s.lower)
			put(t, filepath.Join(s.lower, "own", "mine"), "mine", 0o666)
			binary := filepath.Join(s.dir, "migratefs")
			put(t, binary, fmt.Sprintf("#!/bin/sh\nexec %s --bounding-set=-%s -- %s \"$@\"\n", setpriv, capability, testbed.BuildRace(t)), 0o755)
			f(t, s.mount(t, mode, testbed.MountConfig{Binary: binary}))
		})
	}
}

// A write by somebody else takes suid bits and capabilities off a file, in every
// way that a write can come; truncate as well.
func TestStrangersWriteTakesPrivileges(t *testing.T) {
	for _, way := range []string{"echo x >>f", "echo x >f", ": >f", "echo x | dd of=f conv=notrunc 2>/dev/null", "truncate -s 1 f"} {
		t.Run(way, func(t *testing.T) {
			inBothModes(t, func(t *testing.T, lower string) {
				put(t, filepath.Join(lower, "f"), "program", 0o777)
				must(t, unix.Chmod(filepath.Join(lower, "f"), 0o6777))
				v := binary.LittleEndian.AppendUint32(nil, 0x02000001)
				v = append(binary.LittleEndian.AppendUint32(v, 1<<13), make([]byte, 12)...)
				must(t, unix.Setxattr(filepath.Join(lower, "f"), "security.capability", v, 0))
			}, func(t *testing.T, s *stack) {
				if out := sh(t, user, s.Path(), way); out != "" {
					t.Fatal(out)
				}
				st := lstat(t, s.Path("f"))
				n, err := unix.Getxattr(s.Path("f"), "security.capability", nil)
				if st.Mode != unix.S_IFREG|0o777 || err != unix.ENODATA {
					t.Errorf("mode %o, capabilities: %d bytes, %v", st.Mode, n, err)
				}
			})
		})
	}
}
