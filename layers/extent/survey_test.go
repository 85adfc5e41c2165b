package extent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// A survey says what an open store says, and leaves everything as it is.
func TestSurvey(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	s := openStore(t, dir, bootB)
	content := noise(100<<10, 1)
	o, id, err := s.NewPending(sourceOf(content))
	must(t, err)
	_, err = o.WriteAt([]byte("0123456789"), 5000)
	must(t, err)
	must(t, o.Sync(false))
	missing, size := o.Missing(), o.Size()
	must(t, o.Close())
	torn, tornID, err := s.NewPending(sourceOf(content))
	must(t, err)
	must(t, torn.Close())
	must(t, s.Close())
	must(t, os.Remove(filepath.Join(dir, tornID.DataName())))
	must(t, os.WriteFile(filepath.Join(dir, "c77.map"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "p77.tmp"), nil, 0o600))
	before := names(t, dir)

	seen := map[ID]Surveyed{}
	left, err := Survey(fd, func(v Surveyed) error { seen[v.ID] = v; return nil })
	must(t, err)
	if v := seen[id]; v.Err != nil || v.Missing != missing || v.Size != size || missing != 100<<10-10 {
		t.Errorf("%+v, want %d of %d missing", v, missing, size)
	}
	if v := seen[tornID]; !errors.Is(v.Err, layers.ErrCorrupt) || len(seen) != 2 {
		t.Errorf("of half an object: %+v; of %d", v, len(seen))
	}
	if !slices.Equal(left, []string{"c77.map", "p77.tmp"}) {
		t.Errorf("leftovers: %q", left)
	}
	if after := names(t, dir); !slices.Equal(before, after) {
		t.Errorf("%q, before %q", after, before)
	}
	must(t, Discard(fd, tornID))
	must(t, Discard(fd, id))
	if after := names(t, dir); slices.ContainsFunc(after, func(n string) bool { return n == id.DataName() || n == tornID.name()+mapSuffix }) {
		t.Errorf("not discarded: %q", after)
	}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range es {
		all = append(all, e.Name())
	}
	return all
}
