package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestOthersOpenAndClose looks at files, by name, and changes them, while others
// open, read and close them: what is borrowed from their handles must not go with
// them, nor turn into another file's.
func TestOthersOpenAndClose(t *testing.T) {
	for _, mode := range []string{"migrate", "overlay", "remote", "remote, pending"} {
		t.Run(mode, func(t *testing.T) {
			dir, options, cfg := testbed.TempDir(t), "mode=", testbed.MountConfig{}
			lower, upper, point := filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "mnt")
			for _, d := range []string{lower, upper, point} {
				must(t, os.Mkdir(d, 0o755))
			}
			files := 6
			for i := range files {
				p := filepath.Join(lower, fmt.Sprint(i))
				must(t, os.WriteFile(p, make([]byte, 10_000*(i+1)), 0o644))
				must(t, os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0)))
			}
			if mode == "migrate" || mode == "overlay" {
				options += mode + ",lowerdir=" + lower
			} else {
				sshd := testbed.StartSSHD(t)
				cfg.Env = sshd.Env()
				options = "lowerdir=" + sshd.Target(lower)
			}
			m := testbed.Mount(t, options+",upperdir="+upper, point, cfg)
			if mode == "remote, pending" {
				for i := range files {
					must(t, os.Chmod(m.Path(fmt.Sprint(i)), 0o600))
				}
			}
			end := time.Now().Add(2 * time.Second)
			var all sync.WaitGroup
			for k := range 6 {
				all.Go(func() {
					for i := k; time.Now().Before(end) && !t.Failed(); i++ {
						if k%2 == 0 {
							openReadClose(t, m.Path(fmt.Sprint(i%files)))
						} else {
							changeAndLook(t, m.Path(fmt.Sprint(i%files)), i%files)
						}
					}
				})
			}
			all.Wait()
			for i := range files {
				changeAndLook(t, m.Path(fmt.Sprint(i)), i)
			}
		})
	}
}

func openReadClose(t *testing.T, path string) {
	f, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// changeAndLook gives file i the mode that only it has, and expects that and its
// own size.
func changeAndLook(t *testing.T, path string, i int) {
	mode := uint32(0o600 + i)
	if err := unix.Chmod(path, mode); err != nil {
		t.Errorf("chmod %s: %v", path, err)
		return
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Errorf("stat %s: %v", path, err)
	} else if st.Size != int64(10_000*(i+1)) || st.Mode&0o777 != mode {
		t.Errorf("%s has %d bytes and mode %o, not %d and %o", path, st.Size, st.Mode&0o777, 10_000*(i+1), mode)
	}
}

// TestTruncateUnderReaders cuts remote files while others read and close them. A
// reader sees what the file was, or is; never an error, and nothing else.
func TestTruncateUnderReaders(t *testing.T) {
	sshd, dir := testbed.StartSSHD(t), testbed.TempDir(t)
	lower, upper, point := filepath.Join(dir, "lower"), filepath.Join(dir, "upper"), filepath.Join(dir, "mnt")
	for _, d := range []string{lower, upper, point} {
		must(t, os.Mkdir(d, 0o755))
	}
	const files, size = 40, 300_000
	for i := range files {
		p, b := filepath.Join(lower, fmt.Sprint(i)), make([]byte, size)
		for j := range b {
			b[j] = byte(i + 1)
		}
		must(t, os.WriteFile(p, b, 0o644))
		must(t, os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0)))
	}
	m := testbed.Mount(t, "lowerdir="+sshd.Target(lower)+",upperdir="+upper, point, testbed.MountConfig{Env: sshd.Env()})
	for i := range files {
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for range 3 {
					readWhole(t, m.Path(fmt.Sprint(i)), byte(i+1), i%2*size/3)
				}
			})
		}
		all.Go(func() {
			if err := os.Truncate(m.Path(fmt.Sprint(i)), int64(i%2*size/3)); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		if b, err := os.ReadFile(m.Path(fmt.Sprint(i))); err != nil || len(b) != i%2*size/3 {
			t.Errorf("file %d after the cut: %d bytes, %v", i, len(b), err)
		}
	}
}

// readWhole expects want in every byte. From cut on there may be zeros: until a
// truncate has returned, the kernel takes the end that a read met for a hole.
func readWhole(t *testing.T, path string, want byte, cut int) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	for off, c := range b {
		if c != want && (c != 0 || off < cut) {
			t.Errorf("%s: byte %d is %d, not %d", path, off, c, want)
			return
		}
	}
}
