package testbed

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TempDir makes a directory that is removed when the test ends. Unlike
// testing.T's, it refuses to remove anything through a mount: a mount that is
// still there is unmounted, and fails the test.
func TempDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "migratefs-test-")
	if err != nil {
		tb.Fatal(err)
	}
	// mountinfo, ps and messages show what is behind the symlinks of TMPDIR.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		tb.Fatal(err)
	}
	// Other users read what lies in here; root's umask may say otherwise.
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, m := range MountsBelow(dir) {
			tb.Errorf("%q is still mounted", m)
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				tb.Errorf("umount %q: %v", m, err)
				return
			}
		}
		// rm works where os.RemoveAll gives up: on immutable or odd trees its
		// message names the file.
		if out, err := exec.Command("rm", "-rf", "--one-file-system", dir).CombinedOutput(); err != nil {
			tb.Errorf("rm: %v: %s", err, out)
		}
	})
	return dir
}

// MountsBelow returns the mountpoints at or below dir in this mount namespace,
// the last mounted first.
func MountsBelow(dir string) []string {
	var found []string
	for _, m := range Mounts() {
		if m.Point == dir || strings.HasPrefix(m.Point, dir+"/") {
			found = append([]string{m.Point}, found...)
		}
	}
	return found
}

// MountInfo is one line of /proc/self/mountinfo.
type MountInfo struct {
	Point   string // unescaped
	Type    string // "fuse.migratefs", "ext4", ...
	Source  string
	Options string // per superblock
}

// Mounts returns the mounts of this mount namespace in the order of the kernel.
func Mounts() []MountInfo {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		panic(err) // no test can go on without /proc
	}
	var all []MountInfo
	for line := range strings.SplitSeq(string(b), "\n") {
		// 36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		all = append(all, MountInfo{unescape.Replace(f[4]), g[0], unescape.Replace(g[1]), g[2]})
	}
	return all
}

// unescape undoes the escapes of the kernel's mangle_path (fs/seq_file.c).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")
