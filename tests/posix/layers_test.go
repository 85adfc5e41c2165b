package posix

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestPosixLayers runs the suite in directories that several lowers have, and in
// those of another host.
func TestPosixLayers(t *testing.T) {
	for _, k := range []struct{ name, mode string }{
		{"overlay,two", "overlay"}, {"migrate,two", "migrate"}, {"overlay,remote", "overlay"},
	} {
		t.Run(k.name, func(t *testing.T) {
			testbed.NeedRoot(t)
			dir := testbed.TempDir(t)
			low, high := filepath.Join(dir, "low"), filepath.Join(dir, "high")
			names := slices.Sorted(maps.Keys(posixtest.All))
			for _, name := range names {
				for _, l := range []string{low, high} {
					must(t, os.MkdirAll(filepath.Join(l, "in", name), 0o755))
				}
			}
			for _, d := range []string{"upper", "mnt"} {
				must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
			}
			lowers, cfg := high+":"+low, testbed.MountConfig{}
			if k.name == "overlay,remote" {
				sshd := testbed.StartSSHD(t)
				lowers, cfg.Env = sshd.Alias+":"+low, sshd.Env()
			}
			m := testbed.Mount(t, "mode="+k.mode+",lowerdir="+lowers+",upperdir="+filepath.Join(dir, "upper"), filepath.Join(dir, "mnt"), cfg)
			for _, name := range names {
				if leftOut[name] != "" {
					continue
				}
				t.Run(name, func(t *testing.T) { posixtest.All[name](t, m.Path("in", name)) })
			}
		})
	}
}
