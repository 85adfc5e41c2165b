package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// An operation, and what a program sees after it that it did not see before.
type operation struct {
	name   string
	only   func(stacking) bool // nil: everywhere
	first  func(d *driver)     // done before, without faults
	do     func(d *driver) unix.Errno
	effect func(v sight, k stacking) // on what was seen before
	torn   func(k stacking) bool     // where it may be seen although it failed, as write(2) may
}

func ofTwo(k stacking) bool { return k.mode == Migrate && k.lowers > 1 }

func inOverlay(k stacking) bool { return k.mode == Overlay }

func (v sight) alter(name string, f func(*file)) {
	x := v[name]
	f(&x)
	v[name] = x
}

func (v sight) write(name, content string) {
	v.alter(name, func(f *file) { f.content, f.size, f.mtime = content, uint64(len(content)), changed })
}

func (v sight) move(old, name string) {
	if _, ok := v[name]; ok {
		v.drop(name)
	}
	for n, f := range v {
		if n == old || strings.HasPrefix(n, old+"/") {
			delete(v, n)
			v[name+n[len(old):]] = f
		}
	}
}

// drop takes a name away; the file's other names have one link less.
func (v sight) drop(name string) {
	delete(v, name)
	if strings.Contains(name, "hard") {
		v.relink(-1)
	}
}

func (v sight) relink(by int) {
	for n := range v {
		if strings.Contains(n, "hard") && v[n].nlink > 0 {
			v.alter(n, func(f *file) { f.nlink += uint32(by) })
		}
	}
}

func (v sight) swap(a, b string) {
	v.move(a, "\x00")
	v.move(b, a)
	v.move("\x00", b)
}

func onFile(name string, f func(*file)) func(sight, stacking) {
	return func(v sight, _ stacking) { v.alter(name, f) }
}

// onHard is onFile for all names of the hard-linked file.
func onHard(f func(*file)) func(sight, stacking) {
	return func(v sight, k stacking) {
		for _, n := range []string{"hard1", "hard2", "dir/hard3"} {
			if n == "hard1" || !k.remote {
				v.alter(n, f)
			}
		}
	}
}

func contentOf(s string) func(*file) {
	return func(f *file) { f.content, f.size, f.mtime = s, uint64(len(s)), changed }
}

func moves(old, name string) operation {
	return operation{
		name:   "rename " + old + " to " + name,
		do:     func(d *driver) unix.Errno { return d.rename(old, name, 0) },
		effect: func(v sight, _ stacking) { v.move(old, name) },
	}
}

func exchanges(a, b string) operation {
	return operation{
		name:   "exchange " + a + " and " + b,
		do:     func(d *driver) unix.Errno { return d.rename(a, b, unix.RENAME_EXCHANGE) },
		effect: func(v sight, _ stacking) { v.swap(a, b) },
	}
}

func unlinks(name string) operation {
	return operation{
		name:   "unlink " + name,
		do:     func(d *driver) unix.Errno { return d.unlink(name) },
		effect: func(v sight, _ stacking) { v.drop(name) },
	}
}

func rmdirs(name string) operation {
	return operation{
		name:   "rmdir " + name,
		do:     func(d *driver) unix.Errno { return d.rmdir(name) },
		effect: func(v sight, _ stacking) { v.drop(name) },
	}
}

func creates(name string) operation {
	return operation{
		name:   "create " + name,
		do:     func(d *driver) unix.Errno { return d.create(name, "") },
		effect: func(v sight, _ stacking) { v[name] = made(unix.S_IFREG, 0o640) },
	}
}

// tmpfiles makes a nameless file in dir and then, unless name is empty, links it.
func tmpfiles(dir, name string) operation {
	return operation{
		name: "O_TMPFILE in " + dir + " and link to " + name,
		do:   func(d *driver) unix.Errno { return d.tmpfile(dir, "content", name) },
		effect: func(v sight, _ stacking) {
			if name == "" {
				return
			}
			v[name] = made(unix.S_IFREG, 0o640)
			v.alter(name, contentOf("content"))
		},
	}
}

func mkdirs(name string) operation {
	return operation{
		name: "mkdir " + name,
		do:   func(d *driver) unix.Errno { return d.mkdir(name) },
		effect: func(v sight, _ stacking) {
			f := made(unix.S_IFDIR, 0o750)
			f.nlink, f.mtime = 0, past
			v[name] = f
		},
	}
}

func made(typ, mode uint32) file { return file{typ: typ, mode: mode, nlink: 1, mtime: changed} }

func (o operation) where(f func(stacking) bool) operation { o.only = f; return o }

func (o operation) after(name string, first func(d *driver)) operation {
	o.name += " " + name
	o.first = first
	return o
}

var operations = []operation{
	// Copy-up by each kind of first change.
	{name: "write", torn: isRemote, do: func(d *driver) unix.Errno { return d.write("low", "WRITTEN", 0) },
		effect: func(v sight, _ stacking) {
			v.write("low", "WRITTEN"[:7]+v["low"].content[min(7, len(v["low"].content)):])
		}},
	{name: "append", torn: isRemote, do: func(d *driver) unix.Errno { return d.write("dir/a", "+more", 11) },
		effect: func(v sight, _ stacking) { v.write("dir/a", "lower dir/a+more") }},
	{name: "write deep", torn: isRemote, do: func(d *driver) unix.Errno { return d.write("dir/sub/c", "LOWER", 0) },
		effect: onFile("dir/sub/c", contentOf("LOWER dir/sub/c"))},
	{name: "truncate", do: func(d *driver) unix.Errno { return d.truncate("low", 3) },
		effect: onFile("low", contentOf("low"))},
	{name: "truncate to nothing", do: func(d *driver) unix.Errno { return d.truncate("low", 0) },
		effect: onFile("low", contentOf(""))},
	{name: "chmod", do: func(d *driver) unix.Errno { return d.chmod("low", 0o600) },
		effect: onFile("low", func(f *file) { f.mode = 0o600 })},
	{name: "chown", do: func(d *driver) unix.Errno { return d.chown("other", 1002) },
		effect: onFile("other", func(f *file) { f.uid = 1002; f.mode &^= unix.S_ISUID })},
	{name: "utimes", do: func(d *driver) unix.Errno { return d.utimes("other", 77) },
		effect: onFile("other", func(f *file) { f.mtime = changed })},
	{name: "setxattr", do: func(d *driver) unix.Errno { return d.setxattr("other", "user.more", "m") },
		effect: onFile("other", func(f *file) { f.xattrs = `user.more="m" ` + f.xattrs })},
	{name: "chattr", only: func(k stacking) bool { return !k.remote },
		do:     func(d *driver) unix.Errno { return d.chattr("other", 0x40) },
		effect: func(sight, stacking) {}},
	{name: "removexattr", only: func(k stacking) bool { return !k.remote },
		do:     func(d *driver) unix.Errno { return d.removexattr("other", "user.note") },
		effect: onFile("other", func(f *file) { f.xattrs = "" })},
	{name: "chmod of a directory", do: func(d *driver) unix.Errno { return d.chmod("dir/sub", 0o700) },
		effect: onFile("dir/sub", func(f *file) { f.mode = 0o700 })},
	{name: "chown of a symlink", do: func(d *driver) unix.Errno { return d.chown("sym", 1002) },
		effect: onFile("sym", func(f *file) { f.uid = 1002 })},
	{name: "chmod of a fifo", do: func(d *driver) unix.Errno { return d.chmod("fifo", 0o600) },
		effect: onFile("fifo", func(f *file) { f.mode = 0o600 })},
	// Of a remote file a death may leave the beginning of a write that goes beyond its
	// end (layers/extent): this one does not.
	{name: "write to one that is open", torn: isRemote, do: func(d *driver) unix.Errno {
		fh, errno := d.keep("low")
		if errno != 0 {
			return errno
		}
		if errno := d.write("low", "WRITTEN I", 0); errno != 0 {
			return errno
		}
		if b, errno := d.readHandle(fh); errno != 0 || !strings.HasPrefix(string(b), "WRITTEN I") {
			panic(fmt.Sprintf("the old descriptor sees %q, %v", b, errno))
		}
		return 0
	}, effect: func(v sight, _ stacking) {
		v.write("low", "WRITTEN I"+v["low"].content[min(9, len(v["low"].content)):])
	}},

	// Hard links.
	{name: "write to a hard link", torn: isRemote, do: func(d *driver) unix.Errno { return d.write("hard1", "LINK", 0) },
		effect: onHard(contentOf("LINKed"))},
	{name: "chmod of a hard link", do: func(d *driver) unix.Errno { return d.chmod("hard1", 0o600) },
		effect: onHard(func(f *file) { f.mode = 0o600 })},
	unlinks("hard1"),
	moves("hard1", "new hard"),
	moves("hard1", "dir/sub/hard4"),
	unlinks("hard2").after("after hard1 was written", func(d *driver) { d.write("hard1", "LINK", 0) }),
	moves("hard2", "new hard").after("after hard1 was written", func(d *driver) { d.write("hard1", "LINK", 0) }),
	{name: "link of a hard link", do: func(d *driver) unix.Errno { return d.link("hard1", "new hard") },
		only: func(k stacking) bool { return !k.remote },
		effect: func(v sight, _ stacking) {
			v["new hard"] = v["hard1"]
			v.relink(1)
		}},
	{name: "link", do: func(d *driver) unix.Errno { return d.link("other", "new") },
		effect: linked("other", "new")},
	{name: "link into a directory", do: func(d *driver) unix.Errno { return d.link("up", "dir/sub/new") },
		effect: linked("up", "dir/sub/new")},
	{name: "link over a whiteout", only: inOverlay, do: func(d *driver) unix.Errno { return d.link("other", "wh") },
		effect: linked("other", "wh")},

	// Deletion of a name in every constellation.
	unlinks("up"), unlinks("low"), unlinks("both"), unlinks("dir/b"), unlinks("sym"),
	unlinks("two").where(func(k stacking) bool { return k.lowers > 1 }),
	unlinks("both").after("that is open", func(d *driver) { _, _ = d.keep("both") }),
	rmdirs("empty"), rmdirs("target"),
	rmdirs("whdir").where(inOverlay),
	rmdirs("both dir").after("that was emptied", func(d *driver) { d.unlink("both dir/l"); d.unlink("both dir/v") }),
	rmdirs("up dir").after("that was emptied", func(d *driver) { d.unlink("up dir/u") }),
	rmdirs("hid").where(inOverlay).after("that was emptied", func(d *driver) { d.unlink("hid/new") }),

	// Creation.
	creates("new"), creates("dir/sub/new"), creates("wh").where(inOverlay),
	tmpfiles("dir/sub", ""), tmpfiles("up dir", "new"), tmpfiles("dir", "dir/sub/new"), tmpfiles("dir", "wh").where(inOverlay),
	mkdirs("new"), mkdirs("dir/sub/new"), mkdirs("wh").where(inOverlay),
	mkdirs("dir/a").after("after it was deleted", func(d *driver) { d.unlink("dir/a") }),
	mkdirs("whdir").where(inOverlay).after("after it was removed", func(d *driver) { d.rmdir("whdir") }),
	{name: "symlink over a whiteout", only: inOverlay, do: func(d *driver) unix.Errno { return d.symlink("to", "wh") },
		effect: func(v sight, _ stacking) {
			f := made(unix.S_IFLNK, 0o777)
			f.content = "to"
			v["wh"] = f
		}},
	{name: "mkfifo over a whiteout", only: inOverlay, do: func(d *driver) unix.Errno { return d.mkfifo("wh") },
		effect: func(v sight, _ stacking) { v["wh"] = made(unix.S_IFIFO, 0o640) }},

	// Renames of files.
	moves("up", "new"), moves("up", "low"), moves("up", "both"), moves("up", "dir/sub/new"),
	moves("low", "new"), moves("low", "up"), moves("low", "other"), moves("low", "both"), moves("low", "dir/sub/new"),
	moves("both", "new"), moves("both", "low"), moves("both", "up"), moves("both", "dir/a"),
	moves("dir/a", "dir/b"), moves("dir/sub/c", "new"), moves("sym", "new"), moves("fifo", "dir/new"),
	moves("up", "wh").where(inOverlay), moves("low", "wh").where(inOverlay),
	exchanges("low", "up"), exchanges("low", "other"), exchanges("both", "dir/sub/c"),

	// Renames of directories.
	moves("up dir", "new"), moves("dir", "new"), moves("both dir", "new"), moves("dir/sub", "new"),
	moves("up dir", "empty"), moves("dir", "target"), moves("both dir", "empty"),
	moves("up dir", "wh").where(inOverlay), moves("dir", "wh").where(inOverlay),
	moves("up dir", "whdir").where(inOverlay), moves("whdir", "new").where(inOverlay),
	moves("hid", "new").where(inOverlay), moves("dir/sub", "hid/sub").where(inOverlay),
	exchanges("dir", "up dir"), exchanges("dir", "low"), exchanges("both dir", "dir"),
	// Of which one lies in several layers, or both lie in different ones.
	exchanges("low", "both dir"), exchanges("both", "both dir"), exchanges("both dir", "up dir/u"),
	exchanges("dir/sub", "up dir"), exchanges("up", "dir"), exchanges("fifo", "both dir"),
	exchanges("both dir", "hard2").after("after hard1 was written", func(d *driver) { d.write("hard1", "LINK", 0) }),
	exchanges("both dir", "only2").where(ofTwo), exchanges("only2", "dir/sub/c").where(ofTwo),
	moves("only2", "dir/sub/new").where(ofTwo),
	moves("both dir", "empty/new"), moves("both dir", "up dir/new"), moves("both dir", "target"),
	moves("dir/sub", "up dir/new"),
	moves("both dir", "up dir/deep/new").after("that was made", func(d *driver) { d.mkdir("up dir/deep") }),
	moves("both dir", "up dir").after("that was emptied", func(d *driver) { d.unlink("up dir/u") }),
	moves("dir", "up dir").after("that was emptied", func(d *driver) { d.unlink("up dir/u") }),
	moves("dir", "both dir").after("that was emptied", func(d *driver) { d.unlink("both dir/l"); d.unlink("both dir/v") }),
	moves("both dir", "dir").where(func(k stacking) bool { return k.mode == Migrate }).after("that was emptied", empty),

	// What nobody touches: whole directories are done away with, also those that
	// the upper has a part of; of hard links, the first and the last.
	drains("dir/sub"), drains("both dir"), drains("empty"), drains("low"), drains("sym"), drains("fifo"), drains("hard1"),
	drains("dir").after("whose hard link is the last", func(d *driver) { d.write("hard1", "LINK", 0); d.unlink("hard2"); d.unlink("dir/a") }),

	// Remote files that have been written to.
	unlinks("low").where(isRemote).after("that is pending", pend),
	moves("low", "new").where(isRemote).after("that is pending", pend),
	moves("low", "up").where(isRemote).after("that is pending", pend),
	moves("up", "low").where(isRemote).after("that is pending", pend),
	{name: "link of a pending file", only: isRemote, first: pend,
		do: func(d *driver) unix.Errno { return d.link("low", "new") }, effect: linked("low", "new")},
	{name: "chmod of a pending file", only: isRemote, first: pend,
		do:     func(d *driver) unix.Errno { return d.chmod("low", 0o600) },
		effect: onFile("low", func(f *file) { f.mode = 0o600 })},

	fills("a pending file", pend),
	fills("a pending file that was moved", func(d *driver) { pend(d); d.rename("low", "dir/sub/moved", 0) }),
	fills("a pending file with two names", func(d *driver) { pend(d); d.link("low", "dir/sub/new") }),
	fills("a pending file with all kinds of metadata", func(d *driver) {
		pend(d)
		d.setxattr("low", "user.more", "m")
		d.setxattr("low", "security.capability", aCapability)
		d.chown("low", 1002)
		d.chmod("low", 0o6711)
		d.utimes("low", 77)
	}),
	fills("a pending file that was cut to nothing and grew", func(d *driver) { pend(d); d.truncate("low", 0); d.truncate("low", 5000) }),
	{name: "keep what is here of a file in conflict", only: isRemote, first: conflict,
		do:     func(d *driver) unix.Errno { return d.resolve("low", Resolution{KeepLocal: true}) },
		effect: func(sight, stacking) {}},
	{name: "take what the source has of a file in conflict", only: isRemote, first: conflict, torn: isRemote,
		do:     func(d *driver) unix.Errno { return d.resolve("low", Resolution{}) },
		effect: onFile("low", contentOf("the source's"))},
	{name: "fill of a pending file that is open", only: isRemote, first: pend, do: func(d *driver) unix.Errno {
		fh, errno := d.keep("low")
		if errno != 0 {
			return errno
		}
		if err := d.fs.Fill(context.Background()); err != nil {
			return errnoOf(err)
		}
		if errno := d.write("low", "WRITTEN", 0); errno != 0 {
			return errno
		}
		if b, errno := d.readHandle(fh); errno != 0 || string(b) != "WRITTENow" {
			panic(fmt.Sprintf("the old descriptor sees %q, %v", b, errno))
		}
		return 0
	}, torn: isRemote, effect: onFile("low", contentOf("WRITTENow"))},

	// Metacopies: files of which only metadata came up.
	{name: "append to a metacopy", only: hasMetacopy, first: leaveData,
		do:     func(d *driver) unix.Errno { return d.write("low", "+more", 9) },
		effect: func(v sight, _ stacking) { v.write("low", v["low"].content+"+more") }},
	{name: "write to a metacopy that was moved", only: hasMetacopy,
		first:  func(d *driver) { d.rename("dir/sub/c", "dir/c", 0) },
		do:     func(d *driver) unix.Errno { return d.write("dir/c", "LOWER", 0) },
		effect: onFile("dir/c", contentOf("LOWER dir/sub/c"))},
	{name: "write to a metacopy that is open", only: hasMetacopy, first: leaveData,
		do: func(d *driver) unix.Errno {
			fh, errno := d.keep("low")
			if errno != 0 {
				return errno
			}
			if errno := d.write("low", "WRIT", 0); errno != 0 {
				return errno
			}
			if b, errno := d.readHandle(fh); errno != 0 || string(b) != "WRITr low" {
				panic(fmt.Sprintf("the old descriptor sees %q, %v", b, errno))
			}
			return 0
		}, effect: onFile("low", contentOf("WRITr low"))},
	{name: "truncate a metacopy", only: hasMetacopy, first: leaveData,
		do:     func(d *driver) unix.Errno { return d.truncate("low", 3) },
		effect: onFile("low", contentOf("low"))},
	{name: "truncate a metacopy to nothing", only: hasMetacopy, first: leaveData, torn: hasMetacopy,
		do:     func(d *driver) unix.Errno { return d.truncate("low", 0) },
		effect: onFile("low", contentOf(""))},
	{name: "setcap on a metacopy", only: hasMetacopy, first: leaveData,
		do: func(d *driver) unix.Errno { return d.setxattr("low", "security.capability", aCapability) },
		effect: onFile("low", func(f *file) {
			f.xattrs = fmt.Sprintf("security.capability=%q ", aCapability) + f.xattrs
		})},
	{name: "write to a hard-linked metacopy", only: hasMetacopy, first: func(d *driver) { d.chmod("hard1", 0o600) },
		do:     func(d *driver) unix.Errno { return d.write("hard2", "LINK", 0) },
		effect: onHard(contentOf("LINKed"))},
	{name: "write to a hard-linked metacopy that was moved", only: hasMetacopy,
		first: func(d *driver) { d.chmod("hard1", 0o600); d.rename("dir/hard3", "dir/hard4", 0) },
		do:    func(d *driver) unix.Errno { return d.write("dir/hard4", "LINK", 0) },
		effect: func(v sight, _ stacking) {
			for _, n := range []string{"hard1", "hard2", "dir/hard4"} {
				v.alter(n, contentOf("LINKed"))
			}
		}},
	moves("low", "new").where(hasMetacopy).after("that is a metacopy", leaveData),
	moves("dir/c", "low").where(hasMetacopy).after("that is a metacopy and was moved", func(d *driver) { d.rename("dir/sub/c", "dir/c", 0) }),
	moves("hard2", "new hard").where(hasMetacopy).after("that is a metacopy", func(d *driver) { d.chmod("hard1", 0o600) }),
	exchanges("low", "other").where(hasMetacopy).after("that is a metacopy", leaveData),
	unlinks("low").where(hasMetacopy).after("that is a metacopy", leaveData),
	{name: "link of a metacopy", only: hasMetacopy, first: leaveData,
		do: func(d *driver) unix.Errno { return d.link("low", "dir/new") }, effect: linked("low", "dir/new")},
}

// drains brings up all that lies below, which nobody sees.
func drains(path string) operation {
	return operation{
		name: "drain " + path, only: func(k stacking) bool { return k.mode == Migrate },
		do: func(d *driver) unix.Errno {
			var errno unix.Errno
			err := d.fs.Drain(context.Background(), DrainConfig{Path: layers.Path(path), Failed: func(f DrainFailure) {
				if !errors.Is(f.Err, ErrShadowed) {
					errno = f.Errno()
				}
			}})
			if err != nil {
				errno = errnoOf(err)
			}
			return errno
		},
		effect: func(sight, stacking) {},
	}
}

// empty empties dir, which lies in one lower or two.
func empty(d *driver) {
	for _, name := range []string{"dir/a", "dir/b", "dir/hard3", "dir/sub/c"} {
		d.unlink(name)
	}
	d.rmdir("dir/sub")
}

// hasMetacopy reports whether what changes no data moves none.
func hasMetacopy(k stacking) bool { return k.mode == Overlay && !k.remote }

func leaveData(d *driver) { d.chmod("low", 0o600) }

// aCapability is cap_net_raw=ep, as linux/capability.h has it.
const aCapability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// fills fetches what is pending after first, and makes ordinary files of it, which
// nobody sees.
func fills(what string, first func(d *driver)) operation {
	return operation{
		name: "fill of " + what, only: isRemote, first: first,
		do: func(d *driver) unix.Errno {
			if err := d.fs.Fill(context.Background()); err != nil {
				return errnoOf(err)
			}
			if p, err := d.fs.Progress(context.Background()); err != nil || p.Files != 0 {
				panic(fmt.Sprintf("filled, and %d files are pending: %v", p.Files, err))
			}
			return 0
		},
		effect: func(sight, stacking) {},
	}
}

// conflict has all of a pending file here, and another version on its source.
func conflict(d *driver) {
	pend(d)
	if errno := d.on("low", func(h fuse.InHeader) fuse.Status {
		_, errno := d.readNode(h.NodeId)
		return fuse.Status(errno)
	}); errno != 0 {
		panic(errno)
	}
	low := d.fs.cfg.Lowers[0].Layer.(distant).l.Root()
	fd, err := unix.Openat(low, "low", unix.O_WRONLY|unix.O_TRUNC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte("the source's"))
		unix.Close(fd)
	}
	if err == nil {
		then := unix.Timespec{Sec: past.Unix() + 1000}
		err = unix.UtimesNanoAt(low, "low", []unix.Timespec{then, then}, 0)
	}
	if err == nil && !errors.Is(d.fs.Fill(context.Background()), layers.ErrStale) {
		err = errors.New("no conflict")
	}
	if err != nil {
		panic(err)
	}
}

func isRemote(k stacking) bool { return k.remote }

func pend(d *driver) { d.write("low", "P", 0) }

func linked(old, name string) func(sight, stacking) {
	return func(v sight, k stacking) {
		if !k.remote || old == "up" {
			v.alter(old, func(f *file) { f.nlink++ })
		}
		v[name] = v[old]
	}
}

// mayRefuse reports whether the operation of a directory that lies in several layers
// may be refused: mv then copies (EXDEV).
func (o *operation) mayRefuse(k stacking) bool {
	return k.hosts == Many
}

// start brings a new world to where the operation starts.
func (o *operation) start(t *testing.T, base string, k stacking) *world {
	t.Helper()
	w := newWorld(t, base, k)
	must(t, w.open())
	if o.first != nil {
		d := &driver{fs: w.fs}
		o.first(d)
		w.first = d
	}
	if k.remote {
		// All is fetched. Of a file of which nothing is here, a death in a write that
		// goes beyond its end may leave what is beyond it without what is before.
		_, err := w.look()
		must(t, err)
	}
	return w
}

// run does the operation as one program would.
func (o *operation) run(w *world) unix.Errno {
	d := &driver{fs: w.fs}
	defer d.end()
	return o.do(d)
}

// expect runs the operation without a fault and compares with what it shall do.
// refused says that it may not be done on this stacking.
func (o *operation) expect(t *testing.T, base string, k stacking) (before, after sight, refused bool) {
	t.Helper()
	w := o.start(t, base, k)
	defer w.remove()
	before, err := w.look()
	must(t, err)
	switch errno := o.run(w); {
	case errno == unix.EXDEV && o.mayRefuse(k):
		refused = true
		after = before
	case errno != 0:
		t.Fatalf("without a fault: %v", errno)
	default:
		after = before.clone()
		o.effect(after, k)
		for n, f := range after {
			if k.remote && f.typ == unix.S_IFREG {
				after.alter(n, func(f *file) { f.nlink = 0 })
			}
		}
	}
	now, err := w.look()
	must(t, err)
	if d := after.diff(now); d != "" {
		t.Fatalf("without a fault:\n\t%s", d)
	}
	w.close()
	must(t, w.open())
	now, err = w.look()
	must(t, err)
	if d := after.diff(now); d != "" {
		t.Fatalf("without a fault, after a remount:\n\t%s", d)
	}
	if left := w.leftovers(); left != "" {
		t.Fatalf("without a fault, left over:\n\t%s", left)
	}
	return before, after, refused
}

// each runs f for every operation on every stacking it is meant for.
func each(t *testing.T, f func(t *testing.T, base string, k stacking, o *operation)) {
	for _, k := range stackings {
		t.Run(k.name, func(t *testing.T) {
			base := worlds(t)
			for i := range operations {
				o := &operations[i]
				if o.only == nil || o.only(k) {
					t.Run(o.name, func(t *testing.T) { f(t, base, k, o) })
				}
			}
		})
	}
}

// fault makes changes fail: the n-th, or with dead set, that and all after it,
// which is what the disk sees of a death just before the n-th.
type fault struct {
	mu    sync.Mutex
	at    int
	dead  bool
	err   error
	n     int
	names []string
}

func (f *fault) set() {
	sys.SetHook(func(c sys.Change) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.n++
		f.names = append(f.names, string(c))
		if f.n == f.at || f.dead && f.n > f.at {
			return f.err
		}
		return nil
	})
}

func (f *fault) met() bool { return f.n >= f.at }

// sameAsBefore reports whether a death here leaves what one at the change before
// leaves, which is looked at too: a sync changes nothing in what a process sees.
func (f *fault) sameAsBefore() bool {
	return f.met() && f.at > 1 && slices.Contains([]string{"fsync", "fdatasync", "syncfs"}, f.names[f.at-2])
}

// where says which change it was.
func (f *fault) where() string {
	return fmt.Sprintf("change %d of %s", f.at, strings.Join(f.names[:min(len(f.names), f.at)], " "))
}

var errDead = errors.New("dead")

// TestDeathAtEveryChange lets the daemon die before each change that an operation
// makes, and again before each change that the next mount makes to recover.
func TestDeathAtEveryChange(t *testing.T) {
	each(t, func(t *testing.T, base string, k stacking, o *operation) {
		before, after, _ := o.expect(t, base, k)
		for n := 1; ; n++ {
			met, changes := o.dieAt(t, base, k, n, 0, before, after)
			for m := range changes {
				if k.lowers > 1 || k.hosts == Many {
					break // recovery looks at each lower by itself, and whoever else is there
				}
				o.dieAt(t, base, k, n, m+1, before, after)
			}
			if !met {
				return
			}
		}
	})
}

// dieAt dies before the n-th change of the operation and, if m is not 0, before
// the m-th of the recovery. It reports whether the operation got there, and how
// many changes the last recovery made.
func (o *operation) dieAt(t *testing.T, base string, k stacking, n, m int, before, after sight) (met bool, changes int) {
	t.Helper()
	w := o.start(t, base, k)
	defer w.remove()
	lowers := w.lowers()
	f := &fault{at: n, dead: true, err: errDead}
	f.set()
	errno := o.run(w)
	w.close()
	sys.SetHook(nil)
	met = f.met()
	where := f.where()
	if errno != 0 && f.sameAsBefore() {
		return met, 0
	}
	if m > 0 {
		f = &fault{at: m, dead: true, err: errDead}
		f.set()
		_ = w.open()
		w.close()
		sys.SetHook(nil)
		if f.sameAsBefore() {
			return met, 0
		}
		where += ", then " + f.where()
	}
	f = &fault{}
	f.set()
	must(t, w.open())
	sys.SetHook(nil)
	changes = f.n
	w.judge(where, errno, before, after)
	w.lowersUnchanged(where, lowers)
	if left := w.leftovers(); left != "" {
		t.Errorf("death at %s, left over:\n\t%s", where, left)
	}
	if !met && errno != 0 && errno != unix.EXDEV {
		t.Errorf("no fault, and %v", errno)
	}
	return met, changes
}

// allow returns v with what a fault may leave otherwise: a time may be newer than
// the content, as on any filesystem, and never older; a count of links may be one
// too high, and never too low: the copy of a hard-linked file would be given up
// for the older lower file while it has a name.
func (v sight) allow(now sight) sight {
	v = v.clone()
	for n, f := range v {
		got := now[n]
		if got.mtime == changed {
			f.mtime = changed
		}
		if f.nlink > 0 && got.nlink == f.nlink+1 {
			f.nlink++
		}
		v[n] = f
	}
	return v
}

// judge compares what is seen with what was and what shall be.
func (w *world) judge(where string, errno unix.Errno, before, after sight) {
	w.t.Helper()
	now, err := w.look()
	if err != nil {
		w.t.Errorf("%s: %v", where, err)
		return
	}
	old, done := before.allow(now).diff(now), after.allow(now).diff(now)
	switch {
	case errno == 0 && done != "":
		w.t.Errorf("%s: the operation had succeeded, and now\n\t%s", where, done)
	case old != "" && done != "":
		w.t.Errorf("%s (%v): neither as before\n\t%s\nnor as after\n\t%s", where, errno, old, done)
	}
}

// lowers takes a picture of the lowers, if nothing may change them: of what lstat(2)
// tells, since no change leaves all times as they were.
func (w *world) lowers() []string {
	if w.kind.mode == Migrate {
		return nil
	}
	var seen []string
	for _, l := range []string{"l1", "l2"} {
		must(w.t, filepath.WalkDir(w.at(l), func(p string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil {
				err = unix.Lstat(p, &st)
			}
			seen = append(seen, fmt.Sprint(strings.TrimPrefix(p, w.dir), st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev, st.Size, st.Mtim, st.Ctim))
			return err
		}))
	}
	return seen
}

func (w *world) lowersUnchanged(where string, was []string) {
	w.t.Helper()
	if now := w.lowers(); !slices.Equal(now, was) {
		w.t.Errorf("after %s, the lowers, before\n\t%s\nare\n\t%s", where, strings.Join(was, "\n\t"), strings.Join(now, "\n\t"))
	}
}

// TestFailureOfEveryChange makes each change that an operation makes fail once,
// with each errno that storage has for it.
func TestFailureOfEveryChange(t *testing.T) {
	errnos := []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.EIO, unix.EROFS}
	each(t, func(t *testing.T, base string, k stacking, o *operation) {
		before, after, refused := o.expect(t, base, k)
		for n := 1; ; n++ {
			if !o.failAt(t, base, k, n, errnos[n%len(errnos)], before, after, refused) {
				return
			}
		}
	})
}

func (o *operation) failAt(t *testing.T, base string, k stacking, n int, err unix.Errno, before, after sight, refused bool) (met bool) {
	t.Helper()
	w := o.start(t, base, k)
	defer w.remove()
	lowers, held := w.lowers(), descriptors(t)
	f := &fault{at: n, err: err}
	f.set()
	errno := o.run(w)
	sys.SetHook(nil)
	where := fmt.Sprintf("%v at %s", err, f.where())
	switch {
	case !f.met():
		return false
	case errno == 0:
		w.judge(where, 0, after, after)
	case refused && errno == unix.EXDEV: // what failed was on the way there
		w.judge(where, errno, before, before)
	case errno == unix.EXDEV && k.mode == Migrate && (err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EROFS):
		w.judge(where, errno, before, before) // the lower has no room for the directory that it moves to: mv copies
		if errno := o.run(w); errno != 0 {
			t.Errorf("%s: once more, without the fault: %v", where, errno)
		}
	case errno != err:
		t.Errorf("%s: came out as %v", where, errno)
	default:
		done := before
		if o.torn != nil && o.torn(k) {
			done = after
		}
		w.judge(where, errno, before, done)
		if errno := o.run(w); errno != 0 && !refused {
			t.Errorf("%s: once more, without the fault: %v", where, errno)
		}
	}
	w.judge(where+", and once more", 0, after, after)
	w.noMoreDescriptors(where, held)
	w.lowersUnchanged(where, lowers)
	w.close()
	must(t, w.open())
	w.judge(where+", once more and remounted", 0, after, after)
	if left := w.leftovers(); left != "" {
		t.Errorf("%s, left over:\n\t%s", where, left)
	}
	return true
}

func descriptors(t testing.TB) map[string]bool {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	held := map[string]bool{}
	for _, e := range es {
		held[e.Name()] = true
	}
	return held
}

// noMoreDescriptors compares with what was held, but for cached directories.
func (w *world) noMoreDescriptors(where string, held map[string]bool) {
	w.t.Helper()
	if w.first != nil {
		w.first.end()
	}
	w.fs.dirs.closeAll()
	var more []string
	for range 6000 { // the store of objects looks through its directory in the background
		more = nil
		for fd := range descriptors(w.t) {
			target, err := os.Readlink("/proc/self/fd/" + fd)
			if err == nil && !held[fd] && strings.HasPrefix(target, w.dir) && !strings.Contains(target, "/.migratefs") {
				more = append(more, target)
			}
		}
		if len(more) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Errorf("%s: descriptors leak: %v", where, more)
}
