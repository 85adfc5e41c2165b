package testbed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// makeTree makes a tree with one file of each kind.
func makeTree(t *testing.T) string {
	t.Helper()
	dir := TempDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(at("d"), 0o750))
	must(os.WriteFile(at("d/file"), []byte("content"), 0o640))
	must(os.WriteFile(at("long"), []byte(strings.Repeat("x", 100000)), 0o600))
	must(os.Link(at("long"), at("d/link")))
	must(os.Symlink("d/fi le", at("symlink")))
	must(unix.Mkfifo(at("fifo"), 0o600))
	must(os.WriteFile(at("sparse"), nil, 0o600))
	must(os.Truncate(at("sparse"), 1<<20))
	must(unix.Lsetxattr(at("d/file"), "user.note", []byte("a\x00b"), 0))
	for _, name := range []string{"d/file", "d", "long", "sparse"} {
		must(unix.UtimesNano(at(name), []unix.Timespec{{Sec: 1e9, Nsec: 5}, {Sec: 1e9, Nsec: 5}}))
	}
	return dir
}

func TestTreeSeesEveryChange(t *testing.T) {
	NeedRoot(t)
	const all = Usual | Mtime | Holes
	changes := map[string]struct {
		change func(dir string) error
		want   string
	}{
		"content":     {func(d string) error { return os.WriteFile(d+"/d/file", []byte("Content"), 0) }, `"Content"`},
		"long":        {func(d string) error { return os.WriteFile(d+"/long", []byte(strings.Repeat("y", 100000)), 0) }, "sha256"},
		"size":        {func(d string) error { return os.Truncate(d+"/sparse", 1<<20+1) }, "size: 1048577"},
		"mode":        {func(d string) error { return unix.Chmod(d+"/d/file", 0o4640) }, "mode: 4640"},
		"owner":       {func(d string) error { return os.Lchown(d+"/symlink", 1, 2) }, "owner: 1:2"},
		"target":      {func(d string) error { _ = os.Remove(d + "/symlink"); return os.Symlink("d", d+"/symlink") }, `target: "d"`},
		"type":        {func(d string) error { _ = os.Remove(d + "/fifo"); return os.WriteFile(d+"/fifo", nil, 0o600) }, "type: file"},
		"missing":     {func(d string) error { return os.Remove(d + "/fifo") }, "only in the first"},
		"more":        {func(d string) error { return os.Mkdir(d+"/d/new", 0o755) }, "only in the second"},
		"mtime":       {func(d string) error { return unix.UtimesNano(d+"/d", []unix.Timespec{{Sec: 1}, {Sec: 1e9, Nsec: 6}}) }, "mtime: 1000000000.000000006"},
		"xattr":       {func(d string) error { return unix.Lsetxattr(d+"/d/file", "user.note", []byte("b"), 0) }, `"user.note": "b"`},
		"link broken": {func(d string) error { return copyOver(d+"/long", d+"/d/link") }, "nlink: 1"},
		"hole":        {func(d string) error { return fill(d + "/sparse") }, "data: 0-256"},
	}
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			dir := makeTree(t)
			before := Snapshot(t, dir, all)
			if diff := before.Diff(Snapshot(t, dir, all)); len(diff) > 0 {
				t.Fatalf("nothing was changed: %q", diff)
			}
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			diff := strings.Join(before.Diff(Snapshot(t, dir, all)), "\n")
			if !strings.Contains(diff, c.want) {
				t.Errorf("diff:\n%s\nwant %s in it", diff, c.want)
			}
		})
	}
}

func TestTreeSkips(t *testing.T) {
	dir := makeTree(t)
	tree := Snapshot(t, dir, 0, "d", "fifo")
	if tree.Has("d") || tree.Has("d/file") || tree.Has("fifo") || !tree.Has("long") || tree.Len() != 4 {
		t.Errorf("%d files: %v", tree.Len(), tree.files)
	}
}

func copyOver(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// fill writes zeros over a hole, which changes nothing that is read.
func fill(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(make([]byte, 1<<20))
	return err
}
