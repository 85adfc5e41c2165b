package main

import (
	"os"
	"path/filepath"
	"testing"
)

// The trash of a lower is not looked for where its users may have made one, or have a
// symlink to that of the whole lower: its files would come back in their directories.
func TestTrashOfUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: directories of others")
	}
	lower := t.TempDir()
	at := func(name string) string { return filepath.Join(lower, name) }
	for _, d := range []string{".migratefs/trash", "alice/.migratefs/trash", "bob"} {
		if err := os.MkdirAll(at(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"alice", "alice/.migratefs", "alice/.migratefs/trash", "bob"} {
		if err := os.Chown(at(d), 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../.migratefs", at("bob/.migratefs")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"alice/x", "bob/x"} {
		var f undoFlags
		w, err := f.find(at(path))
		if err != nil {
			t.Fatal(err)
		}
		if got := w.lowers[0].dir; got != lower || string(w.path) != path {
			t.Errorf("%s is looked for in the trash of %q, as %q", path, got, w.path)
		}
		w.close()
	}
	for _, dir := range []string{"alice", "bob"} {
		if w, err := openUndo("x", "", []string{at(dir)}); err == nil {
			w.close()
			t.Errorf("the trash in %s was taken for that of a lower", dir)
		}
	}
}

// What --to names is not reached by a symlink that another user can have made.
func TestUndoToFollowsOwnSymlinks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: symlinks of others")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"real/sub", "alice"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"mine": "real", "absolute": at("real"), "alice/twice": "../mine", "theirs": "real", "to\u00e9": "theirs"} {
		if err := os.Symlink(to, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Lchown(at("theirs"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat(at("real/sub"))
	if err != nil {
		t.Fatal(err)
	}
	for path, good := range map[string]bool{
		"real/sub": true, "mine/sub": true, "absolute/sub": true, "alice/twice/sub": true,
		"theirs/sub": false, "theirs": false, "to\u00e9": false, "to\u00e9/sub": false, "absent": false,
	} {
		fd, err := openTrusted(at(path))
		if (err == nil) != good {
			t.Errorf("%s: %v", path, err)
		}
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), path)
		if is, err := f.Stat(); err != nil || !os.SameFile(is, want) {
			t.Errorf("%s leads elsewhere: %v", path, err)
		}
		f.Close()
	}
}
