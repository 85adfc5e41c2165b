package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// count is what a daemon was asked, and what it asked the kernel for, in a step.
type count struct {
	requests map[string]int // by FUSE operation; "?" where it was spliced
	calls    map[string]int // system calls by name, those on /dev/fuse left out
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// countDuring runs f and reads off strace what process pid did meanwhile. Every
// message that it reads from /dev/fuse is a request, which its header names.
func countDuring(pid int, f func() error) (count, error) {
	dir, err := os.MkdirTemp("", "bench-strace.")
	if err != nil {
		return count{}, err
	}
	defer os.RemoveAll(dir)
	trace := filepath.Join(dir, "trace")
	cmd := exec.Command("strace", "-f", "-y", "-x", "-s", "8", "-e", "signal=none", "-o", trace, "-p", strconv.Itoa(pid))
	said, err := cmd.StderrPipe()
	if err != nil {
		return count{}, err
	}
	if err := cmd.Start(); err != nil {
		return count{}, err
	}
	_, err = bufio.NewReader(said).ReadString('\n') // "strace: Process 1 attached with 5 threads"
	if err == nil {
		go func() { _, _ = bufio.NewReader(said).WriteTo(new(bytes.Buffer)) }()
		err = f()
	}
	time.Sleep(50 * time.Millisecond) // RELEASE and FORGET come after the caller has its answer
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	if err != nil {
		return count{}, err
	}
	b, err := os.ReadFile(trace)
	return parseTrace(b), err
}

// idle are calls that a daemon's runtime makes for itself, waiting and waking.
var idle = map[string]bool{
	"futex": true, "epoll_pwait": true, "nanosleep": true, "sched_yield": true, "restart_syscall": true, "exit": true,
	"rt_sigreturn": true, "tgkill": true, "getpid": true, "madvise": true, "clock_nanosleep": true, "timer_settime": true,
}

// parseTrace counts the calls in what strace -f -y -x wrote. A call may be in two
// lines of its thread: "unfinished" and "resumed".
func parseTrace(trace []byte) count {
	c := count{requests: map[string]int{}, calls: map[string]int{}}
	begun := map[string]string{}
	for line := range strings.Lines(string(trace)) {
		tid, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		if head, ok := strings.CutSuffix(call, "<unfinished ...>"); ok {
			begun[tid] = head
			continue
		}
		if strings.HasPrefix(call, "<... ") {
			_, tail, _ := strings.Cut(call, " resumed>")
			call = begun[tid] + tail
			delete(begun, tid)
		}
		name, args, ok := strings.Cut(call, "(")
		if !ok || idle[name] {
			continue
		}
		if strings.Contains(args, "</dev/fuse>") {
			if op := requestOf(name, args); op != "" {
				c.requests[op]++
			}
			continue
		}
		if name == "syscall_0x1d0" {
			name = "getxattrat" // newer than strace
		}
		c.calls[name]++
	}
	return c
}

// requestOf names the operation of a message read from /dev/fuse, of which args
// has the first 8 bytes: length, then opcode, little endian (struct
// fuse_in_header of linux/fuse.h). It is empty for what is no message.
func requestOf(name, args string) string {
	i := strings.LastIndex(args, "= ")
	if i < 0 || strings.HasPrefix(args[i+2:], "-1") || strings.HasPrefix(args[i+2:], "?") {
		return ""
	}
	if name == "splice" && strings.Index(args, "/dev/fuse") < strings.Index(args, "pipe:") {
		return "?"
	}
	if name != "read" {
		return ""
	}
	hex := strings.Split(args, `\x`)
	if len(hex) < 7 {
		return "?"
	}
	var op uint64
	for j := range 2 {
		v, _ := strconv.ParseUint(strings.TrimRight(hex[5+j], `".`)[:2], 16, 8)
		op |= v << (8 * j)
	}
	if s, ok := operations[op]; ok {
		return s
	}
	return fmt.Sprintf("op%d", op)
}

// operations are the opcodes of linux/fuse.h.
var operations = map[uint64]string{
	1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod", 9: "mkdir", 10: "unlink",
	11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs", 18: "release", 20: "fsync",
	21: "setxattr", 22: "getxattr", 23: "listxattr", 24: "removexattr", 25: "flush", 27: "opendir", 28: "readdir",
	29: "releasedir", 30: "fsyncdir", 31: "getlk", 32: "setlk", 33: "setlkw", 34: "access", 35: "create", 36: "interrupt",
	39: "ioctl", 42: "batch_forget", 43: "fallocate", 44: "readdirplus", 45: "rename2", 46: "lseek", 47: "copy_file_range",
	50: "syncfs", 51: "tmpfile", 52: "statx",
}
