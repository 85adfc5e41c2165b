package testbed

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// ModuleDir is the root of the source tree.
func ModuleDir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// built remembers what this process has built, by name in build/test.
var built sync.Map // string -> func() (string, error)

// Build builds migratefs as it is shipped (static), once per test process, and
// returns its path.
func Build(tb testing.TB) string {
	tb.Helper()
	return build(tb, "migratefs", "./cmd/migratefs", []string{"CGO_ENABLED=0"}, "-trimpath")
}

// BuildRace is Build with the race detector, if the tests run with it.
func BuildRace(tb testing.TB) string {
	tb.Helper()
	if !raceEnabled {
		return Build(tb)
	}
	return build(tb, "migratefs-race", "./cmd/migratefs", []string{"CGO_ENABLED=1"}, "-race")
}

// BuildProgram builds another program of this repository, static: pkg is
// "./tests/demo/job".
func BuildProgram(tb testing.TB, pkg string) string {
	tb.Helper()
	return build(tb, filepath.Base(pkg), pkg, []string{"CGO_ENABLED=0"}, "-trimpath")
}

func build(tb testing.TB, name, pkg string, env []string, flags ...string) string {
	tb.Helper()
	once, _ := built.LoadOrStore(name, sync.OnceValues(func() (string, error) {
		return goBuild(name, pkg, env, flags)
	}))
	path, err := once.(func() (string, error))()
	if err != nil {
		tb.Fatalf("building %s: %v", pkg, err)
	}
	return path
}

// goBuild builds pkg into build/test/NAME. Test processes of several packages
// come here at once, and may be running what the last one built: so one at a
// time, and the new binary replaces the old one by rename.
func goBuild(name, pkg string, env, flags []string) (string, error) {
	dir := filepath.Join(ModuleDir(), "build", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	args := append([]string{"build", "-o", path + ".new"}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = ModuleDir()
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", &buildError{err, string(out)}
	}
	return path, os.Rename(path+".new", path)
}

type buildError struct {
	err error
	out string
}

func (e *buildError) Error() string { return e.err.Error() + "\n" + e.out }
func (e *buildError) Unwrap() error { return e.err }
