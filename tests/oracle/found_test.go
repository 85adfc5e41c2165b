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
		{"devices of a user with suid and sgid", []op{
			{kind: "mknod", path: "a/a", uid: 1000, mode: 0o6755}, {kind: "stat", path: "a/a"}, {kind: "chown", path: "a/a", off: 1}, {kind: "stat", path: "a/a"}}},
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
