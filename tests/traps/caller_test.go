package traps

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// stranger shares nothing with user.
var stranger = &syscall.Credential{Uid: 1002, Gid: 1002}

func mountAsCaller(t *testing.T, fill func(s *stack), more ...testbed.MountConfig) *stack {
	t.Helper()
	testbed.NeedRoot(t)
	s := layers(t)
	fill(s)
	return s.mount(t, "migrate,creds=caller", more...)
}

func mustBe(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// What users make with creds=caller is what they make on a plain filesystem.
func TestCallerMakes(t *testing.T) {
	s := mountAsCaller(t, func(s *stack) { shared(t, s.lower) })
	twin := filepath.Join(s.dir, "twin")
	must(t, os.Mkdir(twin, 0o755))
	shared(t, twin)
	for _, dir := range []string{twin, s.Dir} {
		if out := sh(t, user, dir, makeAll); out != "" {
			t.Error(out)
		}
	}
	want := testbed.Snapshot(t, twin, testbed.Usual)
	if want.Len() < 100 {
		t.Fatalf("only %d files were made", want.Len())
	}
	testbed.Same(t, "a plain filesystem", want, "the mount", testbed.Snapshot(t, s.Dir, testbed.Usual, ".migratefs"))
	asNobodyElse(t, s)
}

// A directory that is closed in a layer, by somebody who works there, hides at once
// what is under it, whatever names are cached; an open file stays open.
func TestClosedDirectoryHidesCachedNames(t *testing.T) {
	for _, in := range []string{"lower", "upper"} {
		t.Run(in, func(t *testing.T) {
			s := mountAsCaller(t, func(s *stack) {
				dir := filepath.Join(s.dir, in)
				must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
				put(t, filepath.Join(dir, "a", "b", "f"), "secret", 0o644)
				must(t, os.Symlink("f", filepath.Join(dir, "a", "b", "l")))
			})
			script := `exec 3<a/b/f; cat a/b/f; cat a/b/l; ls a/b
				echo; read go
				for c in "stat a/b/f" "cat a/b/f" "ls a/b" "readlink a/b/l" "test -e a/b/f" "cd a/b" "touch a/b/new" "rm -f a/b/f"; do
					$c >/dev/null 2>&1 && echo "$c works"
				done
				cat <&3`
			cmd := exec.Command("sh", "-c", script)
			cmd.Dir = s.Dir
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
			stdin, err := cmd.StdinPipe()
			must(t, err)
			stdout, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			first := make([]byte, len("secretsecretf\nl\n\n"))
			_, err = io.ReadFull(stdout, first)
			must(t, err)
			mustBe(t, string(first), "secretsecretf\nl\n\n")
			must(t, os.Chmod(filepath.Join(s.dir, in, "a"), 0o700))
			_, err = io.WriteString(stdin, "go\n")
			must(t, err)
			rest, err := io.ReadAll(stdout)
			must(t, err)
			_ = cmd.Wait()
			mustBe(t, string(rest), "secret")
			mustBe(t, content(t, s.Path("a", "b", "f")), "secret") // root's
		})
	}
}

// The layer decides: every right, and no more.
func TestCallerRights(t *testing.T) {
	s := mountAsCaller(t, func(s *stack) {
		must(t, os.Chmod(s.lower, 0o777))
		must(t, os.Chmod(s.upper, 0o777))
		for name, mode := range map[string]os.FileMode{"mine": 0o600, "writeonly": 0o222, "runonly": 0o111, "shown": 0o644, "suid": 0o666} {
			put(t, filepath.Join(s.lower, name), "#old\n", mode)
		}
		b, err := os.ReadFile("/bin/true")
		must(t, err)
		must(t, os.Remove(filepath.Join(s.lower, "runonly")))
		must(t, os.WriteFile(filepath.Join(s.lower, "runonly"), b, 0o755))
		must(t, os.Chmod(filepath.Join(s.lower, "runonly"), 0o711))
		must(t, os.Chown(filepath.Join(s.lower, "mine"), 1000, 1001))
		must(t, unix.Chmod(filepath.Join(s.lower, "suid"), 0o6777))
		must(t, os.Mkdir(filepath.Join(s.lower, "drop"), 0o733))
		must(t, os.Chmod(filepath.Join(s.lower, "drop"), 0o733))
		must(t, os.Mkdir(filepath.Join(s.lower, "list"), 0o744))
		put(t, filepath.Join(s.lower, "list", "f"), "x", 0o644)
		put(t, filepath.Join(s.lower, "linked"), "two names", 0o666)
		must(t, os.Link(filepath.Join(s.lower, "linked"), filepath.Join(s.lower, "linked2")))
	})
	mustBe(t, sh(t, stranger, s.Path(), `
		for c in "cat mine" "cat writeonly" "cat runonly" "ls drop" "cat list/f" "truncate -s 0 shown" "chmod 777 shown" \
			"chown 1002 shown" "touch -d 2001-01-01 shown" "setfattr -n user.a -v b shown" "setfattr -n user.a -v b mine" "truncate -s 1 mine" \
			"test -r mine" "test -w shown" "test -x shown" "mknod dev c 1 3"; do
			$c >/dev/null 2>&1 && echo "$c works"
		done
		./runonly && test -x runonly && echo more >>writeonly && echo x >drop/new && cat drop/new && ls list && test -w writeonly
		: >>linked2; echo more >>linked; cat linked2; stat -c %h linked2
		echo x >>suid; stat -c %a suid`), "x\nf\ntwo namesmore\n2\n777\n")
	mustBe(t, content(t, s.Path("writeonly")), "#old\nmore\n")
	mustBe(t, sh(t, user, s.Path(), `echo mine >>mine; cat mine; chmod 640 mine; stat -c %u:%g:%a mine; mv mine moved; mv -f moved shown; cat shown; rm -f writeonly; ls`),
		"#old\nmine\n1000:1001:640\n#old\nmine\ndrop\nlinked\nlinked2\nlist\nrunonly\nshown\nsuid\n")
}

// A daemon without rights on the storage (root squash, in effect) lets users work
// with theirs. Copies keep their owner, since the owner makes them; what cannot be
// done fails, and nothing is lost.
func TestCallerWithoutRoot(t *testing.T) {
	setpriv, err := exec.LookPath("setpriv")
	must(t, err)
	dir := testbed.TempDir(t)
	must(t, os.Chmod(dir, 0o755))
	binary := filepath.Join(dir, "migratefs")
	put(t, binary, fmt.Sprintf("#!/bin/sh\nexec %s --bounding-set=-dac_override,-dac_read_search,-chown,-fowner,-fsetid -- %s \"$@\"\n",
		setpriv, testbed.BuildRace(t)), 0o755)
	s := mountAsCaller(t, func(s *stack) {
		must(t, os.Chmod(s.upper, 0o1777))
		home := filepath.Join(s.lower, "home")
		must(t, os.MkdirAll(filepath.Join(home, "d"), 0o700))
		for name, mode := range map[string]os.FileMode{"f": 0o600, "d/g": 0o640, "h": 0o600} {
			put(t, filepath.Join(home, name), "old\n", mode)
			must(t, os.Chown(filepath.Join(home, name), 1000, 2000))
		}
		must(t, unix.Setxattr(filepath.Join(home, "f"), "user.a", []byte("b"), 0))
		must(t, os.Chown(filepath.Join(home, "d"), 1000, 1001))
		must(t, os.Chown(home, 1000, 1001))
		// Somebody else's file, which the owner of nothing around it may not copy.
		must(t, os.Mkdir(filepath.Join(s.lower, "closed"), 0o755))
		put(t, filepath.Join(s.lower, "closed", "f"), "theirs\n", 0o666)
		must(t, os.Chown(filepath.Join(s.lower, "closed", "f"), 1005, 1005))
		must(t, os.Mkdir(filepath.Join(s.upper, "closed"), 0o755))
		must(t, os.Chown(filepath.Join(s.upper, "closed"), 1006, 1006))
	}, testbed.MountConfig{Binary: binary})

	mustBe(t, sh(t, user, s.Path("home"), `echo new >>f && echo new >>d/g && cat f d/g && stat -c %u:%g:%a f d d/g && mkdir e && mv h e/ && cat e/h && rm d/g && ls d
		getfattr --only-values -n user.a f`),
		"old\nnew\nold\nnew\n1000:2000:600\n1000:1001:700\n1000:2000:640\nold\nb")
	if got := owner(t, filepath.Join(s.upper, "home", "f")); got != [2]uint32{1000, 2000} {
		t.Errorf("the copy belongs to %v", got)
	}
	if out := sh(t, stranger, s.Path(), "cat home/f; ls home"); !strings.Contains(out, "denied") || strings.Contains(out, "old") {
		t.Errorf("a stranger reads: %s", out)
	}
	out := sh(t, stranger, s.Path("closed"), "cat f; echo more | tee -a f >/dev/null; cat f")
	if !strings.Contains(out, "denied") && !strings.Contains(out, "not permitted") || strings.Count(out, "theirs") != 2 || strings.Contains(out, "more") {
		t.Errorf("a copy that nobody may make: %s", out)
	}
	mustBe(t, content(t, filepath.Join(s.lower, "closed", "f")), "theirs\n")
}
