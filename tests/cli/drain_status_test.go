package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// drainStatus is what status --json tells of drains.
type drainStatus struct {
	Drains []struct {
		PID      int
		Phase    string
		Files    int64
		AllFiles *int64   `json:"all_files"`
		Rate     float64  `json:"bytes_per_second"`
		Left     *float64 `json:"seconds_left"`
	}
}

func drainsOf(t *testing.T, point string) (s drainStatus) {
	t.Helper()
	out, _ := tool(t, 0, "status", "--json", point)
	must(t, json.Unmarshal([]byte(out), &s))
	return s
}

// TestDrainInStatus: a mount tells of the drain of its lower, whichever was first, and
// of no other; and not any more once it is dead.
func TestDrainInStatus(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	old, _, options := drainLayers(t)
	for i := range 200 {
		must(t, os.Mkdir(filepath.Join(old, fmt.Sprint(i)), 0o755))
		must(t, os.WriteFile(filepath.Join(old, fmt.Sprint(i), "file"), make([]byte, 20<<10), 0o644))
	}
	dir := testbed.TempDir(t)
	points := map[string]string{"before": options, "after": options}
	other, _, otherOptions := drainLayers(t)
	points["other"] = otherOptions
	mount := func(name string) *testbed.Mounted {
		point := filepath.Join(dir, name)
		must(t, os.Mkdir(point, 0o755))
		return testbed.Mount(t, points[name], point)
	}
	before, stranger := mount("before"), mount("other")
	// It would take longer than the test may.
	drain, err := testbed.Start(exec.Command(testbed.Build(t), "drain", "--count", "--jobs", "1", "--bwlimit", "40K", "-o", options))
	must(t, err)
	defer drain.KillTree()
	after := mount("after")
	for _, m := range []*testbed.Mounted{before, after} {
		var s drainStatus
		testbed.Until(t, "a drain in the status", func() bool {
			s = drainsOf(t, m.Point)
			return len(s.Drains) == 1 && s.Drains[0].Phase == "moving" && s.Drains[0].Files > 0 && s.Drains[0].Left != nil
		})
		d := s.Drains[0]
		if d.PID != drain.Pid || d.AllFiles == nil || *d.AllFiles != 205 || d.Rate <= 0 || *d.Left <= 0 {
			t.Errorf("%s: %+v", m.Point, d)
		}
	}
	out, _ := tool(t, 0, "status", before.Point)
	contains(t, "status", out, "  draining   ", " files of 205, ", "/s, ", " left (process "+fmt.Sprint(drain.Pid)+")")
	out, _ = tool(t, 0, "status", stranger.Point)
	if strings.Contains(out, "draining") {
		t.Errorf("the mount of %s tells of a drain of %s:\n%s", other, old, out)
	}
	watch := exec.Command(testbed.Build(t), "status", "--watch", before.Point)
	pipe, err := watch.StdoutPipe()
	must(t, err)
	must(t, watch.Start())
	b := make([]byte, 4096)
	n, err := pipe.Read(b)
	must(t, err)
	must(t, watch.Process.Signal(unix.SIGINT))
	must(t, watch.Wait())
	contains(t, "status --watch", string(b[:n]), "; draining: ")

	drain.KillTree()
	for _, m := range []*testbed.Mounted{before, after} {
		testbed.Until(t, "the end of the drain in the status", func() bool { return len(drainsOf(t, m.Point).Drains) == 0 })
	}
}
