package overlay

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// What a loss of power leaves depends on what was made durable before what, which
// no death of a process shows: these are the orders that the tables of crashes in
// the package comments stand on.
var orders = []struct {
	kind   stacking
	change string
	do     func(d *driver) unix.Errno
	want   string
}{
	// The copy, its origin with it, is durable before it has its name; its directory
	// is marked before that.
	{stackings[0], "overlay: write", func(d *driver) unix.Errno { return d.write("low", "W", 0) },
		"tmpfile chown clone truncate copy_file_range chmod setxattr setxattr utimes fsync close setxattr link utimes write"},
	// ... and its name is before the lower copy goes.
	{stackings[2], "migrate: write", func(d *driver) unix.Errno { return d.write("low", "W", 0) },
		"tmpfile chown clone truncate copy_file_range chmod setxattr setxattr utimes fsync close link utimes " +
			"fsync symlink rename unlink unlink write"},
	// Lower names go first, each durably before the next higher.
	{stackings[2], "migrate: unlink", func(d *driver) unix.Errno { return d.unlink("both") },
		"unlink fsync unlink"},
	{stackings[3], "migrate of two: unlink", func(d *driver) unix.Errno { return d.unlink("both") },
		"unlink fsync unlink fsync unlink"},
	// What moved over a name says so first, and is durable there before older copies of
	// the name go.
	{stackings[2], "migrate: rename over", func(d *driver) unix.Errno { return d.rename("up", "low", 0) },
		"setxattr rename fsync unlink"},
	// What is under the name that moves goes before it moves.
	{stackings[2], "migrate: rename of", func(d *driver) unix.Errno { return d.rename("both", "new", 0) },
		"fsync unlink fsync rename"},
	// One step each, on one filesystem.
	{stackings[0], "overlay: unlink of an upper file over a lower one", func(d *driver) unix.Errno { return d.unlink("both") },
		"link mknod link rename"},
	{stackings[0], "overlay: rename", func(d *driver) unix.Errno { return d.rename("both", "new", 0) },
		"rename"},
	// The object is a pending one, durably, before there is a stub; the stub is
	// durable, and known to be one, before it has a name in the tree.
	{stackings[4], "remote: write", func(d *driver) unix.Errno { return d.write("other", "W", 0) },
		"create truncate create write " + // the cache of what is read
			"fdatasync rename rename fsync chown tmpfile chown chmod setxattr setxattr utimes fsync close " +
			"link link utimes utimes write write"},
	// The name goes first, then the object, then the stub's own name.
	{stackings[4], "remote: unlink of a pending file", func(d *driver) unix.Errno { return d.unlink("low") },
		"link mknod link rename unlink unlink unlink"},
}

func TestOrderOfChanges(t *testing.T) {
	for _, o := range orders {
		t.Run(o.change, func(t *testing.T) {
			w := newWorld(t, worlds(t), o.kind)
			must(t, w.open())
			defer w.close()
			if o.kind.remote {
				d := &driver{fs: w.fs}
				pend(d)
				d.end()
			}
			f := &fault{}
			f.set()
			errno := (&operation{do: o.do}).run(w)
			sys.SetHook(nil)
			if got := strings.Join(f.names, " "); errno != 0 || got != o.want {
				t.Errorf("%v:\n\t%s, want\n\t%s", errno, got, o.want)
			}
		})
	}
}

// What leads from a lower name to the copy that came up by another one, the index, is durable
// before that other name goes from the lower, and stays until what the file has lost there is.
func TestOrderOfHardLinks(t *testing.T) {
	write := func(d *driver) unix.Errno { return d.write("hard1", "W", 0) }
	both := func(d *driver) { write(d); d.unlink("dir/hard3") }
	for _, o := range []struct {
		change string
		tweak  func(*Config)
		first  func(d *driver)
		do     func(d *driver) unix.Errno
		want   [2]string // hosts=single, many
	}{
		{"write", nil, func(*driver) {}, write, [2]string{
			"tmpfile chown clone truncate copy_file_range chmod setxattr setxattr utimes fsync close " +
				"unlink symlink link link link utimes fsync fsync symlink rename unlink unlink write",
			"create chown clone truncate copy_file_range chmod setxattr setxattr utimes fsync close " +
				"unlink symlink link link utimes link fsync fsync symlink rename unlink unlink unlink write",
		}},
		{"unlink", nil, func(d *driver) { write(d) }, func(d *driver) unix.Errno { return d.unlink("hard2") }, [2]string{
			"fsync unlink utimes fsync", "symlink fsync unlink utimes fsync unlink",
		}},
		{"unlink of the last", nil, both, func(d *driver) unix.Errno { return d.unlink("hard2") }, [2]string{
			"fsync unlink utimes fsync unlink unlink unlink", "symlink fsync unlink utimes fsync unlink unlink unlink unlink",
		}},
		{"unlink of the last, to the trash", func(c *Config) { c.TrashDays = 1 }, both,
			func(d *driver) unix.Errno { return d.unlink("hard2") }, [2]string{
				"fsync symlink rename fsync unlink unlink unlink utimes fsync",
				"symlink fsync symlink rename fsync unlink unlink unlink utimes fsync unlink",
			}},
		{"rename over the last", nil, both, func(d *driver) unix.Errno { return d.rename("low", "hard2", 0) }, [2]string{
			"fsync rename fsync unlink unlink unlink utimes utimes",
			"symlink symlink symlink fsync rename fsync unlink unlink unlink utimes utimes unlink unlink unlink",
		}},
	} {
		for i, kind := range []stacking{stackings[2], stackings[5]} {
			t.Run(o.change+", "+kind.name, func(t *testing.T) {
				w := newWorld(t, worlds(t), kind)
				w.tweak = o.tweak
				must(t, w.open())
				defer w.remove()
				d := &driver{fs: w.fs}
				o.first(d)
				d.end()
				f := &fault{}
				f.set()
				errno := o.do(d)
				sys.SetHook(nil)
				d.end()
				if got := strings.Join(f.names, " "); errno != 0 || got != o.want[i] {
					t.Errorf("%v:\n\t%s, want\n\t%s", errno, got, o.want[i])
				}
			})
		}
	}
}
