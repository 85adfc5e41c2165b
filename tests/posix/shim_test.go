package posix

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/migratefs/migratefs/tests/shim"
	"github.com/migratefs/migratefs/tests/testbed"
)

// lacking are tests of the suite that NFS cannot pass: what is open when it is
// removed keeps a name there, and a link; and a name that is replaced again and
// again is believed to be what it was. Neither has O_TMPFILE, nor NFS xattrs: those
// tests would skip themselves.
var lacking = map[string][]string{
	"lustre": {"Tmpfile"},
	"nfs":    {"FstatDeleted", "NlinkZero", "OpenSymlinkRace", "Tmpfile", "XAttr"},
}

// long are tests that take long where each request of ours is another of a shim.
var long = []string{"OpenSymlinkRace"}

// TestPosixOnShims runs the suite in migrate mode for many hosts, over filesystems
// that behave like those that they share.
func TestPosixOnShims(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(posixtest.All)), func(n string) bool { return leftOut[n] != "" })
	for _, like := range []string{"lustre", "nfs"} {
		t.Run(like, func(t *testing.T) {
			dir := testbed.TempDir(t)
			at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
			for _, d := range []string{"old", "new", "lower", "upper", "mnt", "old/in", "old/worn"} {
				must(t, os.Mkdir(at(d), 0o755))
			}
			for _, name := range names {
				must(t, os.Mkdir(at("old/in", name), 0o755))
				must(t, os.Mkdir(at("old/worn", name), 0o755))
				for _, w := range worn {
					must(t, os.WriteFile(at("old/worn", name, w), []byte("old"), 0o644))
				}
			}
			shim.Start(t, like, at("old"), at("lower"))
			shim.Start(t, like, at("new"), at("upper"))
			m := testbed.Mount(t, "lowerdir="+at("lower")+",upperdir="+at("upper"), at("mnt"))
			for _, name := range names {
				for _, w := range worn {
					must(t, os.Remove(m.Path("worn", name, w)))
				}
			}
			for _, where := range []string{"in", "worn"} {
				t.Run(where, func(t *testing.T) {
					for _, name := range names {
						left := slices.Contains(lacking[like], name) || slices.Contains(long, name) && os.Getenv("MIGRATEFS_TEST_LONG") == ""
						if !left {
							t.Run(name, func(t *testing.T) { posixtest.All[name](t, m.Path(where, name)) })
						}
					}
				})
			}
		})
	}
}
