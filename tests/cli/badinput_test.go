// Package cli tests what the program says: exit codes, and one line for each
// thing that a user can get wrong.
package cli

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// Exit codes, as README.md has them.
const (
	exitFailure = 1
	exitUsage   = 2
	exitMount   = 32
)

// site is a place with everything that a mount needs, for cases to spoil.
type site struct {
	dir  string
	sshd *testbed.SSHD // nil unless the case asked for it
	env  []string
}

func (s *site) at(name string) string { return filepath.Join(s.dir, name) }

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: testbed.TempDir(t), env: os.Environ()}
	for _, d := range []string{"lower", "lower/sub", "upper", "upper/sub", "mnt", "images", "alone"} {
		must(t, os.Mkdir(s.at(d), 0o755))
	}
	must(t, os.WriteFile(s.at("lower/file"), []byte("of the lower"), 0o644))
	must(t, os.WriteFile(s.at("upper/other"), []byte("of the upper"), 0o644))
	must(t, os.WriteFile(s.at("a file"), nil, 0o644))
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// startSSHD gives the site a source.
func (s *site) startSSHD(t *testing.T) {
	t.Helper()
	s.sshd = testbed.StartSSHD(t)
	s.env = s.sshd.Env()
}

// badInput is something that must be refused.
type badInput struct {
	name  string
	spoil func(t *testing.T, s *site) // what must be so before; nil: nothing
	args  string                      // DIR is the site's directory
	code  int
	want  []string // must be in the line: what is wrong, and what to do
}

var badInputs = []badInput{
	{"unknown option", nil, "-o lowerdir=DIR/lower,upperdir=DIR/upper,lowredir=DIR/lower DIR/mnt",
		exitUsage, []string{`lowredir`}},
	{"unknown flag", nil, "--frobnicate -o lowerdir=DIR/lower DIR/mnt", exitUsage, []string{"--frobnicate"}},
	{"unknown mode", nil, "-o lowerdir=DIR/lower,mode=move DIR/mnt", exitUsage, []string{"move", "migrate", "overlay"}},
	{"unknown names", nil, "-o criu=DIR/images,names=round DIR/mnt", exitUsage, []string{"round", "tree", "flat"}},
	{"no mountpoint", nil, "-o lowerdir=DIR/lower", exitUsage, []string{"mountpoint"}},
	{"two mountpoints", nil, "-o lowerdir=DIR/lower DIR/mnt DIR/alone DIR/upper", exitUsage, nil},
	{"no lower", nil, "-o upperdir=DIR/upper DIR/mnt", exitUsage, []string{"lowerdir"}},
	{"empty lower", nil, "-o lowerdir=,upperdir=DIR/upper DIR/mnt", exitUsage, []string{"lowerdir"}},
	{"two uppers", nil, "-o lowerdir=DIR/lower,upperdir=DIR/upper,upperdir=DIR/alone DIR/mnt", exitUsage, []string{"upperdir"}},
	{"migrate from a remote lower", nil, "-o lowerdir=source:/,upperdir=DIR/upper,mode=migrate DIR/mnt",
		exitUsage, []string{"migrate", "source"}},
	{"host with a leading dash", nil, "-o lowerdir=-oProxyCommand=true:/x,upperdir=DIR/upper DIR/mnt", exitUsage, nil},
	{"host with a metacharacter", nil, "-o lowerdir=a;b:/x,upperdir=DIR/upper DIR/mnt", exitUsage, nil},

	{"lower does not exist", nil, "-o lowerdir=DIR/nolower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/nolower"}},
	{"lower is a file", nil, "-o lowerdir=DIR/lower/file,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/lower/file", "directory"}},
	{"upper does not exist", nil, "-o lowerdir=DIR/lower,upperdir=DIR/noupper DIR/mnt", exitMount, []string{"DIR/noupper"}},
	{"mountpoint does not exist", nil, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR/nomnt", exitMount, []string{"DIR/nomnt"}},
	{"mountpoint is a file", nil, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR/lower/file", exitMount, []string{"DIR/lower/file"}},
	{"upper on a read-only filesystem", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("ro"), 0o755))
		must(t, unix.Mount("ro", s.at("ro"), "tmpfs", unix.MS_RDONLY, ""))
		t.Cleanup(func() { must(t, unix.Unmount(s.at("ro"), 0)) })
	}, "-o lowerdir=DIR/lower,upperdir=DIR/ro DIR/mnt", exitMount, []string{"DIR/ro", "read-only"}},
	{"upper inside lower", nil, "-o lowerdir=DIR/lower,upperdir=DIR/lower/sub DIR/mnt", exitMount, []string{"DIR/lower/sub", "inside"}},
	{"lower inside upper", nil, "-o lowerdir=DIR/upper/sub,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/upper/sub", "inside"}},
	{"upper is lower", nil, "-o lowerdir=DIR/lower,upperdir=DIR/lower DIR/mnt", exitMount, []string{"DIR/lower"}},
	{"lower twice", nil, "-o lowerdir=DIR/lower:DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/lower"}},
	{"mountpoint inside lower", nil, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR/lower/sub", exitMount, []string{"DIR/lower/sub", "inside"}},
	{"mountpoint inside upper", nil, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR/upper/sub", exitMount, []string{"DIR/upper/sub", "inside"}},
	{"layers inside the mountpoint", nil, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR", exitMount, []string{"inside"}},
	{"the mount hides ssh", func(t *testing.T, s *site) {
		must(t, os.WriteFile(s.at("mnt/ssh"), []byte("#!/bin/sh\nexec ssh \"$@\"\n"), 0o755))
	}, "-o lowerdir=source:/,ssh_command=DIR/mnt/ssh DIR/mnt", exitMount, []string{"DIR/mnt/ssh", "hide", "somewhere else"}},
	{"workdir on another filesystem", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("other"), 0o755))
		must(t, unix.Mount("other", s.at("other"), "tmpfs", 0, ""))
		t.Cleanup(func() { must(t, unix.Unmount(s.at("other"), 0)) })
	}, "-o mode=overlay,lowerdir=DIR/lower,upperdir=DIR/upper,workdir=DIR/other DIR/mnt", exitMount, []string{"DIR/other", "filesystem"}},
	{"default workdir is somebody's symlink", func(t *testing.T, s *site) {
		must(t, os.Symlink(s.at("alone"), s.at(".upper.migratefs")))
	}, "-o mode=overlay,lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/.upper.migratefs", "workdir="}},
	{"default workdir is somebody's directory", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at(".upper.migratefs"), 0o777))
		must(t, os.Chown(s.at(".upper.migratefs"), 1000, 1000))
	}, "-o mode=overlay,lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/.upper.migratefs", "belong"}},
	{"workdir in migrate mode", nil, "-o lowerdir=DIR/lower,upperdir=DIR/upper,workdir=DIR/alone DIR/mnt", exitUsage, []string{"workdir", "mode=overlay"}},
	{"many hosts in overlay mode", nil, "-o mode=overlay,hosts=many,lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitUsage, []string{"hosts=many", "mode=migrate"}},
	{"unknown hosts", nil, "-o hosts=two,lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitUsage, []string{"two", "many", "single"}},
	{"somebody's .migratefs in the upper", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("lower/.migratefs"), 0o700))
		must(t, os.WriteFile(s.at("lower/.migratefs/id"), []byte(strings.Repeat("0", 32)), 0o600))
		must(t, os.Mkdir(s.at("upper/.migratefs"), 0o777))
		must(t, os.Chown(s.at("upper/.migratefs"), 1000, 1000))
	}, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/upper", ".migratefs", "belong"}},
	{"a lower's id that is none", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("lower/.migratefs"), 0o700))
		must(t, os.WriteFile(s.at("lower/.migratefs/id"), []byte("mine"), 0o600))
	}, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/lower", ".migratefs/id", "digits"}},
	{"many hosts on the upper of one", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("first"), 0o755))
		testbed.Mount(t, "hosts=single,lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("first"))
	}, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/upper", "in use"}},
	{"one host on the upper of many", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("first"), 0o755))
		testbed.Mount(t, "lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("first"))
	}, "-o hosts=single,lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/upper", "in use", "hosts=many"}},
	{"overlay mode on the upper of many", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("first"), 0o755))
		testbed.Mount(t, "lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("first"))
	}, "-o mode=overlay,lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/upper", "in use", "mode=migrate"}},
	{"many hosts on the upper of an overlay", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("first"), 0o755))
		testbed.Mount(t, "mode=overlay,lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("first"))
	}, "-o lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/upper", "in use"}},
	{"second mount on the same upper", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("first"), 0o755))
		testbed.Mount(t, "mode=overlay,lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("first"))
	}, "-o mode=overlay,lowerdir=DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/upper"}},

	{"host that does not exist", func(t *testing.T, s *site) { s.startSSHD(t) },
		"-o lowerdir=nohost.invalid:/,upperdir=DIR/upper DIR/mnt", exitMount, []string{"nohost.invalid"}},
	{"host that does not listen", func(t *testing.T, s *site) {
		s.startSSHD(t)
		s.sshd.Kill()
	}, "-o lowerdir=source:DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"source", "refused"}},
	{"host that refuses the key", func(t *testing.T, s *site) {
		s.startSSHD(t)
		must(t, os.WriteFile(s.sshd.AuthorizedKeys(), nil, 0o600))
	}, "-o lowerdir=source:DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"source"}},
	{"unknown host key", func(t *testing.T, s *site) {
		s.startSSHD(t)
		must(t, os.WriteFile(s.sshd.KnownHosts(), nil, 0o600))
	}, "-o lowerdir=source:DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"source", "key"}},
	{"changed host key", func(t *testing.T, s *site) {
		s.startSSHD(t)
		other, err := os.ReadFile(filepath.Join(filepath.Dir(s.sshd.KnownHosts()), "id.pub"))
		must(t, err)
		must(t, os.WriteFile(s.sshd.KnownHosts(), []byte("source "+string(other)), 0o600))
	}, "-o lowerdir=source:DIR/lower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"source", "key"}},
	{"wrong path on the source", func(t *testing.T, s *site) { s.startSSHD(t) },
		"-o lowerdir=source:DIR/nolower,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/nolower"}},
	{"a file on the source", func(t *testing.T, s *site) { s.startSSHD(t) },
		"-o lowerdir=source:DIR/lower/file,upperdir=DIR/upper DIR/mnt", exitMount, []string{"DIR/lower/file", "directory"}},

	{"restore without a host", nil, "restore DIR/images", exitUsage, []string{"--from"}},
	{"restore without images", nil, "restore --from root@source", exitUsage, []string{"image directory"}},
	{"restore from a leading dash", nil, "restore --from -oX DIR/images", exitUsage, []string{"-oX"}},
	{"restore from images that do not exist", nil, "restore --from root@source --criu /bin/true DIR/noimages",
		exitFailure, []string{"DIR/noimages"}},
	{"restore from no images", nil, "restore --from root@source --criu /bin/true DIR/alone", exitFailure, []string{"DIR/alone"}},
	{"restore with a criu that is not there", func(t *testing.T, s *site) {
		s.images(t, "pstree.img", unchanged)
		for _, pages := range []string{"pages-1.img", "pages-2.img"} { // the golden images are without
			must(t, os.WriteFile(s.at("images/"+pages), make([]byte, 1<<20), 0o644))
		}
	},
		"restore --from root@source --criu DIR/nocriu DIR/images", exitFailure, []string{"DIR/nocriu"}},
	{"umount of what is not mounted", nil, "umount DIR/mnt", exitFailure, []string{"DIR/mnt"}},
	{"umount of nothing", nil, "umount", exitUsage, []string{"mountpoint"}},
	{"lazyfs without images", nil, "lazyfs DIR/mnt", exitUsage, []string{"USER@RHOST"}},
	{"lazyfs from images that do not exist", nil, "lazyfs DIR/mnt DIR/noimages root@source", exitMount, []string{"DIR/noimages"}},
	{"lazyfs from a host that does not exist", func(t *testing.T, s *site) { s.images(t, "pstree.img", unchanged) },
		"lazyfs DIR/mnt DIR/images root@nohost.invalid", exitMount, []string{"nohost.invalid"}},
	{"plan of one directory", nil, "plan DIR/lower", exitUsage, []string{"OLD and NEW"}},
	{"plan with an unknown flag", nil, "plan --speed DIR/lower DIR/upper", exitUsage, []string{"--speed"}},
	{"plan with no workers", nil, "plan --workers -1 DIR/lower DIR/upper", exitUsage, []string{"--workers"}},
	{"plan of what does not exist", nil, "plan DIR/nolower DIR/upper", exitFailure, []string{"OLD", "DIR/nolower"}},
	{"plan for what does not exist", nil, "plan DIR/lower DIR/noupper", exitFailure, []string{"NEW", "DIR/noupper"}},
	{"plan of a file", nil, "plan DIR/lower/file DIR/upper", exitFailure, []string{"DIR/lower/file", "directory"}},
	{"plan of a directory for itself", nil, "plan DIR/lower DIR/lower", exitFailure, []string{"the same directory"}},
	{"plan of a directory for one in it", nil, "plan DIR/lower DIR/lower/sub", exitFailure, []string{"DIR/lower/sub", "inside"}},
	{"plan for a read-only filesystem", func(t *testing.T, s *site) {
		must(t, os.Mkdir(s.at("ro"), 0o755))
		must(t, unix.Mount("ro", s.at("ro"), "tmpfs", unix.MS_RDONLY, ""))
		t.Cleanup(func() { must(t, unix.Unmount(s.at("ro"), 0)) })
	}, "plan DIR/lower DIR/ro", exitFailure, []string{"DIR/ro", "read-only"}},
	{"check of nothing", nil, "check", exitUsage, []string{"upper"}},
	{"check with an unknown mode", nil, "check --mode both DIR/upper", exitUsage, []string{"both", "migrate", "overlay"}},
	{"check of what does not exist", nil, "check DIR/noupper", exitFailure, []string{"upper", "DIR/noupper"}},
	{"check of a file", nil, "check DIR/lower/file", exitFailure, []string{"DIR/lower/file", "directory"}},
	{"check of what was never mounted", nil, "check DIR/upper", exitFailure, []string{"DIR/upper", "--mode"}},
	{"check with a lower that does not exist", nil, "check --mode migrate DIR/upper DIR/nolower", exitFailure, []string{"lower", "DIR/nolower"}},
	{"check with a remote lower", nil, "check DIR/upper source:/data", exitUsage, []string{"source:/data", "this host"}},
	{"check with a lower in the upper", nil, "check --mode migrate DIR/upper DIR/upper/sub", exitFailure, []string{"DIR/upper/sub", "inside"}},
	{"check with a work directory in migrate mode", nil, "check --mode migrate --workdir DIR/alone DIR/upper", exitUsage, []string{"--workdir"}},
	{"check of both modes", func(t *testing.T, s *site) {
		for _, d := range []string{"upper/.migratefs", "upper/.migratefs/daemons", ".upper.migratefs", ".upper.migratefs/index", ".upper.migratefs/stubs"} {
			must(t, os.Mkdir(s.at(d), 0o700))
		}
	}, "check DIR/upper", exitUsage, []string{"--mode"}},
	{"check with a negative number of days", nil, "check --trash-days -7 DIR/upper", exitUsage, []string{"--trash-days"}},
	{"undo of nothing", nil, "undo", exitUsage, []string{"path"}},
	{"undo of two", nil, "undo DIR/a DIR/b", exitUsage, []string{"one path"}},
	{"undo of a version before the last", nil, "undo --version -1 DIR/lower/a", exitUsage, []string{"--version"}},
	{"undo of everything to one file", nil, "undo --recursive --to DIR/x DIR/lower", exitUsage, []string{"--recursive"}},
	{"undo in what was never a layer", nil, "undo DIR/lower/gone", exitFailure, []string{"DIR/lower/gone", "lowerdir="}},
	{"undo with layers that do not exist", nil, "undo -o lowerdir=DIR/nolower gone", exitFailure, []string{"DIR/nolower"}},
	{"undo with layers without a trash", nil, "undo -o lowerdir=DIR/lower gone", exitFailure, []string{"no trash", "trash_days"}},
	{"undo with an unknown option", nil, "undo -o lowredir=DIR/lower gone", exitUsage, []string{"lowredir"}},
	{"undo below a loop", func(t *testing.T, s *site) { must(t, os.Symlink("loop", s.at("loop"))) }, "undo DIR/loop/gone", exitFailure, []string{"DIR/loop/gone"}},
	{"reauth of nothing", nil, "reauth", exitUsage, []string{"mountpoint"}},
	{"reauth of a mount and of options", nil, "reauth -o lowerdir=h:/ DIR/mnt", exitUsage, []string{"mountpoint"}},
	{"reauth of what is no mount", nil, "reauth DIR/lower", exitFailure, []string{"DIR/lower", "not in a mount"}},
	{"reauth where no source is", nil, "reauth -o lowerdir=DIR/lower", exitFailure, []string{"another host"}},
	{"no such command", nil, "frobnicate", exitUsage, nil},

	{"images do not exist", nil, "-o criu=DIR/noimages DIR/mnt", exitMount, []string{"DIR/noimages"}},
	{"directory without images", nil, "-o criu=DIR/images DIR/mnt", exitMount, []string{"DIR/images"}},
	{"truncated image", func(t *testing.T, s *site) {
		s.images(t, "files.img", func(b []byte) []byte { return b[:len(b)/2] })
	}, "-o criu=DIR/images DIR/mnt", exitMount, []string{"DIR/images", "files.img"}},
	{"image of zeros", func(t *testing.T, s *site) {
		s.images(t, "pstree.img", func(b []byte) []byte { return make([]byte, len(b)) })
	}, "-o criu=DIR/images DIR/mnt", exitMount, []string{"DIR/images", "pstree.img"}},
	{"image of another architecture", func(t *testing.T, s *site) {
		s.images(t, "core-*.img", func(b []byte) []byte {
			// Two magics, the size, then core_entry.mtype (images/core.proto):
			// field 1, X86_64; 3 is AARCH64.
			if !bytes.Equal(b[12:14], []byte{0x08, 0x01}) {
				t.Fatalf("core image begins with % x", b[:16])
			}
			b[13] = 3
			return b
		})
	}, "-o criu=DIR/images DIR/mnt", exitMount, []string{"DIR/images", "arm64"}},
	{"name with .. in an image", func(t *testing.T, s *site) {
		s.images(t, "files.img", sameLength("/tmp/migratefs-golden/job/read-only", "/../../../../../../../../etc/passwd"))
	}, "-o criu=DIR/images DIR/mnt", exitMount, []string{"files.img", ".."}},
	{"name with NUL in an image", func(t *testing.T, s *site) {
		s.images(t, "files.img", sameLength("/job/read-only", "/job/read\x00only"))
	}, "-o criu=DIR/images DIR/mnt", exitMount, []string{"files.img", `\x00`}},
}

func unchanged(b []byte) []byte { return b }

// images puts a real checkpoint into DIR/images, with change made to the images
// that match pattern.
func (s *site) images(t *testing.T, pattern string, change func([]byte) []byte) {
	t.Helper()
	golden := filepath.Join(testbed.ModuleDir(), "criu", "testdata", "plain")
	must(t, os.CopyFS(s.at("images"), os.DirFS(golden)))
	names, err := filepath.Glob(filepath.Join(s.at("images"), pattern))
	must(t, err)
	if len(names) == 0 {
		t.Fatalf("no %s among the images of %s", pattern, golden)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		must(t, err)
		must(t, os.WriteFile(name, change(b), 0o644))
	}
}

// sameLength replaces a name in an image by one of the same length, so that the
// image stays well-formed.
func sameLength(old, name string) func([]byte) []byte {
	if len(old) != len(name) {
		panic("names of different lengths")
	}
	return func(b []byte) []byte {
		if !bytes.Contains(b, []byte(old)) {
			panic("the image does not hold " + old)
		}
		return bytes.ReplaceAll(b, []byte(old), []byte(name))
	}
}

func TestBadInput(t *testing.T) {
	testbed.NeedFUSE(t)
	for _, c := range badInputs {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			if c.spoil != nil {
				c.spoil(t, s)
			}
			refused(t, s, c)
		})
	}
}

// refused runs the program and fails the test unless it refuses as it should:
// the exit code, one line that holds what c wants, nothing mounted, no process
// left, no file changed.
func refused(t *testing.T, s *site, c badInput) {
	t.Helper()
	const aspects = testbed.Usual | testbed.Mtime | testbed.Numbers
	before, mounts := testbed.Snapshot(t, s.dir, aspects, "first"), testbed.MountsBelow(s.dir)
	kept := keptBelowVar(t)

	cmd := exec.Command(testbed.Build(t), strings.Fields(strings.ReplaceAll(c.args, "DIR", s.dir))...)
	cmd.Env = s.env
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A daemon that goes on must not keep our pipes, and with them this test.
	cmd.WaitDelay = time.Minute
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != c.code {
		t.Errorf("%s\nends with %v, want exit status %d", c.args, err, c.code)
	}
	line := stderr.String()
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || !strings.HasPrefix(line, "migratefs: ") {
		t.Errorf("on stderr, want one line that begins with migratefs:\n%s", line)
	}
	if stdout.Len() > 0 {
		t.Errorf("on stdout, want nothing:\n%s", stdout.String())
	}
	for _, want := range c.want {
		if want := strings.ReplaceAll(want, "DIR", s.dir); !strings.Contains(line, want) {
			t.Errorf("the line does not say %q:\n%s", want, line)
		}
	}
	t.Log(strings.TrimSpace(strings.ReplaceAll(line, s.dir, "DIR")))

	if now := testbed.MountsBelow(s.dir); len(now) != len(mounts) {
		t.Errorf("mounted: %q, before %q", now, mounts)
		for range len(now) - len(mounts) {
			_ = unix.Unmount(now[0], unix.MNT_DETACH)
		}
	}
	if _, err := os.Stat(s.at("first")); err != nil {
		if left := processesWith(s.dir); len(left) > 0 {
			t.Errorf("still running: %q", left)
		}
	}
	if now := keptBelowVar(t); !slices.Equal(kept, now) {
		t.Errorf("left below /var/lib/migratefs: %q, before %q", now, kept)
	}
	testbed.Same(t, "before", before, "after", testbed.Snapshot(t, s.dir, aspects, "first"))
}

// processesWith returns the command lines of the processes that have dir in it.
func processesWith(dir string) (found []string) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), dir) {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// keptBelowVar lists what mounts keep where the user has named no place. Other
// tests must not mount there meanwhile.
func keptBelowVar(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("/var/lib/migratefs")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
