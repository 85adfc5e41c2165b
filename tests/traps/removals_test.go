package traps

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// Lower copies go in the background; when the mount ends, however it is told to, none
// is left.
func TestNoLowerCopyIsLeft(t *testing.T) {
	for _, by := range []string{"umount", "SIGTERM"} {
		t.Run(by, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			const files = 200
			for i := range files {
				must(t, os.MkdirAll(filepath.Join(s.lower, fmt.Sprint("d", i%20)), 0o755))
				put(t, filepath.Join(s.lower, fmt.Sprintf("d%d/%d", i%20, i)), "content", 0o640)
			}
			s.mount(t, "migrate")
			for i := range files {
				must(t, appendTo(t, s, fmt.Sprintf("d%d/%d", i%20, i), " and more"))
			}
			if by == "umount" {
				s.Unmount()
			} else {
				s.Process().Signal(syscall.SIGTERM)
				if !s.Process().WaitFor(time.Minute) {
					t.Error("the daemon goes on")
				}
				s.Kill() // nothing is left of it
			}
			for i := range files {
				name := fmt.Sprintf("d%d/%d", i%20, i)
				if _, err := os.Lstat(filepath.Join(s.lower, name)); !os.IsNotExist(err) {
					t.Fatalf("%s is left below: %v", name, err)
				}
				mustBe(t, content(t, filepath.Join(s.upper, name)), "content and more")
			}
			if es, err := os.ReadDir(filepath.Join(s.lower, ".migratefs/trash")); err != nil || len(es) > 0 {
				t.Errorf("the trash holds %v, %v", es, err)
			}
		})
	}
}

// keep_lower and trash_days as options: what stays where.
func TestWhatALowerKeeps(t *testing.T) {
	for option, below := range map[string]string{"keep_lower": "content", "trash_days=2": ""} {
		t.Run(option, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			for _, name := range []string{"written", "deleted"} {
				put(t, filepath.Join(s.lower, name), "content", 0o640)
			}
			s.mount(t, "migrate,"+option)
			must(t, appendTo(t, s, "written", " and more"))
			must(t, os.Remove(s.Path("deleted")))
			s.Unmount()
			got, _ := os.ReadFile(filepath.Join(s.lower, "written"))
			mustBe(t, string(got), below)
			es, err := os.ReadDir(filepath.Join(s.lower, ".migratefs/trash"))
			must(t, err)
			lay := map[string]bool{}
			for _, e := range es {
				if target, err := os.Readlink(filepath.Join(s.lower, ".migratefs/trash", e.Name())); err == nil {
					lay[target] = true
				}
			}
			if !lay["deleted"] || lay["written"] != (below == "") {
				t.Errorf("in the trash: %v", lay)
			}
			// Nothing of that shows, at another mount neither.
			s.mount(t, "migrate,"+option)
			mustBe(t, content(t, s.Path("written")), "content and more")
			must(t, os.Remove(s.Path("written")))
			s.Unmount()
			s.mount(t, "migrate,"+option)
			names, err := os.ReadDir(s.Path())
			if err != nil || len(names) > 0 {
				t.Errorf("%v, %v", names, err)
			}
		})
	}
}
