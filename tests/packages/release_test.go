package packages

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// builtIn copies the source to dir, builds it there as it is released, and returns the
// program.
func builtIn(t *testing.T, dir string) (program string) {
	t.Helper()
	cmd := exec.Command("bash", "-euc", `
		mkdir -p "$D"
		cp -r Makefile go.mod go.sum cmd copyup criu internal layers overlay "$D"
		cd "$D"
		make -s build VERSION=v1.2.3 COMMIT=0123abc DATE=2026-01-31`)
	cmd.Dir = testbed.ModuleDir()
	cmd.Env = append(os.Environ(), "D="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "build", "migratefs")
}

// The same commit gives the same bytes wherever it lies, and the program and its SBOM
// say what it was built from. (That other compilers' caches make no difference is for
// 'make release' on two machines.)
func TestReproducible(t *testing.T) {
	dir := testbed.TempDir(t)
	one, other := builtIn(t, dir+"/a"), builtIn(t, dir+"/another place/b")
	a, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("two builds differ: %d and %d bytes", len(a), len(b))
	}
	if bytes.Contains(a, []byte(dir)) {
		t.Error("the program says where it was built")
	}
	out, err := exec.Command(one, "version").Output()
	if want := "migratefs v1.2.3 (0123abc, 2026-01-31)\ngo1."; err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("version: %v, %q, want %q", err, out, want)
	}

	cmd := exec.Command("go", "run", "./packaging/sbom", "-version", "1.2.3", "-commit", "0123abc", "-epoch", "1700000000", one)
	cmd.Dir = testbed.ModuleDir()
	out, err = cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		Spec  string `json:"spdxVersion"`
		Parts []struct {
			Name, VersionInfo string
			Checksums         []struct{ ChecksumValue string }
		} `json:"packages"`
	}
	if err := json.Unmarshal(out, &bom); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(a)
	if bom.Spec != "SPDX-2.3" || len(bom.Parts) < 5 || bom.Parts[0].Name != "migratefs" || bom.Parts[0].Checksums[0].ChecksumValue != hex.EncodeToString(sum[:]) {
		t.Errorf("the SBOM is of something else:\n%s", out)
	}
	if !strings.Contains(string(out), `"name": "github.com/hanwen/go-fuse/v2"`) {
		t.Errorf("the SBOM lacks go-fuse:\n%s", out)
	}
}
