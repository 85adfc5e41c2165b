package conformance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/shim"
	"github.com/migratefs/migratefs/tests/testbed"
)

// testcase is one thing that programs do. tree makes what is there before, run
// does it and notes what it sees.
type testcase struct {
	name string
	tree func(t *testing.T, dir string)
	run  func(c *at)
	// An SFTP source cannot show what tree makes: xattrs, holes, hard links,
	// owners, devices, nanoseconds.
	beyondSFTP bool
}

var cases []testcase

// at is a case at work in its directory of one mount.
type at struct {
	*testing.T
	dir  string
	kind *kind
	seen []line
	keys map[string]int
}

type line struct{ label, value string }

// note keeps what was seen under a label, which is unique in the case.
func (c *at) note(label, format string, args ...any) {
	c.Helper()
	if c.keys[label]++; c.keys[label] > 1 {
		label = fmt.Sprintf("%s (%d)", label, c.keys[label])
	}
	c.seen = append(c.seen, line{label, fmt.Sprintf(format, args...)})
}

// err notes what an operation returned.
func (c *at) err(label string, err error) {
	c.Helper()
	c.note(label, "%s", errName(err))
}

func errName(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func (c *at) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *at) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

func (c *at) open(name string, flags int) int {
	c.Helper()
	fd, err := unix.Open(c.path(name), flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		c.Fatalf("open %s: %v", name, err)
	}
	c.Cleanup(func() { unix.Close(fd) })
	return fd
}

func (c *at) lstat(name string) (st unix.Stat_t) {
	c.Helper()
	c.must(unix.Lstat(c.path(name), &st))
	return st
}

func (c *at) content(name string) string {
	c.Helper()
	b, err := os.ReadFile(c.path(name))
	c.must(err)
	return string(b)
}

// as runs f as another user, who is in one group of the same number.
func (c *at) as(uid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_ = unix.Setfsgid(uid)
		_ = unix.Setfsuid(uid)
		f()
	}()
	<-done
}

// tryOpen opens and closes.
func tryOpen(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
	must(t, os.Chmod(path, 0o644))
}

// files is a tree of regular files whose content is their name.
func files(names ...string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		for _, n := range names {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, n)), 0o755))
			put(t, filepath.Join(dir, n), "content of "+n)
		}
	}
}

// kind is a way to stack layers.
type kind struct {
	name   string
	mode   string // "": no mount at all
	fill   string // where the trees are: "upper", "lower", "two", "worn"
	remote bool
	like   string // the filesystem that the layers behave like, see package shim; "": they are ext4
}

// lustreLacks are cases of what such a filesystem has not.
var lustreLacks = regexp.MustCompile("^(tmpfile|flags-|inode-flags|birth-time)")

var kinds = []*kind{
	{name: "overlay,upper", mode: "overlay", fill: "upper"},
	{name: "overlay,lower", mode: "overlay", fill: "lower"},
	{name: "overlay,two", mode: "overlay", fill: "two"},
	{name: "overlay,worn", mode: "overlay", fill: "worn"},
	{name: "overlay,remote", mode: "overlay", fill: "lower", remote: true},
	{name: "migrate,upper", mode: "migrate", fill: "upper"},
	{name: "migrate,lower", mode: "migrate", fill: "lower"},
	{name: "migrate,two", mode: "migrate", fill: "two"},
	{name: "single,two", mode: "migrate,hosts=single", fill: "two"},
	{name: "migrate,lower,shim", mode: "migrate", fill: "lower", like: "lustre"},
	{name: "caller,lower", mode: "migrate,creds=caller", fill: "lower"},
}

// stand is the directories of one kind. In worn layers, names that the cases
// make were others in the lower, and have been removed.
type stand struct {
	*kind
	disks [2]string // two ext4 filesystems
	root  string    // where the cases work
	lower string
	mount *testbed.Mounted
}

// disk makes an ext4 filesystem of its own, so that what is expected is the same
// wherever the tests run.
func disk(t *testing.T, dir, name string) string {
	t.Helper()
	image, point := filepath.Join(dir, name+".img"), filepath.Join(dir, name)
	must(t, os.Mkdir(point, 0o755))
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 4<<30))
	// ea_inode holds large xattrs.
	testbed.Run(t, "mkfs.ext4", "-q", "-F", "-O", "ea_inode", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-i", "16384", image)
	testbed.Run(t, "mount", "-o", "loop", image, point)
	t.Cleanup(func() { testbed.Run(t, "umount", point) })
	must(t, os.Chmod(point, 0o755))
	return point
}

// TestConformance runs every case on ext4 and then on every kind of mount.
func TestConformance(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	defer unix.Umask(unix.Umask(0o022))
	dir := testbed.TempDir(t)
	disks := [2]string{disk(t, dir, "disk0"), disk(t, dir, "disk1")}

	right := map[string][]line{}
	plain := &stand{kind: &kind{name: "ext4"}, root: filepath.Join(disks[0], "plain")}
	must(t, os.Mkdir(plain.root, 0o755))
	for _, tc := range cases {
		plain.populate(t, tc, plain.root)
	}
	t.Run("ext4", func(t *testing.T) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) { right[tc.name] = plain.run(t, tc) })
		}
	})
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			s := newStand(t, k, disks)
			for _, tc := range cases {
				if k.remote && tc.beyondSFTP || k.like != "" && lustreLacks.MatchString(tc.name) {
					continue
				}
				t.Run(tc.name, func(t *testing.T) { s.compare(t, tc, right[tc.name]) })
			}
		})
	}
}

// behaving shows dir as another filesystem would, and returns where.
func behaving(t *testing.T, like, dir string) string {
	t.Helper()
	must(t, os.Mkdir(dir+"-seen", 0o755))
	shim.Start(t, like, dir, dir+"-seen")
	return dir + "-seen"
}

func (s *stand) run(t *testing.T, tc testcase) []line {
	c := &at{T: t, dir: filepath.Join(s.root, tc.name), kind: s.kind, keys: map[string]int{}}
	tc.run(c)
	return c.seen
}

// compare runs a case and compares what it sees with what is right.
func (s *stand) compare(t *testing.T, tc testcase, right []line) {
	seen := s.run(t, tc)
	for i, l := range right {
		if i >= len(seen) || seen[i].label != l.label {
			t.Fatalf("%q was not noted; seen were %v", l.label, seen)
		}
		want, why := l.value, "ext4 has it"
		if d := deviation(s.kind, tc.name, l.label); d != nil {
			if want, why = d.seen, d.why; want == l.value {
				t.Errorf("%s: no deviation any more: take it off the table", l.label)
			}
		}
		if seen[i].value != want {
			t.Errorf("%s:\n\t%s\nwant\n\t%s\n(%s)", l.label, seen[i].value, want, why)
		}
	}
}

func newStand(t *testing.T, k *kind, disks [2]string) *stand {
	t.Helper()
	s := &stand{kind: k, disks: disks}
	base := strings.ReplaceAll(k.name, ",", "-")
	d := filepath.Join(disks[0], base)
	second := filepath.Join(disks[1], base)
	for _, p := range []string{d, second, d + "/upper", d + "/lower", second + "/lower", d + "/mnt"} {
		must(t, os.Mkdir(p, 0o755))
	}
	s.lower = d + "/lower"
	lowers := s.lower
	cfg := testbed.MountConfig{}
	switch {
	case k.remote:
		sshd := testbed.StartSSHD(t)
		cfg.Env = sshd.Env()
		lowers = sshd.Alias + ":" + s.lower
	case k.fill == "two":
		lowers = second + "/lower:" + s.lower
	}
	for _, tc := range cases {
		switch k.fill {
		case "lower", "two":
			s.populate(t, tc, s.lower)
		case "worn":
			wear(t, filepath.Join(s.lower, tc.name))
		}
	}
	if k.fill == "two" {
		for _, tc := range cases {
			to := filepath.Join(second, "lower", tc.name)
			must(t, os.Mkdir(to, 0o755))
			if tc.name != "deep" { // no call takes paths of that length
				split(t, filepath.Join(s.lower, tc.name), to)
			}
		}
	}
	upper := d + "/upper"
	if k.like != "" {
		lowers, upper = behaving(t, k.like, lowers), behaving(t, k.like, upper)
	}
	s.mount = testbed.Mount(t, "mode="+k.mode+",lowerdir="+lowers+",upperdir="+upper, d+"/mnt", cfg)
	s.root = s.mount.Dir
	for _, tc := range cases {
		switch k.fill {
		case "worn":
			removeAll(t, filepath.Join(s.root, tc.name))
			fallthrough
		case "upper":
			s.populate(t, tc, s.root)
		}
	}
	return s
}

func (s *stand) populate(t *testing.T, tc testcase, root string) {
	t.Helper()
	dir := filepath.Join(root, tc.name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	if tc.tree != nil {
		tc.tree(t, dir)
	}
}

// fresh are the names under which cases make new files.
var fresh = []string{"new", "new2", "new3", "newdir", "to", "moved", "x", "y"}

// wear makes something else of each fresh name.
func wear(t *testing.T, dir string) {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	for i, n := range fresh {
		if i%2 == 0 {
			put(t, filepath.Join(dir, n), "worn")
			continue
		}
		must(t, os.Mkdir(filepath.Join(dir, n), 0o755))
		put(t, filepath.Join(dir, n, "below"), "worn")
	}
}

func removeAll(t *testing.T, dir string) {
	t.Helper()
	for _, n := range fresh {
		must(t, os.RemoveAll(filepath.Join(dir, n)))
	}
}

// split spreads the files of a tree over it and another: directories are in both,
// with the attributes they have; files with several names stay.
func split(t *testing.T, dir, other string) {
	t.Helper()
	type file struct {
		rel   string
		st    unix.Stat_t
		flags int
	}
	var all []file
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		f := file{rel: strings.TrimPrefix(path, dir)}
		must(t, err)
		must(t, unix.Lstat(path, &f.st))
		if typ := f.st.Mode & unix.S_IFMT; typ == unix.S_IFDIR || typ == unix.S_IFREG {
			f.flags = flagsOf(t, path)
		}
		all = append(all, f)
		return nil
	}))
	testbed.Run(t, "cp", "-a", dir+"/.", other)
	for _, f := range all {
		if f.flags != 0 && f.st.Mode&unix.S_IFMT == unix.S_IFDIR {
			must(t, chattr(t, dir+f.rel, 0, f.flags))
		}
	}
	n := 0
	for _, f := range slices.Backward(all) {
		isDir := f.st.Mode&unix.S_IFMT == unix.S_IFDIR
		if n++; !isDir && (f.st.Nlink > 1 || f.flags != 0 || n%2 == 0) {
			must(t, os.Remove(other+f.rel))
		} else if !isDir {
			must(t, os.Remove(dir+f.rel))
		}
		for _, d := range []string{dir, other} {
			err := unix.UtimesNanoAt(unix.AT_FDCWD, d+f.rel, []unix.Timespec{f.st.Atim, f.st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
			if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPERM) {
				must(t, err)
			}
			if isDir && f.flags != 0 {
				must(t, chattr(t, d+f.rel, f.flags, 0))
				t.Cleanup(func() { unflag(d + f.rel) })
			}
		}
	}
}
