package oracle

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestFound plays what random sequences found once, in both modes.
func TestFound(t *testing.T) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	const mapped, appending = "mmap", unix.O_RDWR | unix.O_APPEND
	for _, c := range []struct {
		name string
		ops  []op
	}{
		{"a hard link's count when another name goes unseen", []op{{kind: "unlink", path: "b/g"}, {kind: "stat", path: "a/e"}}},
		{"a hard link's count after a rename over another name", []op{
			{kind: "rename", path: "e", path2: "b/g"}, {kind: "stat", path: "a/e"}, {kind: "chmod", path: "c/g", mode: 0o600}, {kind: "stat", path: "a/e"}}},
		{"names that come along leave the times of their directories", []op{{kind: "truncate", path: "b/g", off: 10751}, {kind: "stat", path: "c"}}},
		{"a hard-linked symlink stays one file", []op{{kind: "chown", path: "d/e", off: 1, n: 1}, {kind: "stat", path: "d/f"}, {kind: "unlink", path: "d/e"}}},
		{"a link below a directory that is above too", []op{
			{kind: "truncate", path: "a/b/e", off: 1080}, {kind: "link", path: "f", path2: "a/c"}, {kind: "stat", path: "a"}}},
		{"a link made below, changed there, then brought up", []op{
			{kind: "open", path: "e", flags: unix.O_RDWR}, {kind: "link", path: "e", path2: "g"}, {kind: "utimens", path: "g", off: 5, n: 5, data: 7},
			{kind: "fallocate", off: 8630, n: 2469}, {kind: "stat", path: "g"}, {kind: "fstat"}, {kind: "unlink", path: "e"}}},
		{"a mapping of a file open for appending", []op{
			{kind: "open", path: "c/e", flags: appending}, {kind: "pwrite", off: 1042, n: 3391, data: 1}, {kind: mapped, off: 5, data: 9}, {kind: "fstat"}}},
		{"renaming over a file that is open", []op{
			{kind: "open", path: "a/f", flags: unix.O_RDWR}, {kind: "rename", path: "e", path2: "a/f"}, {kind: "fstat"}, {kind: "pwrite", n: 5, data: 3},
			{kind: "pread", n: 100}, {kind: "stat", path: "a/f"}}},
		{"hard links removed after a remount", []op{
			{kind: "truncate", path: "a/e", off: 3}, {kind: "stat", path: "b/g"}, {kind: "stat", path: "c/g"}, {kind: "remount"},
			{kind: "unlink", path: "a/e"}, {kind: "unlink", path: "b/g"}, {kind: "unlink", path: "c/g"}}},
		{"a file whose only name that was looked up is gone", []op{
			{kind: "open", path: "f", flags: unix.O_RDWR}, {kind: "unlink", proc: 1, path: "f"}, {kind: "fstat"}, {kind: mapped, off: 5, data: 9},
			{kind: "fstat"}, {kind: "read", path: "a/b/g"}, {kind: "stat", path: "a/b/g"}}},
		{"the same, looked up before it is written", []op{
			{kind: "open", path: "f", flags: unix.O_RDWR}, {kind: "unlink", path: "f"}, {kind: "stat", path: "a/b/g"}, {kind: "pwrite", n: 9, data: 9},
			{kind: "fstat"}, {kind: "read", path: "a/b/g"}, {kind: "stat", path: "a/b/g"}}},
		{"the same of three names, removed one by one", []op{
			{kind: "open", path: "a/e", flags: unix.O_RDWR}, {kind: "unlink", path: "a/e"}, {kind: "pwrite", n: 9, data: 9}, {kind: "read", path: "b/g"},
			{kind: "unlink", path: "b/g"}, {kind: "fstat"}, {kind: "pwrite", n: 19, data: 8}, {kind: "read", path: "c/g"}, {kind: "unlink", path: "c/g"}, {kind: "fstat"}}},
		{"a name that is looked up after the file came up, and then synced", []op{
			{kind: "remount"}, {kind: "open", path: "f", flags: unix.O_RDWR}, {kind: "pwrite", n: 9, data: 9}, {kind: "stat", path: "a/b/g"}, {kind: "fsync"},
			{kind: "unlink", path: "f"}, {kind: "fsync"}}},
		{"devices of a user with suid and sgid", []op{
			{kind: "mknod", path: "a/a", uid: 1000, mode: 0o6755}, {kind: "stat", path: "a/a"}, {kind: "chown", path: "a/a", off: 1}, {kind: "stat", path: "a/a"}}},
		{"a directory that was removed and is open", []op{
			{kind: "mkdir", path: "n", mode: 0o777}, {kind: "opendir", path: "n"}, {kind: "setxattr", path: "n", data: 5},
			{kind: "setacl", path: "n", data: 7}, {kind: "rmdir", path: "n"},
			{kind: "dirgetxattr", data: 5}, {kind: "dirgetxattr", off: 1, uid: 1000}, {kind: "dirsetxattr", data: 6}, {kind: "dirgetxattr", data: 6},
			{kind: "dirchmod", mode: 0o700}, {kind: "dirtimes", off: 5}, {kind: "dirstat"}, {kind: "dirlist"}, {kind: "dirsync"},
			{kind: "dircreate", path: "x", uid: 1000}, {kind: "dirmkdir", path: "x"}}},
		{"a directory of the lower that was removed and is open", []op{
			{kind: "unlink", path: "d/e"}, {kind: "unlink", path: "d/f"}, {kind: "unlink", path: "d/g"}, {kind: "opendir", path: "d"}, {kind: "rmdir", path: "d"},
			{kind: "dirgetxattr", data: 5}, {kind: "dirgetxattr", off: 1, uid: 1000}, {kind: "dirstat"}, {kind: "dirlist"}, {kind: "dirsync"},
			{kind: "dircreate", path: "x", uid: 1000}, {kind: "dirmkdir", path: "x"}}},
	} {
		for _, mode := range []string{"overlay", "migrate"} {
			t.Run(mode+" "+c.name, func(t *testing.T) {
				if problem := playIn(newWorld(t, mode, 0, "lowest"), c.ops); problem != "" {
					t.Error(problem)
				}
			})
		}
	}
}

// TestBitsSetWhileOpen: where suid is set on a file that the kernel writes by itself,
// the next write through that opening takes it off, also root's; the opening after it
// is served by the daemon, and root's writes leave it. A stranger's take it off in both.
func TestBitsSetWhileOpen(t *testing.T) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	w := newWorld(t, "overlay", 0, "lowest")
	defer w.end()
	for _, s := range []struct {
		op
		mode uint32 // afterwards
	}{
		{op{kind: "open", path: "a/a", flags: unix.O_RDWR | unix.O_CREAT, mode: 0o600}, 0o600},
		{op{kind: "chmod", path: "a/a", mode: 0o4777}, 0o4777},
		{op{kind: "pwrite", n: 9, data: 9}, 0o777},
		{op{kind: "remount"}, 0o777}, // close(2) returns before the daemon knows
		{op{kind: "chmod", path: "a/a", mode: 0o4777}, 0o4777},
		{op{kind: "open", path: "a/a", flags: unix.O_RDWR}, 0o4777},
		{op{kind: "pwrite", n: 9, data: 9}, 0o4777},
		{op{kind: "remount"}, 0o4777},
		{op{kind: "open", path: "a/a", flags: unix.O_RDWR, uid: 1000}, 0o4777},
		{op{kind: "pwrite", n: 9, data: 9, uid: 1000}, 0o777},
	} {
		said := ""
		if s.kind == "remount" {
			w.remount()
		} else {
			said = w.ours.apply(s.op)
		}
		var st unix.Stat_t
		must(t, unix.Stat(w.ours.at("a/a"), &st))
		if st.Mode&0o7777 != s.mode {
			t.Fatalf("%v -> %s: the mode is %#o, not %#o", s.op, said, st.Mode&0o7777, s.mode)
		}
	}
}

// TestRemovedBelow: who has a directory of a lower open while it is removed can look at it,
// but there is no place for what is changed of it then.
func TestRemovedBelow(t *testing.T) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	for _, mode := range []string{"overlay", "migrate"} {
		w := newWorld(t, mode, 0, "empty")
		for _, s := range []struct {
			op
			want string
		}{
			{op{kind: "opendir", path: "n"}, ""},
			{op{kind: "rmdir", path: "n"}, ""},
			{op{kind: "dirgetxattr", data: 5}, "ENODATA"},
			{op{kind: "dirgetxattr", off: 1, uid: 1000}, "ENODATA"},
			{op{kind: "dircreate", path: "x", uid: 1000}, "ENOENT"},
			{op{kind: "dirlist"}, "ENOENT"},
			{op{kind: "dirsync"}, ""},
			{op{kind: "dirchmod", mode: 0o700}, "ENOENT"},
			{op{kind: "dirsetxattr", data: 5}, "ENOENT"},
		} {
			if said := w.ours.apply(s.op); said != s.want {
				t.Errorf("%s: %v -> %s, not %q", mode, s.op, said, s.want)
			}
		}
		w.end()
	}
}
