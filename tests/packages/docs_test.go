package packages

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// documents returns the texts of all Markdown files, by path from the module's root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	root := testbed.ModuleDir()
	docs := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "build" || d.Name() == "dist" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != root):
			return filepath.SkipDir
		case filepath.Ext(path) == ".md":
			b, err := os.ReadFile(path)
			rel, _ := filepath.Rel(root, path)
			docs[rel] = string(b)
			return err
		}
		return nil
	})
	if err != nil || len(docs) < 10 {
		t.Fatalf("%d documents, %v", len(docs), err)
	}
	return docs
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fenced   = regexp.MustCompile("(?ms)^```.*?^```")
	unlisted = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are what GitHub makes of headings.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		all[strings.ReplaceAll(unlisted.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")] = true
	}
	return all
}

// Links lead to files of the repository that are there, and to headings in them.
func TestLinks(t *testing.T) {
	docs := documents(t)
	links := 0
	for path, text := range docs {
		for _, l := range link.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			if strings.Contains(l[1], "://") {
				continue
			}
			links++
			file, anchor, _ := strings.Cut(l[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(filepath.Join(testbed.ModuleDir(), target)); err != nil {
				t.Errorf("%s: %s: %v", path, l[1], err)
				continue
			}
			if anchor != "" && !anchors(docs[target])[anchor] {
				t.Errorf("%s: %s: no such heading", path, l[1])
			}
		}
	}
	if links < 20 {
		t.Errorf("%d links: are they found?", links)
	}
}

// What docs/operating.md quotes of errors and of the log is what the program says.
func TestQuotedMessages(t *testing.T) {
	system := map[string]bool{}
	for errno := range unix.Errno(134) {
		system[errno.Error()] = true
	}
	var source strings.Builder
	for _, dir := range []string{"cmd", "overlay", "copyup", "layers", "criu"} {
		err := filepath.WalkDir(filepath.Join(testbed.ModuleDir(), dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go") {
				var b []byte
				b, err = os.ReadFile(path)
				source.Write(b)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	rows := 0
	for line := range strings.Lines(documents(t)["docs/operating.md"]) {
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		cell, _, _ := strings.Cut(line[2:], " | ")
		for i, quoted := range strings.Split(cell, "`") {
			if i%2 == 1 {
				rows++
				if !strings.Contains(source.String(), quoted) && !system[quoted] {
					t.Errorf("docs/operating.md: the program does not say %q", quoted)
				}
			}
		}
	}
	if rows < 25 {
		t.Errorf("%d messages are quoted: are they found?", rows)
	}
}

// Each command that ends with 3 is among those of which README.md and migratefs(8) say
// when it does.
func TestExitCodes(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join(testbed.ModuleDir(), "packaging", "migratefs.8"))
	if err != nil {
		t.Fatal(err)
	}
	_, inManual, _ := strings.Cut(string(manual), ".Sh EXIT STATUS")
	_, inManual, _ = strings.Cut(inManual, ".It 3\n")
	inManual, _, _ = strings.Cut(inManual, ".It 32")
	inReadme := ""
	for line := range strings.Lines(documents(t)["README.md"]) {
		if strings.HasPrefix(line, "| 3 | ") {
			inReadme = line
		}
	}
	files, err := filepath.Glob(filepath.Join(testbed.ModuleDir(), "cmd", "migratefs", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	commands := map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// Commands lie in files of their names.
		if name, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".go"), "_"); name != "exit" && strings.Contains(string(b), "exitFound") {
			commands[name] = true
		}
	}
	for name := range commands {
		if !strings.Contains(inReadme, "`"+name+"`") {
			t.Errorf("README.md does not say when %s ends with 3", name)
		}
		if !regexp.MustCompile(`(?m)^\.Cm .*\b` + name + `\b`).MatchString(inManual) {
			t.Errorf("migratefs(8) does not say when %s ends with 3", name)
		}
	}
	if len(commands) < 8 {
		t.Errorf("%v: are they found?", commands)
	}
}

// remedy is how an error says what to do: after a colon, or quoting a command.
var remedy = regexp.MustCompile(`(?:: |, or |; |, )(?:give|name|have|write|create|remove|unmount|mount|end|run|install|use|see|chown|bring|leave|say|start|dump|mkdir|` +
	`restore|put|set|change|add|try|make|want|look|list|wait|only root|it must|every layer|layers must|there is nothing)\b|'migratefs |:[^:]* needs `)

// Each error of the commands says what to do, or passes on what something else says, or
// is about the command line and names the part of it, or docs/operating.md has it.
func TestErrorsHaveRemedies(t *testing.T) {
	// They are parts of other lines, or nobody sees them.
	parts := map[string]string{
		"the daemon is of an older version":                                     "in a bug report",
		"the file of log= is no regular file":                                   "in a bug report",
		"its daemon does not answer, and there is no journal (journalctl) here": "in a bug report",
		"what must fail succeeds":                                               "of what was tried, with what to do behind it",
		"mount -f wrote no note":                                                "in the log, with what follows",
	}
	var quotes []string
	for line := range strings.Lines(documents(t)["docs/operating.md"]) {
		if cell, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | "); ok && strings.HasPrefix(line, "| ") {
			for i, quoted := range strings.Split(cell, "`") {
				if i%2 == 1 {
					quotes = append(quotes, quoted)
				}
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(testbed.ModuleDir(), "cmd", "migratefs", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	errs, kinds := 0, map[string]int{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			text, usage := errorText(n)
			if text == "" {
				return true
			}
			errs++
			_, part := parts[text]
			switch {
			case part:
				kinds["part"]++
			case remedy.MatchString(text):
				kinds["remedy"]++
			case usage && (strings.Contains(text, "-") || strings.Contains(text, "=") || strings.Contains(text, "%q")):
				kinds["command line"]++
			case slices.ContainsFunc(quotes, func(q string) bool { return strings.Contains(text, q) }):
				kinds["document"]++
			case passesOn.MatchString(text):
				kinds["passed on"]++
			default:
				t.Errorf("%s: %q says neither what to do, nor does docs/operating.md", set.Position(n.Pos()), text)
			}
			return true
		})
	}
	t.Logf("%d errors: %v", errs, kinds)
	if errs < 300 || kinds["remedy"] < 100 || kinds["part"] != len(parts) {
		t.Errorf("%d errors, %v: are they found?", errs, kinds)
	}
}

// passesOn is an error that ends with what something else says.
var passesOn = regexp.MustCompile(`%[wvsq]\)?$`)

// errorText is what n, if it makes an error, has for a text, and whether that is about
// the command line.
func errorText(n ast.Node) (text string, usage bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return "", false
	}
	name := ""
	switch f := call.Fun.(type) {
	case *ast.Ident:
		name = f.Name
	case *ast.SelectorExpr:
		if of, ok := f.X.(*ast.Ident); ok {
			name = of.Name + "." + f.Sel.Name
		}
	}
	literal, ok := call.Args[0].(*ast.BasicLit)
	if !ok || !slices.Contains([]string{"usageErrorf", "mountErrorf", "fmt.Errorf", "errors.New"}, name) {
		return "", false
	}
	text, _ = strconv.Unquote(literal.Value)
	return text, name == "usageErrorf"
}

var ourCommand = regexp.MustCompile(`(?m)^(?:# )?(migratefs [^\n]*(?:\\\n[^\n]*)*)`)

// Every command of ours in the documents is one that the program takes: its
// subcommand, and each flag of it.
func TestQuotedCommands(t *testing.T) {
	program := testbed.Build(t)
	help := map[string]string{}
	helpOf := func(sub string) string {
		if _, ok := help[sub]; !ok {
			args := []string{"--help"}
			if sub != "" {
				args = []string{sub, "--help"}
			}
			out, err := exec.Command(program, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s --help: %v", sub, err)
			}
			help[sub] = string(out)
		}
		return help[sub]
	}
	commands := 0
	for path, text := range documents(t) {
		if filepath.Dir(path) != "docs" && path != "README.md" {
			continue
		}
		for _, block := range fenced.FindAllString(text, -1) {
			for _, m := range ourCommand.FindAllStringSubmatch(block, -1) {
				commands++
				words := strings.Fields(strings.ReplaceAll(m[1], "\\\n", " "))[1:]
				sub := ""
				if !strings.HasPrefix(words[0], "-") {
					sub = words[0]
				}
				if sub != "" && !strings.Contains(helpOf(""), "\n  "+sub+" ") {
					if !strings.HasSuffix(words[0], ":") { // what it prints
						t.Errorf("%s: %s: no such command", path, m[1])
					}
					continue
				}
				for _, w := range words {
					if w == "--" || strings.HasPrefix(w, "#") || strings.HasPrefix(w, ">") {
						break
					}
					name, _, _ := strings.Cut(w, "=")
					if strings.HasPrefix(name, "-") && !regexp.MustCompile(`(?m)[ ,]`+regexp.QuoteMeta(name)+`[ ,=]`).MatchString(helpOf(sub)) {
						t.Errorf("%s: %s: no flag %s", path, m[1], name)
					}
				}
			}
		}
	}
	if commands < 20 {
		t.Errorf("%d commands: are they found?", commands)
	}
}

// The options that the documents and the example of a DaemonSet give are options.
func TestQuotedOptions(t *testing.T) {
	program := testbed.Build(t)
	// Behind -o, and in the fourth field of fstab.
	given := regexp.MustCompile(`(?:-o,? "?|migratefs +)([a-z_+]+=[^ "\n]+)`)
	docs := documents(t)
	b, err := os.ReadFile(filepath.Join(testbed.ModuleDir(), "packaging", "kubernetes", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	docs["daemonset.yaml"] = string(b)
	names := map[string]string{}
	for path, text := range docs {
		for _, m := range given.FindAllStringSubmatch(text, -1) {
			for o := range strings.SplitSeq(m[1], ",") {
				name, _, _ := strings.Cut(strings.Trim(o, "`.,)'"), "=")
				if name != "" && !strings.HasPrefix(name, ".") {
					names[name] = path
				}
			}
		}
	}
	if len(names) < 5 {
		t.Errorf("%d options: are they found?", len(names))
	}
	for name, path := range names {
		if out, err := exec.Command(program, "options", name).CombinedOutput(); err != nil {
			t.Errorf("%s: %s", path, out)
		}
	}
}
