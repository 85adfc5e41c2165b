package remote

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// load is what a daemon holds.
type load struct {
	goroutines, descriptors int
	memory                  int // KiB, resident
}

// TestLoad: 64 readers over 10,000 files leave nothing behind in the daemon. What it
// held after 64 readers over a few files, with all its connections made, is the
// measure.
func TestLoad(t *testing.T) {
	t.Parallel() // the others wait most of the time
	b := newBed(t)
	const dirs, files = 100, 100
	size := func(i int) int { return 200 + i%50*100 }
	for d := range dirs {
		for i := range files {
			b.put(fmt.Sprintf("d%02d/f%02d", d, i), size(i))
		}
	}
	few := b.loaded(4, files, size)
	all := b.loaded(dirs, files, size)
	t.Logf("after %d files: %+v; after %d: %+v", 4*files, few, dirs*files, all)
	if all.goroutines > few.goroutines+20 {
		t.Errorf("%d goroutines, %d after a few files", all.goroutines, few.goroutines)
	}
	if all.descriptors > few.descriptors+20 {
		t.Errorf("%d descriptors, %d after a few files", all.descriptors, few.descriptors)
	}
	if all.memory > 3*few.memory {
		t.Errorf("%d KiB of memory, %d after a few files", all.memory, few.memory)
	}
}

// loaded mounts, has 64 readers read files in so many directories, waits until the
// kernel has let go of them, and returns what the daemon then holds.
func (b *bed) loaded(dirs, files int, size func(i int) int) (l load) {
	b.t.Helper()
	// Without the race detector, which remembers what was in memory.
	b.m = testbed.Mount(b.t, b.options(",timeout=60"), b.mnt(), testbed.MountConfig{Env: b.sshd.Env(), Binary: testbed.Build(b.t)})
	type job struct{ d, i int }
	jobs := make(chan job)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for j := range jobs {
				name := fmt.Sprintf("d%02d/f%02d", j.d, j.i)
				got, err := os.ReadFile(b.path(name))
				if err != nil || !bytes.Equal(got, content(name, size(j.i))) {
					b.t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
		})
	}
	b.inTimeOf(5*hangs, "64 readers", func() {
		for d := range dirs {
			for i := range files {
				jobs <- job{d, i}
			}
		}
		close(jobs)
		wg.Wait()
	})
	// This has the kernel forget every name that nobody uses.
	must(b.t, unix.Mount("", b.m.Dir, "", unix.MS_REMOUNT, ""))
	// It settles: background work ends, the collector runs.
	l = b.held()
	for still := 0; still < 10; {
		time.Sleep(100 * time.Millisecond)
		now := b.held()
		if now.descriptors < l.descriptors || now.memory < l.memory-l.memory/50 {
			l, still = now, 0
		} else {
			still++
		}
	}
	b.m.Process().Signal(syscall.SIGQUIT) // which prints them
	if !b.m.Process().WaitFor(hangs) {
		b.t.Fatal("the daemon does not end at SIGQUIT")
	}
	log := b.m.Log()
	b.m.Kill()
	b.m.RemoveDead()
	l.goroutines = len(regexp.MustCompile(`(?m)^goroutine \d+ `).FindAllString(log, -1))
	if l.goroutines == 0 {
		b.t.Fatalf("no stacks:\n%s", log)
	}
	must(b.t, os.RemoveAll(b.upper()))
	must(b.t, os.RemoveAll(filepath.Join(b.local, ".upper.migratefs")))
	must(b.t, os.Mkdir(b.upper(), 0o755))
	return l
}

// held is what the daemon holds, as the kernel sees it.
func (b *bed) held() (l load) {
	b.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", b.m.Pid())
	fds, err := os.ReadDir(proc + "fd")
	must(b.t, err)
	status, err := os.ReadFile(proc + "status")
	must(b.t, err)
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	l.descriptors = len(fds)
	l.memory, err = strconv.Atoi(strings.Fields(rest)[0])
	must(b.t, err)
	return l
}
