package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestDetachRestored: a process that was moved goes on without the host it came from,
// of which only what it has, and has come to use, was brought; what is left there is
// never this host's file of the same name, and in the end its files are plain ones.
func TestDetachRestored(t *testing.T) {
	m := newMove(t)
	used := filepath.Join(workDir, "used later")
	must(t, os.WriteFile(m.a.Path(used), []byte("by somebody in the view"), 0o644))
	m.b.Run("mkdir", "-p", workDir)
	for _, name := range []string{"never-opened", "never-read", "only here"} {
		must(t, os.WriteFile(m.b.Path(workDir+"/"+name), []byte("of this host"), 0o644))
	}
	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	work := m.b.Path(r.view + workDir)
	on := func(when string) {
		t.Helper()
		was := len(m.log(work))
		testbed.Until(t, "the job to go on, "+when, func() bool { return len(m.log(work)) >= was+20 })
		m.checkLog(m.log(work))
	}
	on("restored")
	m.b.Run("cat", r.view+used)
	if out, err := m.b.Command(m.program, "detach", r.view).CombinedOutput(); err == nil || !strings.Contains(string(out), "never-read") {
		t.Errorf("detach, with something missing: %v, %s", err, out)
	}
	m.b.Run(m.program, "wait", "--complete", r.view)
	out := m.b.Run(m.program, "detach", r.view)
	if !strings.Contains(out, "names of the checkpoint") || !strings.Contains(out, "detached:") {
		t.Errorf("detach prints %s", out)
	}
	m.sshd.Kill()
	must(t, os.RemoveAll(m.a.Path(jobDir)))
	on("without its source")
	if out, err := m.b.Command("cat", r.view+workDir+"/never-opened").CombinedOutput(); err == nil || !strings.Contains(string(out), "Input/output error") {
		t.Errorf("what was left there: %v, %s", err, out)
	}
	for name, want := range map[string]string{"used later": "by somebody in the view", "only here": "of this host"} {
		if got := m.b.Run("cat", r.view+workDir+"/"+name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	must(t, syscall.Kill(r.pid, syscall.SIGKILL))
	testbed.Until(t, "the job to end", func() bool { return !slices.Contains(m.jobs(), r.pid) })
	last := m.log(work)
	m.unmount(r)
	m.b.Run(m.program, "settle", "/srv/upper")
	if got := m.log(m.b.Path("/srv/upper" + workDir)); !slices.Equal(got, last) {
		t.Errorf("settled, the log has %d lines, and had %d", len(got), len(last))
	}
	if fi, err := os.Stat(m.b.Path("/srv/upper" + workDir + "/never-read")); err != nil || fi.Size() != 30<<20 {
		t.Errorf("settled, a file of 30 MiB is %v, %v", fi, err)
	}
	for _, name := range []string{"never-opened", "only here"} {
		if _, err := os.Lstat(m.b.Path("/srv/upper" + workDir + "/" + name)); err == nil {
			t.Errorf("%s was settled, and never came", name)
		}
	}
}
