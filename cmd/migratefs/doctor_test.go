package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
)

// What is missing is said with what it costs, and what is needed decides the code.
func TestDiagnosis(t *testing.T) {
	d := &diagnosis{Version: "v", Kernel: "5.4.0", Machine: "x86_64", Findings: []finding{
		{Group: "Kernel", What: "openat2(2)", Detail: lackText("5.4.0", "5.6", false), Without: "paths are walked one component a call"},
		{Group: "Mounting", What: "/dev/fuse", Needed: true, There: true},
		{Group: "Mounting", What: "a mount", Needed: true, Detail: "operation not permitted\nsecond line", Without: "give it"},
	}}
	var b bytes.Buffer
	d.print(&b)
	want := `migratefs v on Linux 5.4.0, x86_64

Kernel
  no  openat2(2): Linux has it since 5.6
        paths are walked one component a call

Mounting
  yes /dev/fuse
  NO  a mount: operation not permitted; second line
        give it
`
	if b.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", b.String(), want)
	}
	if what := d.lacksNeeded(); len(what) != 1 || what[0] != "a mount" {
		t.Errorf("needed and missing: %q", what)
	}
}

// An old kernel is told from a filter, which may stand before an old one, too.
func TestLackText(t *testing.T) {
	for _, c := range []struct {
		kernel, since string
		filtered      bool
		want          string
	}{
		{"5.4.0-150-generic", "5.12", false, "Linux has it since 5.12"},
		{"5.4.0-150-generic", "5.12", true, "Linux has it since 5.12"},
		{"6.18.5", "6.13", true, "Linux has it since 6.13, so has this kernel: a seccomp filter hides it, as containers have them"},
		{"6.13-rc1", "6.13", false, "Linux has it since 6.13, but here it is refused"},
		{"6.18.5", "4.20, where it is configured", true, "Linux has it since 4.20, where it is configured"},
		{"strange", "5.6", true, "Linux has it since 5.6"},
	} {
		if got := lackText(c.kernel, c.since, c.filtered); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// Whatever can be missing has a price, or it would not be looked for.
func TestEveryLackHasItsPrice(t *testing.T) {
	for _, o := range kernelOffers {
		if o.without == "" || o.since == "" {
			t.Errorf("%s: nothing is said of kernels without", o.what)
		}
	}
	for _, o := range fuseOffers {
		if o.without == "" || o.since == "" || o.bit == 0 == (o.minor == 0) {
			t.Errorf("%s: nothing is said of kernels without, or it is not told how it is known", o.what)
		}
	}
	for _, o := range layerOffers {
		if o.without == "" {
			t.Errorf("%s: nothing is said of filesystems without", o.what)
		}
	}
}

// A directory that is looked at stays as it was.
func TestDoctorLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/mine", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &diagnosis{}
	if err := d.layer(dir); err != nil {
		t.Fatal(err)
	}
	if len(d.Findings) < len(offers)+len(layerOffers) {
		t.Errorf("%d findings", len(d.Findings))
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "mine" {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := d.layer(dir + "/none"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestDoctorJSON(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := newRootCommand()
	var b bytes.Buffer
	root.SetOut(&b)
	root.SetArgs([]string{"doctor", "--json", t.TempDir()})
	err := root.Execute()
	var ce *codeError
	if err != nil && (!errors.As(err, &ce) || ce.code != exitFound) {
		t.Fatal(err)
	}
	var d diagnosis
	if err := json.Unmarshal(b.Bytes(), &d); err != nil {
		t.Fatalf("%v: %s", err, b.String())
	}
	if d.Kernel == "" || len(d.Findings) < 20 {
		t.Errorf("%s", b.String())
	}
}
