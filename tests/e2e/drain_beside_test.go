package e2e

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// A user works in a directory of the mount, and remembers what is there.
type user struct {
	t    *testing.T
	r    *rand.Rand
	dir  string
	has  map[string]string // contents by name below dir
	made int
}

// work does n things, one after the other.
func (u *user) work(n int) {
	for range n {
		if len(u.has) == 0 || u.t.Failed() {
			return
		}
		names := slices.Sorted(maps.Keys(u.has))
		name := names[u.r.IntN(len(names))]
		if err := u.do(name, names[u.r.IntN(len(names))]); err != nil {
			u.t.Errorf("%s: %v", u.dir, err)
		}
	}
}

func (u *user) do(name, other string) error {
	at := func(name string) string { return filepath.Join(u.dir, name) }
	switch u.r.IntN(7) {
	case 0, 1:
		more := fmt.Sprint("+", u.r.IntN(1000))
		f, err := os.OpenFile(at(name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		u.has[name] += more
		_, err = f.WriteString(more)
		return errors.Join(err, f.Close())
	case 2:
		u.has[name] = fmt.Sprint("new ", u.r.IntN(1000))
		return os.WriteFile(at(name), []byte(u.has[name]), 0o644)
	case 3, 4: // to a free name, or over another
		to := other
		if u.r.IntN(2) == 0 {
			u.made++
			to = filepath.Join(filepath.Dir(other), fmt.Sprint("moved ", u.made))
		}
		if to == name {
			return nil
		}
		err := os.Rename(at(name), at(to))
		if err == nil {
			u.has[to] = u.has[name]
			delete(u.has, name)
		}
		return err
	case 5:
		if len(u.has) > 20 {
			delete(u.has, name)
			return os.Remove(at(name))
		}
		return nil
	default:
		return u.read(name)
	}
}

func (u *user) read(name string) error {
	b, err := os.ReadFile(filepath.Join(u.dir, name))
	if err == nil && string(b) != u.has[name] {
		err = fmt.Errorf("%q has %q, not %q", name, b, u.has[name])
	}
	return err
}

// is compares all there is below dir with what the user has.
func (u *user) is(dir string) {
	u.t.Helper()
	seen := map[string]string{}
	must(u.t, filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		seen[rel] = string(b)
		return err
	}))
	for name, content := range u.has {
		if got, ok := seen[name]; !ok || got != content {
			u.t.Errorf("%s: %q is %q (%v), not %q", dir, name, got, ok, content)
		}
	}
	for name := range seen {
		if _, ok := u.has[name]; !ok {
			u.t.Errorf("%s: %q has come back", dir, name)
		}
	}
}

// TestDrainBesideMount drains while users write, rename and delete: in the end the
// lower is empty, and each user has what the user made.
func TestDrainBesideMount(t *testing.T) {
	lower, upper, point := layersOf(t)
	var users []*user
	for i := range 4 {
		seed := rand.Uint64()
		t.Logf("user %d: seed %d", i, seed)
		u := &user{t: t, r: rand.New(rand.NewPCG(seed, 0)), dir: filepath.Join(point, fmt.Sprint("user ", i)), has: map[string]string{}}
		users = append(users, u)
		for j := range 120 {
			name := fmt.Sprintf("d%d/sub/f%d", j%6, j)
			u.has[name] = fmt.Sprintf("file %d of user %d", j, i)
			p := filepath.Join(lower, fmt.Sprint("user ", i), name)
			must(t, os.MkdirAll(filepath.Dir(p), 0o755))
			must(t, os.WriteFile(p, []byte(u.has[name]), 0o644))
		}
	}
	m := testbed.Mount(t, "lowerdir="+lower+",upperdir="+upper, point)
	var all sync.WaitGroup
	for _, u := range users {
		all.Go(func() { u.work(400) })
	}
	code := 0
	for range 3 { // what users are at all the time may stay
		cmd := exec.Command(testbed.BuildRace(t), "drain", "--jobs", "4", point)
		out, _ := cmd.CombinedOutput()
		if code = cmd.ProcessState.ExitCode(); code != 0 && code != 3 {
			t.Errorf("drain ends with %d:\n%s", code, out)
		}
	}
	all.Wait()
	if o := drains(t, 0, point); o.Left != 0 || !o.Complete {
		t.Errorf("%+v", o)
	}
	nothingLeft(t, lower)
	for _, u := range users {
		u.is(u.dir)
	}
	m.Unmount()
	for _, u := range users {
		u.is(filepath.Join(upper, filepath.Base(u.dir)))
	}
}

// TestDrainInShards has as many processes as there are shards drain at once, by the
// job script, with the variables that sbatch sets.
func TestDrainInShards(t *testing.T) {
	lower, upper, _ := layersOf(t)
	was := oldStorage(t, lower, 40, 12, testbed.Usual|testbed.Mtime)
	const shards = 4
	script := filepath.Join(testbed.ModuleDir(), "packaging/slurm/migratefs-drain.sbatch")
	var all sync.WaitGroup
	for i := range shards {
		all.Go(func() {
			cmd := exec.Command(script, "--jobs", "2", "-o", "lowerdir="+lower+",upperdir="+upper)
			cmd.Env = append(os.Environ(), "MIGRATEFS="+testbed.BuildRace(t), fmt.Sprint("SLURM_ARRAY_TASK_ID=", i+1),
				fmt.Sprint("SLURM_ARRAY_TASK_COUNT=", shards), "SLURM_ARRAY_TASK_MIN=1", "SLURM_ARRAY_TASK_STEP=1")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "files moved: ") || strings.Contains(string(out), "moved: 0,") {
				t.Errorf("task %d: %v\n%s", i+1, err, out)
			}
		})
	}
	all.Wait()
	drains(t, 0, "-o", "lowerdir="+lower+",upperdir="+upper)
	nothingLeft(t, lower)
	became(t, was, upper, testbed.Usual|testbed.Mtime)

	cmd := exec.Command(script, "/nowhere")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "--array") {
		t.Errorf("without an array: %v\n%s", err, out)
	}
}
