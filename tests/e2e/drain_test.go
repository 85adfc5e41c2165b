package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
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

// layersOf makes an old and a new storage, and a mountpoint.
func layersOf(t *testing.T) (lower, upper, point string) {
	t.Helper()
	dir := testbed.TempDir(t)
	lower, upper, point = filepath.Join(dir, "old"), filepath.Join(dir, "new"), filepath.Join(dir, "mnt")
	for _, d := range []string{lower, upper, point} {
		must(t, os.Mkdir(d, 0o755))
	}
	return lower, upper, point
}

// outcome is what migratefs drain --json says.
type outcome struct {
	Failed []struct{ Path, Errno, Reason string }

	Left, Files, Directories int64
	Complete                 bool
}

// drains runs migratefs drain, which fails the test unless it ends with the code.
func drains(t *testing.T, code int, args ...string) (o outcome) {
	t.Helper()
	cmd := exec.Command(testbed.BuildRace(t), append([]string{"drain", "--json"}, args...)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("drain %q ends with %d:\n%s%s", args, got, out.String(), errs.String())
	}
	if err := json.Unmarshal([]byte(out.String()), &o); err != nil {
		t.Errorf("drain --json: %v:\n%s", err, out.String())
	}
	return o
}

// nothingLeft fails the test if a lower has anything but what is ours.
func nothingLeft(t *testing.T, lower string) {
	t.Helper()
	must(t, filepath.WalkDir(lower, func(p string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p == lower:
			return nil
		case p == filepath.Join(lower, ".migratefs"):
			return filepath.SkipDir
		}
		t.Errorf("left in the lower: %q", p)
		return nil
	}))
}

// oldStorage fills a lower with directories, and hard links between them.
func oldStorage(t *testing.T, lower string, dirs, files int, aspects testbed.Aspect) *testbed.Tree {
	t.Helper()
	for i := range dirs {
		d := filepath.Join(lower, fmt.Sprint("project ", i%5), fmt.Sprint("run ", i))
		must(t, os.MkdirAll(d, 0o750))
		for j := range files {
			must(t, os.WriteFile(filepath.Join(d, fmt.Sprint("f", j)), fmt.Appendf(nil, "file %d of %d", j, i), 0o640))
		}
		must(t, os.MkdirAll(filepath.Join(lower, fmt.Sprint("project ", (i+1)%5+5)), 0o755))
		must(t, os.Link(filepath.Join(d, "f0"), filepath.Join(lower, fmt.Sprint("project ", (i+1)%5+5), fmt.Sprint("link ", i))))
		must(t, os.Symlink("f0", filepath.Join(d, "sym")))
		must(t, os.Chown(d, 1000+i, 1000))
	}
	when := time.Unix(1_000_000_000, 123_456_789)
	must(t, filepath.WalkDir(lower, func(p string, _ os.DirEntry, err error) error {
		ts := []unix.Timespec{unix.NsecToTimespec(when.UnixNano()), unix.NsecToTimespec(when.UnixNano())}
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW))
	}))
	return testbed.Snapshot(t, lower, aspects)
}

// became compares what the old storage was with what the new one is.
func became(t *testing.T, was *testbed.Tree, upper string, aspects testbed.Aspect) {
	t.Helper()
	when := time.Unix(1_000_000_000, 123_456_789)
	must(t, os.RemoveAll(filepath.Join(upper, ".migratefs")))
	must(t, os.Chtimes(upper, when, when))
	testbed.Same(t, "the old storage before", was, "the new after", testbed.Snapshot(t, upper, aspects))
}

// TestDrainKilled kills a drain again and again, and goes on with the next. The time of
// a directory may be that of the kill.
func TestDrainKilled(t *testing.T) {
	for hosts, most := range map[string]int{
		"single": 1000,
		"many":   2, // what the dead one had begun with is waited for
	} {
		t.Run(hosts, func(t *testing.T) {
			lower, upper, _ := layersOf(t)
			was := oldStorage(t, lower, 60, 20, testbed.Usual)
			options := "lowerdir=" + lower + ",upperdir=" + upper + ",hosts=" + hosts
			kills := 0
			for ; kills < most; kills++ {
				cmd := exec.Command(testbed.Build(t), "drain", "-o", options)
				must(t, cmd.Start())
				after := time.Duration(20+10*kills) * time.Millisecond
				timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
				err := cmd.Wait()
				timer.Stop()
				if err == nil {
					break
				}
				if cmd.ProcessState.ExitCode() >= 0 {
					t.Fatalf("drain ends with %v", err)
				}
			}
			t.Logf("killed %d times", kills)
			drains(t, 0, "-o", options)
			nothingLeft(t, lower)
			became(t, was, upper, testbed.Usual)
		})
	}
}

// TestDrainInterrupted ends at once at ^C, with a report, and says that it goes on.
func TestDrainInterrupted(t *testing.T) {
	lower, upper, _ := layersOf(t)
	must(t, os.WriteFile(filepath.Join(lower, "big"), make([]byte, 64<<20), 0o644))
	options := "lowerdir=" + lower + ",upperdir=" + upper
	cmd := exec.Command(testbed.Build(t), "drain", "--json", "--bwlimit", "1M", "-o", options)
	var out strings.Builder
	cmd.Stdout = &out
	must(t, cmd.Start())
	testbed.Until(t, "the copy has begun", func() bool {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		return slices.ContainsFunc(fds, func(fd string) bool {
			target, _ := os.Readlink(fd)
			return target == filepath.Join(lower, "big")
		})
	})
	must(t, cmd.Process.Signal(unix.SIGINT))
	_ = cmd.Wait()
	var o outcome
	must(t, json.Unmarshal([]byte(out.String()), &o))
	if code := cmd.ProcessState.ExitCode(); code != 3 || o.Complete || o.Files != 0 {
		t.Errorf("it ends with %d: %+v", code, o)
	}
	drains(t, 0, "--checksum", "-o", options)
	nothingLeft(t, lower)
}
