package layertest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

// old is the mtime of everything in the tree: far enough back for each change to
// show, and with nanoseconds.
var old = time.Unix(1_400_000_000, 123_456_789)

// sizes are file lengths around what pages, SFTP packets and OpenSSH's limits
// make special.
var sizes = []int{
	0, 1, 4095, 4096, 4097, 32<<10 - 1, 32 << 10, 32<<10 + 1,
	128<<10 - 1, 128 << 10, 128<<10 + 1, 255 << 10, 255<<10 + 1, 256 << 10, 256<<10 + 1,
	1<<20 + 3, 3<<20 + 17,
}

// odd are names that text handling would break.
var odd = []string{
	" leading", "trailing ", "-dash", "new\nline", "tab\there", "quote'\"", `back\slash`, "*", "%s%n",
	"\xff\xfe\x80", "ünï", "...", "..x", ".hidden", "\x1b[31m", strings.Repeat("n", layers.NameMax), strings.Repeat("\xc3", layers.NameMax),
}

const manyNames = 3000

// pattern returns n bytes that no two places or seeds share.
func pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// populate fills dir.
func populate(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Chmod(dir, 0o755))
	for _, d := range []string{"sizes", "odd", "empty", "many", "links", "special", "modes", "sub/deeper"} {
		must(t, os.MkdirAll(at(d), 0o755))
	}
	for _, n := range sizes {
		file(t, at(fmt.Sprintf("sizes/%d", n)), pattern(uint64(n), n), 0o644)
	}
	sparse(t, at("sizes/sparse"))
	for _, name := range odd {
		file(t, at("odd/"+name), []byte(name), 0o644)
	}
	for i := range manyNames {
		file(t, at(fmt.Sprintf("many/%04d", i)), nil, 0o600)
	}
	file(t, at("sub/file"), []byte("content of sub/file"), 0o644)
	file(t, at("sub/deeper/file"), []byte("content of sub/deeper/file"), 0o644)
	must(t, os.Link(at("sub/file"), at("sub/other name")))
	for name, target := range map[string]string{
		"dangling": "nowhere", "absolute": "/etc/passwd", "directory": "../sub", "file": "../sub/file",
		"up": "../..", "self": "self", "root": "/", "long": strings.Repeat("x/", 2047) + "y", "odd": "a\nb\xff",
	} {
		must(t, os.Symlink(target, at("links/"+name)))
	}
	must(t, unix.Mkfifo(at("special/fifo"), 0o644))
	must(t, socket(at("special"), "socket"))
	for _, m := range []uint32{0, 0o001, 0o400, 0o777, 0o1755, 0o2755, 0o4755, 0o6711} {
		name := at(fmt.Sprintf("modes/%04o", m))
		file(t, name, []byte("text"), 0o644)
		must(t, unix.Chmod(name, m))
	}
	if os.Geteuid() == 0 {
		file(t, at("modes/owned"), []byte("text"), 0o644)
		must(t, os.Lchown(at("modes/owned"), 12345, 54321))
	}
	// Not every filesystem has them: xattrs asks the kernel what there is.
	_ = unix.Setxattr(at("sub/file"), "user.note", []byte("a\x00b"), 0)
	_ = unix.Setxattr(at("sub/file"), "user.empty", nil, 0)
	_ = unix.Setxattr(at("sub"), "user.dir", []byte(strings.Repeat("v", 500)), 0)
	deep(t, dir)
	age(t, dir)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func file(t *testing.T, name string, content []byte, mode os.FileMode) {
	t.Helper()
	must(t, os.WriteFile(name, content, mode))
	must(t, os.Chtimes(name, old, old))
}

// sparse makes 8 MiB of holes with data at both ends and in the middle.
func sparse(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	for _, off := range []int64{0, 4<<20 + 5, 8<<20 - 100} {
		_, err := f.WriteAt(pattern(uint64(off)+1, 100), off)
		must(t, err)
	}
}

// socket makes a socket by a short name: sockaddr_un holds 108 bytes only.
func socket(dir, name string) error {
	dirfd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dirfd)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name)})
}

// deepPath is a path whose absolute form under dir is as long as PATH_MAX lets
// it be.
func deepPath(dir string) layers.Path {
	room := unix.PathMax - 1 - len(dir) - 1
	var parts []string
	for room > 0 {
		n := min(room, 200)
		if room-n == 1 { // a slash needs a name behind it
			n--
		}
		parts = append(parts, strings.Repeat("d", n))
		room -= n + 1
	}
	return layers.Path(strings.Join(parts, "/"))
}

func deep(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	parts := deepPath(dir).Components()
	for _, name := range parts[:len(parts)-1] {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	defer unix.Close(fd)
	ffd, err := unix.Openat(fd, parts[len(parts)-1], unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	must(t, err)
	defer unix.Close(ffd)
	_, err = unix.Write(ffd, []byte("deep"))
	must(t, err)
}

// age gives directories and what file did not make the old time as well.
func age(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"sizes/sparse", "sizes", "odd", "empty", "many", "links", "special", "modes", "sub/deeper", "sub", ""} {
		must(t, os.Chtimes(filepath.Join(dir, name), old, old))
	}
}
