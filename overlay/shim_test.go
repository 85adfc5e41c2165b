package overlay

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/shim"
	"github.com/migratefs/migratefs/tests/testbed"
)

// onShims runs f on migrate mode over filesystems that behave like those that many
// hosts share. Requests of a mount that makes requests of its own go through the
// kernel: all operations would take long, and take it with MIGRATEFS_TEST_LONG.
func onShims(t *testing.T, f func(t *testing.T, base string, k stacking, lower *shim.FS)) {
	for _, c := range []struct {
		name string
		lies func() shim.Lies
	}{
		{"NFS", func() shim.Lies { l := shim.NFS(); l.Stale = 0; return l }},
		{"NFS that is stale", shim.NFS},
		{"Lustre", shim.Lustre},
	} {
		for _, hosts := range []Hosts{Single, Many} {
			if (hosts == Single || c.name == "NFS") && os.Getenv("MIGRATEFS_TEST_LONG") == "" {
				continue
			}
			t.Run(c.name+", hosts="+hosts.String(), func(t *testing.T) {
				testbed.NeedFUSE(t)
				base := worlds(t)
				upper, lower := t.TempDir(), t.TempDir()
				shim.Mount(t, base, upper, c.lies())
				low := shim.Mount(t, base, lower, c.lies())
				f(t, base, stacking{name: c.name, mode: Migrate, lowers: 1, hosts: hosts, upperAt: upper, lowersAt: lower}, low)
			})
		}
	}
}

// asks reports whether an operation asks for what the filesystem lacks.
func (o *operation) asks(k stacking) bool {
	for _, what := range []string{"O_TMPFILE", "exchange", "chattr"} {
		if strings.Contains(o.name, what) {
			return true
		}
	}
	// What is open and removed keeps a name on NFS, which is seen.
	return k.name != "Lustre" && (strings.Contains(o.name, "xattr") || strings.Contains(o.name, "is open"))
}

// TestOperationsOnShims does every operation, and remounts.
func TestOperationsOnShims(t *testing.T) {
	onShims(t, func(t *testing.T, base string, k stacking, _ *shim.FS) {
		for i := range operations {
			o := &operations[i]
			if (o.only == nil || o.only(k)) && !o.asks(k) {
				t.Run(o.name, func(t *testing.T) { o.expect(t, base, k) })
			}
		}
	})
}

// TestDeathOnShims lets the daemon die before each change of some operations.
func TestDeathOnShims(t *testing.T) {
	some := []string{"write", "chmod", "unlink low", "rename low to new", "rename low to up", "rename up to low", "link hard1 to new"}
	onShims(t, func(t *testing.T, base string, k stacking, _ *shim.FS) {
		done := 0
		for i := range operations {
			o := &operations[i]
			if o.only != nil && !o.only(k) || o.asks(k) || os.Getenv("MIGRATEFS_TEST_LONG") == "" && !isOneOf(o.name, some) {
				continue
			}
			done++
			t.Run(o.name, func(t *testing.T) {
				before, after, _ := o.expect(t, base, k)
				for n := 1; ; n++ {
					if met, _ := o.dieAt(t, base, k, n, 0, before, after); !met {
						return
					}
				}
			})
		}
		if done < len(some)-1 {
			t.Errorf("only %d operations", done)
		}
	})
}

func isOneOf(s string, list []string) bool {
	for _, l := range list {
		if s == l {
			return true
		}
	}
	return false
}

// TestRepeatedRequests has each request that changes a name carried out twice and
// answered the second time, as NFS does when an answer is lost.
func TestRepeatedRequests(t *testing.T) {
	testbed.NeedFUSE(t)
	base := worlds(t)
	upper, lower := t.TempDir(), t.TempDir()
	up, low := shim.Mount(t, base, upper, shim.Lustre()), shim.Mount(t, base, lower, shim.Lustre())
	k := stacking{name: "Lustre", mode: Migrate, lowers: 1, hosts: Many, upperAt: upper, lowersAt: lower}
	for i := range operations {
		o := &operations[i]
		if o.name != "write" && o.name != "write deep" && o.name != "chmod" {
			continue
		}
		for _, op := range []string{"link", "unlink", "mkdir", "rmdir", "symlink", "mknod", "rename"} {
			t.Run(o.name+", "+op+" twice", func(t *testing.T) {
				_, after, _ := o.expect(t, base, k)
				w := o.start(t, base, k)
				defer w.remove()
				twice := func(asked, _ string) bool { return asked == op }
				up.Set(func(l *shim.Lies) { l.Repeat = twice })
				low.Set(func(l *shim.Lies) { l.Repeat = twice })
				errno := o.run(w)
				up.Set(func(l *shim.Lies) { l.Repeat = nil })
				low.Set(func(l *shim.Lies) { l.Repeat = nil })
				if errno != 0 {
					t.Errorf("it fails: %v", errno)
				}
				w.judge("afterwards", errno, after, after)
				w.close()
				must(t, w.open())
				w.judge("afterwards, remounted", errno, after, after)
				if left := w.leftovers(); left != "" {
					t.Errorf("left over:\n\t%s", left)
				}
			})
		}
	}
}

// TestLowerThatDisappears: a lower whose server is away, or has another filesystem
// by now, is an error, never a missing file, and is used again when it is back.
func TestLowerThatDisappears(t *testing.T) {
	onShims(t, func(t *testing.T, base string, k stacking, low *shim.FS) {
		for _, away := range []unix.Errno{unix.ESTALE, unix.ENOTCONN, unix.EIO} {
			w := newWorld(t, base, k)
			must(t, w.open())
			time.Sleep(low.Stale())
			low.Set(func(l *shim.Lies) { l.Before = func(string, string) unix.Errno { return away } })
			d := &driver{fs: w.fs}
			for _, name := range []string{"low", "dir/a"} {
				if errno := d.write(name, "W", 0); errno == 0 || errno == unix.ENOENT {
					t.Errorf("%v: a write to %q: %v", away, name, errno)
				}
				if _, errno := d.find(name); errno == unix.ENOENT {
					t.Errorf("%v: %q is missing", away, name)
				}
			}
			low.Set(func(l *shim.Lies) { l.Before = nil })
			if b, err := os.ReadFile(filepath.Join(w.at("l1"), "low")); string(b) != "lower low" {
				t.Errorf("%v: the lower file is %q, %v", away, b, err)
			}
			if errno := d.write("low", "W", 0); errno != 0 {
				t.Errorf("%v: a write when it is back: %v", away, errno)
			}
			d.end()
			w.remove()
		}
	})
}
