package criu

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// packed is a tar of the files, in the order of their names.
func packed(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// exported is what podman's archive of a checkpoint holds.
func exported(t testing.TB, images string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{
		"spec.dump": []byte(`{"root":{"path":"/var/lib/containers/merged"},"annotations":{"io.container.manager":"libpod","io.kubernetes.cri-o.TTY":"false"},
			"mounts":[{"destination":"/external","type":"bind","source":"/srv/data"},{"destination":"/proc","type":"proc","source":"proc"}]}`),
		"config.dump":            []byte(`{"id":"c0ffee","name":"web","rootfsImageName":"localhost/nginx"}`),
		"rootfs-diff.tar":        make([]byte, 5000),
		"devshm-checkpoint.tar":  make([]byte, 1536), // of an empty directory
		"volumes/v1.tar":         make([]byte, 10),
		"checkpoint/pages-1.img": make([]byte, 1<<20),
	}
	for name, f := range golden(t, images) {
		files["checkpoint/"+name] = f.Data
	}
	return files
}

func compressions(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zs, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return map[string][]byte{"tar": b, "gzip": gz.Bytes(), "zstd": zs.Bytes()}
}

// TestArchive: an archive says what its images say, and what the engine knows.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	want, err := LoadFS(golden(t, "mounts"), "")
	if err != nil {
		t.Fatal(err)
	}
	for kind, b := range compressions(t, packed(t, exported(t, "mounts"))) {
		t.Run(kind, func(t *testing.T) {
			name := filepath.Join(dir, kind)
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if !IsArchive(name) {
				t.Error("is no archive")
			}
			if runtime.GOARCH != "amd64" {
				return
			}
			c, err := Load(name)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Files) != len(want.Files) || !reflect.DeepEqual(c.Tasks, want.Tasks) {
				t.Errorf("%d files, tasks %+v", len(c.Files), c.Tasks)
			}
			if f := find(t, c, "/external/outside", OnDisk); f.HostPath != "/srv/data/outside" {
				t.Errorf("on the host at %q", f.HostPath)
			}
			if f := find(t, c, "/bound/in-bind", OnDisk); f.HostPath != "/var/lib/containers/merged/srv/part/in-bind" {
				t.Errorf("on the host at %q", f.HostPath)
			}
			box := c.Container
			if box.Engine != "podman" || box.Name != "web" || box.RootfsDiff != 5000 || !slices.Equal(box.Volumes, []string{"v1.tar"}) || box.KeptRunning {
				t.Errorf("container %+v", box)
			}
			if got := fmt.Sprint(levels(c.Obstacles)); got != "[caution container layer]" {
				t.Errorf("obstacles %v", c.Obstacles)
			}
			if err := c.CheckPages(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUnpack: CRIU finds a directory with what was in the archive, and nothing
// else is written.
func TestUnpack(t *testing.T) {
	name := filepath.Join(t.TempDir(), "archive")
	files := exported(t, "mounts")
	files["checkpoint/../../escaped"] = []byte("x")
	files["/absolute"] = []byte("x")
	files["checkpoint/sub/dir"] = []byte("x")
	if err := os.WriteFile(name, packed(t, files), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := Unpack(name, dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := len(golden(t, "mounts")) + 1; len(entries) != want { // and its pages
		t.Errorf("%d files, want %d", len(entries), want)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil || !bytes.Equal(b, files["checkpoint/"+e.Name()]) {
			t.Errorf("%q: %d bytes, %v", e.Name(), len(b), err)
		}
	}
	if err := Unpack(name, dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("wrote over what was there: %v", err)
	}
}

// TestBadArchives: whatever is wrong with one is an error of one line.
func TestBadArchives(t *testing.T) {
	whole := compressions(t, packed(t, exported(t, "mounts")))
	var bomb bytes.Buffer
	z, err := zstd.NewWriter(&bomb, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	head := packed(t, map[string][]byte{"checkpoint/pages-1.img": nil})
	copy(head[124:], "77777777777\x00") // its size, 8 GiB
	var sum int64
	copy(head[148:156], "        ")
	for _, c := range head[:512] {
		sum += int64(c)
	}
	copy(head[148:], fmt.Sprintf("%06o\x00 ", sum))
	if _, err := z.Write(head[:512]); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	notJSON := exported(t, "mounts")
	notJSON["spec.dump"] = []byte("{]")
	for name, b := range map[string][]byte{
		"nothing":           nil,
		"text":              []byte(strings.Repeat("no archive at all\n", 100)),
		"cut tar":           whole["tar"][:len(whole["tar"])/2],
		"cut gzip":          whole["gzip"][:len(whole["gzip"])/2],
		"cut zstd":          whole["zstd"][:len(whole["zstd"])/2],
		"gzip of nothing":   {0x1f, 0x8b},
		"less than it says": bomb.Bytes(),
		"without images":    packed(t, map[string][]byte{"checkpoint/x": {1}}),
		"not JSON":          packed(t, notJSON),
		"images of nothing": packed(t, map[string][]byte{"checkpoint/inventory.img": nil}),
	} {
		file := filepath.Join(t.TempDir(), "archive")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := Load(file); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// TestBounded: what unpacks without end is given up.
func TestBounded(t *testing.T) {
	b := &bounded{io.NopCloser(endless{}), 1 << 20}
	if n, err := io.Copy(io.Discard, b); err == nil || n < 1<<20 || n > 2<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// TestTarOfImages: somebody's own tar of an image directory.
func TestTarOfImages(t *testing.T) {
	files := map[string][]byte{}
	for name, f := range golden(t, "plain") {
		files["./"+name] = f.Data
	}
	a, err := newArchive(bytes.NewReader(packed(t, files)), 0)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := load(a, "", a); err != nil || len(c.Tasks) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}

// FuzzArchive: whatever an archive holds, what is made of it is safe.
func FuzzArchive(f *testing.F) {
	for _, b := range compressions(f, packed(f, map[string][]byte{"checkpoint/inventory.img": golden(f, "plain")["inventory.img"].Data, "spec.dump": []byte("{}")})) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := newArchive(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		for name := range a.images {
			if !fs.ValidPath(name) {
				t.Errorf("name %q", name)
			}
		}
		if c, err := load(a, "images", a); err == nil {
			checkSafe(t, c)
		} else if strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("error %q is not one line of text", err)
		}
	})
}

// FuzzContainer: whatever an engine's files say, paths are safe.
func FuzzContainer(f *testing.F) {
	e := exported(f, "mounts")
	f.Add(e["spec.dump"], e["config.dump"])
	files := golden(f, "mounts")
	f.Fuzz(func(t *testing.T, spec, config []byte) {
		a := &archive{images: map[string]*member{}, beside: map[string]*member{
			"spec.dump": {name: "spec.dump", data: spec}, "config.dump": {name: "config.dump", data: config},
		}}
		for name, file := range files {
			a.images[name] = &member{name: name, size: int64(len(file.Data)), data: file.Data}
		}
		if c, err := load(a, "images", a); err == nil {
			checkSafe(t, c)
		}
	})
}
