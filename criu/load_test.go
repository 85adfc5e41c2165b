package criu

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// golden is the image set dir of testdata as a file system that can be changed.
func golden(t testing.TB, dir string) fstest.MapFS {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("testdata", dir))
	if err != nil {
		t.Fatal(err)
	}
	m := fstest.MapFS{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join("testdata", dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name()] = &fstest.MapFile{Data: b, Mode: 0o600}
	}
	return m
}

// encode is one image file: magic numbers and entries.
func encode(t testing.TB, magic uint32, msgs ...proto.Message) *fstest.MapFile {
	t.Helper()
	var b []byte
	if magic != magicInventory {
		b = binary.LittleEndian.AppendUint32(b, magicCommon)
	}
	b = binary.LittleEndian.AppendUint32(b, magic)
	for _, m := range msgs {
		e, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e)))
		b = append(b, e...)
	}
	return &fstest.MapFile{Data: b, Mode: 0o600}
}

func find(t *testing.T, c *Checkpoint, path string, place Place) *File {
	t.Helper()
	for i := range c.Files {
		if c.Files[i].Path == path && c.Files[i].Place == place {
			return &c.Files[i]
		}
	}
	t.Fatalf("no %q (place %d) among %d files", path, place, len(c.Files))
	return nil
}

// TestGolden compares what Load makes of real images with what testdata/job.c
// did. The old form has the same content, but for what only CRIU 3 records.
func TestGolden(t *testing.T) {
	for _, set := range []struct{ dir, base string }{
		{"plain", "/tmp/migratefs-golden/job"},
		{"old", "/tmp/migratefs-golden/job"},
		{"container", "/srv/job"},
	} {
		t.Run(set.dir, func(t *testing.T) {
			c, err := LoadFS(golden(t, set.dir), set.dir)
			if err != nil {
				t.Fatal(err)
			}
			if c.Arch != "amd64" || len(c.Tasks) != 2 || c.Tasks[1].PPID != c.Tasks[0].PID {
				t.Errorf("arch %q, tasks %+v", c.Arch, c.Tasks)
			}
			if c.Tasks[0].Comm != "bin" || c.ShellJob {
				t.Errorf("command %q, shell job %v", c.Tasks[0].Comm, c.ShellJob)
			}
			if own := set.dir == "container"; c.PidNS != own || c.MountNS != own || c.NetNS || c.UserNS {
				t.Errorf("namespaces: pid %v, mount %v, net %v, user %v", c.PidNS, c.MountNS, c.NetNS, c.UserNS)
			}
			if len(c.Warnings) != 0 {
				t.Errorf("warnings: %q", c.Warnings)
			}
			checkFiles(t, c, set.base)
		})
	}
}

func checkFiles(t *testing.T, c *Checkpoint, base string) {
	t.Helper()
	pid := c.Tasks[0].PID
	for _, want := range []struct {
		name  string
		place Place
		mode  uint32
		size  int64 // -1: not recorded
		ref   Ref   // of the first task; FD is not compared
	}{
		{"read-only", OnDisk, unix.S_IFREG | 0o440, 10000, Ref{Kind: Descriptor, PID: pid, Flags: unix.O_RDONLY | 0o100000, Pos: 1234}},
		{"appended", OnDisk, unix.S_IFREG | 0o644, -1, Ref{Kind: Descriptor, PID: pid, Flags: unix.O_WRONLY | unix.O_APPEND | 0o100000}},
		{"read-write", OnDisk, unix.S_IFREG | 0o664, 5000, Ref{Kind: Descriptor, PID: pid, Flags: unix.O_RDWR | 0o100000}},
		{"a name\nwith \xff bytes", OnDisk, unix.S_IFREG | 0o644, 3, Ref{Kind: Descriptor, PID: pid, Flags: 0o100000}},
		{"mapped-shared", OnDisk, unix.S_IFREG | 0o644, 8192, Ref{Kind: Mapping, PID: pid, Len: 8192, Prot: unix.PROT_READ | unix.PROT_WRITE, Shared: true}},
		{"mapped-private", OnDisk, unix.S_IFREG | 0o644, 12288, Ref{Kind: Mapping, PID: pid, Off: 4096, Len: 4096, Prot: unix.PROT_READ}},
		{"deleted", InImages, unix.S_IFREG | 0o644, 6, Ref{Kind: Descriptor, PID: pid, Flags: unix.O_RDWR | 0o100000}},
		{"fifo", OnHost, unix.S_IFIFO | 0o600, -1, Ref{}},
		{"", OnDisk, unix.S_IFDIR | 0o755, -1, Ref{Kind: WorkingDir, PID: pid}},
		{"child-cwd", OnDisk, unix.S_IFDIR | 0o750, -1, Ref{Kind: WorkingDir, PID: c.Tasks[1].PID}},
		{"watched", OnDisk, 0, -1, Ref{Kind: Watch}},
	} {
		p := filepath.Join(base, want.name)
		f := find(t, c, p, want.place)
		if f.Mode != want.mode || f.SizeKnown != (want.size >= 0) || f.SizeKnown && f.Size != want.size {
			t.Errorf("%q: mode %#o, size %d (known: %v), want %#o and %d", p, f.Mode, f.Size, f.SizeKnown, want.mode, want.size)
		}
		if want.name == "fifo" {
			continue
		}
		found := false
		for _, r := range f.Refs {
			r.FD = 0
			found = found || reflect.DeepEqual(r, want.ref)
		}
		if !found {
			t.Errorf("%q: references %+v, want %+v among them", p, f.Refs, want.ref)
		}
	}
	checkExecutable(t, c)
	checkSeed(t, c, base)
}

func checkExecutable(t *testing.T, c *Checkpoint) {
	t.Helper()
	for i := range c.Files {
		f := &c.Files[i]
		for _, r := range f.Refs {
			if r.Kind != Executable {
				continue
			}
			if filepath.Base(f.Path) != "bin" || len(f.BuildID) != 20 || f.Mode != unix.S_IFREG|0o755 || f.Size < 1000 {
				t.Errorf("executable %q, build-id %s, mode %#o, size %d", f.Path, hex.EncodeToString(f.BuildID), f.Mode, f.Size)
			}
			return
		}
	}
	t.Error("no executable")
}

func checkSeed(t *testing.T, c *Checkpoint, base string) {
	t.Helper()
	s := c.Seed()
	seeded := make(map[string]bool)
	for _, e := range s.Entries {
		seeded["/"+string(e.Path)] = true
		if e.Path == "dev/null" || strings.HasSuffix(string(e.Path), "/fifo") || strings.HasSuffix(string(e.Path), "/deleted") {
			t.Errorf("%q is in the seed", e.Path)
		}
	}
	for _, name := range []string{"read-only", "appended", "mapped-shared", "child-cwd", "watched", ""} {
		if p := filepath.Join(base, name); !seeded[p] {
			t.Errorf("%q is not in the seed", p)
		}
	}
	if !seeded["/"] {
		t.Error("the root directory is not in the seed, though it is a task's root")
	}
	if len(s.Dirs) != 1 || "/"+string(s.Dirs[0]) != base {
		t.Errorf("directories %q, want the one of the deleted file and the socket", s.Dirs)
	}
}

// TestMakeOld writes testdata/old: the entries of plain/files.img as CRIU before
// 3.0 laid them out. CRIU 2 itself cannot run on kernels of today.
func TestMakeOld(t *testing.T) {
	src := golden(t, "plain")
	old := fstest.MapFS{}
	for name, f := range src {
		if name != "files.img" {
			old[name] = f
		}
	}
	var regs, socks, watches []proto.Message
	err := each(src, "files.img", magicFiles, func(e *fdinfo.FileEntry) error {
		switch {
		case e.Reg != nil:
			regs = append(regs, e.Reg)
		case e.Usk != nil:
			socks = append(socks, e.Usk)
		case e.Ify != nil:
			watches = append(watches, e.Ify)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	old["reg-files.img"] = encode(t, magicRegFiles, regs...)
	old["unixsk.img"] = encode(t, magicUnixSk, socks...)
	old["inotify.img"] = encode(t, magicInotify, watches...)
	if os.Getenv("MIGRATEFS_MAKE_OLD") == "" {
		// Protobuf encodings may differ in order, so the content is compared.
		a, err := LoadFS(old, "")
		if err != nil {
			t.Fatal(err)
		}
		b, err := LoadFS(golden(t, "old"), "")
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(a.Files, b.Files) {
			t.Error("testdata/old is not made from testdata/plain: run testdata/make.sh")
		}
		return
	}
	if err := os.RemoveAll("testdata/old"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("testdata/old", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, f := range old {
		if err := os.WriteFile(filepath.Join("testdata/old", name), f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func reg(name string) *fdinfo.FileEntry {
	return &fdinfo.FileEntry{
		Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(1000),
		Reg: &regfile.RegFileEntry{
			Id: proto.Uint32(1000), Flags: proto.Uint32(0), Pos: proto.Uint64(0), Name: proto.String(name),
			Fown: &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)},
			Mode: proto.Uint32(unix.S_IFREG | 0o644), Size: proto.Uint64(1),
		},
	}
}

// TestBadImages: whatever is wrong is one line that says what and where.
func TestBadImages(t *testing.T) {
	withFile := func(m fstest.MapFS, e *fdinfo.FileEntry) {
		m["files.img"].Data = append(bytes.Clone(m["files.img"].Data), encode(t, magicFiles, e).Data[8:]...)
	}
	second := 12 + int(binary.LittleEndian.Uint32(golden(t, "plain")["files.img"].Data[8:])) // offset of an entry
	for _, c := range []struct {
		name   string
		damage func(m fstest.MapFS)
		want   []string
		is     error
	}{
		{"no inventory", func(m fstest.MapFS) { delete(m, "inventory.img") }, []string{"expected inventory.img", "criu dump -D"}, ErrNoImages},
		{"no pstree", func(m fstest.MapFS) { delete(m, "pstree.img") }, []string{"pstree.img"}, ErrNoImages},
		{"no files", func(m fstest.MapFS) { delete(m, "files.img") }, []string{"files.img"}, ErrNoImages},
		{"no core", func(m fstest.MapFS) {
			for name := range m {
				if strings.HasPrefix(name, "core-") {
					delete(m, name)
				}
			}
		}, []string{`"core-`, "missing"}, nil},
		{"truncated", func(m fstest.MapFS) { m["files.img"].Data = m["files.img"].Data[:second+40] }, []string{`"files.img"`, fmt.Sprintf("byte %d:", second), "truncated", "dump or copy it again"}, ErrTruncated},
		{"truncated in a size", func(m fstest.MapFS) { m["inventory.img"].Data = m["inventory.img"].Data[:6] }, []string{`"inventory.img"`, "byte 4", "truncated"}, ErrTruncated},
		{"empty", func(m fstest.MapFS) { m["pstree.img"].Data = nil }, []string{`"pstree.img"`, "byte 0", "truncated"}, ErrTruncated},
		{"huge entry", func(m fstest.MapFS) { copy(m["files.img"].Data[8:], "\xff\xff\xff\xff") }, []string{`"files.img"`, "byte 8", "truncated"}, ErrTruncated},
		{"other magic", func(m fstest.MapFS) { m["files.img"].Data = m["pstree.img"].Data }, []string{`"files.img"`, "magic number"}, nil},
		{"not protobuf", func(m fstest.MapFS) {
			m["pstree.img"].Data = append(m["pstree.img"].Data[:8:8], "\x04\x00\x00\x00\xff\xff\xff\xff"...)
		}, []string{`"pstree.img"`, "byte 8", "not an entry"}, nil},
		{"dot dot", func(m fstest.MapFS) { withFile(m, reg("/home/../etc/shadow")) }, []string{`"files.img"`, `component ".."`, "byte"}, nil},
		{"relative", func(m fstest.MapFS) { withFile(m, reg("etc/shadow")) }, []string{`"files.img"`, "does not start at the root"}, nil},
		{"NUL", func(m fstest.MapFS) { withFile(m, reg("/etc/sha\x00dow")) }, []string{`"files.img"`, `"/etc/sha\x00dow"`, "NUL"}, nil},
		{"empty name", func(m fstest.MapFS) { withFile(m, reg("")) }, []string{"empty file name"}, nil},
		{"long", func(m fstest.MapFS) { withFile(m, reg(strings.Repeat("/aaaaaaa", 600))) }, []string{"longer than a path"}, nil},
		{"newline", func(m fstest.MapFS) { withFile(m, reg("/a\nb//c")) }, []string{`"/a\nb//c"`, `component ""`}, nil},
		{"twice", func(m fstest.MapFS) { withFile(m, reg("/a")); withFile(m, reg("/a")) }, []string{"described twice"}, nil},
		{"two sizes", func(m fstest.MapFS) { withFile(m, reg("/tmp/migratefs-golden/job/read-write")) }, []string{"read-write", "dump again"}, nil},
		{"machine", func(m fstest.MapFS) { // the child's core is not looked at for that
			for name, f := range m {
				if strings.HasPrefix(name, "core-") {
					var e core.CoreEntry
					if err := proto.Unmarshal(f.Data[12:], &e); err != nil {
						t.Fatal(err)
					}
					e.Mtype = core.CoreEntryMarch(77).Enum()
					m[name] = encode(t, magicCore, &e)
				}
			}
		}, []string{"machine type 77"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := golden(t, "plain")
			c.damage(m)
			_, err := LoadFS(m, "/some/images")
			if err == nil {
				t.Fatal("loaded")
			}
			for _, w := range append(c.want, "/some/images") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("error %q is not one line of text", err)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %q is not %q", err, c.is)
			}
		})
	}
}

// TestEveryTruncation: no image cut anywhere is taken for a whole one.
func TestEveryTruncation(t *testing.T) {
	whole := golden(t, "plain")["files.img"].Data
	ends := map[int]bool{8: true, len(whole): true} // between entries a cut is not visible in this file
	for off := 8; off < len(whole); {
		off += 4 + int(binary.LittleEndian.Uint32(whole[off:]))
		ends[off] = true
	}
	m := golden(t, "plain")
	for name := range m {
		if strings.HasPrefix(name, "mm-") || strings.HasPrefix(name, "pagemap-") {
			delete(m, name) // there are many rounds, and these have no part in it
		}
	}
	for n := range len(whole) {
		m["files.img"] = &fstest.MapFile{Data: whole[:n], Mode: 0o600}
		_, err := LoadFS(m, "")
		if err == nil && n != len(whole) {
			t.Errorf("loaded with %d of %d bytes", n, len(whole))
		}
		if !ends[n] && !errors.Is(err, ErrTruncated) {
			t.Errorf("with %d of %d bytes: %v", n, len(whole), err)
		}
	}
}

func TestLoadDirectory(t *testing.T) {
	if _, err := Load("testdata/nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	if _, err := Load("testdata/job.c"); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("a file: %v", err)
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, ErrNoImages) {
		t.Errorf("an empty directory: %v", err)
	}
	c, err := Load("testdata/plain")
	var arch *ArchError
	if runtime.GOARCH == "amd64" && err != nil {
		t.Error(err)
	} else if runtime.GOARCH != "amd64" && !errors.As(err, &arch) {
		t.Errorf("loaded %+v on %s: %v", c, runtime.GOARCH, err)
	}
}

func TestOtherMachine(t *testing.T) {
	dir := t.TempDir()
	for name, f := range golden(t, "plain") {
		if strings.HasPrefix(name, "core-") {
			var e core.CoreEntry
			if err := proto.Unmarshal(f.Data[12:], &e); err != nil {
				t.Fatal(err)
			}
			e.Mtype = core.CoreEntry_S390.Enum()
			f = encode(t, magicCore, &e)
		}
		if err := os.WriteFile(filepath.Join(dir, name), f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Load(dir)
	var arch *ArchError
	if !errors.As(err, &arch) || arch.Arch != "s390x" || !strings.Contains(err.Error(), runtime.GOARCH) {
		t.Errorf("loaded a checkpoint of another machine: %v", err)
	}
}

// TestShellJob: a leader outside of the tree is what --shell-job is for.
func TestShellJob(t *testing.T) {
	m := golden(t, "plain")
	var tasks []proto.Message
	err := each(m, "pstree.img", magicPstree, func(p *pstree.PstreeEntry) error {
		p.Sid = proto.Uint32(1)
		tasks = append(tasks, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m["pstree.img"] = encode(t, magicPstree, tasks...)
	c, err := LoadFS(m, "")
	if err != nil || !c.ShellJob {
		t.Errorf("shell job %v, %v", c != nil && c.ShellJob, err)
	}
}
