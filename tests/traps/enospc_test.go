package traps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// loop mounts a small filesystem of its own at DIR/NAME.
func loop(t *testing.T, s *stack, name, fstype string) string {
	t.Helper()
	image, disk := filepath.Join(s.dir, name+".img"), filepath.Join(s.dir, name)
	must(t, os.WriteFile(image, nil, 0o600))
	mkfs, size := []string{"mkfs.ext4", "-q", "-F", "-m", "0", image}, int64(24<<20)
	if fstype == "xfs" {
		mkfs, size = []string{"mkfs.xfs", "-q", "-f", image}, 300<<20
	}
	must(t, os.Truncate(image, size))
	testbed.Run(t, mkfs[0], mkfs[1:]...)
	must(t, os.MkdirAll(disk, 0o755))
	options := "loop"
	if fstype == "ext4" {
		options += ",errors=remount-ro"
	}
	testbed.Run(t, "mount", "-o", options, image, disk)
	t.Cleanup(func() { must(t, unix.Unmount(disk, 0)) })
	dir := filepath.Join(disk, "layer")
	must(t, os.Mkdir(dir, 0o755))
	return dir
}

// fillAll leaves no block free: the last come in small pieces.
func fillAll(t *testing.T, dir string) {
	t.Helper()
	fillUp(t, dir)
	for i := range 5000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("small", i)), []byte(strings.Repeat("x", 4096)), 0o600); err != nil {
			return
		}
	}
}

// A lower that is full, for which one migrates: what is written to moves away from
// it, and what is deleted there goes, also where there is a trash to hold it.
func TestFullLower(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		for _, keep := range []string{"", ",trash_days=3"} {
			t.Run(fstype+keep, func(t *testing.T) {
				testbed.NeedRoot(t)
				s := layers(t)
				s.lower = loop(t, s, "old", fstype)
				must(t, os.Mkdir(filepath.Join(s.lower, "d"), 0o755))
				for i := range 20 {
					put(t, filepath.Join(s.lower, "d", fmt.Sprint(i)), strings.Repeat("content ", 2000), 0o640)
				}
				must(t, os.Mkdir(filepath.Join(filepath.Dir(s.lower), "rest"), 0o755))
				s.mount(t, "migrate"+keep)
				fillAll(t, filepath.Join(filepath.Dir(s.lower), "rest"))
				for i := range 10 {
					if err := os.Remove(s.Path("d", fmt.Sprint(i))); err != nil {
						t.Fatalf("unlink: %v", err)
					}
				}
				for i := 10; i < 20; i++ {
					must(t, appendTo(t, s, fmt.Sprintf("d/%d", i), "more"))
				}
				must(t, os.WriteFile(s.Path("d", "new"), []byte("new"), 0o644))
				for i := 10; i < 20 && keep == ""; i++ { // a trash would hold as much as they do
					s.moved(t, fmt.Sprintf("d/%d", i))
				}
				names, err := os.ReadDir(s.Path("d"))
				if err != nil || len(names) != 11 {
					t.Errorf("%d names, %v", len(names), err)
				}
			})
		}
	}
}

// An upper that becomes read-only: writes fail with EROFS, reads go on, and the lower
// keeps what it has.
func TestUpperTurnsReadOnly(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	s.upper = loop(t, s, "new", "ext4")
	disk := filepath.Dir(s.upper)
	for _, name := range []string{"one", "two"} {
		put(t, filepath.Join(s.lower, name), "content", 0o640)
	}
	s.mount(t, "migrate")
	must(t, appendTo(t, s, "one", " and more"))
	s.moved(t, "one")
	device := ""
	for _, m := range testbed.Mounts() {
		if m.Point == disk {
			device = filepath.Base(m.Source)
		}
	}
	must(t, os.WriteFile("/sys/fs/ext4/"+device+"/trigger_fs_error", []byte("a test"), 0)) // errors=remount-ro
	for _, name := range []string{"one", "two"} {                                          // one lies in the upper, two below
		f, err := os.OpenFile(s.Path(name), os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.WriteString("x")
			f.Close()
		}
		if err == nil {
			t.Errorf("%s was written to on a read-only disk", name)
		} else if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustBe(t, content(t, s.Path("one")), "content and more")
	mustBe(t, content(t, s.Path("two")), "content")
	mustBe(t, content(t, filepath.Join(s.lower, "two")), "content")
}
