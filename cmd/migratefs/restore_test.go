package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/criu"
)

func TestRestoreSource(t *testing.T) {
	for from, want := range map[string]string{
		"host":                "host:/",
		"user@host":           "user@host:/",
		"user@host:/data":     "user@host:/data",
		"ssh://u@host":        "ssh://u@host/",
		"ssh://u@host:22":     "ssh://u@host:22/",
		"ssh://host:22/data":  "ssh://host:22/data",
		"[::1]":               "[::1]:/",
		"user@[fe80::1%eth0]": "user@[fe80::1%eth0]:/",
		"[::1]:/data":         "[::1]:/data",
		"ssh://[::1]":         "ssh://[::1]/",
		"ssh://u@[::1]:22":    "ssh://u@[::1]:22/",
	} {
		if got := sourceTarget(from); got != want {
			t.Errorf("--from %s is %q, want %q", from, got, want)
		}
		o, err := parseOptions([]string{"lowerdir=" + want + ",mode=overlay"})
		if err != nil || len(o.lowers) != 1 || o.lowers[0].text != want || !o.lowers[0].remote {
			t.Errorf("lowerdir=%s: %+v, %v", want, o, err)
		}
	}
}

func TestRestoreUsage(t *testing.T) {
	for _, args := range [][]string{
		{"restore"},
		{"restore", "images"},
		{"restore", "--from", "host"},
		{"restore", "--from", "host", "a", "b"},
		{"restore", "--from", "-oProxyCommand=x", "images"},
		{"restore", "--from", "a;b", "images"},
		{"restore", "--from", "host", "--bind", "tmp", "images"},
		{"restore", "--from", "host", "--bind", "/", "images"},
		{"restore", "--from", "host", "images", "--", "--root", "/x"},
		{"restore", "--from", "host", "images", "--", "nonsense"},
		{"restore-init"},
		{"lazyfs", "/mnt", "images"},
		{"lazyfs", "/mnt", "images", "a;b"},
	} {
		err := run(append([]string{"migratefs"}, args...))
		if code := exitCode(err); code != exitUsage {
			t.Errorf("%q: exit code %d (%v), want %d", args, code, err, exitUsage)
		}
	}
}

// TestFreePids: the pids that the helper and CRIU take are not the checkpoint's.
func TestFreePids(t *testing.T) {
	for _, pids := range [][]uint32{
		{1}, {2, 3}, {300}, {299, 300, 301}, {400, 800, 1200}, {5000}, {29999, 30001}, {30100}, {32760}, {4194000},
		{350, 700, 31500},
	} {
		c := &criu.Checkpoint{}
		for _, p := range pids {
			c.Tasks = append(c.Tasks, criu.Task{PID: p, PGID: p, SID: p, Threads: []uint32{p, p + 1}})
		}
		above := freePids(c)
		for _, task := range c.Tasks {
			for _, p := range append(task.Threads, task.PID) {
				if p > above && p <= above+400 {
					t.Errorf("pids %v: %d is taken, though it is one of the 400 above %d", pids, p, above)
				}
			}
		}
		if above < 300 || above > 32000 {
			t.Errorf("pids %v: above %d", pids, above)
		}
	}
}

func TestRestoreDir(t *testing.T) {
	for point, want := range map[string]string{
		"/run/migratefs/restore-0011/root": "/run/migratefs/restore-0011",
		"/run/migratefs/restore-0011":      "",
		"/run/migratefs/other/root":        "",
		"/mnt/root":                        "",
		"/":                                "",
	} {
		if got := restoreDir(point); got != want {
			t.Errorf("restoreDir(%q) = %q, want %q", point, got, want)
		}
	}
}

// TestOwnProcess asks about this process what restore asks about its helper.
func TestOwnProcess(t *testing.T) {
	pid := os.Getpid()
	if startTime(pid) == 0 || startTime(0) != 0 {
		t.Errorf("start times %d and %d", startTime(pid), startTime(0))
	}
	if !slices.Contains(namespacePids(pid), pid) {
		t.Error("this process is not in its own pid namespace")
	}
	if got := outerPid(pid, inPidNamespace(pid, pid)); got == 0 {
		t.Error("this process has no pid")
	}
}

// TestUndo: what a restore has made is gone after it failed, and what was there
// before is not.
func TestUndo(t *testing.T) {
	dir := t.TempDir()
	for _, there := range []bool{false, true} {
		upper := filepath.Join(dir, "upper")
		if there {
			if err := os.Mkdir(upper, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		r := restoreCommand{upper: upper}
		if err := r.makeUpper(); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{upper, defaultWork(upper)} {
			_ = os.Mkdir(d, 0o755)
			if err := os.WriteFile(filepath.Join(d, "file"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r.rollBack()
		if _, err := os.Stat(filepath.Join(upper, "file")); (err == nil) != there {
			t.Errorf("upper there before: %v; its file afterwards: %v", there, err)
		}
		if _, err := os.Stat(defaultWork(upper)); (err == nil) != there {
			t.Errorf("upper there before: %v; the work directory afterwards: %v", there, err)
		}
	}
}

func TestHostTools(t *testing.T) {
	state := t.TempDir()
	dir, err := makeHostTools(state, 1)
	if err != nil {
		t.Fatal(err)
	}
	static := isStatic("/proc/self/exe")
	target, err := os.Readlink(filepath.Join(dir, "sh"))
	if static && (err != nil || target != "/proc/1/exe") || !static && err == nil {
		t.Errorf("static %v: sh is %q, %v", static, target, err)
	}
	if isStatic("/bin/ls") {
		t.Error("ls is static")
	}
	if err := hostTool([]string{"sh"}); err != nil {
		t.Errorf("took this process for a tool of CRIU's: %v", err)
	}
	t.Setenv(hostPathEnv, "/nowhere")
	// Not pid 1's child, and no such descriptor there: whatever else happens, the
	// program of the PATH here must not be executed.
	if err := hostTool([]string{"sh", "-c", "exit 0"}); err == nil || !strings.Contains(err.Error(), "sh") {
		t.Errorf("a tool without its host: %v", err)
	}
}

// TestOwnOptions: locks are in the images, and CRIU leaves them out unless it is told.
func TestOwnOptions(t *testing.T) {
	c, err := criu.LoadFS(os.DirFS("../../criu/testdata/kinds"), "kinds")
	if err != nil {
		t.Fatal(err)
	}
	c.ShellJob = true
	if got := ownOptions(c); !slices.Equal(got, []string{"--file-locks"}) {
		t.Errorf("options %q", got)
	}
	c.Locks = nil
	if got := ownOptions(c); len(got) != 0 {
		t.Errorf("options %q", got)
	}
}

// TestRestoreArchive: CRIU reads directories, and would fail late.
func TestRestoreArchive(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "images.tar")
	if out, err := exec.Command("tar", "-cf", archive, "-C", "../../criu/testdata/plain", ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := restoreCommand{images: archive}
	if err := r.load(archive); err == nil || !strings.Contains(err.Error(), "is an archive") {
		t.Errorf("loaded an archive: %v", err)
	}
}

// Who may rename the directory above the upper can put a link in its place: a restore
// that fails removes what it made, and nothing that is called the same.
func TestRestoreUndoesNothingElse(t *testing.T) {
	base := t.TempDir()
	theirs, moved, other := filepath.Join(base, "theirs"), filepath.Join(base, "moved"), filepath.Join(base, "other")
	kept := filepath.Join(other, "upper", "kept")
	if err := errors.Join(os.Mkdir(theirs, 0o755), os.MkdirAll(kept, 0o755)); err != nil {
		t.Fatal(err)
	}
	r := restoreCommand{upper: filepath.Join(theirs, "upper")}
	if err := r.makeUpper(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(theirs, moved), os.Symlink(other, theirs)); err != nil {
		t.Fatal(err)
	}
	r.rollBack()
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what another has there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(moved, "upper")); err == nil {
		t.Error("the upper that was made is left")
	}
}
