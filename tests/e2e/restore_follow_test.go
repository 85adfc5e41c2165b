package e2e

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestMoveAllFollows: with --drain all that the process has comes without anybody asking; a
// program that this host has as well is not fetched, is told of, and goes to the upper, so
// that what becomes of this host's copy is no matter.
func TestMoveAllFollows(t *testing.T) {
	m := newMove(t)
	const program = jobDir + "/bin/job"
	must(t, os.MkdirAll(m.b.Path(jobDir+"/bin"), 0o755))
	testbed.Run(t, "cp", "-p", m.a.Path(program), m.b.Path(program))
	r := m.restore("--drain", "--upperdir", "/srv/upper", "/srv/images")
	if out := m.b.Run(m.program, "status", r.view); !strings.Contains(out, "1 file of it") || !strings.Contains(out, "this host has the same") {
		t.Errorf("status does not tell of the program that is here: %s", out)
	}
	testbed.Until(t, "everything to come", func() bool {
		return strings.Contains(m.b.Run(m.program, "status", r.view), ", complete")
	})
	for _, name := range []string{program, workDir + "/never-read", workDir + "/read-only"} {
		want, err := os.ReadFile(m.a.Path(name))
		must(t, err)
		if got, err := os.ReadFile(m.b.Path("/srv/upper" + name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("in the upper, %s has %d bytes, %v", name, len(got), err)
		}
	}
	if _, err := os.Lstat(m.b.Path("/srv/upper" + workDir + "/never-opened")); err == nil {
		t.Error("a file is in the upper that the process never had")
	}
	if n := m.sshd.BytesRead()[program]; n > 64<<10 {
		t.Errorf("%d bytes were fetched of a program that is here", n)
	}
	must(t, os.WriteFile(m.b.Path(program), []byte("another"), 0o755))
	m.sshd.Kill()
	work := m.b.Path(r.view + workDir)
	was := len(m.log(work))
	testbed.Until(t, "the job to go on", func() bool { return len(m.log(work)) >= was+20 })
	m.checkLog(m.log(work))
	m.end(r)
}

// TestMoveTakesItsProgram: without --drain, too, what this host has of the process's
// programs goes to the upper, and nothing else does.
func TestMoveTakesItsProgram(t *testing.T) {
	m := newMove(t)
	const program = jobDir + "/bin/job"
	must(t, os.MkdirAll(m.b.Path(jobDir+"/bin"), 0o755))
	testbed.Run(t, "cp", "-p", m.a.Path(program), m.b.Path(program))
	r := m.restore("--upperdir", "/srv/upper", "/srv/images")
	want, err := os.ReadFile(m.a.Path(program))
	must(t, err)
	testbed.Until(t, "the program to come to the upper", func() bool {
		got, err := os.ReadFile(m.b.Path("/srv/upper" + program))
		return err == nil && bytes.Equal(got, want)
	})
	if _, err := os.Lstat(m.b.Path("/srv/upper" + workDir + "/never-read")); err == nil {
		t.Error("a file is in the upper that nobody has written to")
	}
	m.end(r)
}
