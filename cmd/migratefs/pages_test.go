package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var updatePages = flag.Bool("update", false, "write the generated parts of the manual pages and of docs/options.md")

// The manual pages and docs/options.md say what the commands and the tables of
// options say. 'make man' writes what has changed.
func TestPages(t *testing.T) {
	root := newRootCommand()
	page8, err := os.ReadFile("../../packaging/migratefs.8")
	if err != nil {
		t.Fatal(err)
	}
	for file, regions := range map[string]func(name string) string{
		"../../packaging/migratefs.8": func(name string) string {
			kind, command, _ := strings.Cut(name, " ")
			switch kind {
			case "synopsis":
				return synopsisRegion(root)
			case "commands":
				return commandsRegion(root, string(page8))
			case "flags":
				return flagsRegion(find(root, command))
			}
			return ""
		},
		"../../packaging/migratefs.5": func(name string) string {
			switch name {
			case "options":
				return optionsRegion()
			case "accepted":
				return acceptedRegion()
			case "hints":
				return tableRegion(hints)
			case "refused":
				return tableRegion(refused)
			}
			return ""
		},
		"../../docs/options.md": func(string) string { return optionsPage() },
	} {
		have, err := os.ReadFile(file)
		if err != nil && !*updatePages {
			t.Fatal(err)
		}
		want := optionsPage()
		if !strings.HasSuffix(file, ".md") {
			want = filled(t, file, string(have), regions)
		}
		switch {
		case want == string(have):
		case *updatePages:
			if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		default:
			t.Errorf("%s does not say what the commands say: run 'make man'. First difference:\n%s", file, firstDifference(string(have), want))
		}
	}
}

func firstDifference(have, want string) string {
	h, w := strings.Split(have, "\n"), strings.Split(want, "\n")
	for i := range w {
		if i >= len(h) || h[i] != w[i] {
			return fmt.Sprintf("line %d: have %q, want %q", i+1, strings.Join(h[min(i, len(h)):min(i+1, len(h))], ""), w[i])
		}
	}
	return fmt.Sprintf("line %d: have %q, want the end", len(w)+1, h[len(w)])
}

// filled replaces what stands between BEGIN and END.
func filled(t *testing.T, file, page string, region func(string) string) string {
	var b strings.Builder
	skip := false
	for line := range strings.Lines(page) {
		name, begins := strings.CutPrefix(strings.TrimSuffix(line, "\n"), `.\" BEGIN `)
		switch {
		case begins:
			text := region(name)
			if text == "" {
				t.Errorf("%s: no region is called %q", file, name)
			}
			b.WriteString(line + text)
			skip = true
		case line == ".\\\" END\n":
			b.WriteString(line)
			skip = false
		case !skip:
			b.WriteString(line)
		}
	}
	return b.String()
}

func find(root *cobra.Command, name string) *cobra.Command {
	if name == root.Name() {
		return root
	}
	for _, c := range root.Commands() {
		if c.Name() == name {
			return c
		}
	}
	return nil
}

func visible(root *cobra.Command) (all []*cobra.Command) {
	for _, c := range root.Commands() {
		if !c.Hidden && c.Name() != "help" && c.Name() != "completion" {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b *cobra.Command) int { return strings.Compare(a.Name(), b.Name()) })
	return all
}

// roff escapes text for a line of its own.
func roff(s string) string {
	s = strings.ReplaceAll(s, `\`, `\e`)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

var argument = regexp.MustCompile(`[A-Z][A-Z_]+`)

// usageLine sets flags and names in bold and what is to be replaced in italics.
func usageLine(s string) string {
	s = roff(s)
	s = argument.ReplaceAllString(s, `\fI$0\fR`)
	return regexp.MustCompile(`(^|[\[ {])(-{1,2}[a-zA-Z][a-z-]*)`).ReplaceAllString(s, `$1\fB$2\fR`)
}

func synopsisRegion(root *cobra.Command) string {
	var b strings.Builder
	one := func(use string) {
		for _, u := range strings.FieldsFunc(strings.ReplaceAll(use, ", or ", "\n"), func(r rune) bool { return r == '\n' }) {
			name, rest, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(u), "migratefs "), " ")
			if strings.HasPrefix(name, "-") {
				name, rest = "", name+" "+rest
			}
			line := `\fBmigratefs\fR`
			if name != "" {
				line += ` \fB` + name + `\fR`
			}
			if rest != "" {
				line += " " + usageLine(rest)
			}
			b.WriteString(strings.TrimSpace(line) + "\n.br\n")
		}
	}
	one(root.Use)
	for _, c := range visible(root) {
		one(c.Use)
	}
	b.WriteString("\\fBlazyfs\\fR \\fIMOUNTPOINT IMGDIR USER@RHOST\\fR\n")
	return b.String()
}

// flagsRegion lists the flags of a command as --help does.
func flagsRegion(c *cobra.Command) string {
	if c == nil {
		return ""
	}
	var b strings.Builder
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" && c.Version != "" {
			return
		}
		arg, text := pflag.UnquoteUsage(f)
		b.WriteString(".It ")
		if f.Shorthand != "" {
			b.WriteString("Fl " + f.Shorthand + " , ")
		}
		b.WriteString("Fl -" + f.Name)
		switch arg {
		case "":
		case "string", "strings", "stringArray": // pflag's names of types
			b.WriteString(" Ar " + map[bool]string{true: "OPTIONS", false: "VALUE"}[f.Name == "options"])
		case "int", "uint", "float":
			b.WriteString(" Ar N")
		default:
			b.WriteString(" Ar " + strings.ToUpper(arg))
		}
		b.WriteString("\n" + roff(strings.ToUpper(text[:1])+text[1:]))
		if d := f.DefValue; !strings.Contains(text, "default") && !slices.Contains([]string{"", "0", "-1", "false", "[]"}, d) {
			b.WriteString(" (default " + roff(d) + ")")
		}
		b.WriteString(".\n")
	})
	if b.Len() == 0 {
		return ".\\\" none\n"
	}
	return ".Bl -tag -width Ds -compact\n" + b.String() + ".El\n"
}

// commandsRegion is about the commands that the page has no section for.
func commandsRegion(root *cobra.Command, page string) string {
	var b strings.Builder
	for _, c := range visible(root) {
		if strings.Contains(page, `.\" BEGIN flags `+c.Name()+"\n") {
			continue
		}
		b.WriteString(".Bl -tag -width Ds\n.It Cm " + c.Name() + "\n" + roff(c.Short) + ".\n.El\n")
		for para := range strings.SplitSeq(strings.TrimSpace(c.Long), "\n\n") {
			if strings.TrimSpace(para) == "" {
				continue
			}
			b.WriteString(".Pp\n")
			text := ""
			for line := range strings.Lines(para) {
				if strings.HasPrefix(line, "  ") {
					if text != "" {
						b.WriteString(sentences(unwrapped(text)))
						text = ""
					}
					b.WriteString(".Dl " + strings.ReplaceAll(roff(strings.TrimSpace(line)), `"`, `\(dq`) + "\n")
					continue
				}
				text += line
			}
			if text != "" {
				b.WriteString(sentences(unwrapped(text)))
			}
		}
		if f := flagsRegion(c); !strings.HasPrefix(f, ".\\\"") {
			b.WriteString(".Pp\n" + f)
		}
	}
	return b.String()
}

// marked turns `literals` into bold.
func marked(s string) string {
	parts := strings.Split(roff(s), "`")
	for i := range parts {
		if i%2 == 1 {
			parts[i] = `\fB` + parts[i] + `\fR`
		}
	}
	return strings.Join(parts, "")
}

// sentences breaks a paragraph where sentences end, as mandoc(1) wants it.
func sentences(s string) string {
	s = regexp.MustCompile(`(\.) ([A-Z])`).ReplaceAllString(s, "$1\n$2")
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(wrapped(marked(l), 100, ""), "\n")
		// A line that wrapping has begun with a dot is no request.
		lines[i] = regexp.MustCompile(`(?m)^([.'])`).ReplaceAllString(lines[i], `\&$1`)
	}
	return strings.Join(lines, "\n") + "\n"
}

func optionsRegion() string {
	var b strings.Builder
	for _, s := range optionSections() {
		b.WriteString(".Ss " + s.title + "\n.Bl -tag -width Ds\n")
		for _, i := range s.items {
			b.WriteString(".It " + mdocTerms(i.terms) + "\n")
			for n, p := range i.text {
				if n > 0 {
					b.WriteString(".Pp\n")
				}
				b.WriteString(sentences(p))
			}
		}
		b.WriteString(".El\n")
	}
	return b.String()
}

// mdocTerms sets the parts to be replaced, in capitals, in italics.
func mdocTerms(terms []string) string {
	var all []string
	for _, t := range terms {
		name, value, ok := strings.Cut(t, "=")
		switch {
		case ok && value != strings.ToLower(value):
			all = append(all, "Cm "+name+"= Ns Ar "+strings.ReplaceAll(value, ":", `\&:`))
		default:
			all = append(all, "Cm "+t)
		}
	}
	return strings.Join(all, " , ")
}

func acceptedRegion() string {
	words := slices.Sorted(maps.Keys(alreadySo))
	words = append(words, "x-*", "X-*")
	for _, name := range slices.Sorted(maps.Keys(onlyAs)) {
		words = append(words, name+"="+onlyAs[name].value)
	}
	var b strings.Builder
	for line := range slices.Chunk(words, 8) {
		b.WriteString(".Cm " + strings.Join(line, " , ") + " ,\n")
	}
	return strings.TrimSuffix(b.String(), ",\n") + ".\n"
}

func tableRegion(table map[string]string) string {
	var b strings.Builder
	b.WriteString(".Bl -tag -width Ds -compact\n")
	byReason := map[string][]string{}
	for name, why := range table {
		byReason[why] = append(byReason[why], name)
	}
	var lines []string
	for why, names := range byReason {
		slices.Sort(names)
		lines = append(lines, ".It Cm "+strings.Join(names, " , ")+"\n"+roff(strings.ToUpper(why[:1])+why[1:])+".\n")
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, "") + ".El\n")
	return b.String()
}

func optionsPage() string {
	var b strings.Builder
	b.WriteString("# Options of a mount\n\n<!-- Generated from cmd/migratefs/options.txt: change it there, and run 'make man'. -->\n\n" +
		wrapped("Given with `-o`, separated by commas, on the command line and in fstab. In a path a comma, a colon or a backslash is written `\\,` `\\:` `\\\\`. "+
			"`migratefs options NAME` prints what is said here of one. An option that is not known is refused.", 120, ""))
	for _, s := range optionSections() {
		b.WriteString("\n## " + s.title + "\n")
		for _, i := range s.items {
			b.WriteString("\n**`" + strings.Join(i.terms, "`, `") + "`**\n")
			for n, p := range i.text {
				if n > 0 {
					b.WriteString("\n")
				}
				b.WriteString(wrapped(strings.ReplaceAll(p, "*", `\*`), 120, ""))
			}
		}
	}
	b.WriteString("\n## Options of mount(8), overlayfs, fuse and fuse-overlayfs\n\n" +
		"Those that say what is so anyway, or are for mount(8) and systemd, are accepted:\n\n" +
		wrapped("`"+strings.Join(append(slices.Sorted(maps.Keys(alreadySo)), "x-*"), "`, `")+"`.", 120, "") +
		"\n| refused | do this instead |\n|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		b.WriteString("| `" + name + "` | " + refused[name] + " |\n")
	}
	for _, name := range slices.Sorted(maps.Keys(onlyAs)) {
		b.WriteString("| `" + name + "=`, but for `" + name + "=" + onlyAs[name].value + "` | " + onlyAs[name].why + " |\n")
	}
	return b.String()
}

// Every option that is parsed is explained, once, and nothing else is.
func TestOptionsAreExplained(t *testing.T) {
	explained := map[string]int{}
	for _, s := range optionSections() {
		for _, i := range s.items {
			for _, name := range i.names {
				explained[name]++
			}
			if strings.Join(i.text, "") == "" {
				t.Errorf("options.txt says nothing of %s", i.terms)
			}
		}
	}
	parsed := map[string]bool{}
	for name := range optionTable {
		parsed[name] = true
	}
	for _, table := range []map[string]bool{mountFlags, securityContext} {
		for name := range table {
			parsed[name] = true
		}
	}
	parsed["symfollow"] = true // the opposite of nosymfollow
	for name := range parsed {
		if explained[name] != 1 {
			t.Errorf("options.txt explains %s %d times", name, explained[name])
		}
	}
	for name := range explained {
		if !parsed[name] {
			t.Errorf("options.txt explains %s, which is not an option", name)
		}
	}
}

func TestExplained(t *testing.T) {
	for option, want := range map[string]string{
		"trash_days=3": "lies in .migratefs/trash of the lower for N days",
		"lowerdir+":    "below those named before",
		"verity":       "So it always is",
		"_netdev":      "is for other programs",
		"clone_fd":     "has no effect",
		"sync":         "Refused: use fsync(2)",
	} {
		text, err := explained(option)
		if err != nil || !strings.Contains(unwrapped(text), want) || strings.Contains(text, "`") {
			t.Errorf("%s: %q, %v; want %q", option, text, err, want)
		}
	}
	if _, err := explained("wat"); err == nil {
		t.Error("an option that is not one is explained")
	}
}

func TestOptionCompletion(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"old", "other", "x"} {
		if err := os.Mkdir(dir+"/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for typed, want := range map[string][]string{
		"trash":               {"trash_days="},
		"lowerdir=/a,mode=":   {"lowerdir=/a,mode=migrate", "lowerdir=/a,mode=overlay"},
		`lowerdir=/a\,b,keep`: {`lowerdir=/a\,b,keep_lower`},
		"ro,upperdir=" + dir + "/o": {
			"ro,upperdir=" + dir + "/old", "ro,upperdir=" + dir + "/other",
		},
	} {
		all, _ := completeOptions(nil, nil, typed)
		var got []string
		for _, c := range all {
			text, _, _ := strings.Cut(c, "\t")
			got = append(got, text)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%q completes to %q, want %q", typed, got, want)
		}
	}
}
