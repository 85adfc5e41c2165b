package conformance

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	cases = append(cases,
		testcase{name: "names", tree: oddNames, run: names},
		testcase{name: "deep", tree: deepTree, beyondSFTP: true, run: deep},
		testcase{name: "rename", tree: files("f", "g", "d/h", "e/k", "full/x"), run: renames},
		testcase{name: "rename-dirs", tree: renameTree, run: renameDirs},
		testcase{name: "rename-open", tree: files("d/e/f", "d/g"), run: renameOpen},
		testcase{name: "rename-whiteout", tree: files("f"), run: renameWhiteout},
		testcase{name: "links", tree: linked, beyondSFTP: true, run: links},
		testcase{name: "nodes", tree: nodes, beyondSFTP: true, run: mknods},
		testcase{name: "socket", run: sockets},
		testcase{name: "rmdir-cwd", tree: files("d/f"), run: rmdirCwd},
		testcase{name: "identity", tree: identityTree, beyondSFTP: true, run: identity},
		testcase{name: "inode-numbers", tree: manySmall, run: inodeNumbers},
		testcase{name: "remove-tree", tree: identityTree, beyondSFTP: true, run: removeTree},
		testcase{name: "sticky", tree: stickyTree, beyondSFTP: true, run: sticky},
	)
}

var odd = []string{
	"with space", "new\nline", "tab\t", "\x01\x02", "\xff\xfe invalid", "ünï", "-dash", "back\\slash", "quote'\"", "*?[]",
	".hidden", "..more", "...", "a:b,c", ".wh.name", ".wh..wh..opq", strings.Repeat("n", 255), strings.Repeat("ü", 127),
}

func oddNames(t *testing.T, dir string) {
	for _, n := range odd {
		put(t, filepath.Join(dir, n), "content of "+n)
		must(t, os.Mkdir(filepath.Join(dir, "d"+n[1:]), 0o755))
	}
}

func (c *at) list(name string) []string {
	c.Helper()
	es, err := os.ReadDir(c.path(name))
	c.must(err)
	var l []string
	for _, e := range es {
		l = append(l, fmt.Sprintf("%q", e.Name()))
	}
	sort.Strings(l)
	return l
}

func names(c *at) {
	c.note("list", "%v", c.list("."))
	for _, n := range odd {
		q := fmt.Sprintf("%q", n)
		c.note(q, "%s", c.content(n))
		c.err("write "+q, os.WriteFile(c.path(n), []byte("written"), 0))
		c.err("rename "+q, unix.Rename(c.dir+"/"+n, c.dir+"/m"+n[1:]))
		c.err("back "+q, unix.Rename(c.dir+"/m"+n[1:], c.dir+"/"+n))
		c.err("into "+q, os.WriteFile(c.dir+"/d"+n[1:]+"/"+n, []byte("in"), 0o644))
		c.err("symlink "+q, os.Symlink(n, c.dir+"/s"+n[1:]))
		c.err("link "+q, os.Link(c.dir+"/"+n, c.dir+"/l"+n[1:]))
		c.err("unlink "+q, os.Remove(c.dir+"/"+n))
	}
	c.note("in the end", "%v", c.list("."))
	long := strings.Repeat("x", 256)
	c.err("stat of 256 bytes", unix.Lstat(c.dir+"/"+long, &unix.Stat_t{}))
	c.err("create 256 bytes", os.WriteFile(c.dir+"/"+long, nil, 0o644))
	c.err("mkdir 256 bytes", os.Mkdir(c.dir+"/"+long, 0o755))
	c.err("rename to 256 bytes", unix.Rename(c.dir+"/d"+odd[0][1:], c.dir+"/"+long))
	c.err("link to 256 bytes", unix.Link(c.dir+"/l"+odd[0][1:], c.dir+"/"+long))
	c.err("symlink at 256 bytes", unix.Symlink("x", c.dir+"/"+long))
	c.err("unlink 256 bytes", unix.Unlink(c.dir+"/"+long))
	c.err("long symlink", unix.Symlink(strings.Repeat("y/", 2047)+"y", c.path("new")))
	l, err := os.Readlink(c.path("new"))
	c.note("its target", "%d %s", len(l), errName(err))
	c.err("a longer one", unix.Symlink(strings.Repeat("y/", 2048), c.path("new2")))
	c.err("an empty one", unix.Symlink("", c.path("new2")))
}

const deepName = "directory-with-a-name-of-some-length-so-that-paths-get-long-quickly-and-the-limit-is-near-0123456789"

// inDeep runs f in the directory n levels below dir, which it makes if make is set.
func inDeep(dir string, n int, make bool, f func(fd int) error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range n {
		if err != nil {
			return err
		}
		if make {
			if err = unix.Mkdirat(fd, deepName, 0o755); err != nil && err != unix.EEXIST {
				return err
			}
		}
		var next int
		next, err = unix.Openat(fd, deepName, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		fd = next
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

func createAt(fd int, name, content string) error {
	f, err := unix.Openat(fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	_, err = unix.Write(f, []byte(content))
	return err
}

func deepTree(t *testing.T, dir string) {
	must(t, inDeep(dir, 60, true, func(fd int) error { return createAt(fd, "f", "deep") }))
}

// deep works below PATH_MAX, and renames what is above.
func deep(c *at) {
	readAt := func(label string, n int, name string) {
		c.err(label, inDeep(c.dir, n, false, func(fd int) error {
			f, err := unix.Openat(fd, name, unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(f)
			b := make([]byte, 100)
			m, err := unix.Read(f, b)
			c.note(label+": content", "%s", b[:max(m, 0)])
			return err
		}))
	}
	readAt("read", 60, "f")
	c.err("write", inDeep(c.dir, 60, false, func(fd int) error { return createAt(fd, "f", "written") }))
	readAt("read again", 60, "f")
	c.err("make", inDeep(c.dir, 60, false, func(fd int) error {
		return errors2(unix.Mkdirat(fd, "d", 0o755), createAt(fd, "d/x", "x"))
	}))
	c.err("rename deep", inDeep(c.dir, 60, false, func(fd int) error { return unix.Renameat(fd, "d", fd, "e") }))
	readAt("after the rename", 60, "e/x")
	c.err("rename in the middle", inDeep(c.dir, 30, false, func(fd int) error {
		return errors2(unix.Renameat(fd, deepName, fd, "other"), unix.Renameat(fd, "other", fd, deepName))
	}))
	readAt("after that", 60, "f")
	c.err("down", inDeep(c.dir, 60, false, func(from int) error {
		return inDeep(c.dir, 45, false, func(to int) error { return unix.Renameat(from, "f", to, "g") })
	}))
	readAt("moved up", 45, "g")
	c.err("unlink", inDeep(c.dir, 60, false, func(fd int) error { return unix.Unlinkat(fd, "e/x", 0) }))
	n := (unix.PathMax - len(c.dir) - 2) / (len(deepName) + 1)
	path := c.dir + "/" + strings.Repeat(deepName+"/", n)
	rest := unix.PathMax - len(path) - 1
	c.err("a path of 4095 bytes", os.WriteFile(path+strings.Repeat("p", min(rest, 255)), []byte("x"), 0o644))
	c.err("a longer one", tryOpen(path+strings.Repeat("p/", rest/2+1)+"pp", unix.O_RDONLY))
	c.err("rename by long paths", unix.Rename(path+strings.Repeat("p", min(rest, 255)), path+strings.Repeat("q", min(rest, 255))))
}

func (c *at) rename(label, from, to string, flags uint) {
	c.Helper()
	c.err(label, unix.Renameat2(unix.AT_FDCWD, c.dir+"/"+from, unix.AT_FDCWD, c.dir+"/"+to, flags))
}

func renames(c *at) {
	show := func(label string) { c.note(label, "%v", c.tree(".")) }
	c.rename("NOREPLACE over a file", "f", "g", unix.RENAME_NOREPLACE)
	c.rename("NOREPLACE", "f", "new", unix.RENAME_NOREPLACE)
	show("after NOREPLACE")
	c.rename("EXCHANGE", "new", "g", unix.RENAME_EXCHANGE)
	c.rename("EXCHANGE with a directory", "new", "d", unix.RENAME_EXCHANGE)
	show("after EXCHANGE")
	c.rename("EXCHANGE back", "new", "d", unix.RENAME_EXCHANGE)
	c.rename("EXCHANGE with nothing", "new", "none", unix.RENAME_EXCHANGE)
	c.rename("both flags", "new", "g", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE)
	c.rename("EXCHANGE with its own directory", "d", "d/h", unix.RENAME_EXCHANGE)
	c.rename("EXCHANGE with a directory above", "d/h", "d", unix.RENAME_EXCHANGE)
	c.rename("a file over a directory", "g", "d", 0)
	c.rename("a directory over a file", "d", "g", 0)
	c.rename("into itself", "full", "full/sub", 0)
	c.rename("over what holds it", "full/x", "full", 0)
	c.rename("onto itself", "g", "g", 0)
	c.rename("nothing", "none", "new2", 0)
	c.rename("to nowhere", "g", "none/g", 0)
	c.rename("over a file", "g", "d/h", 0)
	show("over a file")
	c.rename("over a full directory", "d", "full", 0)
	c.rename("with a slash", "d/h", "d/i/", 0)
	c.rename("a dot", "d/.", "x", 0)
	c.rename("dots", "d/..", "x", 0)
	c.must(os.Remove(c.path("e/k")))
	c.rename("over an emptied directory", "d", "e", 0)
	c.rename("onto the old name", "new", "d", 0)
	show("in the end")
	c.rename("no such flag", "d", "x", 8)
}

// tree lists what is below name: content, or targets.
func (c *at) tree(name string) (l []string) {
	c.Helper()
	c.must(filepath.WalkDir(c.path(name), func(p string, d fs.DirEntry, err error) error {
		c.must(err)
		rel, _ := filepath.Rel(c.path(name), p)
		if d.Type().IsRegular() {
			b, err := os.ReadFile(p)
			c.must(err)
			rel += "=" + string(b)
		}
		l = append(l, rel)
		return nil
	}))
	return l
}

func renameTree(t *testing.T, dir string) {
	files("a/1", "a/sub/2", "b/3", "many/4", "many/5", "many/6", "many/d/7", "many/d/8")(t, dir)
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "empty2"), 0o755))
}

// Directories move with what is in them, or rename(2) says EXDEV and they are where
// they were: mv(1) then copies.
func renameDirs(c *at) {
	moved := true
	move := func(from, to string, flags uint) {
		err := unix.Renameat2(unix.AT_FDCWD, c.path(from), unix.AT_FDCWD, c.path(to), flags)
		if err == unix.EXDEV && c.severalLayers() {
			moved = false
			c.note("mv "+from+" "+to, "ok")
			if flags == 0 {
				must(c, mv(c.path(from), c.path(to)))
			} else {
				c.must(mv(c.path(from), c.path(from)+".x"))
				c.must(mv(c.path(to), c.path(from)))
				c.must(mv(c.path(from)+".x", c.path(to)))
			}
			return
		}
		c.err("mv "+from+" "+to, err)
	}
	move("a", "newdir", 0)
	c.note("moved", "%v", c.tree("."))
	c.must(os.WriteFile(c.path("newdir/sub/2"), []byte("changed"), 0o644))
	c.must(os.Mkdir(c.path("a"), 0o755))
	c.note("another of that name", "%v", c.list("a"))
	move("newdir/sub", "a/sub2", 0)
	move("b", "empty", 0)
	move("a", "b", 0)
	c.note("moved again", "%v", c.tree("."))
	move("many", "b", unix.RENAME_EXCHANGE)
	c.note("exchanged", "%v", c.tree("."))
	c.must(os.RemoveAll(c.path("b/d")))
	move("empty2", "b/d", 0)
	c.note("in the end", "%v", c.tree("."))
	c.must(os.RemoveAll(c.path("b")))
	c.note("removed", "%v", c.tree("."))
	if c.severalLayers() && moved {
		c.Error("no directory of several layers was EXDEV: the case can be simpler")
	}
}

// severalLayers reports whether directories may lie in several layers, and are not
// renamed therefore: where other hosts have them, too.
func (c *at) severalLayers() bool {
	many := c.kind.mode == "migrate" // creds=caller is hosts=single
	return many && c.kind.fill != "upper"
}

func mv(from, to string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return err
	}
	return os.RemoveAll(from)
}

// Files that are open stay what they are while the directories above are renamed.
func renameOpen(c *at) {
	fd := c.open("d/e/f", unix.O_RDWR)
	dir := c.open("d/e", unix.O_RDONLY|unix.O_DIRECTORY)
	if err := os.Rename(c.path("d"), c.path("newdir")); err != nil {
		c.must(mv(c.path("d"), c.path("newdir"))) // EXDEV: the descriptors are of the old tree
		fd = c.open("newdir/e/f", unix.O_RDWR)
		dir = c.open("newdir/e", unix.O_RDONLY|unix.O_DIRECTORY)
	}
	_, err := unix.Pwrite(fd, []byte("WRITTEN"), 0)
	c.note("written", "%s %s", errName(err), c.content("newdir/e/f"))
	c.err("made in the directory", unix.Mkdirat(dir, "x", 0o755))
	c.note("by its descriptor", "%s", errName(unix.Faccessat(dir, "f", unix.R_OK, 0)))
	c.note("by its new name", "%v", c.list("newdir/e"))
	c.must(os.Mkdir(c.path("d"), 0o755))
	c.must(os.Rename(c.path("newdir/g"), c.path("d/g")))
	c.note("in the end", "%v", c.tree("."))
	up, err := unix.Openat(dir, "../..", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	c.must(err)
	defer unix.Close(up)
	c.note("two up", "%v", c.fstat(up).Ino == c.lstat(".").Ino)
}

func renameWhiteout(c *at) {
	c.rename("RENAME_WHITEOUT", "f", "new", unix.RENAME_WHITEOUT)
	c.note("new", "%v", c.list("."))
}

func linked(t *testing.T, dir string) {
	files("a", "d/x")(t, dir)
	for _, n := range []string{"b", "d/c"} {
		must(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, n)))
	}
	must(t, os.Symlink("a", filepath.Join(dir, "sym")))
	must(t, os.Link(filepath.Join(dir, "sym"), filepath.Join(dir, "sym2")))
}

func links(c *at) {
	show := func(label string, names ...string) {
		first := c.lstat(names[0])
		s := fmt.Sprintf("%d names", first.Nlink)
		for _, n := range names {
			st := c.lstat(n)
			s += fmt.Sprintf(", %s %v %s", n, st.Ino == first.Ino && st.Nlink == first.Nlink, c.content(n))
		}
		c.note(label, "%s", s)
	}
	show("at first", "a", "b", "d/c")
	c.must(os.WriteFile(c.path("b"), []byte("written"), 0))
	show("written to one", "a", "b", "d/c")
	c.must(os.Chmod(c.path("d/c"), 0o600))
	c.note("mode", "%o", c.lstat("a").Mode)
	c.must(os.Link(c.path("a"), c.path("new")))
	show("one more", "a", "b", "d/c", "new")
	c.must(os.Remove(c.path("a")))
	show("one less", "b", "d/c", "new")
	c.must(os.Rename(c.path("b"), c.path("d/moved")))
	show("moved", "d/c", "d/moved", "new")
	c.rename("onto another name of it", "new", "d/c", 0)
	show("which does nothing", "d/c", "d/moved", "new")
	c.must(os.Rename(c.path("d/x"), c.path("d/c")))
	show("one replaced", "d/moved", "new")
	c.must(os.Remove(c.path("new")))
	show("the last", "d/moved")
	c.note("symlinks", "%d %v", c.lstat("sym").Nlink, c.lstat("sym").Ino == c.lstat("sym2").Ino)
	c.must(os.Link(c.path("sym"), c.path("new2")))
	c.note("symlinks then", "%d", c.lstat("sym").Nlink)
	c.err("of a directory", os.Link(c.path("d"), c.path("new3")))
	c.err("onto one", os.Link(c.path("d/c"), c.path("sym")))
	c.err("of nothing", os.Link(c.path("none"), c.path("x")))
}

func nodes(t *testing.T, dir string) {
	must(t, unix.Mknod(filepath.Join(dir, "char"), unix.S_IFCHR|0o640, int(unix.Mkdev(1, 7))))
	must(t, unix.Mknod(filepath.Join(dir, "block"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	must(t, unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0o755, 0))
}

func mknods(c *at) {
	show := func(name string) {
		st := c.lstat(name)
		c.note(name, "%o %d:%d, %d links", st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev), st.Nlink)
	}
	for _, n := range []string{"char", "block", "fifo", "sock"} {
		show(n)
		c.err("chmod "+n, unix.Chmod(c.path(n), 0o611))
		c.err("chown "+n, unix.Chown(c.path(n), 3, 4))
		c.err("rename "+n, os.Rename(c.path(n), c.path(n+"2")))
		c.err("link "+n, os.Link(c.path(n+"2"), c.path(n)))
		show(n)
		c.err("user xattr on "+n, unix.Setxattr(c.path(n), "user.x", []byte("x"), 0))
		c.err("trusted xattr on "+n, unix.Setxattr(c.path(n), "trusted.x", []byte("x"), 0))
		c.err("unlink "+n, os.Remove(c.path(n)))
	}
	for i, m := range []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG} {
		name := fresh[i]
		c.err("mknod "+name, unix.Mknod(c.path(name), m|0o666, int(unix.Mkdev(1, 3))))
		show(name)
	}
	c.err("mknod of a directory", unix.Mknod(c.path("x"), unix.S_IFDIR|0o755, 0))
	c.err("mknod over a file", unix.Mknod(c.path("new"), unix.S_IFREG|0o644, 0))
	c.err("a whiteout", unix.Mknod(c.path("x"), unix.S_IFCHR, 0))
	fd, err := unix.Open(c.path("new"), unix.O_RDWR, 0)
	c.err("open of the null device", err)
	n, err := unix.Write(fd, []byte("x"))
	c.note("written to it", "%d %s", n, errName(err))
	unix.Close(fd)
	c.as(1000, func() {
		c.err("mknod of a stranger", unix.Mknod(c.path("y"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	})
}

// A socket and a FIFO work among the processes that use the mount.
func sockets(c *at) {
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	c.must(err)
	defer unix.Close(l)
	// sun_path holds 107 bytes: by descriptor of the directory.
	at := fmt.Sprintf("/proc/self/fd/%d/new", c.open(".", unix.O_PATH))
	c.err("bind", unix.Bind(l, &unix.SockaddrUnix{Name: at}))
	c.note("mode", "%o", c.lstat("new").Mode&unix.S_IFMT)
	c.err("bind again", func() error {
		s, _ := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		defer unix.Close(s)
		return unix.Bind(s, &unix.SockaddrUnix{Name: at})
	}())
	c.must(unix.Listen(l, 1))
	connect := func() error {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		c.must(err)
		defer unix.Close(s)
		return unix.Connect(s, &unix.SockaddrUnix{Name: at})
	}
	c.err("connect", connect())
	c.err("rename", os.Rename(c.path("new"), c.path("moved")))
	c.err("connect to the old name", connect())
	c.err("rename back", os.Rename(c.path("moved"), c.path("new")))
	c.err("unlink", os.Remove(c.path("new")))
	c.err("mkfifo", unix.Mkfifo(c.path("new2"), 0o644))
	r := c.open("new2", unix.O_RDWR|unix.O_NONBLOCK)
	w := c.open("new2", unix.O_WRONLY|unix.O_NONBLOCK)
	_, err = unix.Write(w, []byte("word"))
	c.must(err)
	b := make([]byte, 10)
	n, err := unix.Read(r, b)
	c.note("through the FIFO", "%s %s", b[:max(n, 0)], errName(err))
}

func rmdirCwd(c *at) {
	dir := c.open("d", unix.O_RDONLY|unix.O_DIRECTORY)
	c.must(os.Remove(c.path("d/f")))
	c.err("rmdir", unix.Rmdir(c.path("d")))
	c.err("again", unix.Rmdir(c.path("d")))
	c.err("create in it", createAt(dir, "x", ""))
	c.err("mkdir in it", unix.Mkdirat(dir, "x", 0o755))
	c.err("look in it", unix.Faccessat(dir, "x", 0, 0))
	st := c.fstat(dir)
	c.note("it", "%d links", st.Nlink)
	c.must(os.Mkdir(c.path("d"), 0o700))
	c.note("another", "%v", c.lstat("d").Ino != st.Ino || c.lstat("d").Ctim != st.Ctim)
	c.err("the old one", createAt(dir, "x", ""))
	c.err("rmdir of a full one", unix.Rmdir(c.dir))
	c.err("rmdir of a dot", unix.Rmdir(c.dir+"/d/."))
	c.err("rmdir of dots", unix.Rmdir(c.dir+"/d/.."))
	c.err("unlink of a directory", unix.Unlink(c.path("d")))
	put(c, c.path("x"), "")
	c.err("rmdir of a file", unix.Rmdir(c.path("x")))
}

func identityTree(t *testing.T, dir string) {
	files("f", "g", "d/h", "d/e/k", "d/e/l")(t, dir)
	must(t, os.Symlink("f", filepath.Join(dir, "s")))
	must(t, os.Link(filepath.Join(dir, "f"), filepath.Join(dir, "d/f2")))
	must(t, unix.Mkfifo(filepath.Join(dir, "p"), 0o644))
}

// st_ino and st_dev of a file are the same whatever is done to it.
func identity(c *at) {
	type id struct{ dev, ino uint64 }
	of := func(name string) id {
		st := c.lstat(name)
		return id{st.Dev, st.Ino}
	}
	names := []string{"f", "g", "d/h", "d/e/k", "s", "p", "d", "d/e"}
	before := map[string]id{}
	devs := map[uint64]bool{}
	for _, n := range names {
		before[n] = of(n)
		devs[before[n].dev] = true
	}
	c.note("one device", "%v", len(devs) == 1)
	same := func(label string) {
		var l []string
		for _, n := range names {
			if of(n) != before[n] {
				l = append(l, n)
			}
		}
		c.note(label, "changed: %v", l)
	}
	c.must(os.WriteFile(c.path("f"), []byte("w"), 0))
	c.must(os.Chmod(c.path("g"), 0o600))
	c.must(os.WriteFile(c.path("d/e/k"), []byte("w"), 0))
	c.must(unix.Lchown(c.path("s"), 1, 1))
	c.must(os.Chmod(c.path("p"), 0o600))
	c.must(os.Chmod(c.path("d"), 0o700))
	same("changed")
	c.must(os.Rename(c.path("g"), c.path("moved")))
	before["moved"] = before["g"]
	names = slices.DeleteFunc(append(names, "moved"), func(s string) bool { return s == "g" })
	same("renamed")
	c.note("the other name", "%v", of("d/f2") == before["f"])
	c.must(os.Link(c.path("moved"), c.path("new")))
	c.note("a new name", "%v", of("new") == before["moved"])
	c.must(os.Remove(c.path("moved")))
	put(c, c.path("moved"), "another")
	c.note("another file at the old name", "%v", of("moved") != of("new"))
}

func manySmall(t *testing.T, dir string) {
	for i := range 40 {
		files(fmt.Sprintf("f%d", i), fmt.Sprintf("d%d/g", i))(t, dir)
	}
}

// No two files have one number; one that was used before is no problem; what
// readdir says of numbers and types is what stat says.
func inodeNumbers(c *at) {
	unique := func(label string) {
		seen := map[uint64]string{}
		c.must(filepath.WalkDir(c.dir, func(p string, d fs.DirEntry, err error) error {
			c.must(err)
			var st unix.Stat_t
			c.must(unix.Lstat(p, &st))
			if other, ok := seen[st.Ino]; ok {
				c.Errorf("%s: %s and %s have the same number", label, p, other)
			}
			seen[st.Ino] = p
			return nil
		}))
		c.note(label, "%d files", len(seen))
		c.sameAsListed(".")
		c.sameAsListed("d3")
	}
	unique("at first")
	for i := range 40 {
		switch i % 4 {
		case 0:
			c.must(os.Remove(c.path(fmt.Sprintf("f%d", i))))
			put(c, c.path(fmt.Sprintf("n%d", i)), "new")
		case 1:
			c.must(os.WriteFile(c.path(fmt.Sprintf("f%d", i)), []byte("changed"), 0))
		case 2:
			c.must(os.RemoveAll(c.path(fmt.Sprintf("d%d", i))))
			c.must(os.Mkdir(c.path(fmt.Sprintf("d%d", i)), 0o755))
		default:
			put(c, c.path(fmt.Sprintf("d%d/x", i)), "x")
		}
	}
	unique("changed")
	kept := c.open("f1", unix.O_RDONLY)
	ino := c.fstat(kept).Ino
	c.must(os.Remove(c.path("f1")))
	for i := range 100 {
		put(c, c.path(fmt.Sprintf("m%d", i)), "")
		if c.lstat(fmt.Sprintf("m%d", i)).Ino == ino {
			c.Error("the number of a file that is open was used again")
		}
	}
	unique("in the end")
}

// sameAsListed compares what readdir says of each entry with what stat says.
func (c *at) sameAsListed(dir string) {
	c.Helper()
	for _, e := range c.readdir(dir) {
		var st unix.Stat_t
		c.must(unix.Lstat(c.dir+"/"+dir+"/"+e.name, &st))
		if e.ino != st.Ino || uint32(e.typ)<<12 != st.Mode&unix.S_IFMT {
			c.Errorf("%s/%s is listed as %d of type %d, and is %d of type %o", dir, e.name, e.ino, e.typ, st.Ino, st.Mode)
		}
	}
}

func removeTree(c *at) {
	c.must(os.RemoveAll(c.path("d")))
	c.note("after", "%v", c.list("."))
	c.must(os.Mkdir(c.path("d"), 0o755))
	c.note("made again", "%v", c.list("d"))
	files("d/e/k", "d/new")(c.T, c.dir)
	c.note("filled", "%v", c.tree("."))
	c.must(os.RemoveAll(c.path("d/e")))
	c.note("emptied", "%v", c.tree("."))
}

func stickyTree(t *testing.T, dir string) {
	files("d/f", "d/g", "d/mine")(t, dir)
	must(t, os.Chown(filepath.Join(dir, "d/mine"), 1000, 1000))
	must(t, unix.Chmod(filepath.Join(dir, "d"), 0o1777))
}

func sticky(c *at) {
	c.as(1000, func() {
		c.err("unlink", unix.Unlink(c.path("d/f")))
		c.err("rename", unix.Rename(c.path("d/f"), c.path("d/new")))
		c.err("rename over", unix.Rename(c.path("d/mine"), c.path("d/g")))
		c.err("exchange", unix.Renameat2(unix.AT_FDCWD, c.path("d/mine"), unix.AT_FDCWD, c.path("d/g"), unix.RENAME_EXCHANGE))
		c.err("rename mine", unix.Rename(c.path("d/mine"), c.path("d/new")))
		c.err("unlink mine", unix.Unlink(c.path("d/new")))
	})
	c.note("in the end", "%v", c.list("d"))
}
