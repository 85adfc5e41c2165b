package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const events = `{"Action":"start","Package":"m/p"}
{"Action":"run","Package":"m/p","Test":"TestA"}
{"Action":"output","Package":"m/p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"m/p","Test":"TestA","Output":"quiet\n"}
{"Action":"output","Package":"m/p","Test":"TestA","Output":"--- PASS: TestA (0.00s)\n"}
{"Action":"pass","Package":"m/p","Test":"TestA","Elapsed":0}
{"Action":"output","Package":"m/p","Test":"TestB","Output":"    b_test.go:9: wrong\n"}
{"Action":"output","Package":"m/p","Test":"TestB","Output":"--- FAIL: TestB (0.00s)\n"}
{"Action":"fail","Package":"m/p","Test":"TestB","Elapsed":0}
{"Action":"output","Package":"m/p","Test":"TestC","Output":"--- SKIP: TestC (0.00s)\n"}
{"Action":"skip","Package":"m/p","Test":"TestC","Elapsed":0}
{"Action":"output","Package":"m/p","Test":"TestD","Output":"panic: gone\n"}
{"Action":"output","Package":"m/p","Output":"FAIL\tm/p\t0.004s\n"}
{"Action":"fail","Package":"m/p","Elapsed":0.004}
{"Action":"output","Package":"m/q","Output":"PASS\n"}
{"Action":"output","Package":"m/q","Output":"ok  \tm/q\t0.1s\n"}
{"Action":"pass","Package":"m/q","Elapsed":0.1}
{"Action":"output","Package":"m/none","Output":"?   \tm/none\t[no test files]\n"}
{"Action":"skip","Package":"m/none","Elapsed":0}
`

func TestPrint(t *testing.T) {
	var out strings.Builder
	skipped := print(&out, strings.NewReader(events))
	want := "    b_test.go:9: wrong\n--- FAIL: TestB (0.00s)\n--- SKIP: TestC (0.00s)\n" +
		"FAIL\tm/p\t0.004s\npanic: gone\nok  \tm/q\t0.1s\n?   \tm/none\t[no test files]\n"
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
	// A package without tests is not a skipped test.
	if !slices.Equal(skipped, []test{{"m/p", "TestC"}}) {
		t.Errorf("skipped: %v", skipped)
	}
}

func TestSkips(t *testing.T) {
	file := filepath.Join(t.TempDir(), "skips")
	if err := os.WriteFile(file, []byte("# a comment\n\nm/p TestC no such hardware\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	allowed, err := readSkips(file)
	if err != nil {
		t.Fatal(err)
	}
	bad := unlisted([]test{{"m/p", "TestC"}, {"m/q", "TestC"}}, allowed)
	if !slices.Equal(bad, []test{{"m/q", "TestC"}}) {
		t.Errorf("not listed: %v", bad)
	}
	if err := os.WriteFile(file, []byte("m/p TestC\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSkips(file); err == nil || !strings.Contains(err.Error(), ":1: ") {
		t.Errorf("a line without a reason: %v", err)
	}
}
