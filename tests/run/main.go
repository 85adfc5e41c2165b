// Run runs `go test` and prints what it would have printed, and fails where
// `go test` alone would not: when a test was skipped that is not on the list.
//
//	go run ./tests/run -skips tests/skips.txt -- -race ./...
//
// The list has one test a line: import path, name, reason.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// event is one line of `go test -json` (go doc test2json), build output
// included.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// test names one test of one package.
type test struct{ pkg, name string }

func main() {
	list := flag.String("skips", "", "`file` that lists the tests that may be skipped")
	flag.Parse()
	allowed, err := readSkips(*list)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}

	cmd := exec.Command("go", append([]string{"test", "-json"}, flag.Args()...)...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	skipped := print(os.Stdout, stdout)
	err = cmd.Wait()

	bad := unlisted(skipped, allowed)
	for _, t := range bad {
		fmt.Printf("SKIPPED and not listed in %s: %s %s\n", *list, t.pkg, t.name)
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case len(bad) > 0:
		os.Exit(1)
	}
}

// print writes the text of the events in r to w as `go test` without -v does:
// the output of a test only if it failed, was skipped or never ended. It
// returns the tests that were skipped.
func print(w io.Writer, r io.Reader) (skipped []test) {
	held := map[test][]string{}
	show := func(t test) {
		for _, line := range held[t] {
			fmt.Fprint(w, line)
		}
		delete(held, t)
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(w, lines.Text()) // not ours to swallow
			continue
		}
		t := test{e.Package, e.Test}
		switch e.Action {
		case "output", "build-output":
			switch {
			case t.name == "" && e.Output == "PASS\n": // go test prints it with -v only
			case t.name == "":
				fmt.Fprint(w, e.Output)
			case !strings.HasPrefix(e.Output, "=== "):
				held[t] = append(held[t], e.Output)
			}
		case "pass":
			delete(held, t)
		case "skip":
			if t.name != "" {
				skipped = append(skipped, t)
				show(t)
			}
		case "fail":
			if t.name != "" {
				show(t)
				continue
			}
			for h := range held { // a panic or a timeout: their end never came
				if h.pkg == t.pkg {
					show(h)
				}
			}
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(w, "reading the output of go test:", err)
	}
	return skipped
}

// readSkips reads the list of tests that may be skipped.
func readSkips(file string) (map[test]bool, error) {
	allowed := map[test]bool{}
	if file == "" {
		return allowed, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if len(f) < 3 {
			return nil, fmt.Errorf("%s:%d: want import path, test and reason", file, i+1)
		}
		allowed[test{f[0], f[1]}] = true
	}
	return allowed, nil
}

// unlisted returns the tests in skipped that are not allowed.
func unlisted(skipped []test, allowed map[test]bool) (bad []test) {
	for _, t := range skipped {
		if !allowed[t] {
			bad = append(bad, t)
		}
	}
	return bad
}
