package main

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	chunk    = 128 << 10
	pageSize = 4 << 10
)

// dataLoads are those of one big file.
func dataLoads(size func(int) int) []*load {
	mb, pages := size(256), size(10000)
	bytes := mb << 20
	read := func(e *env) error { return readAll(e.point + "/big") }
	readSome := func(e *env) error { return readPages(e.point+"/big", bytes, pages) }
	big := func(dir string) error { return writeBig(dir+"/big", bytes) }
	reads := []step{
		{name: "sequential read", ops: bytes / chunk, run: read},
		{name: "sequential read again", ops: bytes / chunk, run: read},
		{name: "random 4 KiB reads", ops: pages, remount: true, run: readSome},
		{name: "random 4 KiB reads again", ops: pages, run: readSome},
		{name: "sequential read, cold", ops: bytes / chunk, remount: true, cold: true, run: read},
	}
	return []*load{
		{name: "read-lower", readOnly: true, lower: big, steps: reads},
		{name: "read-upper", big: true, upper: big, steps: reads},
		{name: "write-upper", big: true, upper: big, steps: []step{
			{name: "sequential write", ops: bytes / chunk, writes: true, run: func(e *env) error { return overwrite(e.point+"/big", bytes) }},
			{name: "random 4 KiB writes", ops: pages, writes: true, run: func(e *env) error { return writePages(e.point+"/big", bytes, pages) }},
		}},
		{name: "write-lower", big: true, lower: big, steps: []step{
			{name: "first byte of a big lower file", ops: 1, writes: true, run: func(e *env) error { return firstByte(e.point + "/big") }},
			{name: "random 4 KiB writes after it", ops: pages, writes: true, run: func(e *env) error { return writePages(e.point+"/big", bytes, pages) }},
		}},
		reflink(size(1024) << 20),
	}
}

// reflink writes one byte to a big lower file on a filesystem that can share
// extents. The bare filesystem's part is to clone the file and sync the clone;
// mounts that have one place for all files have nothing to bring up.
func reflink(bytes int) *load {
	seed := ""
	return &load{
		name: "reflink", fstype: "xfs", big: true, uncounted: true,
		skip: func(k *kind) bool { return k.name == "mergerfs" || k.name == "go-fuse" },
		lower: func(dir string) error {
			if seed == "" {
				seed = filepath.Join(dir, "../../seed")
				if err := writeBig(seed, bytes); err != nil {
					return err
				}
			}
			return command("cp", "--reflink=always", seed, dir+"/big")
		},
		steps: []step{{name: "first byte of 1 GiB, reflink (ext4: cp --reflink, fsync)", ops: 1, run: func(e *env) error {
			if !e.kind.flat {
				return firstByte(e.point + "/big")
			}
			if err := command("cp", "--reflink=always", e.point+"/big", e.point+"/copy"); err != nil {
				return err
			}
			return command("sync", e.point+"/copy")
		}}},
	}
}

func writeBig(path string, bytes int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeChunks(f, bytes)
}

func writeChunks(f *os.File, bytes int) error {
	b := make([]byte, chunk)
	for i := range b {
		b[i] = byte(i * 7)
	}
	for n := 0; n < bytes; n += chunk {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func overwrite(path string, bytes int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeChunks(f, bytes)
}

func readAll(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, chunk)
	for {
		if _, err := f.Read(b); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// pagesOf calls f with the offsets of n pages, the same in every run.
func pagesOf(bytes, n int, f func(off int64) error) error {
	r := rand.New(rand.NewPCG(1, 2))
	for range n {
		if err := f(int64(r.IntN(bytes/pageSize)) * pageSize); err != nil {
			return err
		}
	}
	return nil
}

func readPages(path string, bytes, n int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	b := make([]byte, pageSize)
	return pagesOf(bytes, n, func(off int64) error { _, err := f.ReadAt(b, off); return err })
}

func writePages(path string, bytes, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return pagesOf(bytes, n, func(off int64) error { _, err := f.WriteAt(block, off); return err })
}

func firstByte(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte{1}, 0); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
