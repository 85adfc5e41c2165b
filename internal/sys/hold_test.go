package sys

import (
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHoldFiles: what a process has opened stays open when it is killed, until the process
// has ended that it names, and that ends.
func TestHoldFiles(t *testing.T) {
	if arg, ok := os.LookupEnv("MIGRATEFS_TEST_HOLD"); ok {
		holdUntilKilled(arg)
	}
	victim := exec.Command("sleep", "1000")
	must(t, victim.Start())
	pidfd, err := unix.PidfdOpen(victim.Process.Pid, 0)
	must(t, err)
	defer unix.Close(pidfd)
	t.Cleanup(func() { _ = victim.Process.Kill(); _ = victim.Wait() })

	fifo := t.TempDir() + "/fifo"
	must(t, unix.Mkfifo(fifo, 0o600))
	owner := exec.Command("/proc/self/exe", "-test.run=^TestHoldFiles$")
	owner.Env = append(os.Environ(), "MIGRATEFS_TEST_HOLD="+strconv.Itoa(victim.Process.Pid)+" "+fifo)
	var said strings.Builder
	owner.Stderr = &said
	must(t, owner.Start())
	t.Cleanup(func() { _ = owner.Process.Kill(); _ = owner.Wait() })
	r, err := os.Open(fifo) // when it has opened that, after it has started the holder
	must(t, err)
	defer r.Close()
	b := make([]byte, 1)
	if _, err := r.Read(b); err != nil {
		t.Fatal(err)
	}
	ended := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	}
	if ended() {
		t.Error("the other process has ended too early")
	}
	must(t, owner.Process.Kill())
	// The end of the pipe comes when nobody has it open for writing any more.
	if n, err := r.Read(b); err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	if !ended() {
		t.Error("the descriptor was closed while the other process ran")
	}
	_ = owner.Wait()
	if !strings.Contains(said.String(), "the last word") {
		t.Errorf("it said %q", said.String())
	}
}

// holdUntilKilled is the process that is killed.
func holdUntilKilled(arg string) {
	pid, fifo, _ := strings.Cut(arg, " ")
	n, _ := strconv.Atoi(pid)
	victim, err1 := unix.PidfdOpen(n, 0)
	self, err2 := unix.PidfdOpen(os.Getpid(), 0)
	holder, err3 := HoldFiles(self, victim, "a-name", "the last word\n")
	comm, err4 := os.ReadFile("/proc/" + strconv.Itoa(holder) + "/comm")
	for string(comm) != "a-name\n" && err4 == nil { // its first act
		time.Sleep(time.Millisecond)
		comm, err4 = os.ReadFile("/proc/" + strconv.Itoa(holder) + "/comm")
	}
	args, err6 := os.ReadFile("/proc/" + strconv.Itoa(holder) + "/cmdline")
	for strings.Contains(string(args), "TestHoldFiles") && err6 == nil { // its second
		time.Sleep(time.Millisecond)
		args, err6 = os.ReadFile("/proc/" + strconv.Itoa(holder) + "/cmdline")
	}
	own, err7 := os.ReadFile("/proc/self/cmdline")
	if !strings.HasPrefix(string(args), "a-name\x00") || !strings.Contains(string(own), "TestHoldFiles") {
		println("command lines:", strconv.Quote(string(args)), strconv.Quote(string(own)))
		os.Exit(1)
	}
	w, err5 := os.OpenFile(fifo, os.O_WRONLY, 0)
	for _, err := range []error{err1, err2, err3, err4, err5, err6, err7} {
		if err != nil {
			println(err.Error())
			os.Exit(1)
		}
	}
	_, _ = w.Write([]byte{1})
	time.Sleep(time.Hour)
}
