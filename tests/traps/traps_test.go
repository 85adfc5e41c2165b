package traps

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// stack is one lower, an upper and a mount of both.
type stack struct {
	*testbed.Mounted
	dir, lower, upper string
}

// layers makes the directories of a stack.
func layers(t *testing.T) *stack {
	t.Helper()
	dir := testbed.TempDir(t)
	s := &stack{dir: dir, lower: filepath.Join(dir, "lower"), upper: filepath.Join(dir, "upper")}
	for _, d := range []string{s.lower, s.upper, filepath.Join(dir, "mnt")} {
		must(t, os.Mkdir(d, 0o755))
	}
	return s
}

func (s *stack) mount(t *testing.T, mode string, more ...testbed.MountConfig) *stack {
	t.Helper()
	s.Mounted = testbed.Mount(t, "mode="+mode+",lowerdir="+s.lower+",upperdir="+s.upper, filepath.Join(s.dir, "mnt"), more...)
	return s
}

// inBothModes runs f on a lower that fill has filled.
func inBothModes(t *testing.T, fill func(t *testing.T, lower string), f func(t *testing.T, s *stack)) {
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			fill(t, s.lower)
			f(t, s.mount(t, mode))
		})
	}
}

// user is somebody with a group of their own and two further ones.
var user = &syscall.Credential{Uid: 1000, Gid: 1001, Groups: []uint32{2000, 2001}}

// sh runs a script in dir as c, and returns what it printed, errors included.
func sh(t *testing.T, c *syscall.Credential, dir, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c}
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// acl is an ACL in the form of its xattr: an entry for user 1002, and the mask.
func acl(owner, other, group, mask, rest uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, owner, ^uint32(0)}, {2, other, 1002}, {4, group, ^uint32(0)}, {0x10, mask, ^uint32(0)}, {0x20, rest, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// within fails the test if f takes so long that it must be waiting for ever.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s does not return", what)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func put(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o600))
	must(t, os.Chmod(path, mode))
}

// work lists what the work directory holds that a sweep would take away.
func work(t *testing.T, s *stack) []string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(s.upper), "."+filepath.Base(s.upper)+".migratefs")
	if daemons, err := filepath.Glob(filepath.Join(s.upper, ".migratefs", "daemons", "*")); err != nil || len(daemons) == 1 {
		dir = daemons[0]
	}
	es, err := os.ReadDir(dir)
	must(t, err)
	var temps []string
	for _, e := range es {
		if strings.HasPrefix(e.Name(), "tmp-") {
			temps = append(temps, e.Name())
		}
	}
	return temps
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// past is a time that nothing in a test has by itself.
var past = time.Unix(1_000_000_000, 0)

// fd is a file's descriptor number.
func fd(f *os.File) int { return int(f.Fd()) }

// at opens a file below the mount.
func (s *stack) open(t *testing.T, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(s.Path(name), flags, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func lstat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st
}
