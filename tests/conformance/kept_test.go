package conformance

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel has read of a file it keeps for the next open, as long as nobody
// changes the file in its layer; who opens it after that sees the change, however soon
// it came, and though it left size, mtime and name as they were.
func TestKeptUntilChangedUnderneath(t *testing.T) {
	for _, c := range []struct{ name, mode, more, layer string }{
		{"migrate,lower", "migrate", "", "lower"},
		{"migrate,upper", "migrate", ",passthrough=off", "upper"},
		{"overlay,lower", "overlay", ",attr_timeout=1,entry_timeout=1", "lower"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			u := newUnderneath(t, c.mode, c.more, func(t *testing.T, lower string) {
				put(t, filepath.Join(lower, "../"+c.layer+"/f"), string(fill('a')))
			})
			k := &keptFile{T: t, in: filepath.Join(filepath.Dir(u.lower), c.layer, "f"), at: u.Path("f")}
			k.shows('a')
			time.Sleep(2100 * time.Millisecond) // a tick of any filesystem's clock
			k.shows('a')
			k.shows('a')
			if !k.isKept() {
				t.Error("what was read twice and has not changed is not kept")
			}
			for i := range 50 {
				k.change(byte('b' + i%20))
			}
			time.Sleep(2100 * time.Millisecond)
			k.shows(k.now)
			k.shows(k.now)
			if !k.isKept() {
				t.Error("what has not changed since is not kept")
			}
			k.change('x')
			k.replace('y')
		})
	}
}

// keptFile is a file as it lies in a layer, and as the mount shows it.
type keptFile struct {
	*testing.T
	in, at string
	now    byte
}

func fill(b byte) []byte { return bytes.Repeat([]byte{b}, 200_000) }

func (k *keptFile) shows(b byte) {
	k.Helper()
	k.now = b
	if got, err := os.ReadFile(k.at); err != nil || !bytes.Equal(got, fill(b)) {
		k.Fatalf("not what the layer has, all %q: %d bytes, from %.10q to %.10q, %v", b, len(got), got, got[max(0, len(got)-10):], err)
	}
}

// change writes over the file in its layer, without a trace but ctime.
func (k *keptFile) change(b byte) {
	k.Helper()
	var st unix.Stat_t
	must(k, unix.Stat(k.in, &st))
	f, err := os.OpenFile(k.in, os.O_WRONLY, 0)
	must(k, err)
	defer f.Close()
	_, err = f.WriteAt(fill(b), 0)
	must(k, err)
	must(k, unix.UtimesNanoAt(unix.AT_FDCWD, k.in, []unix.Timespec{st.Atim, st.Mtim}, 0))
	k.shows(b)
}

// replace puts another file of the same size and mtime in its place.
func (k *keptFile) replace(b byte) {
	k.Helper()
	var st unix.Stat_t
	must(k, unix.Stat(k.in, &st))
	put(k, k.in+".new", string(fill(b)))
	must(k, unix.UtimesNanoAt(unix.AT_FDCWD, k.in+".new", []unix.Timespec{st.Atim, st.Mtim}, 0))
	must(k, os.Rename(k.in+".new", k.in))
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		// entry_timeout: another file of the name is seen when names are looked up anew.
		if got, err := os.ReadFile(k.at); err == nil && got[0] == b || time.Now().After(end) {
			break
		}
	}
	k.shows(b)
}

// isKept opens the file and reports whether its first page is there, unread.
func (k *keptFile) isKept() bool {
	k.Helper()
	f, err := os.Open(k.at)
	must(k, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	must(k, err)
	defer func() { must(k, unix.Munmap(m)) }()
	resident := make([]byte, 1)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&resident[0])))
	if errno != 0 {
		k.Fatal("mincore:", errno)
	}
	return resident[0]&1 != 0
}
