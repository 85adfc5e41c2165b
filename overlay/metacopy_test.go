package overlay

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// stub makes a metacopy in the layer l: marked, of the size of data, and with
// blocks, as one has whose completion was cut short, or that has large xattrs.
func (w *world) stub(l, name string, size int) {
	must(w.t, os.WriteFile(w.at(l, name), make([]byte, size), 0o600))
	must(w.t, unix.Setxattr(w.at(l, name), "trusted.overlay.metacopy", nil, 0))
}

func (d *driver) content(t *testing.T, path string) []byte {
	t.Helper()
	id, errno := d.find(path)
	if errno != 0 {
		t.Fatalf("%s: %v", path, errno)
	}
	b, errno := d.readNode(id)
	if errno != 0 {
		t.Fatalf("%s: %v", path, errno)
	}
	return b
}

// TestMetacopyWithBlocks: the mark says what a metacopy is, not how many blocks it
// has.
func TestMetacopyWithBlocks(t *testing.T) {
	base := worlds(t)
	for _, size := range []int{1000, 3 << 20} {
		data := bytes.Repeat([]byte("data "), size/5)
		changes := map[string]func(d *driver) unix.Errno{
			"read":  func(*driver) unix.Errno { return 0 },
			"chmod": func(d *driver) unix.Errno { return d.chmod("m", 0o640) },
			"chmod, looked up meanwhile": func(d *driver) unix.Errno {
				defer sys.SetHook(nil)
				sys.SetHook(func(c sys.Change) error {
					if c == "truncate" {
						_, _, _ = d.lookup(fuse.FUSE_ROOT_ID, "m")
					}
					return nil
				})
				return d.chmod("m", 0o640)
			},
			"opened, chmod": func(d *driver) unix.Errno {
				if _, errno := d.keep("m"); errno != 0 {
					return errno
				}
				return d.chmod("m", 0o640)
			},
		}
		for name, change := range changes {
			for _, in := range []string{"upper", "l1"} {
				w := newWorld(t, base, stackings[1])
				must(t, os.WriteFile(w.at("l2", "m"), data, 0o600))
				w.stub(in, "m", len(data))
				must(t, w.open())
				d := &driver{fs: w.fs}
				if errno := change(d); errno != 0 {
					t.Errorf("%d bytes in %s, %s: %v", size, in, name, errno)
				}
				if got := d.content(t, "m"); !bytes.Equal(got, data) {
					t.Errorf("%d bytes in %s, %s: reads %d bytes, %.10q...", size, in, name, len(got), got)
				}
				if errno := d.write("m", "D", 0); errno != 0 {
					t.Errorf("%d bytes in %s, %s, written: %v", size, in, name, errno)
				}
				d.end()
				w.close()
				want := append([]byte("D"), data[1:]...)
				if got, err := os.ReadFile(w.at("upper", "m")); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes in %s, %s, written: the upper has %d bytes, %.10q..., %v", size, in, name, len(got), got, err)
				}
				w.remove()
			}
		}
	}
}

// TestChangeWhileCompleted: what is done to the attributes of a metacopy while its
// data is copied is not taken back when that is done.
func TestChangeWhileCompleted(t *testing.T) {
	w := newWorld(t, worlds(t), stackings[0])
	defer w.remove()
	must(t, w.open())
	d := &driver{fs: w.fs}
	defer d.end()
	if errno := d.chmod("low", 0o644); errno != 0 {
		t.Fatal(errno)
	}
	id, _ := d.find("low")
	done := make(chan fuse.Status, 1)
	sys.SetHook(func(c sys.Change) error {
		if c != "clone" {
			return nil
		}
		sys.SetHook(nil)
		go func() {
			var out fuse.AttrOut
			done <- w.fs.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{
				InHeader: fuse.InHeader{NodeId: id}, Valid: fuse.FATTR_MODE | fuse.FATTR_MTIME, Mode: 0o600, Mtime: 1234,
			}}, &out)
		}()
		for range 100 { // it may also wait for us
			if len(done) > 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	})
	defer sys.SetHook(nil)
	// Flags need the data, and leave the rest.
	if errno := d.chattr("low", 0); errno != 0 {
		t.Fatal(errno)
	}
	if st := <-done; st != 0 {
		t.Fatal(st)
	}
	var st unix.Stat_t
	must(t, unix.Stat(w.at("upper", "low"), &st))
	if st.Mode&0o7777 != 0o600 || st.Mtim.Sec != 1234 {
		t.Errorf("mode %o and time %d, last set to 600 and 1234", st.Mode&0o7777, st.Mtim.Sec)
	}
}
