package sys

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is done step by step where there is no openat2(2) gives what it gives.
func TestWalkAsOpenat2(t *testing.T) {
	if !hasOpenat2() {
		t.Fatal("needs openat2(2) to compare with")
	}
	dir := t.TempDir()
	at := func(name string) string { return dir + "/root/" + name }
	for _, d := range []string{dir + "/root", at("a"), at("a/b"), at("a/b/c"), dir + "/outside"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{at("f"), at("a/f"), at("a/b/c/f"), dir + "/outside/secret"} {
		if err := os.WriteFile(f, []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"to-f": "f", "to-a": "a", "a/up": "..", "a/up-f": "../f", "out": "../outside", "out-f": "../outside/secret",
		"abs": "/a/f", "abs-out": dir + "/outside/secret", "loop": "loop", "two": "owt", "owt": "two", "dangling": "none",
		"a/b/over": "../../to-a/b/c", "slash": "a/", "many": "a/up/a/up/a/up/f", "dot": ".", "proc": "/proc/self/exe",
	} {
		if err := os.Symlink(target, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := unix.Open(dir+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	paths := []string{
		".", "f", "a", "a/b", "a/b/c/f", "a//b", "a/./b", "a/b/", "f/", "f/x", "none", "none/x", "a/none", "..", "a/..", "a/../f", "a/../..", "../outside/secret",
		"to-f", "to-a", "to-a/f", "to-a/", "a/up", "a/up/f", "a/up-f", "out", "out/secret", "out-f", "abs", "abs-out", "loop", "two", "dangling",
		"a/b/over", "a/b/over/f", "a/b/over/../f", "slash", "slash/f", "many", "dot", "dot/f", "/", "/f", "/a/../f", strings.Repeat("x", 256), "a/" + strings.Repeat("x", 256),
	}
	for _, path := range paths {
		for _, flags := range []int{
			unix.O_RDONLY, unix.O_PATH, unix.O_PATH | unix.O_NOFOLLOW, unix.O_PATH | unix.O_DIRECTORY, unix.O_RDONLY | unix.O_DIRECTORY,
			unix.O_RDONLY | unix.O_NOFOLLOW, unix.O_WRONLY,
		} {
			for resolve, walk := range map[uint64]func() (int, error){
				unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS: func() (int, error) { return walkBeneath(root, path, flags, 0) },
				unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS:                            func() (int, error) { return walkFollowing(root, path, flags, 0, true) },
				unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS:                            func() (int, error) { return walkFollowing(root, path, flags, 0, false) },
			} {
				want, wantErr := unix.Openat2(root, path, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve})
				got, gotErr := walk()
				switch {
				case wantErr != nil || gotErr != nil:
					// ".." within a layer is no clean path: here it is refused as one that leads out.
					same := wantErr == gotErr || resolve&unix.RESOLVE_NO_SYMLINKS != 0 && strings.Contains(path, "..") && gotErr == unix.EXDEV
					if !same {
						t.Errorf("%q, flags %#x, resolve %#x: %v, and openat2 says %v", path, flags, resolve, gotErr, wantErr)
					}
				default:
					var a, b unix.Stat_t
					if unix.Fstat(want, &a) != nil || unix.Fstat(got, &b) != nil || a.Ino != b.Ino || a.Dev != b.Dev {
						t.Errorf("%q, flags %#x, resolve %#x: another file than openat2 opens", path, flags, resolve)
					}
				}
				for _, fd := range []int{want, got} {
					if fd >= 0 {
						unix.Close(fd)
					}
				}
			}
		}
	}
}

func TestWalkCreates(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("made", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../outside", dir+"/out"); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	for _, c := range []struct {
		path  string
		flags int
		want  error
		made  string
	}{
		{"new", unix.O_CREAT | unix.O_EXCL, nil, "new"},
		{"new", unix.O_CREAT | unix.O_EXCL, unix.EEXIST, ""},
		{"link", unix.O_CREAT | unix.O_EXCL, unix.EEXIST, ""},
		{"link", unix.O_CREAT, nil, "made"},
		{"out", unix.O_CREAT, unix.EXDEV, ""},
		{"none/x", unix.O_CREAT, unix.ENOENT, ""},
	} {
		fd, err := walkFollowing(root, c.path, c.flags|unix.O_RDWR, 0o640, true)
		if err != c.want {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
		if err == nil {
			unix.Close(fd)
		}
		if c.made != "" {
			if fi, err := os.Stat(dir + "/" + c.made); err != nil || fi.Mode().Perm()&^0o640 != 0 {
				t.Errorf("%s: %v, %v", c.made, fi, err)
			}
		}
	}
	if _, err := os.Lstat(dir + "/../outside"); err == nil {
		t.Error("something was made outside")
	}
}
