package oracle

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// TestInterop works on one upper in turns, with ours and with the kernel's
// overlayfs, and after each turn compares what both show of it: every file, the
// hard links, and the inode numbers.
func TestInterop(t *testing.T) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	for _, c := range interops {
		for i, first := range []string{"ours", "kernel"} {
			t.Run(c.name+", first "+first, func(t *testing.T) {
				x := newInterop(t, c)
				for j, turn := range c.turns {
					if (i+j)%2 == 0 {
						x.withOurs(turn)
					} else {
						x.withKernel(turn)
					}
					x.compare(fmt.Sprintf("after turn %d", j+1))
				}
			})
		}
	}
}

// A script is made of lines: an operation and its operands.
type interop struct {
	name    string
	layers  []string // scripts that make the lowers, highest first
	turns   []string
	options string // of both mounts, besides the directories
	loose   bool   // times and numbers are not compared
}

var interops = []interop{
	{
		name:   "a directory moved twice",
		layers: []string{"", "mkdir a/b/c\nwrite a/b/f one\nwrite a/b/c/g two\nmkdir d/e"},
		turns: []string{
			"mv a/b a/x",
			"mv a/x d/y\nwrite d/y/new three",
			"mv d/y/c d/e/c2\nmv a d/a\nappend d/e/c2/g more",
			"mv d d2\nmv d2/e/c2 c\nrm c/g",
			"mv c c3\nwrite c3/g again",
		},
	},
	{
		name: "through the redirects of a lower that was an upper",
		layers: []string{
			"mkdir p/z\nredirect p /a/b\nwrite p/z/new top\nwhite a\nmkdir q\nredirect q /r/s\nmkdir r\nwhite r/s",
			"mkdir a/b\nredirect a /m\nwrite a/b/mid middle\nmkdir a/b/n\nredirect a/b/n k\nwhite a/b/k\nwhite m",
			"mkdir m/b/z/w\nwrite m/b/z/w/f bottom\nmkdir m/b/k\nwrite m/b/k/deep file\nmkdir r/s/t\nwrite r/s/t/u v",
		},
		turns: []string{
			"mv p/z z2\nappend z2/w/f more",
			"mv p/n n2\nappend n2/deep more",
			"mv q/t t\nmv z2/w p/w",
			"mv p q/p\nmv t q/p/w/t",
			"mv q/p/w/t/u u",
		},
	},
	{
		name: "redirects behind whiteouts and opaque directories",
		layers: []string{
			"mkdir a\nredirect a /x/y\nmkdir b\nredirect b /o/c\nmkdir o\nwhite o/c\nmkdir c/d",
			"white x\nmkdir o\nopaque o\nmkdir o/c\nwrite o/c/seen 1\nwhite c",
			"mkdir x/y/hidden\nmkdir o/c/hidden\nmkdir c/d/hidden",
		},
		turns: []string{"mkdir a/new\nmv b b2", "mv c/d e\nmv a b2/a", "mkdir x\nmkdir x/y\nmv b2/a x/y/a"},
	},
	{
		name:   "directories that change places",
		layers: []string{"mkdir a/sub\nwrite a/sub/f 1", "mkdir a/low\nmkdir b/low2\nwrite b/low2/f 2\nmkdir c"},
		turns: []string{
			"exchange a b",
			"exchange a/low2 b/sub",
			"mkdir n\nexchange n a\nmkdir a/only",
			"mv n c/n\nexchange c b\nrm b/n/low2/f",
		},
	},
	{
		name: "whiteouts that are files",
		layers: []string{
			"mkdir d/e\nfwhite d/a\nfwhite d/e/f\nopaquex d\nopaquex d/e\nmkdir n\nwrite d/here top\nmkdir d/k",
			"mkdir d/k\nwrite d/a mid\nwrite d/b mid\nfwhite d/k/g\nopaquex d/k\nfwhite d/c\nopaquex d\nmkdir n\nwrite n/not mid",
			"mkdir d/e\nwrite d/e/f low\nwrite d/c low\nmkdir d/k\nwrite d/k/g low\nwrite d/k/h low\nmkdir n\nwrite n/not low",
		},
		turns: []string{
			"write d/a new\nmkdir d/c\nmv d/k k",
			"rm d/a\nwrite k/g new\nmkdir d/e/f\nrm n/not",
			"rmdir d/c\nmkdir d/a\nwrite d/a/x y\nmv d/e e\nrm k/h",
			"rm k/g\nrm d/here\nrm d/b\nrm d/a/x\nrmdir d/a", // the kernel does not remove an empty d that has whiteouts of this form
		},
	},
	{
		name:    "user xattrs",
		options: "userxattr",
		layers: []string{
			"mkdir d\nuwhite d/a\nuopaque d x\nmkdir o\nuopaque o y\nwrite o/f top\nwhite w",
			"mkdir d\nwrite d/a low\nwrite d/b low\nmkdir o\nwrite o/g low\nwrite w low\nmkdir m\nwrite m/f low",
		},
		turns: []string{
			"write d/a new\nrm d/b\nmkdir o/g\nfails EXDEV mv m m2\nappend m/f x",
			"rm d/a\nmkdir d/b\nwrite w x\nrm m/f",
			"rmdir d/b\nrmdir m\nmkdir m\nrm o/f",
			"mv m m2\nrmdir o/g\nrmdir o\nrm w",
		},
	},
	{
		name:   "hard links",
		layers: []string{"", "mkdir a\nmkdir b\nwrite a/f one\nln a/f a/g\nln a/f b/h\nsymlink x b/s\nln b/s b/t\nwrite b/i two\nln b/i a/j\nwrite k three\nln k l\nwrite m four\nln m n"},
		turns: []string{
			"append a/f more\nchmod b/i",
			"ln a/g new\nmv b/t b/u\nappend a/j x",
			"rm a/f\nmv b/h c\nrm b/i\nln b/s v",
			"append c y\nrm a/g\nmv k a/k\nrm a/j",
			"append l z\nrm new\nmv n m\nrm v",
			"rm c\nrm b/s\nmv l a/k\nwrite c other\nln c d",
			"rm a/k\nrm b/u\nappend d x",
		},
	},
	{
		name:   "numbers",
		layers: []string{"mkdir a\nwrite a/f top", "mkdir a/b\nwrite a/b/f low\nwrite a/g low\nwrite g low", "mkdir a/c\nwrite a/c/f lowest\nmkdir b\nwrite b/x x"},
		turns: []string{
			"append a/f 1\nappend a/b/f 1\nmv g b/g\nmkdir new\nmv a/c new/c\nwrite new/f own",
			"mv b/g new/g\nappend new/c/f 2\nmv new/c c\nmv new/f a/own\nmkdir b/n",
			"mv new/g g\nln g a/glink\nmkdir b/m\nmv b/x b/m/x\nexchange a b",
			"rm g\nmv b/glink b/m2\nmv b/f a/f",
		},
	},
	{
		name: "long paths",
	},
}

func init() {
	// 256 bytes is the longest redirect: a directory at a path of that length is
	// moved, one byte more is not.
	d := strings.Repeat(strings.Repeat("d", 79)+"/", 3)
	at256, at257 := d+strings.Repeat("x", 255-len(d)), d+strings.Repeat("y", 256-len(d))
	c := &interops[len(interops)-1]
	c.layers = []string{"mkdir " + at256 + "\nmkdir " + at257 + "/z\nmkdir e"}
	c.turns = []string{
		"mv " + at256 + " e/one\nfails EXDEV mv " + at257 + " e/two",
		"mv " + at257 + " " + d + "short\nmv e/one three",
		"fails EXDEV mv " + d + "short/z z\nfails EXDEV mv " + d + "short e/two\nmv " + strings.Repeat("d", 79) + " e/d",
		"fails EXDEV mv e/d/" + d[80:] + "short/z z\nmv three d",
	}
}

type interopRun struct {
	t      *testing.T
	c      interop
	dir    string
	lowers []*testbed.Tree
}

func newInterop(t *testing.T, c interop) *interopRun {
	x := &interopRun{t: t, c: c, dir: testbed.TempDir(t)}
	for _, d := range []string{"upper", "work", "ours", "kernel"} {
		must(t, os.Mkdir(x.path(d), 0o755))
	}
	must(t, os.Chmod(x.path("work"), 0o700))
	for i, script := range c.layers {
		l := x.path("l" + strconv.Itoa(i))
		must(t, os.Mkdir(l, 0o755))
		perform(t, l, script)
		settle(t, l)
		x.lowers = append(x.lowers, testbed.Snapshot(t, l, testbed.Usual|testbed.Mtime|testbed.Numbers))
	}
	return x
}

func (x *interopRun) path(name string) string { return filepath.Join(x.dir, name) }

func (x *interopRun) options() string {
	dirs := make([]string, len(x.c.layers))
	for i := range dirs {
		dirs[i] = x.path("l" + strconv.Itoa(i))
	}
	opts := "lowerdir=" + strings.Join(dirs, ":") + ",upperdir=" + x.path("upper") + ",workdir=" + x.path("work")
	if x.c.options != "" {
		opts += "," + x.c.options
	}
	return opts
}

func (x *interopRun) withOurs(script string) *testbed.Tree {
	m := testbed.Mount(x.t, "mode=overlay,"+x.options(), x.path("ours"))
	defer m.Unmount()
	perform(x.t, m.Dir, script)
	return testbed.Snapshot(x.t, m.Dir, x.aspects())
}

func (x *interopRun) withKernel(script string) *testbed.Tree {
	opts := x.options() + ",redirect_dir=on,metacopy=on,index=on,xino=on"
	if strings.Contains(x.c.options, "userxattr") {
		opts = x.options()
	}
	if err := mountOverlay(x.path("kernel"), opts); err != nil {
		x.t.Fatalf("overlayfs %s: %v", opts, err)
	}
	defer func() { must(x.t, unix.Unmount(x.path("kernel"), 0)) }()
	perform(x.t, x.path("kernel"), script)
	return testbed.Snapshot(x.t, x.path("kernel"), x.aspects())
}

func (x *interopRun) aspects() testbed.Aspect {
	if x.c.loose {
		return testbed.Usual
	}
	if strings.Contains(x.c.options, "userxattr") {
		return testbed.Usual | testbed.Mtime // no origin: the kernel reads it as root only
	}
	return testbed.Usual | testbed.Mtime | testbed.Numbers
}

// compare looks at the upper with both, twice: neither may change anything by
// looking.
func (x *interopRun) compare(when string) {
	kernel := x.withKernel("")
	ours := x.withOurs("")
	testbed.Same(x.t, when+", the kernel's view", kernel, "ours", ours)
	testbed.Same(x.t, when+", the kernel's view", kernel, "its view once more", x.withKernel(""))
	for i, before := range x.lowers {
		testbed.Same(x.t, "the lower as it was", before, "as it is",
			testbed.Snapshot(x.t, x.path("l"+strconv.Itoa(i)), testbed.Usual|testbed.Mtime|testbed.Numbers))
	}
	if x.t.Failed() {
		x.t.FailNow()
	}
}

// perform runs a script in the directory root.
func perform(t *testing.T, root, script string) {
	t.Helper()
	for line := range strings.Lines(script) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		want := error(nil)
		if f[0] == "fails" {
			want, f = errnoNamed(f[1]), f[2:]
		}
		if err := performOne(root, f); err != want {
			t.Fatalf("%s: %v, want %v", strings.TrimSpace(line), err, want)
		}
	}
}

func errnoNamed(name string) error {
	for e := unix.Errno(1); e < 200; e++ {
		if unix.ErrnoName(e) == name {
			return e
		}
	}
	panic("no errno " + name)
}

func performOne(root string, f []string) error {
	at := func(i int) string { return filepath.Join(root, f[i]) }
	format := func(name string) string { return "trusted.overlay." + name }
	switch f[0] {
	case "mkdir":
		return bare(os.MkdirAll(at(1), 0o755))
	case "write":
		return bare(os.WriteFile(at(1), []byte(f[2]), 0o644))
	case "empty":
		return bare(os.WriteFile(at(1), nil, 0o600))
	case "append":
		w, err := os.OpenFile(at(1), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return bare(err)
		}
		defer w.Close()
		_, err = w.WriteString(f[2])
		return bare(err)
	case "file": // of so many bytes
		return bare(os.WriteFile(at(1), contentOf(f[1], number(f[2])), 0o644))
	case "cut":
		return bare(unix.Truncate(at(1), int64(number(f[2]))))
	case "xattr":
		return bare(unix.Setxattr(at(1), "user.one", []byte("value"), 0))
	case "acl":
		return bare(unix.Setxattr(at(1), "system.posix_acl_access", aclOf(4), 0))
	case "metacopy": // of so many bytes, and with a redirect
		if err := os.WriteFile(at(1), nil, 0o640); err != nil {
			return bare(err)
		}
		if err := unix.Setxattr(at(1), format("metacopy"), nil, 0); err != nil {
			return err
		}
		if len(f) > 3 {
			if err := unix.Setxattr(at(1), format("redirect"), []byte(f[3]), 0); err != nil {
				return err
			}
		}
		return bare(unix.Truncate(at(1), int64(number(f[2]))))
	case "mv":
		return bare(unix.Rename(at(1), at(2)))
	case "exchange":
		return bare(unix.Renameat2(unix.AT_FDCWD, at(1), unix.AT_FDCWD, at(2), unix.RENAME_EXCHANGE))
	case "ln":
		return bare(unix.Link(at(1), at(2)))
	case "symlink":
		return bare(unix.Symlink(f[1], at(2)))
	case "rm":
		return bare(unix.Unlink(at(1)))
	case "rmdir":
		return bare(unix.Rmdir(at(1)))
	case "chmod":
		return bare(unix.Chmod(at(1), 0o600))
	case "white":
		return bare(unix.Mknod(at(1), unix.S_IFCHR, 0))
	case "opaque":
		return bare(unix.Setxattr(at(1), format("opaque"), []byte("y"), 0))
	case "fwhite":
		return errors.Join(os.WriteFile(at(1), nil, 0o644), unix.Setxattr(at(1), format("whiteout"), []byte("y"), 0))
	case "opaquex":
		return bare(unix.Setxattr(at(1), format("opaque"), []byte("x"), 0))
	case "uwhite":
		return errors.Join(os.WriteFile(at(1), nil, 0o644), unix.Setxattr(at(1), "user.overlay.whiteout", []byte("y"), 0))
	case "uopaque":
		return bare(unix.Setxattr(at(1), "user.overlay.opaque", []byte(f[2]), 0))
	case "redirect":
		return bare(unix.Setxattr(at(1), format("redirect"), []byte(f[2]), 0))
	}
	panic("no operation " + f[0])
}

// contentOf is content that tells where it comes from and at which offset.
func contentOf(name string, size int) []byte {
	var b []byte
	for len(b) < size {
		b = fmt.Appendf(b, "%s at %d\n", name, len(b))
	}
	return b[:size]
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// bare takes the path from an error.
func bare(err error) error {
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// TestOCIWhiteouts: lowers that are OCI image layers show what the kernel shows of
// the same layers with its own whiteouts, before and after they are worked on.
func TestOCIWhiteouts(t *testing.T) {
	testbed.NeedFUSE(t)
	unix.Umask(0o022)
	layers := []string{
		"mkdir d\nwhite d/a\nwhite e\nmkdir o\nopaque o\nwrite o/own top\nmkdir both\nopaque both\nwrite both/f top",
		"mkdir d\nwrite d/a mid\nwrite d/b mid\nwhite d/c\nwrite e mid\nmkdir o\nwrite o/hidden mid\nwhite gone\nmkdir both\nwrite both/g mid",
		"mkdir d/sub\nwrite d/a low\nwrite d/c low\nwrite d/k low\nmkdir o\nwrite o/low low\nmkdir gone/dir\nwrite e low\nmkdir both/h",
	}
	work := []string{
		"",
		"write d/a new\nrm d/b\nmkdir gone\nmkdir e\nmv o o2",
		"write o new\nmv d/sub both/sub\nrm d/k\nmkdir d/c\nmkdir d/k\nrmdir e\nmv both gone/both",
	}
	kernel, ours := newInterop(t, interop{layers: layers, loose: true}), newInterop(t, interop{layers: make([]string, len(layers)), loose: true})
	for i, script := range layers {
		dir := ours.path("l" + strconv.Itoa(i))
		perform(t, dir, asOCI(script))
		if i == 0 { // what is beside its whiteout is of the same layer, and stays
			must(t, os.Rename(filepath.Join(dir, "both", ".wh..wh..opq"), filepath.Join(dir, ".wh.both")))
			must(t, os.WriteFile(filepath.Join(dir, "d", ".wh..wh.aufs"), nil, 0o600))
		}
		settle(t, dir)
	}
	ours.c.options = "whiteout=oci"
	for _, script := range work {
		a, b := kernel.withKernel(script), ours.withOurs(script+"\nfails EPERM write d/.wh.x y\nfails EPERM mkdir .wh.y\nfails ENOENT chmod .wh.e\nfails EPERM mv d .wh.gone")
		for _, tree := range []*testbed.Tree{a, b} {
			if !tree.Has("o/own") && script == "" {
				t.Error("the layers show nothing")
			}
		}
		testbed.Same(t, "the kernel's view of the layers", a, "ours of OCI's", b)
	}
}

func asOCI(script string) (oci string) {
	for line := range strings.Lines(script) {
		f := strings.Fields(line)
		switch dir, name := filepath.Split(f[1]); f[0] {
		case "white":
			line = "empty " + dir + ".wh." + name + "\n"
		case "opaque":
			line = "empty " + f[1] + "/.wh..wh..opq\n"
		}
		oci += line
	}
	return oci
}
