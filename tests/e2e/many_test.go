package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestManyMounts has two daemons on the same layers. Each sees what the other does;
// when one dies the other works on, and the next mount takes away what it left.
func TestManyMounts(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	dir := testbed.TempDir(t)
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	for _, d := range []string{"lower", "upper", "a", "b"} {
		must(t, os.Mkdir(at(d), 0o755))
	}
	for _, f := range []string{"one", "two"} {
		must(t, os.WriteFile(at("lower", f), []byte("old\n"), 0o644))
	}
	options := "lowerdir=" + at("lower") + ",upperdir=" + at("upper")
	a, b := testbed.Mount(t, options, at("a")), testbed.Mount(t, options, at("b"))
	appendTo := func(path, s string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		_, err = f.WriteString(s)
		must(t, err)
		must(t, f.Close())
	}
	is := func(path, want string) {
		t.Helper()
		if got, err := os.ReadFile(path); string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
		}
	}
	appendTo(a.Path("one"), "a\n")
	is(b.Path("one"), "old\na\n")
	appendTo(b.Path("one"), "b\n")
	is(a.Path("one"), "old\na\nb\n")
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // it goes with others, later
		if _, err := os.Stat(at("lower", "one")); err != nil {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatal("the lower copy stays")
		}
	}

	daemons := func() []string {
		ds, err := filepath.Glob(at("upper", ".migratefs", "daemons", "*"))
		must(t, err)
		return ds
	}
	before := daemons()
	if len(before) != 2 {
		t.Errorf("there are %q", before)
	}
	for _, d := range before {
		must(t, os.WriteFile(filepath.Join(d, "tmp-left"), nil, 0o600))
	}
	a.Kill()
	must(t, os.Rename(b.Path("two"), b.Path("three")))
	appendTo(b.Path("three"), "b\n")
	is(b.Path("three"), "old\nb\n")

	a.RemoveDead()
	a = testbed.Mount(t, options, at("a"))
	is(a.Path("three"), "old\nb\n")
	left := 0
	for _, d := range daemons() {
		if _, err := os.Stat(filepath.Join(d, "tmp-left")); err == nil {
			left++ // that of the one that lives
		}
	}
	if n := len(daemons()); n != 2 || left != 1 {
		t.Errorf("one died, and another came: there are %q, and leftovers in %d", daemons(), left)
	}
}
