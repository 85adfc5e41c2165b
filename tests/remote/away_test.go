package remote

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestAway: while the source cannot be asked, what lies here is served, and
// everything else is an error; when it is back, so is everything.
func TestAway(t *testing.T) {
	for name, c := range map[string]struct{ leave, comeBack func(*bed) }{
		"frozen": {
			func(b *bed) { b.link.Stall() },
			func(b *bed) { b.link.Resume() },
		},
		"unreachable": {
			func(b *bed) { b.link.Close(true); b.link.Cut() },
			func(b *bed) { b.link.Close(false) },
		},
		"rebooted": {
			func(b *bed) { b.link.Close(true); b.sshd.Kill() },
			func(b *bed) { b.sshd.Start(); b.link.Close(false) },
		},
		"sftp-server stopped": {
			func(b *bed) { signal(b.servers(), unix.SIGSTOP); b.link.Close(true) },
			func(b *bed) { signal(b.servers(), unix.SIGCONT); b.link.Close(false) },
		},
		"sshd and all stopped": {
			func(b *bed) { signal(b.sshd.Sessions(), unix.SIGSTOP); b.link.Close(true) },
			func(b *bed) { signal(b.sshd.Sessions(), unix.SIGCONT); b.link.Close(false) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			b.putLocal()
			const size = 1 << 20
			b.put("unseen/file", size)
			b.put("seen/file", size)
			b.mount(",timeout=3")
			b.mends(func() error { return b.list("seen", "file") })
			h := b.localContent()

			c.leave(b)
			for range 2 {
				h.check(name)
				b.isAway()
				if err := b.right("seen/file", size); err == nil {
					t.Error("a file that is not here was read")
				}
			}
			c.comeBack(b)
			b.mends(func() error { return b.list("unseen", "file") })
			b.mends(func() error { return b.right("unseen/file", size) })
			b.mends(func() error { return b.right("seen/file", size) })
			h.whole()
			b.m.Unmount()
		})
	}
}

// isAway sees that what cannot be asked for is an error, unless it is known, and
// neither absent nor empty.
func (b *bed) isAway() {
	b.t.Helper()
	_ = b.list("unseen", "file")
	b.inTime("stat", func() {
		_, err := os.Lstat(b.path("unseen/file"))
		b.honest("stat", err)
	})
}

// TestOutOfDescriptors: a source that can open nothing more says so, and what it
// cannot open is neither empty nor absent. Nothing has to be done here when it
// can again.
func TestOutOfDescriptors(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.putLocal()
	const size = 100 << 10
	b.put("d/file", size)
	b.put("other/file", size)
	b.mount(",timeout=3")
	b.mends(func() error { return b.list("d", "file") })
	h := b.localContent()
	var old unix.Rlimit
	limit := func(cur func(old uint64) uint64) {
		for _, pid := range b.servers() {
			must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old))
			must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: cur(old.Cur), Max: old.Max}, nil))
		}
	}
	limit(func(uint64) uint64 { return 3 }) // its standard streams; poll(2) wants them counted
	h.check("out of descriptors")
	if err := b.right("d/file", size); err == nil {
		t.Error("a file was opened without a descriptor")
	}
	if err := b.list("other", "file"); err == nil {
		t.Error("a directory was opened without a descriptor")
	}
	limit(func(uint64) uint64 { return old.Max })
	b.mends(func() error { return b.right("d/file", size) })
	b.mends(func() error { return b.list("other", "file") })
	h.whole()
	b.m.Unmount()
}

// TestFewDescriptors: a source that can hold few handles serves as many open files
// as anybody likes.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	dir := testbed.TempDir(t)
	script := filepath.Join(dir, "sftp.sh")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\nulimit -n 12\nexec "+sftpServer(t)+"\n"), 0o755))
	b := newBed(t, testbed.SSHDConfig{SFTP: script})
	parts := b.parts(1, 40, 5000)
	b.mount("")
	var open []*os.File
	for _, name := range parts[0].names {
		f, err := os.Open(b.path(parts[0].dir + "/" + name))
		must(t, err)
		defer f.Close()
		open = append(open, f)
	}
	for i, f := range open {
		name := parts[0].dir + "/" + parts[0].names[i]
		got := make([]byte, 5000)
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != string(content(name, 5000)) {
			t.Errorf("%s: %v, or wrong bytes", name, err)
		}
	}
	must(t, b.read(parts[0]))
	for _, f := range open {
		f.Close()
	}
	b.m.Unmount()
}

func sftpServer(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatal("OpenSSH's sftp-server is not installed: run make deps")
	return ""
}
