package criu

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"
)

func TestConfigLines(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // "" is an error
	}{
		{nil, "\x00"},
		{[]string{"--tcp-established"}, "tcp-established\n"},
		{[]string{"--external", "mnt[a b]:/x", "-l"}, "external \"mnt[a b]:/x\"\nfile-locks\n"},
		{[]string{"--external=mnt[]", "--ext-unix-sk"}, "external \"mnt[]\"\next-unix-sk\n"},
		{[]string{"-Jnet:/x"}, "join-ns \"net:/x\"\n"},
		{[]string{"--images-dir", "/x"}, ""},
		{[]string{"--root=/"}, ""},
		{[]string{"--action-script", "/x"}, ""},
		{[]string{"--libdir", "/x"}, ""},
		{[]string{"file-locks"}, ""},
		{[]string{"-D", "/x"}, ""},
		{[]string{"-v4"}, ""},
		{[]string{"--"}, ""},
		{[]string{"--external", "a\nroot /"}, ""},
		{[]string{"--external", "a\" root"}, ""},
		{[]string{"--lsm-profile\nroot=x"}, ""},
		{[]string{"--a b"}, ""},
	} {
		got, err := ConfigLines(c.args)
		if c.want == "\x00" {
			c.want = ""
			if err != nil {
				t.Errorf("%q: %v", c.args, err)
			}
		} else if (err != nil) != (c.want == "") {
			t.Errorf("%q: %q, %v", c.args, got, err)
		}
		if err == nil && got != c.want {
			t.Errorf("%q: %q, want %q", c.args, got, c.want)
		}
	}
}

func TestDumpConfigLines(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // "" is an error
	}{
		{[]string{"--tcp-established", "-l"}, "tcp-established\nfile-locks\n"},
		{[]string{"--ghost-limit", "10M"}, "ghost-limit \"10M\"\n"},
		{[]string{"--images-dir", "/x"}, ""},
		{[]string{"--tree", "7"}, ""},
		{[]string{"-t", "7"}, ""},
		{[]string{"--leave-running"}, ""},
		{[]string{"--prev-images-dir", "../1"}, ""},
		{[]string{"--page-server"}, ""},
		{[]string{"--action-script", "/x"}, ""},
	} {
		got, err := DumpConfigLines(c.args)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%q: %q, %v, want %q", c.args, got, err, c.want)
		}
	}
}

// TestDumpLog: what CRIU 4.1.1 says of a dump that fails.
func TestDumpLog(t *testing.T) {
	for msg, want := range map[string]string{
		"Some file locks are hold by dumping tasks!You can try --file-locks to dump them.": "-- --file-locks",
		"Connected TCP socket, consider using --tcp-established option.":                   "--tcp-close",
		"Can't dump ghost file /srv/x (deleted) of 2097152 size, increase limit":           "--ghost-limit",
		"Can't create link remap for /srv/x. Use link-remap option.":                       "--link-remap",
		"A session leader of 77(77) is outside of its pid namespace":                       "--shell-job",
		"fsnotify: Can't dump that handle":                                                 "--irmap-scan-path",
		"Can't write img: No space left on device":                                         "make room",
		"Can't dump nested pid namespace for 77":                                           "runtime",
		"External socket is used. Consider using --ext-unix-sk option.":                    "--ext-unix-sk",
	} {
		if s := DumpSummary([]string{msg, "Dumping FAILED."}); !strings.Contains(s, msg[:20]) || !strings.Contains(s, want) {
			t.Errorf("%q means %q, want something about %q", msg, s, want)
		}
	}
}

// TestOrigin: what migratefs dump writes beside the images, as somebody may have made it.
func TestOrigin(t *testing.T) {
	b, err := Origin{Host: "b", Root: "/run/migratefs/restore-1/root"}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	for text, good := range map[string]bool{
		string(b):                          true,
		"":                                 false,
		"[]":                               false,
		`{"version":2,"root":"/x"}`:        false,
		`{"version":1}`:                    false,
		`{"version":1,"root":"x"}`:         false,
		`{"version":1,"root":"/x/../y"}`:   false,
		`{"version":1,"root":"/x\u0000y"}`: false,
		`{"version":1,"root":"/x","host":"` + strings.Repeat("y", 1<<17) + `"}`: false,
	} {
		images := fstest.MapFS{}
		if err := fs.WalkDir(golden(t, "plain"), ".", func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				data, err := fs.ReadFile(golden(t, "plain"), name)
				images[name] = &fstest.MapFile{Data: data}
				return err
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if c, err := LoadFS(images, "x"); err != nil || c.Origin.Root != "" {
			t.Fatalf("without one: %+v, %v", c, err)
		}
		images[OriginFile] = &fstest.MapFile{Data: []byte(text)}
		c, err := LoadFS(images, "x")
		var ie *ImageError
		switch {
		case !good && (!errors.As(err, &ie) || ie.File != OriginFile):
			t.Errorf("%.40q: %v", text, err)
		case good && (err != nil || c.Origin != Origin{Version: 1, Host: "b", Root: "/run/migratefs/restore-1/root"}):
			t.Errorf("%.40q: %+v, %v", text, c, err)
		}
	}
}

// TestLog takes lines as CRIU 4.1.1 writes them.
func TestLog(t *testing.T) {
	log := `(00.000000) Unable to get $HOME directory, local configuration file will not be used.
(00.004321) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.012345)   4321: Error (criu/files-reg.c:2263): File srv/job/log has bad size 5 (expect 7)
(00.012346)   4321: Error (criu/mem.c:1480): ` + "`- Can't open vma" + `
(00.020000) Error (criu/cr-restore.c:2557): Restoring FAILED.
`
	errs := LogErrors(strings.NewReader(log))
	if len(errs) != 3 || errs[0] != "File srv/job/log has bad size 5 (expect 7)" || errs[2] != "Restoring FAILED." {
		t.Errorf("errors %q", errs)
	}
	if s := Summary(errs); !strings.Contains(s, "has bad size 5") || !strings.Contains(s, "dump again") || strings.Contains(s, "\n") {
		t.Errorf("summary %q", s)
	}
	if s := Summary(nil); s == "" {
		t.Error("an empty log has no summary")
	}
	for msg, want := range map[string]string{
		"Can't fork for 4321: File exists":                                         "taken",
		"Can't open file srv/x on restore: No such file or directory":              "missing",
		"FPU feature required by image is not supported on host":                   "processor",
		"Found dangling tty with sid 5 pgid 5. Consider using --shell-job option.": "setsid",
		"nothing that is known":                                                    "",
	} {
		if got := Explain([]string{"Restoring FAILED.", msg}); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q means %q, want something about %q", msg, got, want)
		}
	}
}

func TestCheckPages(t *testing.T) {
	entry := func(nr uint32, flags uint32) *pagemap.PagemapEntry {
		return &pagemap.PagemapEntry{Vaddr: proto.Uint64(0x1000), CompatNrPages: proto.Uint32(nr), Flags: proto.Uint32(flags)}
	}
	long := entry(0, pagePresent)
	long.NrPages = proto.Uint64(2)
	old := &pagemap.PagemapEntry{Vaddr: proto.Uint64(0x1000), CompatNrPages: proto.Uint32(1)}
	huge := entry(0, pagePresent)
	huge.NrPages = proto.Uint64(1 << 62)
	for _, c := range []struct {
		name  string
		map_  []proto.Message
		pages int // bytes; -1: no image
		ok    bool
	}{
		{"whole", []proto.Message{entry(2, pagePresent), entry(7, 1), entry(1, pagePresent|2)}, 3 * 4096, true},
		{"a byte less", []proto.Message{entry(2, pagePresent), entry(1, pagePresent)}, 3*4096 - 1, false},
		{"in the parent", []proto.Message{entry(2, 1)}, 0, true},
		{"none, no image", nil, -1, true},
		{"no image", []proto.Message{entry(1, pagePresent)}, -1, false},
		{"64-bit count", []proto.Message{long}, 2 * 4096, true},
		{"64-bit count, less", []proto.Message{long}, 4096, false},
		{"without flags", []proto.Message{old}, 4096, true},
		{"without flags, less", []proto.Message{old}, 4095, false},
		{"overflow", []proto.Message{huge, huge, huge}, 4096, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := fstest.MapFS{"pagemap-77.img": encode(t, magicPagemap, append([]proto.Message{&pagemap.PagemapHead{PagesId: proto.Uint32(3)}}, c.map_...)...)}
			if c.pages >= 0 {
				m["pages-3.img"] = &fstest.MapFile{Data: make([]byte, c.pages)}
			}
			err := checkPages(m, 4096)
			var ie *ImageError
			if c.ok && err != nil || !c.ok && !errors.As(err, &ie) {
				t.Error(err)
			}
		})
	}
	if err := checkPages(golden(t, "plain"), 4096); err == nil {
		t.Error("took images without their pages for whole ones")
	}
}

// fakeCriu is a program that behaves as the shell lines say.
func fakeCriu(t *testing.T, lines string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+lines+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBrokenWorker: whatever stands in for CRIU, there is an error and no wait.
func TestBrokenWorker(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, lines := range []string{"exit 1", "echo nonsense >&3", "printf '\\010\\012\\020\\000' >&3"} {
		w, err := StartWorker(fakeCriu(t, lines), nil, null, null, false)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := w.Version(); err == nil {
			t.Errorf("%q is version %q", lines, v)
		}
		if _, err := w.Restore(RestoreRequest{Images: null, Work: null, Log: "log"}); err == nil {
			t.Errorf("%q restores", lines)
		}
		_ = w.Close()
		_, _ = w.proc.Wait()
	}
	if _, err := StartWorker("/no/criu", nil, null, null, false); err == nil {
		t.Error("started what is not there")
	}
}

func TestWorkerEnvironment(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CRIU_LIBS_DIR", "/theirs")
	worker, err := StartWorker(fakeCriu(t, `echo "$1 $CRIU_LIBS_DIR"`), []string{"CRIU_LIBS_DIR=/ours"}, null, w, false)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	b, err := io.ReadAll(r)
	if err != nil || string(b) != "swrk /ours\n" {
		t.Errorf("criu was started with %q, %v", b, err)
	}
	_ = worker.Close()
	_, _ = worker.proc.Wait()
}

func TestFind(t *testing.T) {
	path := fakeCriu(t, "exit 0")
	if got, err := Find(path); err != nil || got != path {
		t.Errorf("%q, %v", got, err)
	}
	t.Chdir(filepath.Dir(path))
	if got, err := Find("./criu"); err != nil || !filepath.IsAbs(got) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Find("/no/criu"); err == nil || !strings.Contains(err.Error(), "/no/criu") {
		t.Errorf("found what is not there: %v", err)
	}
	t.Setenv("PATH", filepath.Dir(path))
	if got, err := Find(""); err != nil || got != path {
		t.Errorf("%q, %v", got, err)
	}
}
