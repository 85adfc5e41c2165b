package e2e

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// statusOf is what status --json says of a mount.
type statusOf struct {
	State     string
	Migration struct {
		State   string
		Looked  *string
		Here    amount
		Missing amount
		AtRisk  amount `json:"at_risk"`
		Left    int
	}
	Fill struct {
		Files    int     `json:"pending_files"`
		Missing  int64   `json:"missing_bytes"`
		Here     int64   `json:"here_bytes"`
		Finished int     `json:"finished_files"`
		Age      float64 `json:"age_seconds"`
	}
	Layers []struct {
		Role      string
		Reachable bool
		Detached  bool
	}
}

// status returns what is so now, or later: the daemon does not count at each question.
func status(t *testing.T, m *testbed.Mounted) (s statusOf) {
	t.Helper()
	began := time.Now()
	testbed.Until(t, "numbers of now", func() bool {
		asked := time.Now()
		out := command(t, 0, "status", "--json", m.Path(""))
		s = statusOf{}
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return asked.Sub(began).Seconds() > s.Fill.Age
	})
	return s
}

// holds counts what lies below dir, as the drain does: all names, and the bytes of files.
func holds(t *testing.T, dir string) (a amount) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		a.Files++
		if d.Type().IsRegular() {
			fi, err := d.Info()
			if err != nil {
				return err
			}
			a.Bytes += fi.Size()
		}
		return nil
	}))
	return a
}

// TestStatusOfRemote: what status says of a mount on its way from another host, from the
// first moment to the last, is what is there.
func TestStatusOfRemote(t *testing.T) {
	s := moving(t)
	all := holds(t, s.dir)
	m := s.mount(t, ",prefetch=off")
	says := func(when, state string, want ...string) {
		t.Helper()
		out := command(t, 0, "status", m.Path(""))
		for _, w := range append(want, m.Path("")+"  overlay, "+state+"\n") {
			if !strings.Contains(out, w) {
				t.Errorf("%s, status does not say %q:\n%s", when, w, out)
			}
		}
	}
	now := func(when, state string) statusOf {
		t.Helper()
		st := status(t, m)
		if st.State != state || st.Migration.State != state {
			t.Errorf("%s it is %q, and %q, not %q", when, st.State, st.Migration.State, state)
		}
		return st
	}

	// Read here, and nothing is changed.
	_, err := readAt(m.Path("read"), 0, 4096)
	must(t, err)
	st := now("mounted", "lazy")
	if st.Fill.Files != 0 || st.Migration.Looked != nil || st.Migration.Missing != (amount{}) || st.Migration.AtRisk != (amount{}) {
		t.Errorf("nothing was changed, and it says %+v", st)
	}
	says("mounted", "lazy", "at risk    nothing that was changed here")

	// Changed, and nothing comes any more.
	const wrote = 12345
	f, err := os.OpenFile(m.Path("read"), os.O_RDWR, 0)
	must(t, err)
	s.link.Stall()
	_, err = f.WriteAt(make([]byte, wrote), 500_000)
	must(t, err)
	must(t, f.Close())
	if !s.isPending(t, "read") {
		t.Error("what cannot have come is not pending")
	}
	st = now("filling", "filling")
	// The 4096 bytes that were read are here as well, and what came along with them.
	const size = 1 << 20
	if st.Fill.Files != 1 || st.Fill.Here+st.Fill.Missing != size || st.Fill.Here < wrote+4096 || st.Fill.Missing == 0 ||
		st.Migration.AtRisk != (amount{1, st.Fill.Missing}) {
		t.Errorf("of 1 MiB 4096 bytes were read and %d written, and it says %+v", wrote, st)
	}
	came := s.sshd.BytesRead()[filepath.Join(s.dir, "read")]
	if st.Fill.Here > came+wrote {
		t.Errorf("%d bytes were read at the source, %d written, and %d are said to be here", came, wrote, st.Fill.Here)
	}
	says("filling", "filling", "1 file pending", "if the source died now, ", " in 1 file that was changed here would be lost")

	s.link.Resume()
	s.filled(t, "read")
	if st = now("filled", "lazy"); st.Fill.Files != 0 || st.Fill.Finished != 1 || st.Migration.AtRisk != (amount{}) {
		t.Errorf("all of it is here, and it says %+v", st)
	}

	// Looked through: what the upper has is here, the rest is missing.
	command(t, 3, "detach", "--dry-run", m.Path(""))
	up := holds(t, s.upper())
	st = now("looked through", "lazy")
	if st.Migration.Looked == nil || st.Migration.Here != up || st.Migration.Missing != (amount{all.Files - up.Files, all.Bytes - up.Bytes}) {
		t.Errorf("the source has %+v, the upper %+v, and it says %+v", all, up, st.Migration)
	}
	says("looked through", "lazy", "of everything the source has", "missing ")

	command(t, 0, "drain", m.Path(""))
	up = holds(t, s.upper())
	st = now("drained", "complete")
	if up != all || st.Migration.Here != all || st.Migration.Missing != (amount{}) || st.Migration.AtRisk != (amount{}) {
		t.Errorf("the source has %+v, the upper %+v, and it says %+v", all, up, st.Migration)
	}

	command(t, 0, "detach", m.Path(""))
	must(t, os.RemoveAll(s.dir))
	st = now("detached", "detached")
	if l := st.Layers[1]; st.Migration.Left != 0 || l.Role != "lower" || !l.Detached || !l.Reachable {
		t.Errorf("it was let go of, and it says %+v", st)
	}
	says("detached", "detached", "let go of, it may be switched off")
	if fi, err := os.Stat(m.Path("big")); err != nil || fi.Size() != 5<<20+17 {
		t.Errorf("with the source gone: %v, %v", fi, err)
	}
	m.Unmount()
}
