package conformance

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	cases = append(cases,
		testcase{name: "list", tree: listTree, run: listing},
		testcase{name: "large-directory", tree: manyFiles, beyondSFTP: true, run: largeDirectory},
		testcase{name: "offsets", tree: hundred, run: offsets},
		testcase{name: "list-while-removing", tree: hundred, run: listWhileRemoving},
	)
}

type dirent struct {
	name string
	ino  uint64
	off  int64
	typ  byte
}

// getdents returns what one call does, with a buffer of size bytes.
func getdents(fd, size int) ([]dirent, error) {
	b := make([]byte, size)
	n, err := unix.Getdents(fd, b)
	if err != nil {
		return nil, err
	}
	var es []dirent
	for b = b[:n]; len(b) > 0; {
		reclen := binary.NativeEndian.Uint16(b[16:])
		name, _, _ := strings.Cut(string(b[19:reclen]), "\x00")
		es = append(es, dirent{name, binary.NativeEndian.Uint64(b), int64(binary.NativeEndian.Uint64(b[8:])), b[18]})
		b = b[reclen:]
	}
	return es, nil
}

// readAll reads a directory from its present offset on, size bytes at a time.
func (c *at) readAll(fd, size int) (all []dirent) {
	c.Helper()
	for {
		es, err := getdents(fd, size)
		c.must(err)
		if len(es) == 0 {
			return all
		}
		all = append(all, es...)
	}
}

func (c *at) readdir(name string) []dirent {
	c.Helper()
	return c.readAll(c.open(name, unix.O_RDONLY|unix.O_DIRECTORY), 32<<10)
}

func listTree(t *testing.T, dir string) {
	files("f", "g", "d/h", "d/i", "d/sub/k", "only/x")(t, dir)
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	must(t, os.Symlink("f", filepath.Join(dir, "s")))
}

// Types and numbers that are listed are those of stat, "." and ".." included.
func listing(c *at) {
	for _, d := range []string{".", "d", "d/sub", "empty", "only"} {
		c.sameAsListed(d)
		seen := map[string]int{}
		for _, e := range c.readdir(d) {
			seen[e.name]++
		}
		c.note(d, "%v", seen)
	}
	c.must(os.Rename(c.path("f"), c.path("d/f")))
	c.must(os.WriteFile(c.path("d/h"), []byte("changed"), 0))
	c.must(os.Remove(c.path("g")))
	c.must(os.Remove(c.path("only/x")))
	c.must(os.Mkdir(c.path("newdir"), 0o755))
	for _, d := range []string{".", "d", "newdir", "only"} {
		c.sameAsListed(d)
		c.note(d+" then", "%v", c.list(d))
	}
	_, err := getdents(c.open("d/h", unix.O_RDONLY), 100)
	c.err("of a file", err)
	_, err = getdents(c.open(".", unix.O_RDONLY|unix.O_DIRECTORY), 10)
	c.err("with too small a buffer", err)
}

const many = 1000

func manyFiles(t *testing.T, dir string) {
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	for i := range many {
		fd, err := unix.Open(filepath.Join(dir, "d", fmt.Sprintf("file%05d", i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
		must(t, err)
		unix.Close(fd)
	}
}

// Readers of a large directory see each entry that stays once, whatever others
// make and remove meanwhile.
func largeDirectory(c *at) {
	stop := make(chan struct{})
	var writers, readers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				p := c.path("d", fmt.Sprintf("temp%d-%d", w, i%50))
				_ = os.WriteFile(p, nil, 0o644)
				_ = os.Rename(p, p+"x")
				_ = os.Remove(p + "x")
			}
		})
	}
	for r := range 3 {
		readers.Go(func() {
			fd, err := unix.Open(c.path("d"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
			if err != nil {
				c.Error(err)
				return
			}
			defer unix.Close(fd)
			for range 3 {
				seen := map[string]int{}
				for {
					es, err := getdents(fd, []int{300, 4096, 64 << 10}[r])
					if err != nil {
						c.Error(err)
					}
					if len(es) == 0 {
						break
					}
					for _, e := range es {
						seen[e.name]++
					}
				}
				stay := 0
				for name, n := range seen {
					if strings.HasPrefix(name, "file") {
						stay++
						if n != 1 {
							c.Errorf("%s is listed %d times", name, n)
						}
					}
				}
				if stay != many {
					c.Errorf("%d of %d files are listed", stay, many)
				}
				if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
					c.Error(err)
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	writers.Wait()
	c.note("in the end", "%d", len(c.list("d")))
	c.note("gone", "%v", errName(os.RemoveAll(c.path("d"))))
}

func hundred(t *testing.T, dir string) {
	for i := range 100 {
		put(t, filepath.Join(dir, fmt.Sprintf("e%02d", i)), "")
	}
}

// Offsets lead back to where they were taken, while the directory changes, and by
// another descriptor of it as well (as NFS servers use them).
func offsets(c *at) {
	fd := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	all := c.readAll(fd, 1000)
	c.note("entries", "%d", len(all))
	same := func(label string, fd, i int, want []dirent) {
		_, err := unix.Seek(fd, all[i].off, unix.SEEK_SET)
		c.must(err)
		var got, expect []string
		for _, e := range c.readAll(fd, 500) {
			if strings.HasPrefix(e.name, "e") {
				got = append(got, e.name)
			}
		}
		for _, e := range want {
			if strings.HasPrefix(e.name, "e") {
				expect = append(expect, e.name)
			}
		}
		c.note(fmt.Sprintf("%s, from entry %d", label, i), "%v", fmt.Sprint(got) == fmt.Sprint(expect))
	}
	for _, i := range []int{50, 10, 90, 0} {
		same("back", fd, i, all[i+1:])
	}
	other := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	for _, i := range []int{60, 5} {
		same("by another descriptor", other, i, all[i+1:])
	}
	for _, e := range all[20:40] {
		if strings.HasPrefix(e.name, "e") {
			c.must(os.Remove(c.path(e.name)))
		}
	}
	put(c, c.path("new"), "")
	same("after a removal", fd, 70, all[71:])
	same("by a new descriptor, after a removal", c.open(".", unix.O_RDONLY|unix.O_DIRECTORY), 70, all[71:])
	_, err := unix.Seek(fd, 0, unix.SEEK_SET)
	c.must(err)
	found := false
	for _, e := range c.readAll(fd, 32<<10) {
		found = found || e.name == "new"
	}
	c.note("rewound, the new one is there", "%v", found)
}

// Removing what was just listed, as rm -r does, leaves nothing.
func listWhileRemoving(c *at) {
	fd := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	removed := 0
	for {
		es, err := getdents(fd, 300)
		c.must(err)
		if len(es) == 0 {
			break
		}
		for _, e := range es {
			if e.name != "." && e.name != ".." {
				c.must(os.Remove(c.path(e.name)))
				removed++
			}
		}
	}
	c.note("removed", "%d", removed)
	c.note("left", "%d", len(c.list(".")))
}
