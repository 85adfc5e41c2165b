package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/shim"
	"github.com/migratefs/migratefs/tests/testbed"
)

// TestProbe lets the upper lack things: what many hosts cannot do without is
// refused, the rest is said once.
func TestProbe(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	var fs atomic.Pointer[shim.FS] // the kernel is between who sets it and who asks
	fails := func(op string, errno unix.Errno) func(string, string) unix.Errno {
		return func(o, _ string) unix.Errno {
			if o == op {
				return errno
			}
			return 0
		}
	}
	unseen := func(name string) func(string) bool { return func(n string) bool { return n == name } }
	for _, c := range []struct {
		name    string
		lies    shim.Lies
		refused string   // what the one line says is missing
		lacks   []string // what the log says
	}{
		{"nothing missing", shim.Lies{}, "", nil},
		{"Lustre", shim.Lustre(), "", []string{"O_TMPFILE", "renameat2", "birth times"}},
		{"NFS", shim.NFS(), "", []string{"file without names", "trusted", "O_TMPFILE", "renameat2", "birth times"}},
		{"no fsync of directories", shim.Lies{NoFsyncDir: true}, "", []string{"fsync of directories"}},
		{"O_EXCL that opens", shim.Lies{ExclIgnored: true, Unseen: unseen("a")}, "O_EXCL", nil},
		{"no links", shim.Lies{NoLinks: true}, "hard links", nil},
		{"links that replace", shim.Lies{LinkReplaces: true, Unseen: unseen(probeName)}, "never replace", nil},
		{"no links of open files", shim.Lies{After: func(op, _ string, errno unix.Errno) unix.Errno {
			if op == "link" && fs.Load().Asked("link") >= 3 {
				return unix.EXDEV
			}
			return errno
		}}, "links of open files", nil},
		{"nothing at all", shim.Lies{Before: fails("create", unix.EPERM)}, "O_EXCL", nil},
		{"no room", shim.Lies{Before: fails("create", unix.ENOSPC)}, "", []string{"not known"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// A mount for each: the kernel remembers what a filesystem has not.
			base := testbed.TempDir(t)
			dir, point := filepath.Join(base, "dir"), filepath.Join(base, "point")
			for _, d := range []string{dir, point} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			fs.Store(shim.Mount(t, dir, point, c.lies))
			root, err := os.Open(point)
			if err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			st := &stack{o: &options{upper: "UPPER"}, log: slog.New(slog.NewTextHandler(&log, nil))}
			err = st.probe(int(root.Fd()))
			root.Close()
			var ce *codeError
			switch {
			case c.refused == "" && err != nil:
				t.Error(err)
			case c.refused != "" && (!errors.As(err, &ce) || ce.code != exitMount):
				t.Errorf("%v, want it refused", err)
			case c.refused != "":
				for _, want := range []string{"UPPER", "hosts=many", "hosts=single", c.refused} {
					if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
						t.Errorf("%q does not say %q in one line", err, want)
					}
				}
			}
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			if c.refused == "" && strings.Count(log.String(), "\n") != len(c.lacks) {
				t.Errorf("the log says\n%s", log.String())
			}
			for i, want := range c.lacks {
				if i >= len(lines) || !strings.Contains(lines[i], want) {
					t.Errorf("line %d of the log does not say %q:\n%s", i+1, want, log.String())
				}
			}
			left := func() []os.DirEntry { es, _ := os.ReadDir(dir); return es }
			for began := time.Now(); len(left()) > 0 && c.lies.Unseen == nil; time.Sleep(time.Millisecond) {
				if time.Since(began) > time.Minute { // what was open goes once it is closed
					t.Fatalf("left: %v", left())
				}
			}
		})
	}
}

func TestUnfitNFS(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	const line = ` 28 0:50 / /scratch rw,relatime shared:1 - nfs4 server:/scratch rw,vers=4.2,rsize=1048576,hard,proto=tcp,timeo=600,sec=sys,clientaddr=10.0.0.2,local_lock=none`
	if err := os.WriteFile(file, []byte("41"+line+",addr=10.0.0.1\n42"+line+",lookupcache=pos,addr=10.0.0.1\n43"+line+",lookupcache=none,addr=10.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ms, err := mountsOf(file)
	if err != nil || len(ms) != 3 {
		t.Fatalf("%v, %v", ms, err)
	}
	for i, unfit := range []bool{true, false, false} {
		if why := unfitNFS(ms[i].opts); (why != "") != unfit || unfit && !strings.Contains(why, "lookupcache=positive") {
			t.Errorf("%s: %q", ms[i].opts, why)
		}
	}
	if m, ok := mountOf("/proc/self"); !ok || m.fsType != "proc" {
		t.Errorf("/proc/self is on %+v", m)
	}
}
