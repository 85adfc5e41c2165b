package criu

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	skinet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	skopts "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-opts"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const kindsDir = "/tmp/migratefs-golden/kinds.d/"

// TestKinds compares what Load makes of real images with what testdata/kinds.c did.
func TestKinds(t *testing.T) {
	c, err := LoadFS(golden(t, "kinds"), "kinds")
	if err != nil {
		t.Fatal(err)
	}
	pid := c.Tasks[0].PID
	for _, want := range []struct {
		path    string
		place   Place
		mode    uint32
		size    int64 // -1: not recorded
		deleted bool
		tty     string
		kind    RefKind
	}{
		{kindsDir + "posix-lock", OnDisk, unix.S_IFREG | 0o644, 8192, false, "", Mapping},
		{kindsDir + "flock", OnDisk, unix.S_IFREG | 0o644, 10, false, "", Descriptor},
		{kindsDir + "linked", OnHost, unix.S_IFREG | 0o644, 100, true, "", Descriptor},
		{kindsDir + "mapped-deleted", InImages, unix.S_IFREG | 0o644, 4096, true, "", Mapping},
		{kindsDir + "deleted-dir", InImages, unix.S_IFDIR | 0o700, -1, true, "", Descriptor},
		{kindsDir + "gone-socket", OnHost, unix.S_IFSOCK | 0o755, -1, true, "", Bound},
		{kindsDir + "outside", OnHost, unix.S_IFSOCK, -1, false, "", Other},
		{kindsDir + "held-dir", OnDisk, unix.S_IFDIR | 0o711, -1, false, "", Descriptor},
		{kindsDir + "own-zero", OnHost, unix.S_IFCHR | 0o600, -1, false, "", Descriptor},
		{kindsDir + "changed-privately", OnDisk, unix.S_IFREG | 0o644, 12288, false, "", Mapping},
		{kindsDir + "watched-file", OnDisk, 0, -1, false, "", Watch},
		{kindsDir + "marked-file", OnDisk, 0, -1, false, "", Watch},
		{kindsDir + "child-root", OnDisk, unix.S_IFDIR | 0o755, -1, false, "", RootDir},
		{"/dev/ptmx", OnHost, unix.S_IFCHR | 0o666, -1, false, "pty", Descriptor},
		{"/", OnDisk, unix.S_IFDIR, -1, false, "", Watch},
	} {
		f := find(t, c, want.path, want.place)
		if want.mode != 0 && f.Mode&^0o7777 != want.mode&^0o7777 || want.mode&0o7777 != 0 && f.Mode != want.mode {
			t.Errorf("%q: mode %#o, want %#o", f.Path, f.Mode, want.mode)
		}
		if known := want.size >= 0 && want.mode&unix.S_IFMT == unix.S_IFREG; known && (!f.SizeKnown || f.Size != want.size) {
			t.Errorf("%q: size %d (known: %v), want %d", f.Path, f.Size, f.SizeKnown, want.size)
		}
		if f.Deleted != want.deleted || f.TTY != want.tty {
			t.Errorf("%q: deleted %v, terminal %q", f.Path, f.Deleted, f.TTY)
		}
		if !slices.ContainsFunc(f.Refs, func(r Ref) bool { return r.Kind == want.kind }) {
			t.Errorf("%q: references %+v, none of them a %v", f.Path, f.Refs, want.kind)
		}
	}
	if len(c.Tasks) != 2 || len(c.Tasks[0].Threads) != 2 || c.Tasks[1].SID != c.Tasks[1].PID {
		t.Errorf("tasks %+v", c.Tasks)
	}
	checkKindsLinks(t, c)
	checkKindsMemory(t, c, pid)
	checkKindsLocks(t, c, pid)
	if got := fmt.Sprint(levels(c.Obstacles)); got != "[blocker device blocker socket caution lock caution pipe]" {
		t.Errorf("obstacles %s: %v", got, c.Obstacles)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings %q", c.Warnings)
	}
}

// levels are obstacles as words, in order.
func levels(list []Obstacle) (out []string) {
	for _, o := range list {
		out = append(out, o.Level.String()+" "+o.What)
	}
	slices.Sort(out)
	return out
}

func checkKindsLinks(t *testing.T, c *Checkpoint) {
	t.Helper()
	linked := find(t, c, kindsDir+"linked", OnHost)
	if !strings.HasPrefix(linked.Remap, kindsDir+"link_remap.") {
		t.Fatalf("its other name is %q", linked.Remap)
	}
	other := find(t, c, linked.Remap, OnDisk)
	if !other.SizeKnown || other.Size != 100 || other.Mode != unix.S_IFREG|0o644 || len(other.Refs) == 0 {
		t.Errorf("%+v", other)
	}
	seeded := map[string]bool{}
	s := c.Seed()
	for _, e := range s.Entries {
		seeded["/"+string(e.Path)] = true
	}
	if seeded[linked.Path] || !seeded[linked.Remap] || seeded[kindsDir+"own-zero"] || !seeded[kindsDir+"held-dir"] {
		t.Errorf("seed: %v", seeded)
	}
	if !slices.ContainsFunc(c.Files, func(f File) bool { return strings.HasPrefix(f.Path, "/proc/") && f.Deleted && f.Place == OnHost }) {
		t.Error("no file of a process that had ended")
	}
}

func checkKindsMemory(t *testing.T, c *Checkpoint, pid uint32) {
	t.Helper()
	f := find(t, c, kindsDir+"changed-privately", OnDisk)
	for _, r := range f.Refs {
		if r.Kind == Mapping && r.PID == pid && (len(r.Held) != 1 || r.Held[0] != Range{4096, 4096} || r.Prot != unix.PROT_READ|unix.PROT_WRITE) {
			t.Errorf("mapping %+v: only the page that was changed is in the images", r)
		}
	}
	if got := f.Mapped(false); !slices.Equal(got, []Range{{0, 4096}, {8192, 4096}}) {
		t.Errorf("mapped: %v", got)
	}
	exe := find(t, c, "/tmp/migratefs-golden/kinds", OnDisk)
	next := 0
	for _, r := range exe.Refs {
		for _, off := range r.Next {
			if next++; off%4096 != 0 || off < r.Off || off >= r.Off+r.Len || r.Prot&unix.PROT_EXEC == 0 {
				t.Errorf("a thread goes on at %d in %+v", off, r)
			}
		}
	}
	if next == 0 || len(exe.Mapped(true)) == 0 || len(exe.BuildID) != 20 {
		t.Errorf("executable %+v", exe)
	}
	if c.Memory < 16<<12 || c.Memory > 1<<20 {
		t.Errorf("%d bytes of memory", c.Memory)
	}
}

func checkKindsLocks(t *testing.T, c *Checkpoint, pid uint32) {
	t.Helper()
	var got []string
	for _, k := range c.Locks {
		got = append(got, fmt.Sprintf("%s %s %d+%d", k.Kind, strings.TrimPrefix(k.Path, kindsDir), k.Off, k.Len))
		if k.PID != pid {
			t.Errorf("lock %+v", k)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"flock flock 0+0", "ofd ofd-lock 0+0", "posix posix-lock 100+10"}) {
		t.Errorf("locks %q", got)
	}
	if o := c.Options(); !slices.Equal(o, []string{"file-locks"}) {
		t.Errorf("options %q", o)
	}
}

// TestMounts: a root of its own filesystem, a bind of a part of it, an external
// mount, a tmpfs (testdata/mounts).
func TestMounts(t *testing.T) {
	c, err := LoadFS(golden(t, "mounts"), "mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		path           string
		place          Place
		tree, treePath string
	}{
		{"/bound/in-bind", OnDisk, "/", "/srv/part/in-bind"},
		{"/external/outside", OnDisk, "data", "/outside"},
		{"/srv/kinds.d/plain", OnDisk, "/", "/srv/kinds.d/plain"},
		{"/tmpfs/in-memory", InImages, "", ""},
	} {
		f := find(t, c, want.path, want.place)
		if f.Tree != want.tree || f.TreePath != want.treePath || f.HostPath != "" {
			t.Errorf("%q lies in %q at %q, on the host at %q", f.Path, f.Tree, f.TreePath, f.HostPath)
		}
	}
	var seeded []string
	for _, e := range c.Seed().Entries {
		seeded = append(seeded, string(e.Path))
	}
	if !slices.Contains(seeded, "srv/part/in-bind") || slices.Contains(seeded, "bound/in-bind") || slices.Contains(seeded, "external/outside") {
		t.Errorf("seed %q", seeded)
	}
	if got := fmt.Sprint(levels(c.Obstacles)); got != "[blocker mount blocker mount]" || c.Obstacles[0].Path != "/" || c.Obstacles[1].Path != "/external" {
		t.Errorf("obstacles %v", c.Obstacles)
	}
	if err := c.MapTree("/nowhere", "/x"); err == nil || !strings.Contains(err.Error(), `"data"`) {
		t.Errorf("a mount that is not there: %v", err)
	}
	if err := c.MapTree("data", "/a/../b"); err == nil {
		t.Error("took a path that is not clean")
	}
	for key, dir := range map[string]string{"/external": "/exports/data", "/": "/var/lib/rootfs"} {
		if err := c.MapTree(key, dir); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.Obstacles) != 0 {
		t.Errorf("obstacles %v", c.Obstacles)
	}
	if a, b := find(t, c, "/external/outside", OnDisk).HostPath, find(t, c, "/bound/in-bind", OnDisk).HostPath; a != "/exports/data/outside" || b != "/var/lib/rootfs/srv/part/in-bind" {
		t.Errorf("on the host at %q and %q", a, b)
	}
	// From then on all is found from the root of that host on.
	seeded = nil
	for _, e := range c.Seed().Entries {
		seeded = append(seeded, string(e.Path))
	}
	for _, want := range []string{"exports/data/outside", "var/lib/rootfs/srv/part/in-bind", "var/lib/rootfs/srv/kinds.d/plain"} {
		if !slices.Contains(seeded, want) {
			t.Errorf("%q is not in the seed %q", want, seeded)
		}
	}
}

// TestGivenMounts: an external mount that the caller gives is not looked for on the source.
func TestGivenMounts(t *testing.T) {
	for _, args := range [][]string{{"--external", "mnt[data]:/here"}, {"-v", "--external=mnt[data]:/here"}, {"--external", "mnt[other]:/here"}, {"--external", "mnt[data]"}} {
		c, err := LoadFS(golden(t, "mounts"), "mounts")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.MapTree("/", "/var/lib/rootfs"); err != nil {
			t.Fatal(err)
		}
		c.GiveTrees(args)
		want := 0
		if !strings.Contains(strings.Join(args, " "), "mnt[data]:") {
			want = 1
		}
		if len(c.Obstacles) != want {
			t.Errorf("%q: obstacles %v", args, c.Obstacles)
		}
	}
}

// TestByRuntime: what a container's runtime dumped is not for criu restore alone.
func TestByRuntime(t *testing.T) {
	m := golden(t, "mounts")
	m[runtimeFile] = &fstest.MapFile{Data: []byte("[]")}
	c, err := LoadFS(m, "mounts")
	if err != nil || !c.ByRuntime {
		t.Fatalf("by a runtime: %v, %v", c.ByRuntime, err)
	}
	if got := fmt.Sprint(levels(c.Obstacles)); got != "[blocker mount]" {
		t.Errorf("obstacles %v", c.Obstacles)
	}
}

// TestMountpoints: what was mounted on this host's own directories needs them here.
func TestMountpoints(t *testing.T) {
	c := &Checkpoint{MountNS: true, rootMount: 1, Trees: []Tree{{Key: "/", HostDir: "/", root: true}}, Mounts: []Mount{
		{ID: 1, Point: "/"}, {ID: 2, Parent: 1, Point: "/run/no/such/directory"}, {ID: 3, Parent: 2, Point: "/run/no/such/directory/below"},
		{ID: 4, Parent: 1, Point: "/proc"}, {ID: 5, Parent: 1, Point: "/no/such/directory"},
	}}
	got := c.checkMountpoints()
	if len(got) != 1 || got[0].Path != "/run/no/such/directory" || got[0].Level != Blocker {
		t.Errorf("obstacles %v", got)
	}
	c.Trees[0].HostDir = "/srv/root"
	if got := c.checkMountpoints(); len(got) != 0 {
		t.Errorf("with another root: obstacles %v", got)
	}
}

// with returns the golden plain images with one more descriptor.
func with(t *testing.T, entries ...*fdinfo.FileEntry) fstest.MapFS {
	t.Helper()
	m := golden(t, "plain")
	for _, e := range entries {
		m["files.img"].Data = append(bytes.Clone(m["files.img"].Data), encode(t, magicFiles, e).Data[8:]...)
	}
	return m
}

func pipeEnd(id, flags uint32) *fdinfo.FileEntry {
	n := proto.Uint32
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_PIPE.Enum(), Id: n(id), Pipe: &pipe.PipeEntry{Id: n(id), PipeId: n(77), Flags: n(flags), Fown: noOwner()}}
}

func noOwner() *fown.FownEntry {
	return &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
}

func tcp(state uint32, src uint32) *fdinfo.FileEntry {
	n, opts := proto.Uint32, &skopts.SkOptsEntry{SoSndbuf: proto.Uint32(1), SoRcvbuf: proto.Uint32(1), SoSndTmoSec: proto.Uint64(0), SoSndTmoUsec: proto.Uint64(0), SoRcvTmoSec: proto.Uint64(0), SoRcvTmoUsec: proto.Uint64(0)}
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_INETSK.Enum(), Id: n(2000), Isk: &skinet.InetSkEntry{
		Id: n(2000), Ino: n(1), Family: n(unix.AF_INET), Type: n(unix.SOCK_STREAM), Proto: n(6), State: n(state), SrcPort: n(80), DstPort: n(81),
		Flags: n(0), Backlog: n(0), SrcAddr: []uint32{src}, DstAddr: []uint32{0x0200000a}, Fown: noOwner(), Opts: opts,
	}}
}

// TestObstacles: each is found by itself, and says what and what to do.
func TestObstacles(t *testing.T) {
	n := proto.Uint32
	watch := &fdinfo.FileEntry{Type: fdinfo.FdTypes_INOTIFY.Enum(), Id: n(2000), Ify: &fsnotify.InotifyFileEntry{
		Id: n(2000), Flags: n(0), Fown: noOwner(),
		Wd: []*fsnotify.InotifyWdEntry{{Id: n(2000), IIno: proto.Uint64(7), Mask: n(1), IgnoredMask: n(0), SDev: n(1), Wd: n(1), FHandle: &fh.FhEntry{Bytes: n(8), Type: n(1)}}},
	}}
	given := reg("file[8c:986071]")
	given.Reg.Ext = proto.Bool(true)
	log, err := os.ReadFile("testdata/left-running.log")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		images fstest.MapFS
		change func(m fstest.MapFS)
		want   string
		says   string
		lifted string // by this option
	}{
		{"nothing", with(t), nil, "[]", "", ""},
		{"watch by handle", with(t, watch), nil, "[blocker watch]", "--force-irmap", ""},
		{"connection", with(t, tcp(1, 0x0100000a)), nil, "[blocker connection]", "10.0.0.1:80 to 10.0.0.2:81", "--tcp-close"},
		{"listener", with(t, tcp(10, 0x0100000a)), nil, "[]", "", ""},
		{"given descriptor", with(t, given), nil, "[blocker descriptor]", "cannot be handed to CRIU", ""},
		{"half a pipe", with(t, pipeEnd(2000, unix.O_WRONLY)), nil, "[caution pipe]", "SIGPIPE", ""},
		{"the other half", with(t, pipeEnd(2000, unix.O_RDONLY)), nil, "[caution pipe]", "end", ""},
		{"a pipe", with(t, pipeEnd(2000, unix.O_WRONLY), pipeEnd(2001, unix.O_RDONLY)), nil, "[]", "", ""},
		{"a pipe opened anew", with(t, pipeEnd(2000, unix.O_RDWR)), nil, "[]", "", ""},
		{"left running", with(t), func(m fstest.MapFS) { m["dump.log"] = &fstest.MapFile{Data: log} }, "[caution two copies]", "--leave-running", ""},
		{"stopped", with(t), func(m fstest.MapFS) {
			m["dump.log"] = &fstest.MapFile{Data: bytes.ReplaceAll(log, []byte("into 1"), []byte("into 3"))}
		}, "[]", "", ""},
		{"no ghost", with(t), func(m fstest.MapFS) { delete(m, "ghost-file-1.img") }, "[blocker deleted file]", "missing", ""},
		{"short ghost", with(t), func(m fstest.MapFS) {
			m["ghost-file-1.img"].Data = m["ghost-file-1.img"].Data[:len(m["ghost-file-1.img"].Data)-1]
		}, "[blocker deleted file]", "ends early", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.change != nil {
				c.change(c.images)
			}
			cp, err := LoadFS(c.images, "images")
			if err != nil {
				t.Fatal(err)
			}
			// The process of the golden images had an end of its dumper's pipe.
			cp.Obstacles = slices.DeleteFunc(cp.Obstacles, func(o Obstacle) bool { return o.What == "pipe" && o.PID != 0 })
			if got := fmt.Sprint(levels(cp.Obstacles)); got != c.want {
				t.Fatalf("obstacles %v", cp.Obstacles)
			}
			if len(cp.Obstacles) == 0 {
				return
			}
			o := cp.Obstacles[0]
			if !strings.Contains(o.String(), c.says) {
				t.Errorf("%q does not say %q", o.String(), c.says)
			}
			if c.lifted != "" && (!o.Lifted([]string{"--x", c.lifted}) || o.Lifted([]string{"--x"})) {
				t.Errorf("%v is lifted by others than %s", o, c.lifted)
			}
		})
	}
}

// TestAddresses: a listener on an address that this host does not have.
func TestAddresses(t *testing.T) {
	c, err := LoadFS(with(t, tcp(10, 0x010200c0)), "images") // 192.0.2.1, of no host
	if err != nil {
		t.Fatal(err)
	}
	found := slices.ContainsFunc(c.CheckHost(nil), func(o Obstacle) bool {
		return o.What == "address" && strings.Contains(o.Why, "192.0.2.1")
	})
	if !found {
		t.Errorf("obstacles %v", c.CheckHost(nil))
	}
}

// TestBindable: an address that no interface has may be this host's all the same.
func TestBindable(t *testing.T) {
	c := Checkpoint{addresses: []netip.Addr{netip.MustParseAddr("127.7.7.7"), netip.MustParseAddr("fe80::7"), netip.MustParseAddr("224.0.0.7")}}
	if got := c.checkAddresses(); len(got) != 0 {
		t.Errorf("obstacles %v", got)
	}
	c.addresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.1")}
	if got := c.checkAddresses(); len(got) != 1 {
		t.Errorf("obstacles %v, want one", got)
	}
}

// TestInTheWay: what CRIU's options, its configuration and --bind lift.
func TestInTheWay(t *testing.T) {
	conf := t.TempDir() + "/criu.conf"
	t.Setenv("CRIU_CONFIG_FILE", conf)
	dir := t.TempDir()
	c := Checkpoint{Obstacles: []Obstacle{
		{Level: Blocker, What: "socket", Options: []string{"ext-unix-sk"}},
		{Level: Blocker, What: "device", Path: dir + "/null", stranded: true},
	}}
	for _, x := range []struct {
		conf  string
		binds []string
		args  []string
		want  int
	}{
		{"", nil, nil, 2},
		{"", nil, []string{"-x"}, 1},
		{"", nil, []string{"--ext-unix-sk"}, 1},
		{"", nil, []string{"--external", "ext-unix-sk"}, 2},
		{"# ext-unix-sk\n", nil, nil, 2},
		{"tcp-close\next-unix-sk # as ever\n", nil, nil, 1},
		{"", []string{dir}, nil, 1},
		{"", []string{dir + "/nul"}, nil, 2},
	} {
		if err := os.WriteFile(conf, []byte(x.conf), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := c.InTheWay(x.binds, x.args); len(got) != x.want {
			t.Errorf("configured %q, bound %q, with %q: %v, want %d", x.conf, x.binds, x.args, got, x.want)
		}
	}
}

// TestZombieThreads: of a zombie CRIU writes thread numbers that it never set.
func TestZombieThreads(t *testing.T) {
	images := golden(t, "plain")
	c, err := LoadFS(images, "plain")
	if err != nil {
		t.Fatal(err)
	}
	child := c.Tasks[1].PID
	var tree []proto.Message
	if err := each(images, "pstree.img", magicPstree, func(p *pstree.PstreeEntry) error {
		e := proto.CloneOf(p)
		if e.GetPid() == child {
			e.Threads = []uint32{1610795696}
		}
		tree = append(tree, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	images["pstree.img"] = encode(t, magicPstree, tree...)
	name := fmt.Sprintf("core-%d.img", child)
	var e core.CoreEntry
	if err := one(images, name, magicCore, &e); err != nil {
		t.Fatal(err)
	}
	for state, want := range map[uint32]int{1: 1, taskDead: 0} {
		e.Tc.TaskState = proto.Uint32(state)
		images[name] = encode(t, magicCore, &e)
		c, err := LoadFS(images, "plain")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, o := range c.Obstacles {
			if o.What == "thread" {
				n++
			}
		}
		if n != want || len(c.Tasks[1].Threads) != want {
			t.Errorf("a task in state %d has %d threads, of which %d are missing, want %d", state, len(c.Tasks[1].Threads), n, want)
		}
	}
}

// TestProcessor: registers in use that a processor does not have.
func TestProcessor(t *testing.T) {
	const old = "processor\t: 0\nflags\t\t: fpu sse2 avx\nbugs\t: none\n"
	for state, want := range map[uint64]string{0: "[]", 7: "[]", 7 | 1<<6: "[AVX-512]", 1<<17 | 1<<9: "[protection key AMX]"} {
		c := Checkpoint{xstate: state}
		var names []string
		for _, o := range c.checkProcessor(old) {
			_, name, _ := strings.Cut(o.Why, "something in ")
			name, _, _ = strings.Cut(name, " registers")
			names = append(names, name)
		}
		if fmt.Sprint(names) != want {
			t.Errorf("state %#x: %q, want %s", state, names, want)
		}
	}
	if c, err := LoadFS(golden(t, "plain"), ""); err != nil || c.xstate == 0 {
		t.Errorf("no registers in use: %v", err)
	}
}

// TestManyMounts: what a hostile image lists is compared with each other, but not
// without end.
func TestManyMounts(t *testing.T) {
	m := golden(t, "mounts")
	var name string
	for n := range m {
		if strings.HasPrefix(n, "mountpoints-") {
			name = n
		}
	}
	n := proto.Uint32
	list := func(count int) *fstest.MapFile {
		var all []proto.Message
		for i := range count {
			all = append(all, &mnt.MntEntry{
				Fstype: n(0), MntId: n(uint32(i)), RootDev: n(1), ParentMntId: n(1 << 20), Flags: n(0), Root: proto.String("/a"),
				Mountpoint: proto.String(fmt.Sprintf("/m%d", i)), Source: proto.String("x"), Options: proto.String(""), ExtKey: proto.String(fmt.Sprint(i % 2)),
			})
		}
		return encode(t, magicMnts, all...)
	}
	most := list(maxMounts)
	m[name] = most
	if _, err := LoadFS(m, ""); err != nil {
		t.Errorf("%d mounts: %v", maxMounts, err)
	}
	m[name] = &fstest.MapFile{Data: append(bytes.Clone(most.Data), list(1).Data[8:]...)}
	if _, err := LoadFS(m, ""); err == nil || !strings.Contains(err.Error(), "mounts") {
		t.Errorf("%d mounts: %v", maxMounts+1, err)
	}
}

// TestCheckHost: what is taken from this host has to be here.
func TestCheckHost(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/there", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/longer", []byte("xyz"), 0o644); err != nil {
		t.Fatal(err)
	}
	named := func(id uint32, path string) *fdinfo.FileEntry {
		e := reg(path)
		e.Id, e.Reg.Id = proto.Uint32(id), proto.Uint32(id)
		return e
	}
	c, err := LoadFS(with(t, named(2001, dir+"/there"), named(2002, dir+"/longer"), named(2003, dir+"/gone"), named(2004, "/dev/shm/migratefs-none")), "images")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, o := range c.CheckHost([]string{dir}) {
		got[o.Path] = o.Why
	}
	if len(got) != 3 || !strings.Contains(got[dir+"/longer"], "3 bytes and not 1") || got[dir+"/gone"] == "" || got["/dev/shm/migratefs-none"] == "" {
		t.Errorf("obstacles %q", got)
	}
}

// TestRemapCircle: names that lead back to where they came from.
func TestRemapCircle(t *testing.T) {
	named := func(id uint32, path string) *fdinfo.FileEntry {
		e := reg(path)
		e.Id, e.Reg.Id = proto.Uint32(id), proto.Uint32(id)
		return e
	}
	link := func(from, to uint32) *remap.RemapFilePathEntry {
		return &remap.RemapFilePathEntry{OrigId: proto.Uint32(from), RemapId: proto.Uint32(to), RemapType: remap.RemapType_LINKED.Enum()}
	}
	for name, links := range map[string][]proto.Message{
		"itself":  {link(3001, 3001)},
		"two":     {link(3001, 3002), link(3002, 3001)},
		"three":   {link(3001, 3002), link(3002, 3003), link(3003, 3001)},
		"chain":   {link(3002, 3003), link(3001, 3002)},
		"unknown": {link(3001, 4000)},
	} {
		m := with(t, named(3001, "/a"), named(3002, "/b"), named(3003, "/c"))
		m["remap-fpath.img"] = encode(t, magicRemapFpath, links...)
		if _, err := LoadFS(m, "images"); err == nil || !strings.Contains(err.Error(), "remap-fpath.img") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
