package traps

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// owners of a tree as the layer has them.
func ownedTree(t *testing.T, lower string) {
	t.Helper()
	for _, f := range []struct {
		name     string
		uid, gid int
	}{{"root", 0, 0}, {"one", 1, 1}, {"far", 70000, 70000}} {
		d := filepath.Join(lower, f.name)
		must(t, os.Mkdir(d, 0o755))
		put(t, filepath.Join(d, "f"), "old", 0o644)
		must(t, os.Chown(filepath.Join(d, "f"), f.uid, f.gid))
		must(t, os.Chown(d, f.uid, f.gid))
	}
}

func owner(t *testing.T, path string) [2]uint32 {
	t.Helper()
	st := lstat(t, path)
	return [2]uint32{st.Uid, st.Gid}
}

// stored is where the upper has it or, in migrate mode before it moves, the lower.
func (s *stack) stored(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{s.upper, s.lower} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	t.Fatalf("%s is in no layer", name)
	return ""
}

func inBothModesWith(t *testing.T, options string, fill func(*testing.T, string), f func(*testing.T, *stack)) {
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			fill(t, s.lower)
			f(t, s.mount(t, mode+","+options))
		})
	}
}

// makeInside makes one of everything, over a deleted name as well.
const makeInside = `umask 022; rm -f f; echo new >f; echo x >g; mkdir d; ln -s x l; mkfifo p; echo y >d/f; mv g h; echo more >>h; chmod 600 h; cat h`

// Owners are shown mapped, and what is made and chowned is stored mapped back.
func TestMappedIDs(t *testing.T) {
	const options = "uidmapping=0:1000:1:1:110000:65535,gidmapping=0:1000:1:1:110000:65535"
	inBothModesWith(t, options, ownedTree, func(t *testing.T, s *stack) {
		for name, want := range map[string][2]uint32{
			"root": {1000, 1000}, "one/f": {110000, 110000}, "far": {65534, 65534},
		} {
			if got := owner(t, s.Path(name)); got != want {
				t.Errorf("%s is shown as %v, want %v", name, got, want)
			}
		}
		for _, c := range []struct {
			dir      string
			id       uint32
			stored   uint32
			nobodyIn string
		}{{"root", 1000, 0, "one"}, {"one", 110000, 1, "root"}} {
			cred := &syscall.Credential{Uid: c.id, Gid: c.id}
			if out := sh(t, cred, s.Path(c.dir), makeInside); out != "x\nmore\n" {
				t.Errorf("%s: %q", c.dir, out)
			}
			linkNameless(t, c.id, s.Path(c.dir), "n")
			for _, name := range []string{"f", "d", "l", "p", "d/f", "h", "n"} {
				name = filepath.Join(c.dir, name)
				if got := owner(t, s.Path(name)); got != [2]uint32{c.id, c.id} {
					t.Errorf("%s is shown as %v", name, got)
				}
				if got := owner(t, s.stored(t, name)); got != [2]uint32{c.stored, c.stored} {
					t.Errorf("%s is stored as %v", name, got)
				}
			}
			if out := sh(t, cred, s.Path(c.nobodyIn), "echo x >stranger && echo made"); out == "made\n" {
				t.Errorf("%d wrote to %s", c.id, c.nobodyIn)
			}
		}
		must(t, os.Chown(s.Path("root", "h"), 110004, -1))
		if st := lstat(t, s.stored(t, "root/h")); st.Uid != 5 || st.Gid != 0 {
			t.Errorf("chown to 110004 stores %d:%d", st.Uid, st.Gid)
		}
		must(t, os.Chown(s.Path("root", "h"), 5, -1)) // nobody's: as fuse-overlayfs has it
		if st := lstat(t, s.stored(t, "root/h")); st.Uid != 65534 || st.Gid != 0 {
			t.Errorf("chown to an id that is not mapped stores %d:%d", st.Uid, st.Gid)
		}
	})
}

// linkNameless makes a file with O_TMPFILE as uid and gid id, and then gives it a name.
func linkNameless(t *testing.T, id uint32, dir, name string) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_ = unix.Setfsgid(int(id))
		_ = unix.Setfsuid(int(id))
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, filepath.Join(dir, name), unix.AT_SYMLINK_FOLLOW)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Errorf("O_TMPFILE of %d in %s, and its link: %v", id, dir, err)
	}
}

// Everything is shown as one owner's, who may do everything; what they make is
// stored as theirs.
func TestSquashedIDs(t *testing.T) {
	for options, shown := range map[string][2]uint32{
		"squash_to_root":                                        {0, 0},
		"squash_to_uid=1000,squash_to_gid=1001":                 {1000, 1001},
		"squash_to_uid=1000,squash_to_root":                     {1000, 0},
		"squash_to_gid=1001,uidmapping=0:5:1,gidmapping=0:5:10": {0, 1001},
	} {
		t.Run(options, func(t *testing.T) {
			inBothModesWith(t, options, ownedTree, func(t *testing.T, s *stack) {
				want := shown
				if options[:13] == "squash_to_gid" {
					want[0] = 5
				}
				for _, name := range []string{"root", "root/f"} {
					if got := owner(t, s.Path(name)); got != want {
						t.Errorf("%s is shown as %v, want %v", name, got, want)
					}
				}
				c := &syscall.Credential{Uid: want[0], Gid: want[1]}
				if out := sh(t, c, s.Path("root"), makeInside); out != "x\nmore\n" {
					t.Errorf("%q", out)
				}
				linkNameless(t, want[0], s.Path("root"), "n")
				for _, name := range []string{"root/f", "root/d", "root/h", "root/d/f", "root/n"} {
					if got := owner(t, s.Path(name)); got != want {
						t.Errorf("%s is shown as %v, want %v", name, got, want)
					}
				}
				if want[0] == 1000 && owner(t, s.stored(t, "root/d/f"))[0] != 1000 {
					t.Errorf("what 1000 made is stored as %v", owner(t, s.stored(t, "root/d/f")))
				}
				if err := unix.Lchown(s.Path("root", "h"), int(want[0]), -1); err != nil {
					t.Errorf("chown to who is shown: %v", err)
				}
			})
		})
	}
}
