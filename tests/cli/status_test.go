package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// deviceOf is the device number of what is mounted on path.
func deviceOf(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("stat", "-c", "%Hd-%Ld", path).Output()
	must(t, err)
	return strings.TrimSpace(string(out))
}

// TestStatus: a mount is found by itself, tells how it is, takes what can be changed,
// and leaves nothing; what is dead says so.
func TestStatus(t *testing.T) {
	testbed.NeedRoot(t)
	testbed.NeedFUSE(t)
	s := newSite(t)
	point := filepath.Join(s.dir, "mount\npoint")
	must(t, os.Mkdir(point, 0o755))
	m := testbed.Mount(t, "mode=overlay,lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), point)
	socket := "/run/migratefs/control/" + deviceOf(t, point) + ".sock"
	var st unix.Stat_t
	if err := unix.Lstat(socket, &st); err != nil || st.Mode != unix.S_IFSOCK|0o600 {
		t.Errorf("the socket: mode %o, %v", st.Mode, err)
	}
	must(t, os.WriteFile(m.Path("file"), []byte("changed"), 0o644))
	for range 3 {
		if names, err := os.ReadDir(point); err != nil || len(names) == 0 {
			t.Errorf("%v, %v", names, err)
		}
	}

	out, _ := tool(t, 0, "status", point)
	contains(t, "status", out, `mount\npoint  overlay`, "upper      "+s.at("upper")+": ", "copied up  1 file", "requests")
	out, _ = tool(t, 0, "status", "--json", point)
	var got struct {
		PID        int
		Mountpoint string
		Mode       string
		Activity   struct {
			CopyUps int `json:"copy_ups"`
		}
	}
	must(t, json.Unmarshal([]byte(out), &got))
	if got.PID != m.Pid() || got.Mode != "overlay" || !strings.HasSuffix(got.Mountpoint, `mount\npoint`) || got.Activity.CopyUps != 1 {
		t.Errorf("%+v", got)
	}
	// Of another mount namespace, whose daemon answers all the same.
	cmd := exec.Command("unshare", "-m", "sh", "-c", `umount -l "$1" && exec "$2" status "$1"`, "sh", point, testbed.Build(t))
	other, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("from another mount namespace: %v", err)
	}
	contains(t, "status in another mount namespace", string(other), `mount\npoint  overlay  (not mounted in this mount namespace`)

	// Of several mounts a line each: there may be others on this machine, in need of somebody.
	second := testbed.Mount(t, "lowerdir="+s.at("lower"), s.at("mnt"))
	list := func(args string) string {
		cmd := exec.Command("sh", "-c", `"$1" status `+args+` || [ $? = 3 ]`, "sh", testbed.Build(t))
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("status %s: %v", args, err)
		}
		return string(out)
	}
	out = list("")
	lines := strings.Split(out, "\n")
	for _, want := range []string{`mount\npoint`, s.at("mnt")} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "mounted ") && strings.HasSuffix(l, want) }) {
			t.Errorf("no line of %s in\n%s", want, out)
		}
	}
	contains(t, "status --verbose", list("-v"), `mount\npoint  overlay`, "upper      "+s.at("upper")+": ", s.at("mnt")+"  read-only")
	second.Unmount()

	out, _ = tool(t, 0, "set", point, "log_level=debug,trace=on")
	contains(t, "set", out, "log_level=debug\n", "trace=on\n", "prefetch=", "fill_rate=off\n")
	must(t, os.WriteFile(m.Path("traced file"), nil, 0o644))
	testbed.Until(t, "the trace", func() bool { return strings.Contains(m.Log(), `msg=create path="/traced file"`) })
	tool(t, 0, "set", point, "trace=off")
	for _, bad := range [][]string{
		{"2", "set", point, "upperdir=/x"}, {"2", "set", point, "log_level=loud"}, {"2", "set"}, {"1", "set", point, "fill_rate=1M"},
		{"1", "set", point, "prefetch=on"}, {"1", "status", s.at("lower")}, {"2", "status", "a", "b"}, {"2", "status", "--interval", "1ms"},
		{"2", "status", "-v", "--json"}, {"2", "status", "-v", "--watch"},
		{"2", "top"}, {"2", "top", "--interval", "1h", point}, {"1", "top", s.at("lower")},
	} {
		_, line := tool(t, int(bad[0][0]-'0'), bad[1:]...)
		contains(t, strings.Join(bad[1:], " "), line, "migratefs: ")
	}

	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	resp, err := c.Get("http://migratefs/metrics")
	must(t, err)
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	resp.Body.Close()
	c.CloseIdleConnections()
	contains(t, "metrics", string(b), "migratefs_copy_up_seconds_count 1\n", `migratefs_request_seconds_count{operation="create"} 1`, `migratefs_layer_up{layer="1",role="lower",kind="local"} 1`, `operation="readdir"`)
	if strings.Contains(string(b), `operation="releasedir"`) {
		t.Error("the kernel tells of each open and close of a directory")
	}
	if strings.Contains(string(b), "mount") && strings.Contains(string(b), s.dir) {
		t.Error("a name is in the metrics")
	}

	m.Unmount()
	var after unix.Stat_t // the kernel may have given the number to another mount by now
	if err := unix.Lstat(socket, &after); err != unix.ENOENT && (err != nil || after.Ino == st.Ino) {
		t.Errorf("the socket after the mount: %v", err)
	}
	m = testbed.Mount(t, "mode=overlay,lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), point)
	m.Kill()
	_, line := tool(t, exitFound, "status", point)
	contains(t, "status of a dead mount", line, "is dead", "migratefs umount")
	m.RemoveDead()
	_, line = tool(t, 1, "status", point)
	contains(t, "status of nothing", line, "is not mounted")
}

// TestTop: who does what with which file is seen while it is looked at.
func TestTop(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	m := testbed.Mount(t, "mode=overlay,passthrough=off,lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("mnt"))
	end := make(chan struct{})
	busy, err := testbed.Start(exec.Command("sh", "-c", `while :; do echo more >> "$1"; done`, "sh", m.Path("file")))
	must(t, err)
	go func() { defer close(end); _ = busy.Wait() }()
	defer func() { busy.KillTree(); <-end }()
	testbed.Until(t, "top to see it", func() bool {
		out, _ := tool(t, 0, "top", "-n", "1", "--interval", "500ms", s.at("mnt"))
		return strings.Contains(out, " sh\n") && strings.Contains(out, "  /file\n")
	})
	out, _ := tool(t, 0, "top", "--json", "-n", "1", "--interval", "100ms", s.at("mnt"))
	var top struct {
		Processes []struct {
			PID     int
			Written int64 `json:"written_bytes"`
		}
	}
	must(t, json.Unmarshal([]byte(out), &top))
	found := false
	for _, p := range top.Processes {
		found = found || p.PID == busy.Pid && p.Written > 0
	}
	if !found {
		t.Errorf("process %d is not in %s", busy.Pid, out)
	}
}

// TestStatusWatch: without a terminal it is lines.
func TestStatusWatch(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	testbed.Mount(t, "lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), s.at("mnt"))
	log := s.at("log")
	f, err := os.Create(log)
	must(t, err)
	defer f.Close()
	cmd := exec.Command(testbed.Build(t), "status", "--watch", "--interval", "100ms", s.at("mnt"))
	cmd.Stdout, cmd.Stderr = f, f
	must(t, cmd.Start())
	testbed.Until(t, "two lines", func() bool {
		b, err := os.ReadFile(log)
		must(t, err)
		return strings.Count(string(b), s.at("mnt")+"  migrate, hosts=many\n") >= 2
	})
	must(t, cmd.Process.Signal(unix.SIGINT))
	must(t, cmd.Wait())
}

// TestTraceOfSource: -d shows what the kernel asks and what a source is asked for it,
// and nothing of what files hold.
func TestTraceOfSource(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	s.startSSHD(t)
	must(t, os.WriteFile(s.at("lower/a b"), []byte("what it holds"), 0o644))
	m := testbed.Mount(t, "prefetch=off,connections=1,lowerdir=source:"+s.at("lower"), s.at("mnt"), testbed.MountConfig{Env: s.env, Args: []string{"-d"}})
	if b, err := os.ReadFile(m.Path("a b")); err != nil || string(b) != "what it holds" {
		t.Fatal(string(b), err)
	}
	path := `"` + s.at("lower/a b") + `"`
	for _, want := range []string{`msg=lookup path="/a b" `, `msg="sftp lstat" source=source:` + s.at("lower") + " channel=1 id=", "path=" + path + " result=ok size=13 ", `msg="sftp read" `, "result=ok got=13 took="} {
		testbed.Until(t, want, func() bool { return strings.Contains(m.Log(), want) })
	}
	tool(t, 0, "set", s.at("mnt"), "trace=off")
	before := strings.Count(m.Log(), `msg="sftp `)
	_, err := os.ReadDir(m.Path("sub"))
	must(t, err)
	if after := strings.Count(m.Log(), `msg="sftp `); strings.Contains(m.Log(), "what it holds") || after != before {
		t.Errorf("content, or %d lines more, in\n%s", after-before, m.Log())
	}
}

// TestStatusWatchTerminal: on a terminal a picture is drawn anew in its place, whatever
// size that has and gets, and names do not command it.
func TestStatusWatchTerminal(t *testing.T) {
	testbed.NeedFUSE(t)
	s := newSite(t)
	point := s.at("to\x1b[2J\x1b[31mred\u202e and a long name to be cut \u6f22\u5b57\u6f22\u5b57 more")
	must(t, os.Mkdir(point, 0o755))
	m := testbed.Mount(t, "lowerdir="+s.at("lower")+",upperdir="+s.at("upper"), point)
	cmd := exec.Command(testbed.Build(t), "status", "--watch", "--interval", "100ms", point)
	cmd.Env = append(os.Environ(), "TERM=xterm")
	term := testbed.StartTerminal(t, cmd, 200, 24)
	// drawn waits until it was drawn a few times more, and then for what must be seen.
	drawn := func(what string, ok func(lines []string) bool) {
		t.Helper()
		before := len(term.Raw())
		testbed.Until(t, "more of "+what, func() bool { return strings.Count(term.Raw()[before:], "\x1b[J") >= 3 })
		var lines []string
		for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			lines = term.Screen()
			if ok(lines) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s shows:\n%s", what, strings.Join(lines, "\n"))
			}
		}
	}
	count := func(lines []string, what string) (n int) {
		for _, l := range lines {
			n += strings.Count(l, what)
		}
		return n
	}
	drawn("a wide terminal", func(l []string) bool {
		return strings.HasPrefix(l[0], s.dir) && strings.HasSuffix(l[0], `to\x1b[2J\x1b[31mred\u202e and a long name to be cut 漢字漢字 more  migrate, hosts=many`) &&
			strings.HasPrefix(l[1], "  daemon ") && count(l, "  daemon ") == 1 && count(l, "  requests ") == 1
	})
	for _, size := range [][2]int{{60, 24}, {31, 20}, {7, 30}, {1, 10}, {120, 24}} {
		term.Resize(size[0], size[1])
		drawn(fmt.Sprint("a terminal of ", size), func(l []string) bool {
			last := 0
			for i := range l {
				if l[i] != "" {
					last = i
				}
			}
			// Each thing has one line, as wide as there is room.
			return l[0] != "" && len(l) == size[1] && last < 9 && (size[0] < 20 || count(l, "  daemon ") == 1 && count(l, "  requests ") == 1)
		})
	}
	term.Resize(80, 5)
	drawn("a terminal of 5 lines", func(l []string) bool {
		return count(l, s.dir) == 1 && count(l, "  daemon ") == 0
	})
	term.Resize(80, 24)
	drawn("a terminal of 24 lines", func(l []string) bool { return count(l, "  daemon ") == 1 })

	term.Type("\x03")
	if err := term.Process.Wait(); err != nil {
		t.Errorf("^C: %v", err)
	}
	testbed.Until(t, "the cursor below the picture", func() bool {
		row, col, visible := term.Cursor()
		l := term.Screen()
		return visible && col == 0 && row > 0 && l[row] == "" && count(l, "  daemon ") == 1 && count(l[row:], "  ") == 0
	})
	if raw := term.Raw(); strings.Contains(raw, "\x1b[31m") || strings.Contains(raw, "\u202e") {
		t.Errorf("a name got through: %q", raw[:min(len(raw), 400)])
	}

	// A terminal that does not say how large it is has lines.
	cmd = exec.Command(testbed.Build(t), "status", "--watch", "--interval", "100ms", point)
	term = testbed.StartTerminal(t, cmd, 0, 0)
	testbed.Until(t, "lines", func() bool { return strings.Count(term.Raw(), "  migrate, hosts=many\r\n") >= 2 })
	term.Process.Signal(unix.SIGTERM)
	if err := term.Process.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	m.Unmount()
}
