package oracle

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// exchangeEnds are names of all kinds: of lowers, of the upper, of both; under each other, too.
var exchangeEnds = []string{
	"e", "a/f", // files of the lower
	"a/e",             // of three names
	"a/b/e",           // up
	"n/f", "s", "n/p", // new: a file, a symlink, a FIFO
	"d", "b", "c/d", // directories of the lower, or of two
	"a/b",      // up, and in the lower
	"n", "n/m", // of the upper
	"none",
}

// TestExchanges lets everything change places with everything, and back.
func TestExchanges(t *testing.T) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	ops := []op{
		{kind: "truncate", path: "a/b/e", off: 1080}, {kind: "mkdir", path: "n", mode: 0o755}, {kind: "mkdir", path: "n/m", mode: 0o750},
		{kind: "open", path: "n/f", flags: unix.O_RDWR | unix.O_CREAT, mode: 0o640}, {kind: "pwrite", n: 100, data: 7}, {kind: "closeall"},
		{kind: "symlink", path: "s", path2: "e"}, {kind: "mkfifo", path: "n/p", mode: 0o600},
	}
	for i, a := range exchangeEnds {
		for _, b := range exchangeEnds[i+1:] {
			swap := op{kind: "rename", path: a, path2: b, flags: unix.RENAME_EXCHANGE}
			ops = append(ops, swap)
			for _, path := range []string{a, b} {
				ops = append(ops, op{kind: "stat", path: path}, op{kind: "read", path: path}, op{kind: "readdir", path: path})
			}
			ops = append(ops, swap)
		}
	}
	// Some stay exchanged, for the looks at the layers in the end.
	for _, pair := range [][2]string{{"e", "n/m"}, {"a/b", "s"}, {"d", "n"}, {"c/d", "b"}} {
		ops = append(ops, op{kind: "rename", path: pair[0], path2: pair[1], flags: unix.RENAME_EXCHANGE})
	}
	for _, c := range []struct {
		mode   string
		layers []string
	}{
		{"overlay", []string{"lowest"}}, {"overlay", []string{"middle", "lowest"}},
		{"migrate,hosts=single", []string{"lowest"}}, {"migrate,hosts=single", []string{"higher", "lowest"}},
		{"migrate", []string{"higher", "lowest"}},
	} {
		t.Run(c.mode+" "+c.layers[0], func(t *testing.T) {
			if problem := playIn(newWorld(t, c.mode, 0, c.layers...), ops); problem != "" {
				t.Error(problem)
			}
		})
	}
}

// TestDirectoriesChangeLayers: with one host a directory moves to where its layer has none, and
// nobody sees what is made there for that.
func TestDirectoriesChangeLayers(t *testing.T) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	for _, ops := range [][]op{
		{{kind: "rename", path: "g", path2: "c/d/g"}, {kind: "stat", path: "c"}},
		{{kind: "rename", path: "a/b", path2: "d/b"}, {kind: "stat", path: "d"}},
		{{kind: "rename", path: "g", path2: "b"}, {kind: "rename", path: "g/a", path2: "c/f", flags: unix.RENAME_NOREPLACE}},
		{{kind: "rename", path: "g", path2: "c/e", flags: unix.RENAME_EXCHANGE}, {kind: "stat", path: "c"}},
	} {
		t.Run(ops[0].path+" to "+ops[0].path2, func(t *testing.T) {
			if problem := playIn(newWorld(t, "migrate,hosts=single", 0, "higher", "lowest"), ops); problem != "" {
				t.Error(problem)
			}
		})
	}
}
