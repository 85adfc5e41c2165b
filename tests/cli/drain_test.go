package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// drainLayers makes two storages with a few files in the old one.
func drainLayers(t *testing.T) (old, next, options string) {
	t.Helper()
	dir := testbed.TempDir(t)
	old, next = filepath.Join(dir, "old"), filepath.Join(dir, "new")
	must(t, os.MkdirAll(filepath.Join(old, "a dir/sub"), 0o755))
	must(t, os.Mkdir(next, 0o755))
	for i := range 5 {
		must(t, os.WriteFile(filepath.Join(old, fmt.Sprintf("a dir/sub/%d", i)), make([]byte, 1000*i), 0o644))
	}
	return old, next, "lowerdir=" + old + ",upperdir=" + next
}

func TestDrainDryRun(t *testing.T) {
	old, next, options := drainLayers(t)
	const all = testbed.Usual | testbed.Mtime
	was, is := testbed.Snapshot(t, old, all), testbed.Snapshot(t, next, all)
	out, _ := tool(t, 0, "drain", "--dry-run", "--min-size", "1000", "-o", options)
	contains(t, "a dry run", out, "files to move: 4, 9.8 KiB", "not meant: 1")
	testbed.Same(t, "the old storage before", was, "and after a dry run", testbed.Snapshot(t, old, all))
	testbed.Same(t, "the new storage before", is, "and after a dry run", testbed.Snapshot(t, next, all))
}

func TestDrainEnds(t *testing.T) {
	old, next, options := drainLayers(t)
	must(t, os.MkdirAll(filepath.Join(next, "a dir/sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(next, "a dir/sub/4"), []byte("another"), 0o644))
	odd := "odd\n\xff"
	must(t, os.Mkdir(filepath.Join(next, odd), 0o755))
	must(t, os.WriteFile(filepath.Join(old, odd), nil, 0o644))
	out, _ := tool(t, exitFound, "drain", "--json", "-o", options)
	var o struct {
		Failed      []struct{ Path, Lower, Errno, Reason string }
		Left, Files int
		Complete    bool
	}
	must(t, json.Unmarshal([]byte(out), &o))
	if o.Left != 2 || len(o.Failed) != 2 || o.Files != 4 || !o.Complete {
		t.Errorf("%s", out)
	}
	for _, f := range o.Failed {
		if f.Errno != "EEXIST" || f.Lower != old || f.Path != `odd\n\xff` && f.Path != "a dir/sub/4" {
			t.Errorf("%+v", f)
		}
	}
	must(t, os.Remove(filepath.Join(old, odd)))
	must(t, os.Remove(filepath.Join(old, "a dir/sub/4")))
	out, _ = tool(t, 0, "drain", "-o", options)
	contains(t, "an end", out, "directories removed: 2", "nothing is left in the lower")
}

// TestDrainOfMount finds the layers of a mount from a path below it, and refuses
// what it cannot work beside.
func TestDrainOfMount(t *testing.T) {
	old, next, options := drainLayers(t)
	point := filepath.Join(filepath.Dir(old), "mnt")
	must(t, os.Mkdir(point, 0o755))
	m := testbed.Mount(t, options, point)
	out, _ := tool(t, 0, "drain", filepath.Join(point, "a dir/sub/3"))
	contains(t, "a drain of a file", out, "files moved: 1, 2.9 KiB", "nothing of what is meant")
	must(t, unix.Stat(filepath.Join(next, "a dir/sub/3"), new(unix.Stat_t)))
	out, _ = tool(t, 0, "drain", "--user", "12345", point)
	contains(t, "a drain of nobody", out, "files moved: 0", "not meant: 4")
	out, _ = tool(t, 0, "drain", "--checksum", "--count", "--jobs", "2", point)
	contains(t, "a drain of all", out, "files moved: 4", "nothing is left in the lower")
	m.Unmount()

	testbed.Mount(t, options+",hosts=single", point)
	_, errs := tool(t, 1, "drain", point)
	contains(t, "drain beside hosts=single", errs, "hosts=many")
}

func TestDrainRefuses(t *testing.T) {
	old, next, options := drainLayers(t)
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{2, "mountpoint", nil},
		{2, "--shard", []string{"--shard", "2/2", "-o", options}},
		{2, "--older", []string{"--older", "long ago", "-o", options}},
		{2, "--min-size", []string{"--min-size", "big", "-o", options}},
		{2, "--time", []string{"--time", "btime", "-o", options}},
		{2, "--jobs", []string{"--jobs", "0", "-o", options}},
		{2, "no such user", []string{"--user", "nobody in particular", "-o", options}},
		{1, "mode=overlay", []string{"-o", options + ",mode=overlay"}},
		{1, "another host", []string{"-o", "lowerdir=host:/x,upperdir=" + next}},
		{1, "upperdir", []string{"-o", "lowerdir=" + old}},
		{1, "not in a mount", []string{old}},
	} {
		_, errs := tool(t, c.code, append([]string{"drain"}, c.args...)...)
		if !strings.Contains(errs, c.says) {
			t.Errorf("%q says %q, not %q", c.args, errs, c.says)
		}
	}
}
