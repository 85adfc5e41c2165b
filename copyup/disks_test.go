package copyup

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// disk mounts a new filesystem of a type; it is unmounted when the test ends.
func disk(t *testing.T, fstype, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts, foreign owners, trusted xattrs")
	}
	base := t.TempDir()
	dir := filepath.Join(base, fstype)
	must(t, os.Mkdir(dir, 0o755))
	if fstype == "tmpfs" {
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755,"+options))
	} else {
		image := filepath.Join(base, "image")
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, 512<<20))
		mkfs := map[string][]string{
			"ext4":  {"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1"},
			"xfs":   {"mkfs.xfs", "-q", "-m", "reflink=1"},
			"btrfs": {"mkfs.btrfs", "-q"},
		}[fstype]
		run(t, append(mkfs, image)...)
		run(t, "mount", "-o", "loop", image, dir)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// sourceOf is the file at path as a Source.
func sourceOf(t *testing.T, path string) Source {
	t.Helper()
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(dir)
	name := filepath.Base(path)
	var stx unix.Statx_t
	must(t, sys.Statx(dir, name, &stx))
	src := Source{Attr: local.AttrOf(&stx)}
	src.Size = src.Attr.Size
	src.Xattrs, err = local.XattrsAt(dir, name)
	must(t, err)
	switch src.Attr.Type() {
	case unix.S_IFREG:
		src.File = fileAt(t, path, src.Attr)
	case unix.S_IFLNK:
		src.Target, err = os.Readlink(path)
		must(t, err)
	}
	return src
}

func fileAt(t *testing.T, path string, a layers.Attr) layers.File {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	must(t, err)
	f := local.NewFile(fd, a)
	t.Cleanup(func() { f.Close() })
	return f
}

// place is DIR/NAME as a Place, whose work directory is DIR/.work.
func place(t *testing.T, dir, name string) Place {
	t.Helper()
	work := filepath.Join(dir, ".work")
	if err := os.Mkdir(work, 0o700); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	at := Place{Name: name}
	for _, d := range []struct {
		fd   *int
		path string
	}{{&at.Dir, dir}, {&at.Work, work}} {
		fd, err := unix.Open(d.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		*d.fd = fd
	}
	return at
}

// rootly is what a mount by root copies with.
var rootly = Config{Owner: true}
