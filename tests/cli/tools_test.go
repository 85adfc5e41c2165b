package cli

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
