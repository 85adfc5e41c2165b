package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestCheckpointOfSeveralLowers: each file of a checkpoint is compared in the highest
// lower that has it.
func TestCheckpointOfSeveralLowers(t *testing.T) {
	m := newMove(t)
	m.a.Run("sh", "-ec", "mkdir -p /srv/top/srv/job; mv /srv/job/work /srv/top/srv/job/; mkdir -p /srv/job/work; echo other >/srv/job/work/read-only")
	m.b.Run("mkdir", "/srv/mnt")
	work := m.a.Path("/srv/top" + workDir)
	const options = "criu=/srv/images,lowerdir+=source:/srv/top,lowerdir+=source:/,upperdir=/srv/upper"
	m.b.Run("mkdir", "/srv/upper")

	v := testbed.Mount(t, options, "/srv/mnt", testbed.MountConfig{Host: m.b})
	for path, from := range map[string]string{
		workDir + "/read-only":  work + "/read-only",
		jobDir + "/bin/job":     m.a.Path(jobDir + "/bin/job"),
		workDir + "/read-write": work + "/read-write",
	} {
		got, err := os.ReadFile(v.Path(path))
		must(t, err)
		if want, err := os.ReadFile(from); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q has %d bytes, want %d, %v", path, len(got), len(want), err)
		}
	}
	v.Unmount()

	refused := func(all ...string) {
		t.Helper()
		out, err := m.b.Command(m.program, "-o", options, "/srv/mnt").CombinedOutput()
		if err == nil {
			m.b.Run(m.program, "umount", "/srv/mnt")
		}
		for _, want := range all {
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("mounted: %v, %q does not say %q", err == nil, out, want)
			}
		}
	}
	must(t, os.Truncate(filepath.Join(work, "private"), 5))
	refused(`"/srv/job/work/private": size 5, was 16384`)
	must(t, os.Truncate(filepath.Join(work, "private"), 16384))
	// The lower of the two has one of that name, which nobody had open.
	must(t, os.Remove(filepath.Join(work, "read-only")))
	refused(`"/srv/job/work/read-only": size 6, was 800000`)
	must(t, os.Remove(m.a.Path(workDir+"/read-only")))
	refused(`"/srv/job/work/read-only": missing`)
}
