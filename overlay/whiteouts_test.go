package overlay

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// TestWhiteoutWithAllItsLinks: once the shared whiteout has as many names as the
// filesystem allows (65,000 on ext4, here three), another is made and shared.
func TestWhiteoutWithAllItsLinks(t *testing.T) {
	const limit = 3
	w := newWorld(t, worlds(t), stackings[0])
	defer w.remove()
	must(t, w.open())
	refused := 0
	sys.SetHook(func(c sys.Change) error {
		var st unix.Stat_t
		if c == "link" && unix.Lstat(w.at("work", sharedWhiteout), &st) == nil && st.Nlink >= limit {
			refused++
			return unix.EMLINK
		}
		return nil
	})
	defer sys.SetHook(nil)
	d := &driver{fs: w.fs}
	names := []string{"low", "other", "both", "dir/a", "dir/b", "dir/sub/c", "both dir/l"}
	for _, name := range names {
		if errno := d.unlink(name); errno != 0 {
			t.Errorf("unlink %s: %v", name, errno)
		}
	}
	d.end()
	if want := 3; refused != want { // two names each, beside that in WORK
		t.Errorf("%d links were refused, want %d", refused, want)
	}
	sys.SetHook(nil)
	w.close()
	must(t, w.open())
	seen, err := w.look()
	must(t, err)
	inodes := map[uint64]int{}
	for _, name := range names {
		if _, there := seen[name]; there {
			t.Errorf("%s is seen", name)
		}
		var st unix.Stat_t
		must(t, unix.Lstat(w.at("upper", name), &st))
		if st.Mode != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s is no whiteout: mode %o, device %x", name, st.Mode, st.Rdev)
		}
		inodes[st.Ino]++
	}
	if len(inodes) != 4 {
		t.Errorf("the whiteouts are inodes %v, want four of them", inodes)
	}
	if left := w.leftovers(); left != "" {
		t.Errorf("left over: %s", left)
	}
}
