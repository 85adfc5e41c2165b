package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// planReport is what plan --json prints of a checkpoint.
type planReport struct {
	Files []struct {
		Path, From  string
		Size, Bytes int64
	}
	First struct{ Source, Here, Images int64 } `json:"before_first_instruction"`
	All   struct{ Source, Here, Images int64 } `json:"in_all"`

	Obstacles []struct{ Level, What, Path, Why string }
	Works     bool
}

func (r planReport) from(path string) string {
	for _, f := range r.Files {
		if f.Path == path {
			return f.From
		}
	}
	return "not listed"
}

func (m *move) plan(works bool, args ...string) planReport {
	m.t.Helper()
	return m.planOf("/srv/images", works, append([]string{"--from", "source"}, args...)...)
}

func (m *move) planOf(images string, works bool, args ...string) (r planReport) {
	m.t.Helper()
	out, err := m.b.Command(m.program, append([]string{"plan", "--json", "--criu", m.criu, images}, args...)...).Output()
	must(m.t, json.Unmarshal(out, &r))
	if r.Works != works || (err == nil) != works {
		m.t.Errorf("works: %v (%v), want %v: %+v", r.Works, err, works, r.Obstacles)
	}
	return r
}

// TestPlanFromSource: the plan says what the restore will then find; identical
// copies are seen, changed and missing files are named, and nothing is touched.
func TestPlanFromSource(t *testing.T) {
	m := newMove(t)
	r := m.plan(true)
	program, never := jobDir+"/bin/job", workDir+"/never-read"
	for _, path := range []string{program, never, workDir + "/read-only", workDir + "/log"} {
		if got := r.from(path); got != "source" {
			t.Errorf("%q comes from %s", path, got)
		}
	}
	if r.All.Source < 30<<20 || r.First.Source == 0 || r.First.Source > 1<<20 || r.First.Images == 0 || r.All.Here != 0 {
		t.Errorf("first %+v, all %+v", r.First, r.All)
	}
	far := m.planOf("source:/srv/images", true) // the same images where they were made
	if far.from(never) != "source" || far.All != r.All || len(far.Files) != len(r.Files) {
		t.Errorf("of images on the source: %+v, want %+v", far.All, r.All)
	}
	m.sourceUntouched()

	// The same program here: of one path, size, build-id and mtime.
	st, err := os.Stat(m.a.Path(program))
	must(t, err)
	b, err := os.ReadFile(m.a.Path(program))
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(m.b.Path(program)), 0o755))
	must(t, os.WriteFile(m.b.Path(program), b, 0o755))
	if got := m.plan(true).from(program); got != "source" {
		t.Errorf("a copy of another time counts: %s", got)
	}
	must(t, os.Chtimes(m.b.Path(program), st.ModTime(), st.ModTime()))
	if r := m.plan(true); r.from(program) != "here" || r.All.Here != int64(len(b)) {
		t.Errorf("the program comes from %s, %+v", r.from(program), r.All)
	}
	if got := m.plan(true, "--no-local").from(program); got != "source" {
		t.Errorf("with --no-local it comes from %s", got)
	}

	must(t, os.Remove(m.a.Path(workDir+"/read-only")))
	must(t, os.Truncate(m.a.Path(workDir+"/private"), 5))
	must(t, os.Chtimes(m.a.Path(workDir+"/private"), time.Now(), time.Now().Add(-time.Hour)))
	r = m.plan(false)
	if got := r.from(workDir + "/read-only"); got != "nowhere" {
		t.Errorf("what is gone comes from %s", got)
	}
	for path, why := range map[string]string{workDir + "/read-only": "missing", workDir + "/private": "size 5"} {
		if !slices.ContainsFunc(r.Obstacles, func(o struct{ Level, What, Path, Why string }) bool {
			return o.Level == "blocker" && o.Path == path && strings.Contains(o.Why, why)
		}) {
			t.Errorf("no word of %q: %+v", path, r.Obstacles)
		}
	}
	must(t, os.RemoveAll(m.b.Path(jobDir)))
	m.nothingLeft()
}

// TestPlanStillRunning: two copies of one process are warned of.
func TestPlanStillRunning(t *testing.T) {
	m := newHosts(t)
	m.makeFiles()
	job, err := testbed.Start(m.a.Command(jobDir+"/bin/job", workDir))
	must(t, err)
	testbed.Until(t, "the job to work", func() bool { return len(m.log(m.a.Path(workDir))) >= 2 })
	m.dump(job.Pid, "--leave-running")
	copies := func() int {
		n := 0
		for _, o := range m.plan(true).Obstacles {
			if o.What == "two copies" && o.Level == "caution" {
				n++
			}
		}
		return n
	}
	if n := copies(); n != 1 {
		t.Errorf("%d warnings, by the log", n)
	}
	must(t, os.Remove(m.b.Path("/srv/images/dump.log")))
	if n := copies(); n != 1 {
		t.Errorf("%d warnings, by the process on the source", n)
	}
}
