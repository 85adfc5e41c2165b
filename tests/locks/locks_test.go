package locks

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// step is what a process does, and what it answers: "..." if it waits. "A await"
// asks for the answer of what waited. FILE is the file on the mount, LAYER the same
// in the layer that has it. "pid A" in an answer is that process's id.
type step struct{ do, want string }

// scripts are run on a file of the upper, and of a lower.
var scripts = map[string][]step{
	"flock": {
		{"A open a FILE r", "OK"}, {"B open b FILE r", "OK"},
		{"A lock a fl r", "OK"}, {"B lock b fl r", "OK"}, {"B lock b fl w", "EAGAIN"},
		{"A lock a fl w", "OK"}, // B's was lost in the conversion
		{"B lock b fl w wait", "..."}, {"A lock a fl u", "OK"}, {"B await", "OK"},
		{"A lock a fl r", "EAGAIN"}, {"A lock a fl r wait", "..."}, {"B close b", "OK"}, {"A await", "OK"},
	},
	"flock goes with the open file": {
		{"A open a FILE r", "OK"}, {"A dup a a2", "OK"}, {"A open other FILE r", "OK"},
		{"A lock a fl w", "OK"}, {"A lock a2 fl w", "OK"}, {"A lock other fl w", "EAGAIN"},
		{"A close a", "OK"}, {"A lock other fl w", "EAGAIN"},
		{"A close a2", "OK"}, {"A lock other fl w", "OK"},
	},
	"fcntl": {
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"}, {"B open ro FILE r", "OK"},
		{"A lock a px w 10 10", "OK"}, {"B lock b px w 15 1", "EAGAIN"}, {"B lock b px w 20 0", "OK"},
		{"B get b px w 0 0", "w 10 10 pid A"}, {"A get a px r 0 0", "w 20 0 pid B"}, {"A get a px w 0 20", "free"},
		{"A lock a px u 12 2", "OK"}, {"B lock b px r 12 2", "OK"}, {"A get a px w 0 15", "r 12 2 pid B"},
		{"A lock a px r 10 10", "OK"}, {"B lock ro px r 0 0", "OK"}, {"B lock ro px w 0 0", "EBADF"},
		{"B lock b px w 0 0", "EAGAIN"}, {"B lock b px w 0 10", "OK"},
		{"A lock a px w 0 0 wait", "..."}, {"B close ro", "OK"}, {"A await", "OK"}, // any descriptor
		{"B get b px r 5 1", "w 0 0 pid A"}, {"B lock b px r 5 1 wait", "..."}, {"A close a", "OK"}, {"B await", "OK"},
	},
	"fcntl, shared through a descriptor for reading, then exclusive": {
		{"A open r FILE r", "OK"}, {"A open w FILE w", "OK"}, {"B open b FILE w", "OK"},
		{"A lock r px r 0 100", "OK"}, {"B lock b px r 50 100", "OK"},
		{"A lock w px w 0 50", "OK"}, {"B lock b px r 49 1", "EAGAIN"}, {"B lock b px w 50 1", "EAGAIN"},
		{"A lock w px w 50 1", "EAGAIN"}, {"B close b", "OK"}, {"A lock w px w 50 1", "OK"},
	},
	"open file locks": {
		{"A open a FILE w", "OK"}, {"A open a2 FILE w", "OK"}, {"B open b FILE w", "OK"},
		{"A lock a ofd w 0 0", "OK"}, {"A lock a2 ofd r 0 0", "EAGAIN"}, {"B lock b ofd r 0 0", "EAGAIN"}, {"B lock b px r 0 0", "EAGAIN"},
		{"A lock a px r 0 0", "EAGAIN"}, // a process's lock is somebody else's
		{"A close a2", "OK"}, {"B lock b ofd w 0 0 wait", "..."}, {"A close a", "OK"}, {"B await", "OK"},
	},
	"flavours": {
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"},
		{"A lock a fl w", "OK"}, {"B lock b px w 0 0", "OK"}, {"A lock a px r 0 0", "EAGAIN"}, {"B lock b fl r", "EAGAIN"},
	},
	"copy-up in between": {
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"}, {"C open c FILE w", "OK"},
		{"A lock a px r 0 10", "OK"}, {"B lock b fl r", "OK"},
		{"C lock c px w 0 0 wait", "..."}, {"B write b new", "OK"},
		{"B lock b px w 5 1", "EAGAIN"}, {"A lock a fl w", "EAGAIN"}, {"A lock a px u 0 0", "OK"}, {"C await", "OK"},
		{"A lock a px r 5 1", "EAGAIN"}, {"B lock b fl u", "OK"}, {"A lock a fl w", "OK"},
	},
	"on the layer": {
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"}, {"A write a x", "OK"}, {"X open x LAYER w", "OK"}, {"X open x2 LAYER w", "OK"},
		{"A lock a px w 10 10", "OK"}, {"X lock x px r 19 1", "EAGAIN"}, {"X lock x px r 20 1", "OK"}, {"A get a px w 0 0", "r 20 1 pid X"},
		{"X lock x px w 0 0 wait", "..."}, {"A close a", "OK"}, {"X await", "OK"},
		{"B lock b px r 0 1", "EAGAIN"}, {"B lock b px r 0 1 wait", "..."}, {"X lock x px r 0 0", "OK"}, {"B await", "OK"},
		{"X lock x fl w", "OK"}, {"B lock b fl r", "EAGAIN"}, {"B lock b fl w wait", "..."}, {"X close x", "OK"}, {"B await", "OK"},
		{"X lock x2 fl r", "EAGAIN"}, {"X lock x2 fl r wait", "..."}, {"B lock b fl r", "OK"}, {"X await", "OK"},
	},
	"killed": {
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"}, {"C open c FILE w", "OK"},
		{"A lock a px w 0 0", "OK"}, {"A lock a fl w", "OK"},
		{"B lock b px w 0 0 wait", "..."}, {"C lock c fl w wait", "..."}, {"A kill", "OK"}, {"B await", "OK"}, {"C await", "OK"},
		{"D open d FILE w", "OK"}, {"E open e FILE w", "OK"}, {"D lock d px w 0 0 wait", "..."}, {"E lock e px w 0 0 wait", "..."},
		{"D kill", "OK"}, {"B kill", "OK"}, {"E await", "OK"},
	},
	"deadlock": {
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"}, {"C open c FILE w", "OK"},
		{"A lock a px w 0 1", "OK"}, {"B lock b px w 1 1", "OK"}, {"C lock c px w 2 1", "OK"},
		{"A lock a px w 1 1 wait", "..."}, {"B lock b px w 2 1 wait", "..."}, {"C lock c px r 0 1 wait", "EDEADLK"},
		{"C lock c px u 2 1", "OK"}, {"B await", "OK"}, {"B lock b px u 1 1", "OK"}, {"A await", "OK"},
	},
	"no deadlock of open files": {
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"},
		{"A lock a ofd w 0 1", "OK"}, {"B lock b ofd w 1 1", "OK"},
		{"A lock a ofd w 1 1 wait", "..."}, {"B lock b ofd w 0 1 wait", "..."}, {"A lock a ofd u 0 1", "OK"}, {"B await", "OK"},
		{"B lock b ofd u 1 1", "OK"}, {"A await", "OK"},
	},
	"unlinked": {
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"}, {"A lock a px w 0 0", "OK"}, {"unlink", "OK"},
		{"B lock b px w 0 0", "EAGAIN"}, {"B lock b fl w", "OK"}, {"A lock a fl r", "EAGAIN"}, {"A close a", "OK"}, {"B lock b px w 0 0", "OK"},
	},
}

// play runs a script on path; layer returns the path of the file in its layer.
// The processes come from p, and go back there if they are as good as new.
func play(t *testing.T, p *pool, script []step, path string, layer func() string) {
	t.Helper()
	children := map[string]*child{}
	waiting := map[string]int{}
	defer func() {
		for _, c := range children {
			if len(waiting) == 0 && c.answer(c.say("forget")) == "OK" {
				p.idle = append(p.idle, c)
			}
		}
	}()
	for i, s := range script {
		if t.Failed() {
			return
		}
		who, what, _ := strings.Cut(s.do, " ")
		if who == "unlink" {
			must(t, os.Remove(path))
			continue
		}
		c := children[who]
		if c == nil {
			c = p.get(t)
			children[who] = c
		}
		got := ""
		switch what {
		case "kill":
			c.KillTree()
			delete(children, who)
			delete(waiting, who)
			continue
		case "await":
			got = c.answer(waiting[who])
			delete(waiting, who)
		default:
			what = strings.NewReplacer("FILE", path, "LAYER", layer()).Replace(what)
			n := c.say(what)
			if s.want == "..." {
				waiting[who] = n
				c.waits(n)
				continue
			}
			got = c.answer(n)
		}
		for name, c := range children {
			if strings.HasSuffix(got, fmt.Sprintf(" pid %d", c.Pid)) {
				got = strings.Replace(got, fmt.Sprintf(" pid %d", c.Pid), " pid "+name, 1)
			}
		}
		if got != s.want {
			t.Errorf("step %d, %q: %s, want %s", i+1, s.do, got, s.want)
		}
	}
}

// pool holds processes for one script after the other.
type pool struct {
	t    *testing.T // which they end with
	idle []*child
}

func (p *pool) get(t *testing.T) *child {
	t.Helper()
	last := len(p.idle) - 1
	if last < 0 {
		p.idle = append(p.idle, startChild(p.t))
		last = 0
	}
	c := p.idle[last]
	p.idle = p.idle[:last]
	c.t = t
	return c
}

// TestScripts runs the scripts on a plain directory and on mounts of both modes.
func TestScripts(t *testing.T) {
	plain := testbed.TempDir(t)
	p := &pool{t: t}
	for name, script := range scripts {
		t.Run("plain/"+name, func(t *testing.T) {
			path := filepath.Join(plain, strings.ReplaceAll(name, " ", "_"))
			must(t, os.WriteFile(path, []byte("content"), 0o644))
			play(t, p, script, path, func() string { return path })
		})
	}
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			m, lower, upper := mountOf(t, mode)
			for name, script := range scripts {
				for _, where := range []string{lower, upper} {
					t.Run(filepath.Base(where)+"/"+name, func(t *testing.T) {
						file := filepath.Base(where) + "_" + strings.ReplaceAll(name, " ", "_")
						must(t, os.WriteFile(filepath.Join(where, file), []byte("content"), 0o644))
						play(t, p, script, m.Path(file), func() string {
							for _, l := range []string{upper, lower} {
								if _, err := os.Lstat(filepath.Join(l, file)); err == nil {
									return filepath.Join(l, file)
								}
							}
							return "nowhere"
						})
					})
				}
			}
		})
	}
}

func mountOf(t *testing.T, mode string) (m *testbed.Mounted, lower, upper string) {
	t.Helper()
	testbed.NeedRoot(t)
	dir := testbed.TempDir(t)
	lower, upper = filepath.Join(dir, "lower"), filepath.Join(dir, "upper")
	for _, d := range []string{lower, upper, filepath.Join(dir, "mnt")} {
		must(t, os.Mkdir(d, 0o755))
	}
	// Names come and go in the layers: nothing is remembered of them.
	m = testbed.Mount(t, "entry_timeout=0,mode="+mode+",lowerdir="+lower+",upperdir="+upper, filepath.Join(dir, "mnt"))
	return m, lower, upper
}

// TestSignals: a signal ends a wait, as flock(1) has it with -w, and a process
// that waits can be killed.
func TestSignals(t *testing.T) {
	run := func(t *testing.T, path string) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		cmd := exec.Command(testbed.Program(t, "flock"), "-w", "0.3", path, "true")
		if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("flock -w: %v, want exit code 1", err)
		}
		c := startChild(t)
		c.answer(c.say("open a " + path + " w"))
		n := c.say("lock a fl w 0 0 wait")
		c.waits(n)
		c.Signal(syscall.SIGURG) // of no consequence: the call goes on
		c.waits(n)
		c.Signal(syscall.SIGKILL)
		if !c.WaitFor(time.Minute) {
			t.Fatal("a process that waits for a lock is not killed")
		}
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
		d := startChild(t)
		d.answer(d.say("open a " + path + " w"))
		if got := d.answer(d.say("lock a fl w 0 0")); got != "OK" {
			t.Errorf("after the waiter was killed: %s", got)
		}
	}
	inBoth(t, run)
}

// inBoth runs f on a file of a plain directory, and of mounts.
func inBoth(t *testing.T, f func(t *testing.T, path string)) {
	t.Run("plain", func(t *testing.T) {
		path := filepath.Join(testbed.TempDir(t), "file")
		must(t, os.WriteFile(path, []byte("content"), 0o644))
		f(t, path)
	})
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			m, lower, upper := mountOf(t, mode)
			for _, where := range []string{lower, upper} {
				name := "in_" + filepath.Base(where)
				must(t, os.WriteFile(filepath.Join(where, name), []byte("content"), 0o644))
				f(t, m.Path(name))
			}
		})
	}
}

// TestFork: an open file's lock is its descriptors' in all processes.
func TestFork(t *testing.T) {
	inBoth(t, func(t *testing.T, path string) {
		script := `exec 9<"$1"; flock 9; sleep 1000 & exec 9<&-; flock -n "$1" true && echo free || echo held; kill $!; wait; flock -n "$1" echo free`
		out, err := exec.Command("sh", "-c", script, "sh", path).Output()
		if err != nil || string(out) != "held\nfree\n" {
			t.Errorf("%q, %v", out, err)
		}
	})
}

// TestManyWait: any number of processes that wait keep nobody from anything else.
func TestManyWait(t *testing.T) {
	for mode, where := range map[string]string{"overlay": "lower", "migrate": "upper"} {
		t.Run(mode, func(t *testing.T) {
			m, lower, _ := mountOf(t, mode)
			dir := filepath.Join(filepath.Dir(lower), where)
			must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644))
			manyWait(t, m.Path("file"))
		})
	}
}

func manyWait(t *testing.T, path string) {
	const many = 200
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	c := startChild(t)
	var waiting []int
	for i := range many {
		c.say(fmt.Sprintf("open %d %s r", i, path))
		waiting = append(waiting, c.say(fmt.Sprintf("lock %d fl w 0 0 wait", i)))
	}
	testbed.Until(t, "all to wait", func() bool { return c.inCalls() >= many })
	other := path + ".other"
	must(t, os.WriteFile(other, []byte("other"), 0o644))
	if b, err := os.ReadFile(other); err != nil || string(b) != "other" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.ReadDir(filepath.Dir(path)); err != nil {
		t.Error(err)
	}
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_UN))
	// They came one after the other, but not to the mount: the order is theirs.
	for left := many; left > 0; left-- {
		i := c.oneOf(waiting)
		if a := c.answer(waiting[i]); a != "OK" {
			t.Fatalf("waiter %d: %s", i, a)
		}
		waiting[i] = 0
		c.say(fmt.Sprintf("close %d", i))
	}
}

// oneOf waits for any answer to one of the numbers, which are 0 once they count no
// more, and returns its index. The test fails if there are two: nobody has let go.
func (c *child) oneOf(numbers []int) (index int) {
	c.t.Helper()
	index = -1
	testbed.Until(c.t, "somebody to get the lock", func() bool {
		for i, n := range numbers {
			if _, ok := c.answered(n); n == 0 || !ok {
				continue
			}
			if index >= 0 {
				c.t.Errorf("%d and %d have it", index, i)
			}
			index = i
		}
		return index >= 0
	})
	return index
}

// inCalls counts the threads that are in fcntl(2) or flock(2).
func (c *child) inCalls() (n int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", c.Pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if strings.HasPrefix(string(b), fmt.Sprint(unix.SYS_FCNTL)+" ") || strings.HasPrefix(string(b), fmt.Sprint(unix.SYS_FLOCK)+" ") {
			n++
		}
	}
	return n
}

// TestCounter: processes that lock, read, write and unlock lose nothing of each
// other, in migrate mode those neither that do so on the layer. Descriptors stay
// open: what the kernel keeps of the file has to go.
func TestCounter(t *testing.T) {
	const each = 100
	for _, mode := range []string{"overlay", "migrate"} {
		for _, flavour := range []string{"px", "fl"} {
			t.Run(mode+" "+flavour, func(t *testing.T) {
				m, lower, upper := mountOf(t, mode)
				must(t, os.WriteFile(filepath.Join(lower, "n"), []byte("00000000"), 0o644))
				paths := []string{m.Path("n"), m.Path("n")}
				if mode == "migrate" {
					// It comes up first: from then on it is one file for all.
					testbed.Run(t, testbed.Program(t, "flock"), m.Path("n"), "true")
					paths = append(paths, filepath.Join(upper, "n"))
				}
				var wg sync.WaitGroup
				for _, path := range paths {
					c := startChild(t)
					wg.Go(func() {
						for _, do := range []string{"open a " + path + " w", fmt.Sprintf("count a %s %d", flavour, each)} {
							if got := c.answer(c.say(do)); got != "OK" {
								t.Errorf("%s: %s", do, got)
							}
						}
					})
				}
				wg.Wait()
				if b, err := os.ReadFile(m.Path("n")); err != nil || string(b) != fmt.Sprintf("%08d", each*len(paths)) {
					t.Errorf("%q, %v, want %d", b, err, each*len(paths))
				}
			})
		}
	}
}

// TestLocalOnly: with no_remote_lock the kernel keeps locks, for the mount alone.
func TestLocalOnly(t *testing.T) {
	testbed.NeedRoot(t)
	dir := testbed.TempDir(t)
	for _, d := range []string{"lower", "upper", "mnt"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "upper", "f"), nil, 0o644))
	m := testbed.Mount(t, "no_remote_lock,lowerdir="+filepath.Join(dir, "lower")+",upperdir="+filepath.Join(dir, "upper"), filepath.Join(dir, "mnt"))
	script := []step{
		{"A open a FILE w", "OK"}, {"B open b FILE w", "OK"}, {"X open x LAYER w", "OK"},
		{"A lock a px w 0 0", "OK"}, {"B lock b px w 0 0", "EAGAIN"}, {"X lock x px w 0 0", "OK"},
		{"A lock a fl w", "OK"}, {"B lock b fl w", "EAGAIN"}, {"X lock x fl w", "OK"},
	}
	p := &pool{t: t}
	play(t, p, script, m.Path("f"), func() string { return filepath.Join(dir, "upper", "f") })
}
