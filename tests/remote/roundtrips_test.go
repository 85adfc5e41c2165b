package remote

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
	"github.com/migratefs/migratefs/layers/remember"
	"github.com/migratefs/migratefs/layers/remote"
	"github.com/migratefs/migratefs/layers/whiteout"
	"github.com/migratefs/migratefs/overlay"
	"github.com/migratefs/migratefs/tests/testbed"
)

// tripped is a mount in this process, which counts what it asks of a real sshd behind a
// link with a delay, so that a program waits for what is on its way.
type tripped struct {
	t      *testing.T
	dir    string // on the source
	point  string
	source *remote.Layer
	memory *remember.Layer
}

// tripConfig is how such a mount differs from the usual one.
type tripConfig struct {
	keep    time.Duration // 0: a minute, so that a slow machine forgets nothing
	oneConn bool          // all goes by one connection, which opens no other meanwhile
	off     bool          // prefetch=off
}

func mountCounting(t *testing.T, cfg tripConfig, fill func(dir string)) *tripped {
	t.Helper()
	testbed.NeedFUSE(t)
	link := testbed.NewProxy(t, "")
	sshd := testbed.StartSSHD(t, testbed.SSHDConfig{Through: link})
	sshd.UseForTest(t)
	m := &tripped{t: t, dir: testbed.TempDir(t)}
	fill(m.dir)
	here := testbed.TempDir(t)
	open := func(name string) string {
		p := filepath.Join(here, name)
		tripCheck(t, os.Mkdir(p, 0o755))
		return p
	}
	m.point = open("mnt")
	upper, err := local.Open(open("upper"), local.Config{})
	tripCheck(t, err)
	work, err := os.Open(open("work"))
	tripCheck(t, err)
	target, err := remote.ParseTarget(sshd.Target(m.dir))
	tripCheck(t, err)
	rc := remote.Config{Target: target}
	if cfg.oneConn {
		rc.Connections = 1
	}
	m.source, err = remote.New(context.Background(), rc)
	tripCheck(t, err)
	if !cfg.oneConn {
		// The first thing done in the background waits for a connection, and logging in
		// takes its time.
		_, err = m.source.Stat(layers.Background(t.Context()), layers.Root)
		tripCheck(t, err)
	}
	link.SetRTT(10 * time.Millisecond)

	keep := cfg.keep
	if keep == 0 {
		keep = time.Minute
	}
	m.memory = remember.New(m.source, remember.Config{Keep: keep, Absent: keep, NoAhead: cfg.off, Order: overlay.ListedAt})
	fs, err := overlay.New(context.Background(), overlay.Config{
		Mode: overlay.Overlay, Upper: upper, Work: work, Format: whiteout.Trusted,
		Lowers:       []overlay.Lower{{Layer: m.memory, Changes: true}},
		EntryTimeout: &keep, AttrTimeout: &keep, NoPrefetch: cfg.off,
		Log: slog.New(slog.DiscardHandler),
	})
	tripCheck(t, err)
	server, err := fuse.NewServer(fs.Raw(), m.point, &fuse.MountOptions{
		Name: "migratefs", AllowOther: true, DirectMountStrict: true, DirectMountFlags: unix.MS_MGC_VAL,
		Options: []string{"default_permissions"}, MaxWrite: 1 << 20, EnableLocks: true,
	})
	tripCheck(t, err)
	go server.Serve()
	tripCheck(t, server.WaitMount())
	t.Cleanup(func() {
		if err := unix.Unmount(m.point, 0); err != nil {
			t.Error(err)
			_ = unix.Unmount(m.point, unix.MNT_DETACH)
		}
		server.Wait()
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
		work.Close()
	})
	return m
}

func tripCheck(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// trips is what a program has cost.
type trips struct {
	waits    int64 // answers about names and attributes that somebody waited for
	bursts   int64 // groups of requests: of one connection, and without lanes, round trips
	requests int64
	ahead    int64
	out      string
}

// run runs a program in the mount, and returns what it cost.
func (m *tripped) run(args ...string) trips {
	m.t.Helper()
	m.quiet()
	s, k := m.source.Stats(), m.memory.Stats()
	// Not cmd.Dir: until the child is there nothing of this process may have to run,
	// and the mount is served by it.
	cmd := exec.Command("env", append([]string{"-C", m.point}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_OPTIONAL_LOCKS=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		m.t.Logf("%s: %v: %s", args, err, out.String())
	}
	m.quiet()
	s2, k2 := m.source.Stats(), m.memory.Stats()
	c := trips{
		waits: k2.Waits - k.Waits, ahead: k2.Ahead - k.Ahead,
		bursts: s2.Bursts - s.Bursts, requests: s2.Requests - s.Requests, out: out.String(),
	}
	m.t.Logf("%v: %d waits, %d bursts, %d requests, %d ahead", args, c.waits, c.bursts, c.requests, c.ahead)
	return c
}

// quiet waits until nothing is under way.
func (m *tripped) quiet() {
	last := m.source.Stats()
	for same := 0; same < 4; {
		time.Sleep(15 * time.Millisecond)
		now := m.source.Stats()
		if same++; now != last {
			same, last = 0, now
		}
	}
}

// again runs a program once more, which must cost nothing.
func (m *tripped) again(want trips, args ...string) {
	m.t.Helper()
	c := m.run(args...)
	if c.requests != 0 {
		c = m.run(args...) // a connection may have been made meanwhile, for later
	}
	if c.requests != 0 || c.out != want.out {
		m.t.Errorf("%v, once more: %d requests; it says %q, and before %q", args, c.requests, c.out, want.out)
	}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	tripCheck(t, os.MkdirAll(filepath.Dir(path), 0o755))
	tripCheck(t, os.WriteFile(path, []byte(content), 0o644))
	old := time.Now().Add(-time.Hour)
	tripCheck(t, os.Chtimes(path, old, old))
}

// TestRoundTripsOfOneName: a name that nothing is known of takes one round trip, a
// second look none, and neither does what a listing has told, there or not.
func TestRoundTripsOfOneName(t *testing.T) {
	m := mountCounting(t, tripConfig{oneConn: true, off: true}, func(dir string) {
		put(t, filepath.Join(dir, "file"), "content")
		for i := range 1000 {
			put(t, filepath.Join(dir, "many", fmt.Sprintf("file%d", i)), "x")
		}
	})
	for _, name := range []string{"file", "absent", "many"} {
		c := m.run("stat", name)
		if c.bursts != 1 {
			t.Errorf("stat %s: %d round trips", name, c.bursts)
		}
		if name != "absent" {
			m.again(c, "stat", name)
		} else if c = m.run("stat", name); c.requests != 0 || !strings.Contains(c.out, "No such file") {
			t.Errorf("stat %s, once more: %d requests, %s", name, c.requests, c.out)
		}
	}
	c := m.run("ls", "-l", "many")
	if c.waits > 1 || strings.Count(c.out, "\n") != 1001 {
		t.Errorf("ls -l of 1000 names: waited %d times; %d lines", c.waits, strings.Count(c.out, "\n"))
	}
	m.again(c, "ls", "-l", "many")
	for _, args := range [][]string{
		{"stat", "-c", "%s", "many/file7"},
		{"stat", "many/absent"},
		{"touch", "many/new"}, // nothing of that name is below, nor anything asked about the directory
		{"mkdir", "many/newdir"},
		{"rm", "many/file8"},
		{"mv", "many/file9", "many/moved"},
		{"chmod", "600", "many/file10"},
		{"ls", "-l", "many"},
	} {
		if c := m.run(args...); c.requests != 0 {
			t.Errorf("%v: %d requests", args, c.requests)
		}
	}
}

// bushy makes a tree of width directories in each, to depth levels, with some files.
func bushy(t *testing.T, dir string, width, depth int) (dirs int) {
	for i := range 3 {
		put(t, filepath.Join(dir, fmt.Sprintf("file%d", i)), "content\n")
	}
	if depth > 0 {
		for i := range width {
			dirs += bushy(t, filepath.Join(dir, fmt.Sprintf("dir%d", i)), width, depth-1)
		}
	}
	return dirs + 1
}

// TestRoundTripsOfATree: a walk takes about as many round trips as the tree is deep, a
// second one none, and it makes no difference which program walks.
func TestRoundTripsOfATree(t *testing.T) {
	for _, args := range [][]string{{"find", ".", "-ls"}, {"ls", "-lR"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			dirs := 0
			m := mountCounting(t, tripConfig{}, func(dir string) { dirs = bushy(t, dir, 6, 3) })
			got := m.run(args...)
			// On an idle machine it is 6 to 10. On a busy one some of what is asked ahead is
			// late, and then asked for once more.
			if got.waits > 40 || got.ahead > int64(dirs) {
				t.Errorf("%d directories: waited %d times, %d listed ahead", dirs, got.waits, got.ahead)
			}
			if n := strings.Count(got.out, "file1"); n != dirs {
				t.Errorf("%d files of %d were seen", n, dirs)
			}
			m.again(got, args...)
		})
	}
}

// TestRoundTripsOfLinks: the targets of symlinks come together.
func TestRoundTripsOfLinks(t *testing.T) {
	const links = 150
	m := mountCounting(t, tripConfig{}, func(dir string) {
		for i := range links {
			tripCheck(t, os.Symlink(fmt.Sprintf("to %d", i), filepath.Join(dir, fmt.Sprintf("link%d", i))))
		}
	})
	c := m.run("ls", "-l")
	if c.waits > links*3/4 || strings.Count(c.out, "-> to ") != links {
		t.Errorf("%d symlinks: waited %d times; %s", links, c.waits, c.out)
	}
	m.again(c, "ls", "-l")
}

// TestRoundTripsOfGit: git looks at each file by name, without listing first.
func TestRoundTripsOfGit(t *testing.T) {
	dirs := 0
	m := mountCounting(t, tripConfig{}, func(dir string) {
		dirs = bushy(t, dir, 4, 3)
		for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"}} {
			cmd := exec.Command("git", args...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("git %v: %v: %s", args, err, out)
			}
		}
	})
	c := m.run("git", "-c", "safe.directory=*", "status")
	if !strings.Contains(c.out, "branch") {
		t.Errorf("%s", c.out)
	}
	if c.waits > int64(dirs) {
		t.Errorf("%d directories, %d files: waited %d times", dirs, 3*dirs, c.waits)
	}
}

// TestWalkAheadOff: with prefetch=off nothing is listed that nobody lists.
func TestWalkAheadOff(t *testing.T) {
	dirs := 0
	m := mountCounting(t, tripConfig{off: true}, func(dir string) { dirs = bushy(t, dir, 3, 2) })
	if c := m.run("find", ".", "-maxdepth", "1", "-ls"); c.ahead != 0 || c.waits > 2 {
		t.Errorf("waited %d times, %d ahead", c.waits, c.ahead)
	}
	if c := m.run("find", "."); c.ahead != 0 || c.waits < int64(dirs)-2 {
		t.Errorf("%d directories: waited %d times, %d ahead", dirs, c.waits, c.ahead)
	}
}

// TestChangedOnTheSource: what is remembered for a minute is looked at anew once a file
// turns out to be another one, and whoever opens it gets the new one.
func TestChangedOnTheSource(t *testing.T) {
	m := mountCounting(t, tripConfig{}, func(dir string) {
		for i := range 3 {
			// Small ones would be here with the first of them.
			put(t, filepath.Join(dir, "d", fmt.Sprintf("file%d", i)), strings.Repeat("old", 100_000))
		}
	})
	if c := m.run("ls", "-l", "d"); !strings.Contains(c.out, "file0") {
		t.Fatal(c.out)
	}
	for i, change := range []func(name string) error{
		func(name string) error { return os.WriteFile(name, []byte("new content"), 0o644) },
		func(name string) error {
			return cmpErr(os.WriteFile(name+".tmp", []byte("new content"), 0o644), os.Rename(name+".tmp", name))
		},
	} {
		name := fmt.Sprintf("d/file%d", i)
		tripCheck(t, change(filepath.Join(m.dir, name)))
		for range 2 {
			if c := m.run("cat", name); c.out != "new content" {
				t.Errorf("%s: %q", name, c.out)
			}
		}
		if c := m.run("stat", "-c", "%s", name); strings.TrimSpace(c.out) != "11" {
			t.Errorf("%s has size %s", name, c.out)
		}
	}
	// A directory that became another one.
	tripCheck(t, os.Rename(filepath.Join(m.dir, "d"), filepath.Join(m.dir, "e")))
	tripCheck(t, os.Symlink("e", filepath.Join(m.dir, "d")))
	put(t, filepath.Join(m.dir, "e", "file2"), "newer content")
	if c := m.run("cat", "d/file2"); c.out != "newer content" {
		t.Errorf("through what became a symlink: %q", c.out)
	}
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestRoundTripsOfGrep: a search through many directories with few files each takes far
// fewer exchanges than there are directories, and with prefetch=off several for each.
func TestRoundTripsOfGrep(t *testing.T) {
	for _, off := range []bool{false, true} {
		dirs, width, depth := 0, 6, 3
		if off {
			width, depth = 3, 2
		}
		m := mountCounting(t, tripConfig{off: off}, func(dir string) { dirs = bushy(t, dir, width, depth) })
		got := m.run("grep", "-rc", "content", ".")
		if n := strings.Count(got.out, ":1\n"); n != 3*dirs {
			t.Errorf("%d files of %d were searched", n, 3*dirs)
		}
		// On an idle machine it is some 80 of 259, and most of them nobody waits for.
		if !off && got.bursts > int64(dirs)*2/3 || off && got.bursts < 2*int64(dirs) {
			t.Errorf("%d directories, prefetch off is %v: %d exchanges", dirs, off, got.bursts)
		}
		m.again(got, "grep", "-rc", "content", ".")
	}
}
