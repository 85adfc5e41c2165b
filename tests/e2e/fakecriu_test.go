package e2e

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// fakeEnv makes this test program a CRIU that fails in the way it says, when it is
// called as migratefs restore calls CRIU.
const fakeEnv = "MIGRATEFS_FAKE_CRIU"

func TestMain(m *testing.M) {
	if how := os.Getenv(fakeEnv); how != "" && len(os.Args) == 3 && os.Args[1] == "swrk" {
		if when, criu, ok := strings.Cut(how, " for "); ok {
			killWhoDumps(when, criu)
		} else {
			fakeCriu(how)
		}
		os.Exit(1)
	}
	// What whoever started the tests has left open is none of the jobs' that are dumped.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "close_range:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Of CRIU's rpc.proto.
const (
	criuDump      = 1 // criu_req.type
	criuRestore   = 2
	criuImagesDir = 1  // criu_opts.images_dir_fd
	criuWorkDir   = 17 // criu_opts.work_dir_fd
)

// fakeCriu tells its version and then, asked to restore,
//
//	dies             ends without an answer
//	hangs            never answers
//	says TEXT        writes TEXT into its log as an error, and answers that it failed
//	loses DIR        the same, once it cannot look at DIR any more
func fakeCriu(how string) {
	for {
		buf := make([]byte, 64<<10)
		n, err := unix.Read(3, buf)
		if err != nil || n == 0 {
			return
		}
		kind, opts := varint(buf[:n], 1), message(buf[:n], 2)
		restores := kind == criuRestore
		if restores {
			fakeFailure(how, int(varint(opts, criuWorkDir)))
		}
		answer := appendVarint(nil, 1, kind)
		answer = appendVarint(answer, 2, protowire.EncodeBool(!restores))
		version := appendVarint(appendVarint(nil, 1, 4), 2, 1)
		answer = protowire.AppendBytes(protowire.AppendTag(answer, 10, protowire.BytesType), version)
		if unix.Send(3, answer, 0) != nil {
			return
		}
	}
}

// killWhoDumps is the given CRIU, and kills who has asked it for a dump
//
//	written  when the images are, and CRIU waits to be told to go on
//	done     when it has dumped, with its answer not given
func killWhoDumps(when, criu string) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	theirs := os.NewFile(uintptr(pair[1]), "")
	cmd := exec.Command(criu, "swrk", "3")
	cmd.ExtraFiles = []*os.File{theirs}
	if cmd.Start() != nil {
		return
	}
	theirs.Close()
	written := false
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(3, buf)
		if err != nil || n == 0 || written && when == "written" {
			break
		}
		ask := slices.Clone(buf[:n])
		if varint(ask, 1) == criuDump { // CRIU looks for the directories among this process's
			var here []byte
			for _, field := range []protowire.Number{criuImagesDir, criuWorkDir} {
				fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", os.Getppid(), varint(message(ask, 2), field)), unix.O_RDONLY|unix.O_DIRECTORY, 0)
				if err != nil {
					return
				}
				here = appendVarint(here, field, uint64(fd))
			}
			ask = protowire.AppendBytes(protowire.AppendTag(ask, 2, protowire.BytesType), here) // the last of a field counts
		}
		if unix.Send(pair[0], ask, 0) != nil {
			break
		}
		if n, err = unix.Read(pair[0], buf); err != nil || n == 0 {
			break
		}
		written = written || bytes.Contains(buf[:n], []byte("post-dump"))
		if varint(buf[:n], 1) == criuDump || unix.Send(3, buf[:n], 0) != nil {
			break
		}
	}
	_ = unix.Kill(os.Getppid(), unix.SIGKILL)
	unix.Close(pair[0])
	_ = cmd.Wait()
}

// eachField calls f with every field of a message.
func eachField(b []byte, f func(num protowire.Number, value []byte)) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return
		}
		f(num, b[n:n+m])
		b = b[n+m:]
	}
}

func varint(b []byte, num protowire.Number) (v uint64) {
	eachField(b, func(n protowire.Number, value []byte) {
		if n == num {
			v, _ = protowire.ConsumeVarint(value)
		}
	})
	return v
}

func message(b []byte, num protowire.Number) (m []byte) {
	eachField(b, func(n protowire.Number, value []byte) {
		if n == num {
			m, _ = protowire.ConsumeBytes(value)
		}
	})
	return m
}

func appendVarint(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func fakeFailure(how string, workDir int) {
	// As CRIU does, before anything can go wrong.
	log, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d/restore.log", os.Getppid(), workDir), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		os.Exit(1)
	}
	_ = os.WriteFile("/run/fake-restores", nil, 0o600)
	verb, what, _ := strings.Cut(how, " ")
	switch verb {
	case "dies":
		os.Exit(1)
	case "hangs":
		time.Sleep(time.Hour)
	case "loses":
		for {
			if _, err := os.Lstat(what); err != nil {
				what = fmt.Sprintf("Can't open file %s: %v", what, err)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	_, _ = log.WriteString("(00.01) Error (criu/fake.c:1): " + what + "\n")
}

// fakeCriu makes a CRIU on b that fails so, and returns its path there.
func (m *move) fakeCriu(how string) string {
	m.t.Helper()
	self, err := os.Executable()
	must(m.t, err)
	return m.criuScript(fmt.Sprintf("%s='%s' exec '%s' \"$@\"\n", fakeEnv, how, self))
}

// criuScript makes a CRIU of a shell script on b, and returns its path there.
func (m *move) criuScript(text string) string {
	m.t.Helper()
	must(m.t, os.WriteFile(filepath.Join(m.b.Srv, "images/criu.sh"), []byte("#!/bin/sh\n"+text), 0o755))
	_ = os.Remove(m.b.Path("/run/fake-restores"))
	return "/srv/images/criu.sh"
}
