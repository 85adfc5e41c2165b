package main

import (
	_ "embed" // words.txt
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers/remote"
)

// tokens puts a token in the place of what may be private, the same one for the same
// thing. Nothing is looked for that is private: what is not known to be harmless has
// a token. Of text that are the words that this program has in its own messages
// (words.txt), and numbers.
type tokens struct {
	off bool // names stay

	given map[string]string // by kind and text
	count map[string]int    // of each kind
	roots []string          // directories that others are told by
	known map[string]string // words that are names all the same, in small letters: of what kind
}

func newTokens(off bool) *tokens {
	t := &tokens{off: off, given: map[string]string{}, count: map[string]int{}, known: map[string]string{}}
	if name, err := os.Hostname(); err == nil {
		t.know("host", name)
		short, _, _ := strings.Cut(name, ".")
		t.know("host", short)
	}
	if u, err := user.Current(); err == nil {
		t.know("user", u.Username)
	}
	b, _ := os.ReadFile("/etc/passwd")
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, ":")
		if len(f) < 3 {
			continue
		}
		if uid, err := strconv.Atoi(f[2]); err == nil && uid >= 1000 && f[0] != "nobody" {
			t.know("user", f[0])
		}
	}
	return t
}

// know notes that a word is a name wherever it stands.
func (t *tokens) know(kind, word string) {
	if word != "" && word != "root" && word != "localhost" {
		t.known[strings.ToLower(word)] = kind
	}
}

// root notes a directory that paths below it are told by.
func (t *tokens) root(dir string) {
	if dir == "" || dir == "/" || slices.Contains(t.roots, dir) {
		return
	}
	t.of("path", dir)
	t.roots = append(t.roots, dir)
	slices.SortFunc(t.roots, func(a, b string) int { return len(b) - len(a) })
}

// of is the token of s, which is of that kind.
func (t *tokens) of(kind, s string) string {
	if t.off || s == "" {
		return s
	}
	key := kind + "\x00" + s
	if t.given[key] == "" {
		t.count[kind]++
		t.given[key] = fmt.Sprintf("%s-%d", kind, t.count[kind])
	}
	return t.given[key]
}

// systemPaths are paths that are the same everywhere; programDirs are where programs
// are.
var (
	systemPaths = names(`/ /dev/fuse /etc/fuse.conf /proc/self/mountinfo /proc/mounts /dev/null /run/migratefs
		/sbin/umount.fuse.migratefs /usr/sbin/umount.fuse.migratefs`)
	programDirs = names(`/bin /sbin /usr/bin /usr/sbin /usr/local/bin /usr/local/sbin`)
	programs    = names(`ssh criu fusermount3 getent journalctl migratefs mount umount`)
)

// path is a path. Below a directory that is known it is told by that.
func (t *tokens) path(s string) string {
	switch {
	case t.off:
		return quotedText(s)
	case systemPaths[s], programDirs[filepath.Dir(s)] && programs[filepath.Base(s)]:
		return s
	}
	for _, dir := range t.roots {
		if rest, below := strings.CutPrefix(s, dir+"/"); below && s != dir && rest != "" {
			return t.of("path", dir) + "/" + t.of("name", rest)
		}
	}
	return t.of("path", s)
}

// target is [user@]host:/path.
func (t *tokens) target(s string) string {
	if t.off {
		return quotedText(s)
	}
	r, err := remote.ParseTarget(s)
	if err != nil {
		return t.of("name", s)
	}
	t.know("host", r.Host)
	t.know("user", r.User)
	t.root(r.Path)
	text := t.of("host", r.Host) + ":"
	if r.Port != 0 {
		text += strconv.Itoa(r.Port) + ":"
	}
	if r.User != "" {
		text = t.of("user", r.User) + "@" + text
	}
	return text + t.path(r.Path)
}

// private is text that is a name as a whole, or a path, or where something is on
// another host.
func (t *tokens) private(s string) string {
	switch {
	case t.off:
		return quotedText(s)
	case s == "":
		return ""
	case s[0] == '/':
		return t.path(s)
	case t.known[strings.ToLower(s)] != "":
		return t.of(t.known[strings.ToLower(s)], s)
	}
	if _, err := remote.ParseTarget(s); err == nil {
		return t.target(s)
	}
	return t.of("name", s)
}

// xattr is the name of an extended attribute: those of users may be anything.
func (t *tokens) xattr(s string) string {
	space, name, ok := strings.Cut(s, ".")
	if t.off || !ok || space == "user" || !vocabulary()[space] {
		return t.private(s)
	}
	return space + "." + t.word(name)
}

//go:embed words.txt
var wordList string

// vocabulary is the words that tell nothing: those in the messages of this program,
// and of ssh's, and the names of errors.
var vocabulary = sync.OnceValue(func() map[string]bool {
	words := map[string]bool{}
	for w := range strings.FieldsSeq(wordList) {
		words[w] = true
	}
	for e := range unix.Errno(134) {
		if name := unix.ErrnoName(e); name != "" {
			words[strings.ToLower(name)] = true
		}
		for w := range strings.FieldsFuncSeq(e.Error(), func(r rune) bool { return r < 'A' || r > 'z' }) {
			words[strings.ToLower(w)] = true
		}
	}
	return words
})

// sshNames is where ssh has names in its messages without quotes.
var sshNames = []*regexp.Regexp{
	regexp.MustCompile(`connect to host (\S+) port`),
	regexp.MustCompile(`resolve hostname (\S+?):`),
	regexp.MustCompile(`(\S+) port \d+`),
	regexp.MustCompile(`[Cc]onnection to (\S+) (?:closed|timed out)`),
	regexp.MustCompile(`host key for (\S+?)[ .]`),
}

// serverTexts are what SFTP servers say, which stands in quotes.
var serverTexts = names(`Success Failure`)

func init() {
	for _, s := range []string{"End of file", "No such file", "Permission denied", "Bad message", "No connection", "Connection lost", "Operation unsupported"} {
		serverTexts[s] = true
	}
}

// text is text with tokens in the place of all that is in quotes, of paths, and of
// words that are not this program's.
func (t *tokens) text(s string) string {
	if t.off {
		return s
	}
	for _, re := range sshNames {
		for _, m := range re.FindAllStringSubmatch(s, -1) {
			t.know("host", strings.Trim(m[1], `"'()[]:,.`))
		}
	}
	var b strings.Builder
	for s != "" {
		n := strings.IndexAny(s, " \t\n\r\"()[]{},;!?'=<>|`")
		switch {
		case s[0] == '"':
			var in string
			in, s = cutQuoted(s)
			if !serverTexts[in] {
				in = t.private(in)
			}
			b.WriteString(`"` + in + `"`)
		case s[0] == '/':
			n = t.endOfPath(s)
			b.WriteString(t.path(s[:n]))
			s = s[n:]
		case n == 0:
			b.WriteByte(s[0])
			s = s[1:]
		case n < 0:
			b.WriteString(t.word(s))
			s = ""
		default:
			b.WriteString(t.word(s[:n]))
			s = s[n:]
		}
	}
	return b.String()
}

// cutQuoted takes what is in quotes off the front of s; without an end, that is all.
func cutQuoted(s string) (in, rest string) {
	if q, err := strconv.QuotedPrefix(s); err == nil {
		in, _ = strconv.Unquote(q)
		return in, s[len(q):]
	}
	if i := strings.IndexByte(s[1:], '"'); i >= 0 && !strings.Contains(s[1:1+i], `\`) {
		return s[1 : 1+i], s[2+i:]
	}
	return s[1:], ""
}

// endOfPath is where a path without quotes ends, which s begins with: one may have
// blanks in it, so behind one that is not known all goes with it as far as the cause.
func (t *tokens) endOfPath(s string) int {
	for _, dir := range t.roots {
		if rest, ok := strings.CutPrefix(s, dir); ok && (rest == "" || strings.IndexByte(" :;,)\"", rest[0]) >= 0) {
			return len(dir)
		}
	}
	end := len(s)
	for _, stop := range []string{": ", "; ", "\"", "\n"} {
		if i := strings.Index(s, stop); i > 0 {
			end = min(end, i)
		}
	}
	if path := strings.TrimSuffix(s[:end], ":"); path != "" {
		return len(path)
	}
	return end
}

// quantity is a number with or without a unit, also a time as Go prints it.
var quantity = regexp.MustCompile(`^[-+~]?(\d+(\.\d+)?(%|ns|us|µs|ms|s|m|h|d|B|[KMGTPE]i?B?)?|(\d+h)?(\d+m)?\d+(\.\d+)?s|0x[0-9a-f]+|v?\d+\.\d+\.\d+)(/s)?$`)

// word is a word of a text.
func (t *tokens) word(w string) string {
	core := strings.TrimRight(w, ".:")
	end := w[len(core):]
	low := strings.ToLower(core)
	if core == "" || quantity.MatchString(core) {
		return w
	}
	if kind := t.known[low]; kind != "" {
		return t.of(kind, core) + end
	}
	if _, err := netip.ParseAddr(core); err == nil {
		return t.of("host", core) + end
	}
	if who, where, ok := strings.Cut(core, "@"); ok {
		host, rest, more := strings.Cut(where, ":")
		text := t.of("user", who) + "@" + t.of("host", host)
		if more {
			text += ":" + t.private(rest)
		}
		return text + end
	}
	if _, err := remote.ParseTarget(core); err == nil {
		return t.target(core) + end
	}
	if low == "i/o" || low == "input/output" {
		return w
	}
	if strings.Contains(core, "/") {
		return t.path(core) + end
	}
	for part := range strings.FieldsFuncSeq(low, func(r rune) bool { return r == '-' || r == '_' }) {
		if t.known[part] != "" || !vocabulary()[part] && !quantity.MatchString(part) {
			return t.of("name", core) + end
		}
	}
	return w
}
