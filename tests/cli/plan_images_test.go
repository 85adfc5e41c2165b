package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// imagesReport is what plan --json prints of a checkpoint.
type imagesReport struct {
	Processes []struct {
		PID     int
		Command string
	}
	Mounts []struct{ Key, Mountpoint string }
	Files  []struct {
		Path, Type, From string
		HostPath         string `json:"host_path"`
		Size, Bytes      int64
		References       []string
		Deleted          bool
	}
	First struct{ Source, Images int64 } `json:"before_first_instruction"`
	All   struct{ Source, Images int64 } `json:"in_all"`

	Obstacles []struct{ Level, What, Path, Why, Remedy string }
	Works     bool
}

func (r imagesReport) from(path string) string {
	for _, f := range r.Files {
		if f.Path == path {
			return f.From
		}
	}
	return "not listed"
}

// checkpoint copies golden images, to which it adds the memory that they lack.
func checkpoint(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	must(t, os.CopyFS(dir, os.DirFS(filepath.Join(testbed.ModuleDir(), "criu/testdata", name))))
	for _, pages := range []string{"pages-1.img", "pages-2.img", "pages-3.img"} {
		must(t, os.WriteFile(filepath.Join(dir, pages), make([]byte, 1<<20), 0o600))
	}
	return dir
}

// planned is plan --json of a checkpoint, which must end with the code.
func planned(t *testing.T, code int, args ...string) (r imagesReport) {
	t.Helper()
	out, _ := tool(t, code, append([]string{"plan", "--json", "--criu", "/bin/true"}, args...)...)
	must(t, json.Unmarshal([]byte(out), &r))
	if r.Works != (code == 0) {
		t.Errorf("works: %v, and the exit code is %d", r.Works, code)
	}
	return r
}

// TestPlanImages: without a source, what the images themselves say.
func TestPlanImages(t *testing.T) {
	const job = "/tmp/migratefs-golden/job/"
	dir := checkpoint(t, "plain")
	r := planned(t, 0, dir)
	for path, from := range map[string]string{
		job + "read-only": "source", job + "fifo": "source", job + "deleted": "images", job + "socket": "made", "/dev/null": "host",
		job + `a name\nwith \xff bytes`: "source",
	} {
		if got := r.from(path); got != from {
			t.Errorf("%q comes from %s, want %s", path, got, from)
		}
	}
	if len(r.Processes) != 2 || r.Processes[0].Command != "bin" {
		t.Errorf("processes %+v", r.Processes)
	}
	if r.All.Source < 600<<10 || r.First.Source == 0 || r.First.Source >= r.All.Source || r.First.Images < 32<<10 {
		t.Errorf("first %+v, all %+v", r.First, r.All)
	}
	out, _ := tool(t, 0, "plan", "--criu", "/bin/true", dir)
	contains(t, "plan", out, "It can be restored here.", `"/tmp/migratefs-golden/job/read-only"`, "descriptor 3 of", "nobody was asked")

	must(t, os.Truncate(filepath.Join(dir, "pages-1.img"), 1000))
	out, line := tool(t, exitFound, "plan", "--criu", "/bin/true", dir)
	contains(t, "plan", out, "FAILS: memory", "pages-1.img", "copy the images again")
	contains(t, "plan", line, dir, "cannot be restored")
	_, line = tool(t, 1, "plan", "--criu", "/bin/true", filepath.Join(dir, "nothing"))
	contains(t, "plan", line, "nothing", "no such file")
	for _, args := range [][]string{{t.TempDir()}, {"--from", "host", dir, dir}, {dir, "--", "--root=/x"}, {"--map", "x", dir}, {"--bind", "x", dir}} {
		tool(t, 2, append([]string{"plan"}, args...)...)
	}
}

// TestPlanObstacles: what stands in the way, and what takes it away.
func TestPlanObstacles(t *testing.T) {
	dir := checkpoint(t, "kinds")
	what := func(r imagesReport) (out []string) {
		for _, o := range r.Obstacles {
			if o.Level == "blocker" {
				out = append(out, o.What)
			}
		}
		return out
	}
	if r := planned(t, exitFound, dir); !slices.Contains(what(r), "socket") || !slices.Contains(what(r), "device") {
		t.Errorf("obstacles %+v", r.Obstacles)
	}
	if r := planned(t, exitFound, dir); r.from("/tmp/migratefs-golden/kinds.d/own-zero") != "nowhere" {
		t.Errorf("a device comes from %q", r.from("/tmp/migratefs-golden/kinds.d/own-zero"))
	}
	if r := planned(t, exitFound, dir, "--", "--ext-unix-sk"); slices.Contains(what(r), "socket") {
		t.Errorf("obstacles %+v", r.Obstacles)
	}
	out, _ := tool(t, exitFound, "plan", "--criu", "/bin/true", dir)
	contains(t, "plan", out, "--file-locks", "mapped shared", "(deleted)", "own-zero")

	dir = checkpoint(t, "mounts")
	r := planned(t, exitFound, dir)
	if len(r.Mounts) != 2 || r.Mounts[1].Key != "data" || !slices.Contains(what(r), "mount") {
		t.Errorf("mounts %+v, obstacles %+v", r.Mounts, r.Obstacles)
	}
	r = planned(t, 0, "--map", "data=/exports", "--map", "/=/rootfs", dir)
	for _, f := range r.Files {
		want := map[string]string{"/external/outside": "/exports/outside", "/bound/in-bind": "/rootfs/srv/part/in-bind"}[f.Path]
		if want != "" && f.HostPath != want {
			t.Errorf("%q lies at %q", f.Path, f.HostPath)
		}
	}
}

// TestPlanArchive: an archive is planned as the directory that is in it.
func TestPlanArchive(t *testing.T) {
	dir := checkpoint(t, "plain")
	top := filepath.Dir(dir)
	must(t, os.Rename(dir, filepath.Join(top, "checkpoint")))
	must(t, os.WriteFile(filepath.Join(top, "config.dump"), []byte(`{"id":"1","name":"job"}`), 0o600))
	for _, how := range []string{"", "-z"} {
		archive := filepath.Join(t.TempDir(), "export.tar")
		args := append(strings.Fields(how), "-cf", archive, "-C", top, "config.dump", "checkpoint")
		must(t, exec.Command("tar", args...).Run())
		if r := planned(t, 0, archive); r.from("/tmp/migratefs-golden/job/read-only") != "source" || len(r.Processes) != 2 {
			t.Errorf("%q: %+v", how, r)
		}
	}
}
