package traps

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// inBothModesOnDisk is inBothModes with the upper on a filesystem that the kernel
// passes reads and writes through to.
func inBothModesOnDisk(t *testing.T, size string, fill func(t *testing.T, lower string), f func(t *testing.T, s *stack)) {
	for _, mode := range []string{"overlay", "migrate"} {
		t.Run(mode, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			small(t, s, size)
			fill(t, s.lower)
			f(t, s.mount(t, mode))
		})
	}
}

func nothingBelow(*testing.T, string) {}

// asleep runs f while the daemon is stopped: what f does, the kernel does alone.
// (Before the first write, it asks for capabilities that the write must take away.)
func asleep(t *testing.T, s *stack, f func()) {
	t.Helper()
	must(t, unix.Kill(s.Pid(), unix.SIGSTOP))
	defer func() { must(t, unix.Kill(s.Pid(), unix.SIGCONT)) }()
	within(t, "what the kernel does without the daemon", f)
}

// The kernel reads, writes and maps files of the upper by itself: new ones, ones
// found there, and ones that came up.
func TestKernelPassesThrough(t *testing.T) {
	inBothModesOnDisk(t, "64m", func(t *testing.T, lower string) {
		put(t, filepath.Join(lower, "cameup"), old, 0o644)
	}, func(t *testing.T, s *stack) {
		must(t, os.Truncate(s.Path("cameup"), int64(len(old))))
		put(t, filepath.Join(s.upper, "found"), old, 0o644)
		created, err := os.OpenFile(s.Path("created"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		must(t, err)
		defer created.Close()
		_, err = created.WriteString(old)
		must(t, err)
		for name, w := range map[string]*os.File{
			"created": created, "found": s.open(t, "found", os.O_RDWR), "cameup": s.open(t, "cameup", os.O_RDWR),
		} {
			r := s.open(t, name, os.O_RDONLY)
			got := make([]byte, len(old))
			_, err = w.WriteAt([]byte("O"), 0)
			must(t, err)
			asleep(t, s, func() {
				_, err := w.WriteAt([]byte("NEW"), 0)
				must(t, err)
				_, err = r.ReadAt(got, 0)
				must(t, err)
				m, err := unix.Mmap(fd(w), 0, len(old), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				must(t, err)
				if want := "NEW" + old[3:]; string(got) != want || string(m) != want {
					t.Errorf("%s reads %.12q, is mapped as %.12q", name, got, m)
				}
				copy(m[3:], "MAP")
				must(t, unix.Munmap(m))
			})
			if got := content(t, filepath.Join(s.upper, name)); got != "NEWMAP"+old[6:] {
				t.Errorf("the upper's %s is %.12q", name, got)
			}
		}
	})
}

// Where nothing can change, files of a lower are passed through as well.
func TestKernelPassesThroughReadOnly(t *testing.T) {
	testbed.NeedRoot(t)
	s := layers(t)
	small(t, s, "16m")
	put(t, filepath.Join(s.upper, "f"), old, 0o4755)
	s.Mounted = testbed.Mount(t, "lowerdir="+s.upper, filepath.Join(s.dir, "mnt"))
	r := s.open(t, "f", os.O_RDONLY)
	got := make([]byte, len(old))
	asleep(t, s, func() {
		_, err := r.ReadAt(got, 0)
		must(t, err)
	})
	if string(got) != old {
		t.Errorf("reads %.12q", got)
	}
}

// What is asked of a file after the kernel has changed it alone is what the upper
// says, however long attributes may be believed.
func TestAttributesAfterPassthrough(t *testing.T) {
	inBothModesOnDisk(t, "64m", nothingBelow, func(t *testing.T, s *stack) {
		put(t, s.Path("f"), old, 0o644)
		same := func(after string) {
			t.Helper()
			is, want := lstat(t, s.Path("f")), lstat(t, filepath.Join(s.upper, "f"))
			if is.Size != want.Size || is.Blocks != want.Blocks || is.Mtim != want.Mtim || is.Ctim != want.Ctim || is.Mode != want.Mode || is.Atim != want.Atim {
				t.Errorf("after %s\n%+v, is\n%+v", after, is, want)
			}
		}
		same("nothing")
		f := s.open(t, "f", os.O_RDWR)
		_, err := f.WriteAt([]byte(old), 1<<20)
		must(t, err)
		same("write")
		_, err = f.ReadAt(make([]byte, 10), 0)
		must(t, err)
		same("read")
		must(t, f.Truncate(8<<20))
		same("truncate")
		m, err := unix.Mmap(fd(f), 0, 8<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		same("mapping")
		m[4<<20]++
		must(t, unix.Msync(m, unix.MS_SYNC))
		same("store")
		must(t, f.Close())
		same("close")
		m[5<<20]++
		must(t, unix.Msync(m, unix.MS_SYNC))
		same("store after close")
		must(t, unix.Munmap(m))
		g := s.open(t, "f", os.O_WRONLY|os.O_APPEND)
		_, err = g.WriteString("end")
		must(t, err)
		same("append")
		must(t, unix.Fallocate(fd(g), 0, 0, 9<<20))
		same("fallocate")
		must(t, unix.Fallocate(fd(g), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20))
		same("punch")
		if end, err := g.Seek(0, io.SeekEnd); err != nil || end != 9<<20 {
			t.Errorf("the end is at %d, %v", end, err)
		}
	})
}

// In passthrough, O_APPEND and O_DIRECT can be taken off a descriptor and put on
// it, and mean what they say.
func TestFlagsChangedInPassthrough(t *testing.T) {
	inBothModesOnDisk(t, "64m", nothingBelow, func(t *testing.T, s *stack) {
		put(t, s.Path("f"), "0123456789", 0o644)
		flags := func(f *os.File, set, clear int) {
			t.Helper()
			now, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
			must(t, err)
			_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, now&^clear|set)
			must(t, err)
		}
		is := func(want string) {
			t.Helper()
			if got, up := content(t, s.Path("f")), content(t, filepath.Join(s.upper, "f")); got != want || up != want {
				t.Errorf("%q, in the upper %q, want %q", got, up, want)
			}
		}
		write := func(f *os.File, text string, off int64) {
			t.Helper()
			_, err := unix.Pwrite(fd(f), []byte(text), off)
			must(t, err)
		}
		f := s.open(t, "f", os.O_RDWR|os.O_APPEND)
		write(f, "a", 0)
		is("0123456789a")
		flags(f, 0, unix.O_APPEND)
		write(f, "b", 0)
		is("b123456789a")
		flags(f, unix.O_APPEND, 0)
		write(f, "c", 0)
		is("b123456789ac")
		must(t, f.Close())
		f = s.open(t, "f", os.O_RDWR)
		flags(f, unix.O_APPEND, 0)
		write(f, "d", 0)
		is("b123456789acd")
		must(t, f.Close())

		// As dd oflag=direct does it: whole blocks, then the rest.
		if out := sh(t, nil, s.Path(), "dd if=/dev/zero of=f bs=4096 count=9999 iflag=count_bytes oflag=direct 2>&1 && cmp -n 9999 f /dev/zero && wc -c <f"); !strings.HasSuffix(out, "\n9999\n") {
			t.Error(out)
		}
	})
}

// Appends of several processes do not overwrite each other, and do not tear.
func TestAppendersTogether(t *testing.T) {
	inBothModesOnDisk(t, "64m", func(t *testing.T, lower string) {
		put(t, filepath.Join(lower, "low"), "", 0o644)
	}, func(t *testing.T, s *stack) {
		put(t, s.Path("new"), "", 0o644)
		for _, name := range []string{"low", "new"} {
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					f, err := os.OpenFile(s.Path(name), os.O_WRONLY|os.O_APPEND, 0)
					if err != nil {
						t.Error(err)
						return
					}
					defer f.Close()
					for j := range 100 {
						if _, err := fmt.Fprintf(f, "%d %03d\n", i, j); err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			lines := strings.Split(strings.TrimSuffix(content(t, s.Path(name)), "\n"), "\n")
			seen := make(map[string]bool)
			for _, l := range lines {
				seen[l] = true
			}
			if len(lines) != 800 || len(seen) != 800 {
				t.Errorf("%s has %d lines, %d of them different", name, len(lines), len(seen))
			}
		}
	})
}

// Openers of all kinds, while the file comes up: every open succeeds, every write
// is in the upper, none in the lower.
func TestOpenWhileItComesUp(t *testing.T) {
	const files, writers = 20, 6
	name := func(i int) string { return fmt.Sprintf("f%d", i) }
	inBothModesOnDisk(t, "64m", func(t *testing.T, lower string) {
		for i := range files {
			put(t, filepath.Join(lower, name(i)), old, 0o644)
		}
	}, func(t *testing.T, s *stack) {
		for i := range files {
			low, err := os.Open(filepath.Join(s.lower, name(i)))
			must(t, err)
			var all sync.WaitGroup
			for w := range writers {
				all.Go(func() {
					for range 10 {
						openAndLook(t, s.Path(name(i)), w)
					}
				})
			}
			all.Wait()
			want := []byte(old)
			for w := range writers {
				want[w] = byte('A' + w)
			}
			if up := content(t, filepath.Join(s.upper, name(i))); up != string(want) {
				t.Errorf("the upper has %.12q", up)
			}
			b, err := io.ReadAll(low)
			must(t, err)
			must(t, low.Close())
			if string(b) != old {
				t.Errorf("the lower was written to: %.12q", b)
			}
			// All have closed it: it is passed through now.
			f := s.open(t, name(i), os.O_RDWR)
			if _, err := f.Stat(); err != nil {
				t.Error(err)
			}
		}
	})
}

// openAndLook opens a file to write its w-th byte, and to read and map it, and
// compares what these see.
func openAndLook(t *testing.T, path string, w int) {
	r, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	m, err := unix.Mmap(fd(r), 0, len(old), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = unix.Munmap(m) }()
	want := byte('A' + w)
	got := make([]byte, len(old))
	if _, err := f.WriteAt([]byte{want}, int64(w)); err != nil {
		t.Error(err)
	}
	if _, err := r.ReadAt(got, 0); err != nil || got[w] != want || !bytes.Equal(got[10:], []byte(old[10:])) {
		t.Errorf("read %.12q, %v", got, err)
	}
	if m[w] != want {
		t.Errorf("mapped %.12q", m[:12])
	}
}

// A stranger's write takes suid, sgid and capabilities off a file that is passed
// through, and nobody executes it with what it had.
func TestStrangersWriteInPassthrough(t *testing.T) {
	inBothModesOnDisk(t, "64m", nothingBelow, func(t *testing.T, s *stack) {
		put(t, s.Path("f"), "program", 0o777)
		f := s.open(t, "f", os.O_RDWR) // passed through, for it has no such bits yet
		v := binary.LittleEndian.AppendUint32(nil, 0x02000001)
		v = append(binary.LittleEndian.AppendUint32(v, 1<<13), make([]byte, 12)...)
		for _, way := range []string{"write", "map", "append"} {
			must(t, unix.Setxattr(s.Path("f"), "security.capability", v, 0))
			must(t, unix.Chmod(s.Path("f"), 0o6777))
			if st := lstat(t, s.Path("f")); st.Mode&0o7777 != 0o6777 {
				t.Fatalf("mode %o", st.Mode)
			}
			script := map[string]string{
				"write":  "printf x | dd of=f conv=notrunc 2>/dev/null",
				"append": "printf x >>f",
				"map":    "printf y 1<>f", // by the descriptor that maps, as a plain write
			}[way]
			if out := sh(t, user, s.Path(), script); out != "" {
				t.Fatal(out)
			}
			st := lstat(t, s.Path("f"))
			n, err := unix.Getxattr(s.Path("f"), "security.capability", nil)
			if st.Mode != unix.S_IFREG|0o777 || err != unix.ENODATA {
				t.Errorf("%s: mode %o, capabilities: %d bytes, %v", way, st.Mode, n, err)
			}
		}
		_, err := f.WriteAt([]byte("x"), 0)
		must(t, err)
		asleep(t, s, func() {
			_, err := f.WriteAt([]byte("y"), 0)
			must(t, err)
		})
	})
}

// A file that got suid and sgid directly in the layer, while it was passed through,
// loses them with a stranger's write: this host's kernel does not know that there is
// anything to ask us for, and writes with the rights that the file was registered with.
func TestStrangersWriteToWhatGotSuidUnderneath(t *testing.T) {
	inBothModesOnDisk(t, "64m", nothingBelow, func(t *testing.T, s *stack) {
		put(t, s.Path("f"), "program", 0o777)
		must(t, unix.Chmod(s.Path("f"), 0o777))
		f := s.open(t, "f", os.O_RDWR) // root is the first, whose rights the kernel keeps
		if st := lstat(t, s.Path("f")); st.Mode&0o7777 != 0o777 {
			t.Fatalf("mode %o", st.Mode)
		}
		cmd := exec.Command("sh", "-c", "exec 9<>f; echo; read x; printf P >&9")
		cmd.Dir = s.Path()
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		_, err = out.Read(make([]byte, 1))
		must(t, err)
		_, err = f.WriteAt([]byte("-"), 0) // for which the kernel asks whether it has capabilities
		must(t, err)
		asleep(t, s, func() { // it is passed through to both
			_, err := f.WriteAt([]byte("+"), 0)
			must(t, err)
		})
		layer := filepath.Join(s.upper, "f")
		must(t, unix.Chmod(layer, 0o6777))
		_, err = in.Write([]byte("\n"))
		must(t, err)
		must(t, cmd.Wait())
		got, err := os.ReadFile(layer)
		if st := lstat(t, layer); st.Mode&0o7777 != 0o777 || err != nil || string(got) != "Program" {
			t.Errorf("mode %o, content %q, %v", st.Mode, got, err)
		}
	})
}

// A file that has suid or sgid when it is opened keeps them when root writes to
// it, as on any filesystem.
func TestRootsWriteKeepsPrivileges(t *testing.T) {
	inBothModesOnDisk(t, "64m", nothingBelow, func(t *testing.T, s *stack) {
		put(t, s.Path("f"), "program", 0o755)
		must(t, unix.Chmod(s.Path("f"), 0o6755))
		f := s.open(t, "f", os.O_RDWR)
		_, err := f.WriteAt([]byte("P"), 0)
		must(t, err)
		if st := lstat(t, s.Path("f")); st.Mode&0o7777 != 0o6755 {
			t.Errorf("mode %o", st.Mode)
		}
		// Installers write, then set the mode, then close.
		g, err := os.OpenFile(s.Path("g"), os.O_WRONLY|os.O_CREATE, 0o600)
		must(t, err)
		_, err = g.WriteString("program")
		must(t, err)
		must(t, unix.Fchmod(fd(g), 0o4755))
		must(t, g.Close())
		if st := lstat(t, s.Path("g")); st.Mode&0o7777 != 0o4755 {
			t.Errorf("mode %o", st.Mode)
		}
	})
}

// A program that was made suid while a stranger could write to it, and was written
// to, does not run with its owner's rights: what the kernel remembers of its mode
// is not believed.
func TestNoSuidFromMemory(t *testing.T) {
	id, err := exec.LookPath("id")
	must(t, err)
	program, err := os.ReadFile(id)
	must(t, err)
	inBothModesOnDisk(t, "64m", nothingBelow, func(t *testing.T, s *stack) {
		must(t, os.WriteFile(s.Path("id"), program, 0o777))
		must(t, unix.Chmod(s.Path("id"), 0o777))
		cmd := exec.Command("sh", "-c", "exec 9<>id; echo; read x; printf '\\177' >&9; exec 9>&-; exec ./id -u")
		cmd.Dir = s.Path()
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		_, err = out.Read(make([]byte, 1))
		must(t, err)
		must(t, unix.Chmod(s.Path("id"), 0o4777))
		_, err = in.Write([]byte("\n"))
		must(t, err)
		got, err := io.ReadAll(out)
		must(t, err)
		_ = cmd.Wait()
		if string(got) != "1000\n" {
			t.Errorf("ran as %q", got)
		}
	})
}

// A full disk is an error of the write, and what was written before it is there.
func TestFullDiskInPassthrough(t *testing.T) {
	inBothModesOnDisk(t, "4m", nothingBelow, func(t *testing.T, s *stack) {
		f, err := os.Create(s.Path("f"))
		must(t, err)
		defer f.Close()
		written := 0
		for err == nil && written < 8<<20 {
			var n int
			n, err = f.Write(bytes.Repeat([]byte("x"), 64<<10))
			written += n
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("after %d bytes: %v", written, err)
		}
		if got := content(t, s.Path("f")); len(got) != written || strings.Trim(got, "x") != "" {
			t.Errorf("%d bytes of %d", len(got), written)
		}
	})
}

// Who has an unlinked file open reads and writes it, and so does who opens it
// through /proc.
func TestUnlinkedInPassthrough(t *testing.T) {
	inBothModesOnDisk(t, "64m", nothingBelow, func(t *testing.T, s *stack) {
		put(t, s.Path("f"), old, 0o644)
		r := s.open(t, "f", os.O_RDONLY)
		must(t, os.Remove(s.Path("f")))
		w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd(r)), os.O_RDWR, 0)
		must(t, err)
		defer w.Close()
		_, err = w.WriteAt([]byte("NEW"), 0)
		must(t, err)
		got := make([]byte, 6)
		_, err = r.ReadAt(got, 0)
		must(t, err)
		if string(got) != "NEW"+old[3:6] {
			t.Errorf("%q", got)
		}
		put(t, s.Path("f"), "another", 0o644)
		if got := content(t, s.Path("f")); got != "another" {
			t.Errorf("%q", got)
		}
	})
}
