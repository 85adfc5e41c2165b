package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// block is one fenced block of the documents.
type block struct {
	doc  string // "docs/migration.md"
	text string
}

// blocks are those of README.md and docs, in their order.
func blocks(t *testing.T) (all []block) {
	t.Helper()
	for path, text := range documents(t) {
		if filepath.Dir(path) != "docs" && path != "README.md" {
			continue
		}
		for _, b := range fenced.FindAllString(text, -1) {
			_, b, _ = strings.Cut(b, "\n")
			all = append(all, block{path, strings.TrimSuffix(b, "```")})
		}
	}
	return all
}

// command is one command of a block, and what the block shows of its output.
type command struct {
	line  string
	shows []string
}

// commands takes a block apart: with prompts, what has none is output.
func (b block) commands() (all []command) {
	text := strings.ReplaceAll(b.text, "\\\n", " ")
	prompts := strings.HasPrefix(text, "# ")
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		cmd, is := strings.CutPrefix(line, "# ")
		switch {
		case is || !prompts && line != "":
			all = append(all, command{line: cmd})
		case line != "" && line != "...":
			last := &all[len(all)-1]
			last.shows = append(last.shows, line)
		}
	}
	return all
}

// ownRoot gives a host a root that is this machine's with an upper of memory over it, in
// which migratefs is installed: the documents' names lie in the root.
const ownRoot = `
	mount -t tmpfs -o mode=755 tmpfs /mnt
	mkdir /mnt/upper /mnt/work /mnt/root
	mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
	for d in dev proc sys run; do mount --rbind /$d /mnt/root/$d; done
	for d in srv var/lib "$TMP"; do mount --bind /$d /mnt/root/$d; done
	cd /mnt/root
	pivot_root . .
	umount -l .
	cd /
	install "$BINARY" /usr/bin/migratefs
	ln -sf migratefs /usr/bin/lazyfs
	ln -sf ../bin/migratefs /usr/sbin/mount.migratefs
	ln -sf ../bin/migratefs /usr/sbin/mount.fuse.migratefs
	ln -sf ../bin/migratefs /usr/sbin/umount.fuse.migratefs
	ln -sf "$CRIU" /usr/bin/criu
	echo >/etc/fstab
	for d in oldscratch newscratch scratch; do
		mkdir /$d
	done`

// twoHosts are a, which the documents call host, and b, which can log in there as root
// and as user.
func twoHosts(t *testing.T) (a, b *testbed.Host) {
	t.Helper()
	testbed.NeedFUSE(t)
	criu, err := exec.Command(filepath.Join(testbed.ModuleDir(), "tests", "testbed", "criu.sh")).Output()
	if err != nil {
		t.Fatalf("no working criu: %v", err)
	}
	a, b = testbed.NewHosts(t)
	sshd := testbed.StartSSHD(t, testbed.SSHDConfig{Host: a})
	for _, file := range []string{sshd.AuthorizedKeys(), sshd.LogFile()} {
		if err := os.Chmod(file, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	config, err := os.ReadFile(sshd.SSHConfig())
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^\tUser .*\n`).ReplaceAllString(strings.Replace(string(config), "Host source", "Host host a", 1), "")
	tmp := filepath.Dir(testbed.TempDir(t))
	for _, h := range []*testbed.Host{a, b} {
		h.Run("env", "TMP="+tmp, "BINARY="+testbed.Build(t), "CRIU="+strings.TrimSpace(string(criu)), "bash", "-euc", ownRoot)
	}
	a.Run("useradd", "--password", "*", "--no-create-home", "--home-dir", "/", "--shell", "/bin/sh", "user")
	if err := os.WriteFile(b.Path("/etc/ssh/ssh_config"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return a, b
}
