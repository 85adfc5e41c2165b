package server

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The test binary is the server that other programs start.
func TestMain(m *testing.M) {
	if dir, ok := os.LookupEnv("MIGRATEFS_TEST_SERVE"); ok {
		if err := Serve(context.Background(), os.Stdin, os.Stdout, Config{Dir: dir}); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// OpenSSH's client does with our server what it does with its own.
func TestOpenSSHClient(t *testing.T) {
	dir, here := tempDir(t), tempDir(t)
	content := strings.Repeat("content of a file\n", 50_000)
	write(t, here+"/up", content)
	must(t, os.Mkdir(here+"/tree", 0o755))
	must(t, os.Mkdir(here+"/tree/sub", 0o755))
	write(t, here+"/tree/sub/f", "deep")
	batch := strings.Join([]string{
		"cd sub", "put " + here + "/up up", "chmod 640 up", "rename up name", "ln name linked", "symlink name sym",
		"put -pR " + here + "/tree .", "get name " + here + "/down", "get -R tree " + here + "/back", "get sym " + here + "/by-link",
		"ls -la", "df .", "rm sym", "mkdir d", "rmdir d", "pwd",
	}, "\n") + "\n"
	must(t, os.Mkdir(dir+"/sub", 0o755))
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command("sftp", "-b", "-", "-D", self)
	cmd.Env = append(os.Environ(), "MIGRATEFS_TEST_SERVE="+dir)
	cmd.Stdin = strings.NewReader(batch)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sftp (package openssh-client): %v\n%s", err, out)
	}
	for name, want := range map[string]string{
		dir + "/sub/name": content, dir + "/sub/linked": content, here + "/down": content, here + "/by-link": content,
		dir + "/sub/tree/sub/f": "deep", here + "/back/sub/f": "deep",
	} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	if fi, err := os.Stat(dir + "/sub/name"); err != nil || fi.Mode() != 0o640 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	for _, want := range []string{"-rw-r-----", "Remote working directory: " + dir + "/sub", "drwxr-xr-x"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("%q is not in what sftp says:\n%s", want, out)
		}
	}
}
