package oracle

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// workerEnv makes this test binary one of the processes of a crew.
const workerEnv = "MIGRATEFS_ORACLE_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		work(os.Stdin, os.Stdout)
		return
	}
	os.Exit(m.Run())
}

// work does what it is told, a line for each operation, and answers with a line.
func work(in io.Reader, out io.Writer) {
	unix.Umask(0o022)
	s := &side{name: "worker"}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		root, line, _ := strings.Cut(lines.Text(), "\t")
		o, err := parseOp(line)
		if err != nil {
			fmt.Fprintf(out, "%q\n", "not understood: "+err.Error())
			continue
		}
		s.root = root
		fmt.Fprintf(out, "%q\n", s.apply(o))
	}
}

// crew is the processes that work on one side. They outlive a sequence: what they
// hold open is closed by closeAll.
type crew struct {
	*side // for looking, by this process
	procs [procs]*worker
}

type worker struct {
	in  io.Writer
	out *bufio.Reader
}

// idle are the workers that no crew has.
var idle []*worker

func newCrew(t testing.TB, name, root string) *crew {
	c := &crew{side: &side{name: name, root: root}}
	for i := range c.procs {
		if n := len(idle); n > 0 {
			c.procs[i], idle = idle[n-1], idle[:n-1]
			continue
		}
		c.procs[i] = startWorker(t)
	}
	return c
}

// startWorker starts a process that ends when this one does: its input ends.
func startWorker(t testing.TB) *worker {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	return &worker{in, bufio.NewReader(out)}
}

// apply has the process that o names do it.
func (c *crew) apply(o op) (said string) {
	w := c.procs[o.proc]
	if _, err := fmt.Fprintf(w.in, "%s\t%s\n", c.root, o.line()); err != nil {
		return "worker: " + err.Error()
	}
	line, err := w.out.ReadString('\n')
	if err != nil {
		return "worker: " + err.Error()
	}
	if _, err := fmt.Sscanf(line, "%q", &said); err != nil {
		return "worker: " + err.Error()
	}
	return said
}

// holds reports whether a process has the file open.
func (c *crew) holds(path string) bool {
	for i := range c.procs {
		if c.apply(op{kind: "holds", proc: i, path: path}) != "" {
			return true
		}
	}
	return false
}

// closeAll closes what all processes have open.
func (c *crew) closeAll() {
	for i := range c.procs {
		c.apply(op{kind: "closeall", proc: i})
	}
}

// dismiss lets go of the processes.
func (c *crew) dismiss() {
	c.closeAll()
	idle = append(idle, c.procs[:]...)
	c.procs = [procs]*worker{}
}
