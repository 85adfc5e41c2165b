package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// exitFound is the exit code of plan and check that have something to say.
const exitFound = 3

// tool runs the program and fails the test unless it ends with the code.
func tool(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(testbed.Build(t), args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if got != code {
		t.Errorf("%q ends with %d, want %d:\n%s%s", args, got, code, out.String(), errs.String())
	}
	if n := strings.Count(errs.String(), "\n"); code != 0 && n != 1 || code == 0 && n != 0 {
		t.Errorf("%q says on stderr:\n%s", args, errs.String())
	}
	return out.String(), errs.String()
}

func contains(t *testing.T, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s does not say %q:\n%s", what, w, text)
		}
	}
}

// on mounts a filesystem for the time of the test.
func on(t *testing.T, dir, fsType, options string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	must(t, unix.Mount(fsType, dir, fsType, 0, options))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
}

func TestPlan(t *testing.T) {
	testbed.NeedRoot(t)
	s := newSite(t)
	must(t, os.Link(s.at("lower/file"), s.at("lower/sub/second name")))
	must(t, os.WriteFile(s.at("lower/sub/big\n"), make([]byte, 300<<10), 0o644))
	must(t, os.Chown(s.at("lower/sub/big\n"), 1, 12345))
	on(t, s.at("new"), "tmpfs", "mode=0755,size=1m")
	on(t, s.at("small"), "tmpfs", "mode=0755,size=64k")
	const all = testbed.Usual | testbed.Mtime | testbed.Numbers
	before := testbed.Snapshot(t, s.at("lower"), all)

	out, _ := tool(t, 0, "plan", s.at("lower"), s.at("new"))
	contains(t, "plan", out, "It fits.", "daemon (1)", "12345", "300.0 KiB", "with 2 names", `sub/big\n`, "quotas are not known")
	out, line := tool(t, exitFound, "plan", s.at("lower"), s.at("small"))
	contains(t, "plan", out, "It does not fit")
	contains(t, "plan", line, s.at("small"), "does not fit")

	out, _ = tool(t, 0, "plan", "--json", s.at("lower"), s.at("new"))
	var p struct {
		Files struct{ Files, Bytes int64 }
		Users []struct {
			ID   uint32
			Name string
			Need struct{ Bytes int64 }
		}
		Largest struct{ Path string }
		Fits    bool
	}
	must(t, json.Unmarshal([]byte(out), &p))
	if p.Files.Files != 2 || p.Files.Bytes != 300<<10+12 || !p.Fits || p.Largest.Path != `sub/big\n` ||
		len(p.Users) != 2 || p.Users[0].Name != "daemon" || p.Users[0].Need.Bytes != 300<<10 {
		t.Errorf("%+v", p)
	}
	testbed.Same(t, "OLD before", before, "after", testbed.Snapshot(t, s.at("lower"), all))
	for _, dir := range []string{"new", "small"} {
		if left, _ := filepath.Glob(s.at(dir) + "/.*"); len(left) > 0 {
			t.Errorf("left in NEW: %q", left)
		}
	}
}

// findings are what check --json prints.
func findings(t *testing.T, out string) (all []finding) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var f finding
		must(t, json.Unmarshal([]byte(line), &f))
		if f.Kind != "" {
			all = append(all, f)
		}
	}
	return all
}

type finding struct {
	Kind, Where, Path, Repair string
	Repaired, Note            bool
}

func TestCheckMigrate(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	m := testbed.Mount(t, "lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("mnt"))
	must(t, os.WriteFile(m.Path("file"), []byte("brought up"), 0o644))
	_, line := tool(t, 1, "check", s.at("upper"), s.at("lower"))
	contains(t, "check of what is mounted", line, s.at("upper"), "in use", "unmount")
	m.Unmount()
	out, _ := tool(t, 0, "check", s.at("upper"), s.at("lower"))
	if out != "" {
		t.Errorf("a clean upper:\n%s", out)
	}

	// A crash, and somebody who copied.
	must(t, os.MkdirAll(s.at("upper/.migratefs/claims"), 0o700))
	must(t, os.WriteFile(s.at("upper/.migratefs/claims/0123456789abcdef-1-2.3"), []byte("x"), 0o600))
	must(t, os.WriteFile(s.at("lower/file"), []byte("something else"), 0o644))
	const all = testbed.Usual | testbed.Mtime | testbed.Numbers
	before := testbed.Snapshot(t, s.dir, all)
	out, line = tool(t, exitFound, "check", s.at("upper"), s.at("lower"))
	contains(t, "check", out, `claim: upper ".migratefs/claims/0123456789abcdef-1-2.3"`, "--repair: removed", `two contents: lower 1 "file"`)
	contains(t, "check", line, "2 things")
	testbed.Same(t, "before check", before, "after it", testbed.Snapshot(t, s.dir, all))

	out, line = tool(t, exitFound, "check", "--repair", "--json", s.at("upper"), s.at("lower"))
	contains(t, "check --repair", line, "1 things")
	got := findings(t, out)
	if len(got) != 2 || got[0].Kind != "claim" || !got[0].Repaired || got[1].Kind != "two contents" || got[1].Repaired {
		t.Errorf("check --repair --json:\n%s", out)
	}
	must(t, os.Remove(s.at("lower/file")))
	tool(t, 0, "check", s.at("upper"), s.at("lower"))

	m = testbed.Mount(t, "lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("mnt"))
	m.Kill()
	m.RemoveDead()
	out, _ = tool(t, exitFound, "check", s.at("upper"), s.at("lower"))
	contains(t, "check after kill -9", out, "daemon: upper", "--repair: removed")
	tool(t, 0, "check", "--repair", s.at("upper"), s.at("lower"))
	out, _ = tool(t, 0, "check", s.at("upper"), s.at("lower"))
	if out != "" {
		t.Errorf("after the repair:\n%s", out)
	}
}

func TestCheckOverlay(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	s.startSSHD(t)
	m := testbed.Mount(t, "fill=off,prefetch=off,lowerdir=source:"+s.at("lower")+",upperdir="+s.at("upper"), s.at("mnt"), testbed.MountConfig{Env: s.env})
	f, err := os.OpenFile(m.Path("file"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("OF"), 0)
	must(t, err)
	must(t, f.Close())
	_, line := tool(t, 1, "check", s.at("upper"))
	contains(t, "check of what is mounted", line, "in use")
	m.Unmount()
	out, _ := tool(t, 0, "check", s.at("upper"))
	contains(t, "check", out, `pending: upper "file": 10 of 12 bytes`, `"file" of sftp`)

	must(t, os.Remove(s.at("upper/file")))
	must(t, os.WriteFile(s.at(".upper.migratefs/tmp-1"), nil, 0o600))
	out, _ = tool(t, exitFound, "check", s.at("upper"))
	contains(t, "check", out, `orphan: work "objects/`, `temporary: work "tmp-1"`)
	out, _ = tool(t, 0, "check", "--repair", s.at("upper"))
	contains(t, "check --repair", out, `orphan: work "objects/`, `temporary: work "tmp-1"`, ": removed")
	out, _ = tool(t, 0, "check", "--workdir", s.at(".upper.migratefs"), s.at("upper"), s.at("lower"))
	if out != "" {
		t.Errorf("after the repair:\n%s", out)
	}
}

// throw makes a file of a lower and puts it into the trash there, as a mount with
// trash_days does. What is thrown later is so by the filesystem's clock.
func throw(t *testing.T, lower, path, content string) {
	t.Helper()
	name := filepath.Join(lower, path)
	must(t, os.MkdirAll(filepath.Join(lower, ".migratefs/trash"), 0o700))
	must(t, os.WriteFile(name, []byte(content), 0o640))
	var x unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, name, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x))
	in := filepath.Join(lower, ".migratefs/trash", fmt.Sprintf("%x-%x-%x.%x-%x.%x~0123", x.Ino, x.Size, x.Mtime.Sec, x.Mtime.Nsec, x.Btime.Sec, x.Btime.Nsec))
	must(t, os.Symlink(path, in+".path"))
	must(t, os.Rename(name, in))
	time.Sleep(20 * time.Millisecond)
}

func reads(t *testing.T, name, want string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s is %q, %v; want %q", name, got, err, want)
	}
}

func TestUndo(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	m := testbed.Mount(t, "lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("mnt"))
	_, line := tool(t, 1, "undo", m.Path("sub/gone"))
	contains(t, "undo of nothing", line, "nothing", "sub/gone")
	throw(t, s.at("lower"), "sub/gone", "first")

	out, _ := tool(t, 0, "undo", "--list", m.Path("sub"))
	contains(t, "undo --list", out, "1  removed ", "5 B", `"sub/gone"`)
	out, _ = tool(t, 0, "undo", m.Path("sub/gone"))
	contains(t, "undo", out, `"sub/gone" is back`)
	reads(t, m.Path("sub/gone"), "first")

	// Several, and a name that is taken.
	throw(t, s.at("lower"), "sub/gone", "first")
	throw(t, s.at("lower"), "sub/gone", "second, and longer")
	out, line = tool(t, 1, "undo", m.Path("sub/gone"))
	contains(t, "undo of several", line, "2 versions", "--version")
	contains(t, "undo of several", out, "1  removed ", "2  removed ")
	must(t, os.WriteFile(m.Path("sub/gone"), []byte("new"), 0o644))
	_, line = tool(t, 1, "undo", "--version", "1", m.Path("sub/gone"))
	contains(t, "undo of what is there", line, "sub/gone", "not overwritten", "--to")
	_, line = tool(t, 1, "undo", "--version", "3", m.Path("sub/gone"))
	contains(t, "undo of a version that is not there", line, "2 versions")
	_, line = tool(t, 1, "undo", "--version", "1", "--to", m.Path("file"), m.Path("sub/gone"))
	contains(t, "undo to what is there", line, "not overwritten", m.Path("file"))
	tool(t, 0, "undo", "--version", "1", "--to", m.Path("old"), m.Path("sub/gone"))
	reads(t, m.Path("old"), "second, and longer")
	reads(t, m.Path("sub/gone"), "new")
	reads(t, m.Path("file"), "of the lower")

	// In the lower, and by layers that nobody has mounted.
	out, _ = tool(t, 0, "undo", "--json", s.at("lower/sub/gone"))
	var v struct {
		Path    string
		Bytes   int64
		Version int
	}
	must(t, json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &v))
	if v.Path != "sub/gone" || v.Version != 1 || v.Bytes != int64(len("second, and longer")) {
		t.Errorf("undo --json: %+v", v)
	}
	m.Unmount()
	layers := "lowerdir=" + s.at("lower") + ",upperdir=" + s.at("upper")
	_, line = tool(t, 1, "undo", "-o", layers, "sub")
	contains(t, "undo of a directory", line, "2 files below", "--recursive")
	must(t, os.Remove(s.at("upper/sub/gone")))
	out, _ = tool(t, 0, "undo", "--recursive", "-o", layers, "/sub")
	contains(t, "undo --recursive", out, `"sub/gone" is back`)
	reads(t, s.at("lower/sub/gone"), "second, and longer")
}

// What users delete and what has moved comes back while it is kept.
func TestUndoOfWhatIsKept(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	m := testbed.Mount(t, "trash_days=7,lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("mnt"))
	must(t, os.Remove(m.Path("file")))
	tool(t, 0, "undo", m.Path("file"))
	reads(t, m.Path("file"), "of the lower")

	must(t, os.WriteFile(m.Path("file"), []byte("changed"), 0o644))
	testbed.Until(t, "the lower copy is gone", func() bool {
		_, err := os.Lstat(s.at("lower/file"))
		return errors.Is(err, os.ErrNotExist)
	})
	_, line := tool(t, 1, "undo", m.Path("file"))
	contains(t, "undo of what was changed", line, "file", "--to")
	tool(t, 0, "undo", "--to", m.Path("as it was"), m.Path("file"))
	reads(t, m.Path("as it was"), "of the lower")
	reads(t, m.Path("file"), "changed")

	m.Unmount()
	out, _ := tool(t, 0, "check", s.at("upper"), s.at("lower"))
	contains(t, "check", out, "trash: lower 1", `kept: "file"`)
	out, _ = tool(t, exitFound, "check", "--trash-days", "0", s.at("upper"), s.at("lower"))
	contains(t, "check where nothing is kept", out, "its copy is in the upper")
}
