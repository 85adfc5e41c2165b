package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/internal/control"
)

// others are messages of programs that we run, of the Go library and of the FUSE one.
const others = `
ssh: connect to host port: Connection refused timed out No route to host Network is unreachable
ssh: Could not resolve hostname: Name or service not known Temporary failure in name resolution
Permission denied (publickey, password, keyboard-interactive, gssapi-with-mic, hostbased) Please try again
Host key verification failed No host key is known for and you have requested strict checking
REMOTE HOST IDENTIFICATION HAS CHANGED Offending key in known hosts IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY
kex_exchange_identification: read: Connection reset by peer Connection closed by remote host
client_loop: send disconnect: Broken pipe Received disconnect from Too many authentication failures
Timeout, server not responding subsystem request failed on channel Bad owner or permissions on
Load key invalid format UNPROTECTED PRIVATE KEY FILE agent refused operation no mutual signature algorithm
Unable to negotiate with no matching key exchange method found banner exchange Bad configuration option
context canceled deadline exceeded unexpected EOF file already closed use of closed network connection
exit status signal killed terminated aborted interrupt segmentation violation broken pipe short write
executable file not found in no such host dial unix tcp connect lookup i/o timeout accept listen
panic fatal error runtime goroutine running invalid memory address or nil pointer dereference index out of range
all goroutines are asleep deadlock concurrent map writes stack overflow out of memory SIGSEGV SIGBUS SIGABRT code addr pc
fusermount fusermount3 transport endpoint server init notify splice OpenSSH OpenSSL Looks good Version
`

// The words that a bugreport leaves as they are are those that this program says:
// 'make man' writes them anew. Those that are not in the list have tokens, so nothing
// fails while it is older than the program.
func TestWords(t *testing.T) {
	if *updatePages {
		writeWords(t)
	}
	words := strings.Fields(wordList)
	if !slices.IsSorted(words) || len(words) < 1000 {
		t.Errorf("%d words, sorted: %v", len(words), slices.IsSorted(words))
	}
	for _, w := range words {
		if strings.Trim(w, "abcdefghijklmnopqrstuvwxyz0123456789") != "" || strings.Trim(w, "0123456789") == "" {
			t.Errorf("%q is no word", w)
		}
	}
}

func writeWords(t *testing.T) {
	all := map[string]bool{}
	add := func(text string) {
		for w := range strings.FieldsFuncSeq(strings.ToLower(text), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
			if strings.Trim(w, "0123456789") != "" && len(w) < 25 {
				all[w] = true
			}
		}
	}
	add(others)
	for _, dir := range []string{"cmd", "overlay", "copyup", "layers", "criu", "internal"} {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					text, err := strconv.Unquote(l.Value)
					if err != nil {
						t.Error(err)
					}
					add(text)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	line := 0
	for _, w := range sortedKeys(all) {
		if line+len(w) > 118 {
			b.WriteString("\n")
			line = 0
		} else if line > 0 {
			b.WriteString(" ")
		}
		b.WriteString(w)
		line += len(w) + 1
	}
	wordList = b.String() + "\n"
	if err := os.WriteFile("words.txt", []byte(wordList), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newTestTokens are tokens that know nothing of this host.
func newTestTokens() *tokens {
	return &tokens{given: map[string]string{}, count: map[string]int{}, known: map[string]string{}}
}

func TestTokens(t *testing.T) {
	k := newTestTokens()
	k.root("/data/old files")
	k.root("/new")
	if got := k.target("alice@login:/home/alice"); got != "user-1@host-1:path-3" {
		t.Errorf("a target is %q", got)
	}
	for _, c := range []struct{ in, want string }{
		{"open /data/old files/my secret.doc: permission denied", "open path-1/name-1: permission denied"},
		{"open /data/old files/my secret.doc: no such file or directory", "open path-1/name-1: no such file or directory"},
		{`upper "/new" is on a read-only filesystem`, `upper "path-2" is on a read-only filesystem`},
		{"/new is busy", "path-2 is busy"},
		{"rename /new/Ünder Wraps (2).txt: input/output error", "rename path-2/name-2: input/output error"},
		{"the name quokka is not known", "the name name-3 is not known"},
		{"quokka: file exists", "name-3: file exists"},
		{`stat "sub/quokka\n": EIO`, `stat "name-4": EIO`},
		{"sub/quokka: stale file handle", "path-4: stale file handle"},
		{`it ends in "the middle: of a secret`, `it ends in "name-5"`},
		{"ssh: connect to host gateway.example.org port 22: Connection refused", "ssh: connect to host host-2 port 22: Connection refused"},
		{"ssh: Could not resolve hostname source: Name or service not known", "ssh: Could not resolve hostname host-3: Name or service not known"},
		{"bob@10.1.2.3: Permission denied (publickey).", "user-2@host-4: Permission denied (publickey)."},
		{"10.1.2.3 fe80::1", "host-4 host-5"},
		{"login refused", "host-1 refused"}, // it is the name of a host
		{"read 1048576 bytes of 12.5MiB in 3.25s, 40%, at 0x7f", "read 1048576 bytes of 12.5MiB in 3.25s, 40%, at 0x7f"},
		{"a metacopy of hosts=many", "a metacopy of hosts=many"},
		{"hosts=quokka", "hosts=name-3"},
		{"the filesystem lacks O_TMPFILE, EXDEV", "the filesystem lacks O_TMPFILE, EXDEV"},
	} {
		if got := k.text(c.in); got != c.want {
			t.Errorf("%q\nis   %q\nwant %q", c.in, got, c.want)
		}
	}
	for in, want := range map[string]string{"user.quokka": "name-", "trusted.quokka": "trusted.name-", "system.nfs4_acl": "system.nfs4_acl"} {
		if got := k.xattr(in); !strings.HasPrefix(got, want) {
			t.Errorf("xattr %q is %q", in, got)
		}
	}
	k.off = true
	if got := k.text("open /a b/c: secret"); got != "open /a b/c: secret" {
		t.Errorf("with names: %q", got)
	}
}

func TestReportedOptions(t *testing.T) {
	r := &bugreport{tokens: newTestTokens()}
	for in, want := range map[string]string{
		`mode=overlay`: `mode=overlay`, `nosuid`: `nosuid`, `fill_rate=10M`: `fill_rate=10M`,
		`lowerdir=/a:bob@wombat:/srv:/b`: `lowerdir=path-:user-@host-:path-:path-`,
		`upperdir=/quokka`:               `upperdir=path-`,
		`fsname=quokka`:                  `fsname=name-`,
		`ssh_as=bob`:                     `ssh_as=user-`,
		`ssh_option=ProxyCommand=sshpass -p hunter2 nc`: `ssh_option=ProxyCommand=(left out)`,
		`sftp_server=sudo -u bob /opt/quokka`:           `sftp_server=(left out)`,
		`sftp_server=auto`:                              `sftp_server=auto`,
		`quokka=hunter2`:                                `name-=...`,
		`comment=hunter2`:                               `comment=name-`,
		`x-quokka=hunter2`:                              `x-=...`,
		`context=system_u:object_r:quokka`:              `context=...`,
	} {
		got := strings.Map(func(c rune) rune {
			if '0' <= c && c <= '9' && !strings.Contains(in, "10M") {
				return -1
			}
			return c
		}, r.option(in))
		if strings.Contains(in, "x-") {
			got = strings.ReplaceAll(got, "name-", "x-")
		}
		if got != want {
			t.Errorf("%s is %q, want %q", in, got, want)
		}
	}
	r.tokens.off = true
	for _, in := range []string{`ssh_option=ProxyCommand=sshpass -p hunter2 nc`, `sftp_server=sudo hunter2`, `quokka=hunter2`} {
		if got := r.option(in); strings.Contains(got, "hunter2") {
			t.Errorf("with names: %s", got)
		}
	}
}

func TestParseLine(t *testing.T) {
	r := parseLine(`time=2026-11-23T12:00:00.5Z level=WARN msg="it failed" path="/a b" cause="x=\"y\"" n=`)
	if r.When.Unix() != 1795435200 || r.Level != "WARN" || r.Message != "it failed" || len(r.About) != 3 ||
		r.About[0] != (control.LogAbout{Key: "path", Value: "/a b"}) || r.About[1].Value != `x="y"` || r.About[2].Value != "" {
		t.Errorf("%+v", r)
	}
	for _, line := range []string{"panic: something", "goroutine 1 [running]:", `a b=c`} {
		if r := parseLine(line); string(r.Message) != line || len(r.About) != 0 {
			t.Errorf("%q: %+v", line, r)
		}
	}
}

func TestJournalRecord(t *testing.T) {
	r := journalRecord(map[string]any{
		"MESSAGE": `it failed mount=/mnt cause="a b" path=/x`, "PRIORITY": "4", "__REALTIME_TIMESTAMP": "1795435200000000",
		"MIGRATEFS_MOUNT": "/mnt", "MIGRATEFS_CAUSE": "a b", "MIGRATEFS_PATH": []any{47.0, 255.0}, "_PID": "1",
	})
	if r.When.Unix() != 1795435200 || r.Level != "WARN" || r.Message != "it failed" || len(r.About) != 2 ||
		r.About[0] != (control.LogAbout{Key: "cause", Value: "a b"}) || r.About[1].Value != "/\xff" {
		t.Errorf("%+v", r)
	}
	k := newTestTokens()
	for in, want := range map[string]string{
		"github.com/migratefs/migratefs/overlay.(*FS).Lookup(0xc000012345, {0x1, 0x2})": "",
		"\t/home/bob/src/overlay/fs.go:12 +0x1d4":                                       "overlay/fs.go:12 +0x1d4",
		"osquokka": "name-1",
	} {
		if want == "" {
			want = in
		}
		if got := k.message(in); got != want {
			t.Errorf("%q is %q", in, got)
		}
	}
}
