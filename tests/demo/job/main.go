// Job is the process that the demo moves. It holds its files in every way that
// a process can, and shows by its log that none of them was lost on the way.
//
//	job -make DIR    makes its files
//	job DIR          works in DIR, until it is killed
//
// Each step reads a page of one file, stores to two others and appends a line
// to the log that says whether everything is what the job knows it must be.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	page        = 4096
	inputPages  = 64 << 20 / page  // read a page a step
	unreadPages = 192 << 20 / page // open, and never read
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "-make":
		err = makeFiles(os.Args[2])
	case len(os.Args) == 2:
		err = work(os.Args[1])
	default:
		err = fmt.Errorf("usage: job [-make] DIR")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// makeFiles makes the files. Every page holds its number all over.
func makeFiles(dir string) error {
	for name, pages := range map[string]int{"input": inputPages, "archive": unreadPages, "table": 16, "counters": 16} {
		b := make([]byte, 0, pages*page)
		for n := range pages {
			for range page / 8 {
				b = binary.LittleEndian.AppendUint64(b, uint64(n))
			}
		}
		if err := os.WriteFile(dir+"/"+name, b, 0o640); err != nil {
			return err
		}
	}
	if err := os.WriteFile(dir+"/state", []byte("step        0\n"), 0o600); err != nil {
		return err
	}
	return os.WriteFile(dir+"/log", nil, 0o644)
}

// files is what the job holds open.
type files struct {
	input    *os.File // read-only, and read
	archive  *os.File // read-only, and never read
	state    *os.File // O_RDWR
	log      *os.File // O_APPEND
	table    []byte   // mapped private
	counters []byte   // mapped shared
}

func open(dir string) (f files, err error) {
	if err = os.Chdir(dir); err != nil {
		return f, err
	}
	for _, o := range []struct {
		file  **os.File
		name  string
		flags int
	}{
		{&f.input, "input", os.O_RDONLY},
		{&f.archive, "archive", os.O_RDONLY},
		{&f.state, "state", os.O_RDWR},
		{&f.log, "log", os.O_WRONLY | os.O_APPEND},
	} {
		if *o.file, err = os.OpenFile(o.name, o.flags, 0); err != nil {
			return f, err
		}
	}
	if f.table, err = mmap("table", os.O_RDONLY, unix.PROT_READ, unix.MAP_PRIVATE); err != nil {
		return f, err
	}
	f.counters, err = mmap("counters", os.O_RDWR, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return f, err
}

func mmap(name string, flags, prot, how int) ([]byte, error) {
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.Mmap(int(f.Fd()), 0, 16*page, prot, how)
}

func work(dir string) error {
	f, err := open(dir)
	if err != nil {
		return err
	}
	for step := 1; ; step++ {
		verdict := "all as it must be"
		if err := f.step(step); err != nil {
			verdict = "WRONG: " + err.Error()
		}
		if _, err := fmt.Fprintf(f.log, "step %d: %s\n", step, verdict); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// step does one step, and returns what is not as the steps before left it.
func (f *files) step(step int) error {
	b := make([]byte, page)
	n := step % inputPages
	if _, err := f.input.ReadAt(b, int64(n)*page); err != nil {
		return err
	}
	for i := 0; i < page; i += 8 {
		if got := binary.LittleEndian.Uint64(b[i:]); got != uint64(n) {
			return fmt.Errorf("input: page %d holds %#x at %d", n, got, i)
		}
	}

	state := make([]byte, 14)
	if _, err := f.state.ReadAt(state, 0); err != nil {
		return err
	}
	if want := fmt.Sprintf("step %8d\n", step-1); string(state) != want {
		return fmt.Errorf("state: %q, want %q", state, want)
	}
	if _, err := f.state.WriteAt(fmt.Appendf(nil, "step %8d\n", step), 0); err != nil {
		return err
	}

	n = step % 16
	if got := binary.LittleEndian.Uint64(f.table[n*page:]); got != uint64(n) {
		return fmt.Errorf("table: page %d holds %#x", n, got)
	}
	// Each page of counters began as its number, and counts the steps on it.
	if got, want := binary.LittleEndian.Uint64(f.counters[n*page:]), uint64(n+(step-1)/16); got != want {
		return fmt.Errorf("counters: page %d holds %d, want %d", n, got, want)
	}
	binary.LittleEndian.PutUint64(f.counters[n*page:], binary.LittleEndian.Uint64(f.counters[n*page:])+1)
	return nil
}
