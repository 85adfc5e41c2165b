package main

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// treeLoads are those of directories that are walked.
func treeLoads(size func(int) int) []*load {
	files, dirs, entries := size(20000), size(1000), size(50000)
	find := func(e *env) error { return walk(e.point) }
	return []*load{
		{name: "find", readOnly: true, lower: func(dir string) error { return writeTree(dir, files, dirs) }, steps: []step{
			{name: "find -ls, first", ops: files + dirs, run: find},
			{name: "find -ls, second", ops: files + dirs, run: find},
			{name: "stat of known names", ops: files, remount: true, run: func(e *env) error { return statTree(e.point, files, dirs) }},
		}},
		{name: "bigdir", readOnly: true, lower: func(dir string) error { return writeTree(dir, entries, 1) }, steps: []step{
			{name: "readdir", ops: entries, run: func(e *env) error { return names(e.point+"/d0000", entries) }},
			{name: "readdir and stat, first", ops: entries, remount: true, run: find},
			{name: "readdir and stat, second", ops: entries, run: find},
		}},
	}
}

func treeName(i, dirs int) string { return fmt.Sprintf("d%04d/file-%05d", i%dirs, i) }

// treeSize is the size of the i-th file: as in source trees, few are big.
func treeSize(i int) int { return 200 + i%7*500 + i%50/49*20000 }

// writeTree makes files in dirs directories, each with other bytes.
func writeTree(dir string, files, dirs int) error {
	for i := range dirs {
		if err := os.MkdirAll(fmt.Sprintf("%s/d%04d", dir, i), 0o755); err != nil {
			return err
		}
	}
	for i := range files {
		if err := os.WriteFile(dir+"/"+treeName(i, dirs), content(i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func content(i int) []byte {
	b := make([]byte, treeSize(i))
	for j := range b {
		b[j] = byte('a' + (i+j*j)%26)
	}
	return b
}

func statTree(dir string, files, dirs int) error {
	for i := range files {
		if _, err := os.Lstat(dir + "/" + treeName(i, dirs)); err != nil {
			return err
		}
	}
	return nil
}

// writeTar writes the same archive every time.
func writeTar(path string, files int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	dirs := files / 10
	day := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range dirs {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%04d/", i), Mode: 0o755, ModTime: day}); err != nil {
			return err
		}
	}
	for i := range files {
		b := content(i)
		if err := w.WriteHeader(&tar.Header{Name: treeName(i, dirs), Size: int64(len(b)), Mode: 0o644, ModTime: day}); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return w.Close()
}

// walk is find -ls.
func walk(dir string) error {
	cmd := exec.Command("find", dir, "-ls")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		return err
	}
	return cmd.Wait()
}

// names reads a directory without asking for attributes.
func names(dir string, want int) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := f.Readdirnames(-1)
	if err == nil && len(got) != want {
		err = fmt.Errorf("%s has %d entries instead of %d", dir, len(got), want)
	}
	return err
}
