package lazypages

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/tests/testbed"
)

const (
	testBase  = 1 << 40 // as in testdata/process.c
	testPages = 1024
)

// player is the process of testdata/process.c, whose memory a server gives to it.
type player struct {
	*testing.T
	image  string // what its memory is in
	server *Server
	served chan error
	in     io.WriteCloser
	out    *bufio.Reader
	cmd    *exec.Cmd
}

// newPlayer makes all but the process; pages are its memory, if not as it lies in the image.
func newPlayer(t *testing.T, pages ...criu.LazyRange) *player {
	t.Helper()
	testbed.NeedRoot(t)
	p := &player{T: t, image: filepath.Join(t.TempDir(), "pages-1.img"), served: make(chan error, 1)}
	var b []byte
	for i := range uint64(testPages * 512) {
		b = binary.NativeEndian.AppendUint64(b, (i+1)*0x9e3779b97f4a7c15)
	}
	must(t, os.WriteFile(p.image, b, 0o600))
	if pages == nil {
		pages = []criu.LazyRange{{Start: testBase, End: testBase + testPages*pageSize}}
	}
	var err error
	tasks := []*criu.LazyMemory{{PID: 1, File: "pages-1.img", Pages: pages}}
	p.server, err = New(filepath.Dir(p.image), false, tasks, slog.New(slog.DiscardHandler))
	must(t, err)
	return p
}

// play starts it.
func (p *player) play(role string) *player {
	t := p.T
	t.Helper()
	dir := filepath.Dir(p.image)
	program := filepath.Join(dir, "process")
	testbed.Run(t, "gcc", "-O1", "-static", "-pthread", "-o", program, "testdata/process.c")
	socket := filepath.Join(dir, Socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { p.served <- p.server.Serve(ctx, l) }()
	p.cmd = exec.Command(program, socket, role)
	p.in, err = p.cmd.StdinPipe()
	must(t, err)
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	p.out = bufio.NewReader(out)
	must(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		cancel()
	})
	return p
}

// goOn lets it do what it waits for.
func (p *player) goOn() {
	p.Helper()
	if _, err := p.in.Write([]byte{1}); err != nil {
		p.Fatal(err)
	}
}

// says waits until it says what.
func (p *player) says(what string) {
	p.Helper()
	if line, err := p.out.ReadString('\n'); err != nil || strings.TrimSpace(line) != what {
		p.Fatalf("%q, %v", line, err)
	}
}

// ends waits until it and the server have ended.
func (p *player) ends() {
	p.Helper()
	said, _ := io.ReadAll(p.out)
	if err := p.cmd.Wait(); err != nil || len(said) > 0 {
		p.Fatalf("%v: %s", err, said)
	}
	if err := <-p.served; err != nil {
		p.Fatal(err)
	}
	if st := p.server.State(); st.Missing != 0 || st.Total == 0 {
		p.Errorf("at the end: %+v", st)
	}
}

// TestMemory: whatever a process does with memory that is missing, it finds there what
// was there.
func TestMemory(t *testing.T) {
	for _, role := range []string{"unforked", "moved", "freed", "threads", "calls"} {
		t.Run(role, func(t *testing.T) { newPlayer(t).play(role).ends() })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestWiped: what a fork empties is not given to the child.
func TestWiped(t *testing.T) {
	const from, end = testPages / 2, testPages / 4 * 3
	at := func(from, end uint64, wiped bool) criu.LazyRange {
		return criu.LazyRange{Start: testBase + from*pageSize, End: testBase + end*pageSize, Off: int64(from * pageSize), Wiped: wiped}
	}
	newPlayer(t, at(0, from, false), at(from, end, true), at(end, testPages, false)).play("wiped").ends()
}

// descriptors is how many processes' memory this one has.
func descriptors(t *testing.T) (n int) {
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == "anon_inode:[userfaultfd]" {
			n++
		} else if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return n
}

// TestForks: children that have ended are forgotten, also while nothing can be read.
func TestForks(t *testing.T) {
	p := newPlayer(t)
	must(t, os.Rename(p.image, p.image+".away"))
	p.play("forks")
	p.says("forked")
	if n := descriptors(t); n > 20 {
		t.Errorf("the memory of %d processes is held, of 200 that have ended", n)
	}
	must(t, os.Rename(p.image+".away", p.image))
	p.goOn()
	p.ends()
}

// TestImagesChange: from an image that has changed nothing is given, until it is as it was.
func TestImagesChange(t *testing.T) {
	p := newPlayer(t)
	st, err := os.Stat(p.image)
	must(t, err)
	good, err := os.ReadFile(p.image)
	must(t, err)
	f, err := os.OpenFile(p.image, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("not good"), len(good)/8), 0); err != nil {
		t.Fatal(err)
	}
	p.play("steps")
	p.goOn()
	testbed.Until(t, "nothing to come", func() bool { return strings.Contains(p.server.State().Error, "is not what it was") })
	if _, err := f.WriteAt(good, 0); err != nil {
		t.Fatal(err)
	}
	must(t, os.Chtimes(p.image, time.Time{}, st.ModTime()))
	for range 3 {
		p.says("step")
		p.goOn()
	}
	p.says("step")
	p.ends()
}
