package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What a restore leaves behind, until `migratefs umount` ends it, lies in
// /run/migratefs/restore-ID (0700): root, the mountpoint; state.json; and in
// criu/ the logs. Its changes are in /var/lib/migratefs/ID, or where --upperdir
// said.
const (
	runDir    = "/run/migratefs"
	varDir    = "/var/lib/migratefs"
	stateFile = "state.json"
)

// restoreState is the record of one restore.
type restoreState struct {
	Init    int    // pid of our helper, outside
	Started uint64 // when that began, in clock ticks since boot: pids are used again
	Pid     int    // of the restored root task, outside
	Images  string
	From    string
	Upper   string

	ShellJob bool // it is dumped with --shell-job again
}

// restoreDir is the directory that belongs to the mountpoint of a restore, or
// "" if point is none.
func restoreDir(point string) string {
	dir := filepath.Dir(point)
	if filepath.Base(point) == "root" && filepath.Dir(dir) == runDir && strings.HasPrefix(filepath.Base(dir), "restore-") {
		return dir
	}
	return ""
}

func (s *restoreState) save(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, stateFile), append(b, '\n'), 0o600)
}

// readState reads what save wrote; nil if there is none, or its helper has ended.
func readState(dir string) *restoreState {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil // nothing was restored
	}
	var s restoreState
	if json.Unmarshal(b, &s) != nil || s.Init <= 0 || startTime(s.Init) != s.Started {
		return nil
	}
	return &s
}

// restoreOf returns the restore that the process is of, and its directory; nil if there
// is none.
func restoreOf(pid int) (dir string, s *restoreState) {
	dirs, _ := filepath.Glob(filepath.Join(runDir, "restore-*"))
	for _, dir := range dirs {
		s := readState(dir)
		if s == nil {
			continue
		}
		if inPidNamespace(pid, s.Init) > 0 {
			return dir, s
		}
	}
	return "", nil
}

// stillRestored returns an error if point is the view of a process that was
// restored and still runs.
func stillRestored(point string) error {
	dir := restoreDir(point)
	if dir == "" {
		return nil
	}
	s := readState(dir)
	if s == nil {
		return nil
	}
	var pids []string
	for _, pid := range namespacePids(s.Init) {
		// A zombie has no program any more.
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && pid != s.Init {
			pids = append(pids, strconv.Itoa(pid))
		}
	}
	if len(pids) == 0 {
		return nil // it is just ending
	}
	return fmt.Errorf("%q is the root of a restored process that still runs: end it first (kill %s)", point, strings.Join(pids, " "))
}

// forgetRestore removes what a restore left beside its mount, which has ended.
func forgetRestore(point string) error {
	dir := restoreDir(point)
	if dir == "" {
		return nil
	}
	awaitPages(dir)
	if err := os.Remove(point); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // something is mounted there after all
	}
	return os.RemoveAll(dir)
}

// startTime returns when the process began, in clock ticks since boot; 0 if
// there is none (proc_pid_stat(5), field 22).
func startTime(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	if i := strings.LastIndex(string(b), ") "); i >= 0 {
		rest = string(b)[i+2:]
	}
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

// outerPid returns the pid outside of the process that has the given one inside
// the pid namespace of init, whose pid outside is known; 0 if there is none.
func outerPid(init, inner int) int {
	for _, pid := range namespacePids(init) {
		if inPidNamespace(pid, init) == inner {
			return pid
		}
	}
	return 0
}

// namespacePids returns all processes in the pid namespace of init, which is one
// of them, and in those that they have made, by their pids outside.
func namespacePids(init int) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && inPidNamespace(pid, init) > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// inPidNamespace returns the pid that a process has in the pid namespace of init; 0 if it
// is not in there, nor in one that was made in there.
func inPidNamespace(pid, init int) int {
	theirs, there := nsPids(pid), len(nsPids(init))-1
	if there < 0 || len(theirs) <= there {
		return 0
	}
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init))
	if err != nil {
		return 0
	}
	own, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return 0
	}
	for range len(theirs) - 1 - there {
		fd, err := unix.IoctlRetInt(int(own.Fd()), unix.NS_GET_PARENT)
		own.Close()
		if err != nil {
			return 0
		}
		own = os.NewFile(uintptr(fd), "")
	}
	defer own.Close()
	if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", own.Fd())); err != nil || name != ns {
		return 0
	}
	return theirs[there]
}

// nsPids are the pids that a process has, in this pid namespace and in each that was made
// in it, down to its own.
func nsPids(pid int) (pids []int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			for _, f := range strings.Fields(ids) {
				n, _ := strconv.Atoi(f)
				pids = append(pids, n)
			}
		}
	}
	return pids
}
