package overlay

import (
	"log/slog"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/migratefs/migratefs/layers/extent"
)

// TestFsyncOfWhatCannotBe: where a handle could not follow its file (EMFILE, a
// lost object), an fsync that succeeds would be a lie.
func TestFsyncOfWhatCannotBe(t *testing.T) {
	fs := &FS{log: slog.New(slog.DiscardHandler)}
	for name, h := range map[string]*handle{
		"no descriptor of the copy":     {fd: -1, n: &node{fs: fs, upper: true}},
		"no object of the pending file": {fd: 0, n: &node{fs: fs, upper: true, pending: extent.ID{1}}},
	} {
		fh := fs.handles.add(h)
		if st := fs.Fsync(nil, &fuse.FsyncIn{Fh: fh}); st != fuse.EIO {
			t.Errorf("%s: fsync is %v, not EIO", name, st)
		}
	}
}
