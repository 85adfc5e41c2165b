package criu

import (
	"fmt"
	"slices"
	"strings"
)

// Level says how bad an Obstacle is.
type Level uint8

const (
	// Caution: the restore works, and something is not as it was.
	Caution Level = iota
	// Blocker: the restore fails, unless the remedy is applied.
	Blocker
)

func (l Level) String() string {
	if l == Blocker {
		return "blocker"
	}
	return "caution"
}

// MarshalText is for JSON.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Obstacle is one thing in the way of a restore.
type Obstacle struct {
	Level  Level
	What   string // "watch", "external mount"...
	Path   string // of the file in question; "" if there is none
	PID    uint32 // of the task in question; 0 if it is not known
	Why    string // what happens, or fails
	Remedy string // what can be done about it; "" if nothing

	// Options are CRIU's, without dashes; any of them lifts the obstacle.
	Options []string

	stranded bool // see File.Stranded
}

func (o *Obstacle) String() string {
	var b strings.Builder
	b.WriteString(o.What)
	if o.Path != "" {
		fmt.Fprintf(&b, " %q", o.Path)
	}
	if o.PID != 0 {
		fmt.Fprintf(&b, " of process %d", o.PID)
	}
	fmt.Fprintf(&b, ": %s", o.Why)
	if o.Remedy != "" {
		fmt.Fprintf(&b, ": %s", o.Remedy)
	}
	return b.String()
}

// Lifted reports whether one of CRIU's arguments, as on its command line, lifts
// the obstacle.
func (o *Obstacle) Lifted(args []string) bool {
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			continue // a value
		}
		if name, _, _, err := optionName(a); err == nil && slices.Contains(o.Options, name) {
			return true
		}
	}
	return false
}

// InTheWay is what is in the way of a restore on this host, where binds are taken from
// this host and CRIU gets these arguments.
func (c *Checkpoint) InTheWay(binds, args []string) []Obstacle {
	args = append(configuredOptions(), args...)
	return slices.DeleteFunc(append(slices.Clone(c.Obstacles), c.CheckHost(binds)...), func(o Obstacle) bool {
		if o.Lifted(args) {
			return true
		}
		return o.stranded && slices.ContainsFunc(binds, func(dir string) bool { // CheckHost has looked
			_, ok := strip(o.Path, dir)
			return ok
		})
	})
}

// Options are the options that CRIU needs at restore as at dump, without
// dashes: without the first, locks would be gone and nobody told.
func (c *Checkpoint) Options() []string {
	var out []string
	if len(c.Locks) > 0 {
		out = append(out, "file-locks")
	}
	if c.ShellJob {
		out = append(out, "shell-job")
	}
	return out
}

// obstacle adds o. There is a bound on how many are kept, as on warnings.
func (l *loader) obstacle(o Obstacle) {
	if len(l.c.Obstacles) < maxWarnings {
		l.c.Obstacles = append(l.c.Obstacles, o)
	}
}

// fileObstacles looks at what each file is.
func (l *loader) fileObstacles() {
	for i := range l.c.Files {
		f := &l.c.Files[i]
		if f.Stranded {
			l.obstacle(Obstacle{
				Level: Blocker, What: "device", Path: f.Path, PID: f.pid(),
				Why:    "SFTP does not tell which device it is, so it is never taken from the source",
				Remedy: "make it on this host (mknod), and give its directory with --bind", stranded: true,
			})
		}
		if f.TTY == "external" {
			l.obstacle(Obstacle{
				Level: Blocker, What: "terminal", Path: f.Path, PID: f.pid(),
				Why:    "the dump left it to whoever restores (--external tty[...]), and a descriptor cannot be handed to CRIU here",
				Remedy: "dump again with --shell-job in place of that, and restore in the terminal that it is to have",
			})
		}
	}
	l.pipeObstacles()
	l.lockObstacles()
	l.treeObstacles()
}

// lockObstacles: closing any descriptor of a file drops a process's POSIX locks
// on it, and CRIU closes the one by which it mapped the file after it has locked.
func (l *loader) lockObstacles() {
	type held struct {
		path string
		pid  uint32
	}
	posix := make(map[held]bool)
	for _, k := range l.c.Locks {
		if k.Kind == "posix" && k.Path != "" {
			posix[held{k.Path, k.PID}] = true
		}
	}
	for i := range l.c.Files {
		f := &l.c.Files[i]
		for _, r := range f.Refs {
			at := held{f.Path, r.PID}
			if r.Kind != Mapping || !r.Shared || !posix[at] {
				continue
			}
			delete(posix, at)
			l.obstacle(Obstacle{
				Level: Caution, What: "lock", Path: f.Path, PID: r.PID,
				Why:    "CRIU loses a POSIX lock on a file that is also mapped shared (SQLite's WAL is one), on any filesystem",
				Remedy: "let no other process work on the file until this one has locked it anew",
			})
		}
	}
}

// pid is a task that refers to f, or 0.
func (f *File) pid() uint32 {
	for _, r := range f.Refs {
		if r.PID != 0 {
			return r.PID
		}
	}
	return 0
}

// treeObstacles: what CRIU mounts itself, or wants to be given.
func (l *loader) treeObstacles() {
	for i := range l.c.Trees {
		t := &l.c.Trees[i]
		switch {
		case t.root && t.HostDir == "" && !l.c.ByRuntime && l.root.Type == typeTmpfs:
			l.obstacle(Obstacle{
				Level: Blocker, What: externalMount, Path: t.Point,
				Why:    "the root directory of the processes is a tmpfs, and of that one CRIU keeps nothing",
				Remedy: "put what was on it, directories for its mounts at least, into a directory of the same mode on the source, and name that: --map /=/path",
			})
		case t.root && t.HostDir == "" && !l.c.ByRuntime:
			l.obstacle(Obstacle{
				Level: Blocker, What: externalMount, Path: t.Point,
				Why:    "the processes have a root directory of their own, which the images do not name" + ofItsDisk(l.root),
				Remedy: "say where it lies on the source: --map /=/path",
			})
		case t.root, t.HostDir != "":
		case t.External:
			l.obstacle(Obstacle{
				Level: Blocker, What: externalMount, Path: t.Point,
				Why:    fmt.Sprintf("the images do not say what is mounted there (key %q)", t.Key),
				Remedy: fmt.Sprintf("say where it lies on the source: --map %s=/path", t.Key),
			})
		default:
			l.obstacle(Obstacle{
				Level: Blocker, What: externalMount, Path: t.Point,
				Why:    fmt.Sprintf("CRIU would mount %q there, which this host does not have", t.source),
				Remedy: fmt.Sprintf("dump again with --external mnt[%s]:KEY, or say where it lies on the source: --map %s=/path", t.Point, t.Key),
			})
		}
	}
}

// ofItsDisk says where on its disk the root of the tasks is, if they say.
func ofItsDisk(root *Mount) string {
	if root.Type != "" || root.Root == "/" {
		return ""
	}
	return fmt.Sprintf(" (it is %q of its disk)", clip(root.Root))
}

const externalMount = "mount"
