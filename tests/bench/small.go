package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// smallLoads are those of many small files, made, looked at and removed.
func smallLoads(size func(int) int) []*load {
	files := size(5000)
	return []*load{
		{name: "small", steps: []step{
			{name: "create, write 4 KiB, close", ops: files, writes: true, run: func(e *env) error { return create(e.point, files) }},
			{name: "stat", ops: files, run: func(e *env) error {
				return each(e.point, files, func(p string) error { _, err := os.Lstat(p); return err })
			}},
			{name: "unlink", ops: files, writes: true, run: func(e *env) error { return each(e.point, files, os.Remove) }},
		}},
		{name: "parallel", uncounted: true, steps: []step{
			{name: "8 processes: create, stat, unlink", ops: size(8000) / 8 * 8, run: func(e *env) error { return parallel(e.point, size(8000)/8) }},
		}},
		untar(files),
		git(files),
	}
}

var block = make([]byte, 4<<10)

// each calls f with n names in dir, 100 to a directory.
func each(dir string, n int, f func(path string) error) error {
	for i := range n {
		if err := f(fmt.Sprintf("%s/d%03d/f%02d", dir, i/100, i%100)); err != nil {
			return err
		}
	}
	return nil
}

func create(dir string, n int) error {
	for i := 0; i < n; i += 100 {
		if err := os.Mkdir(fmt.Sprintf("%s/d%03d", dir, i/100), 0o755); err != nil {
			return err
		}
	}
	return each(dir, n, func(p string) error { return os.WriteFile(p, block, 0o644) })
}

// workerArg makes this program one of several at work: worker DIR N.
const workerArg = "-worker"

func parallel(dir string, n int) error {
	var cmds []*exec.Cmd
	for i := range 8 {
		cmd := exec.Command("/proc/self/exe", workerArg, filepath.Join(dir, strconv.Itoa(i)), strconv.Itoa(n))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		cmds = append(cmds, cmd)
	}
	var err error
	for _, cmd := range cmds {
		if werr := cmd.Wait(); err == nil {
			err = werr
		}
	}
	return err
}

func worker(args []string) {
	n, _ := strconv.Atoi(args[1])
	err := os.Mkdir(args[0], 0o755)
	for _, f := range []func() error{
		func() error { return create(args[0], n) },
		func() error { return each(args[0], n, func(p string) error { _, err := os.Lstat(p); return err }) },
		func() error { return each(args[0], n, os.Remove) },
	} {
		if err == nil {
			err = f()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// untar unpacks one archive of files in a tenth as many directories. It lies in
// the upper's parent, on the same disk for all.
func untar(files int) *load {
	return &load{
		name:  "untar",
		upper: func(dir string) error { return writeTar(filepath.Dir(dir)+"/a.tar", files) },
		steps: []step{{name: "tar -x", ops: files, run: func(e *env) error {
			return command("tar", "-xf", filepath.Dir(e.upper)+"/a.tar", "-C", e.point)
		}}},
	}
}

// git asks for the status of a repository in the lower that git knows nothing of
// yet: the first status reads every file, the second looks at each.
func git(files int) *load {
	status := func(e *env) error { return commandIn(e.point, gitCommand("status", "--porcelain")...) }
	return &load{
		name: "git",
		lower: func(dir string) error {
			if err := writeTree(dir, files, files/10); err != nil {
				return err
			}
			for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"commit", "-q", "-m", "all"}} {
				if err := commandIn(dir, gitCommand(args...)...); err != nil {
					return err
				}
			}
			return nil
		},
		steps: []step{
			{name: "git status, first", ops: files, run: status},
			{name: "git status, second", ops: files, run: status},
		},
	}
}

func gitCommand(args ...string) []string {
	return append([]string{"git", "-c", "safe.directory=*", "-c", "user.name=bench", "-c", "user.email=bench@localhost",
		"-c", "gc.auto=0", "-c", "core.fsync=none"}, args...)
}
