// Server is a parent and two workers that share a listening socket and a log;
// the tests move it. Each line asked gets a line: "line N" the N-th of the file
// data, which is open, "log TEXT" the worker's number, when TEXT is in the log.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

func main() {
	dir := os.Args[1]
	if len(os.Args) == 3 {
		must(work(dir, os.Args[2]))
		return
	}
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	must(err)
	f, err := l.(*net.UnixListener).File()
	must(err)
	var workers sync.WaitGroup
	for i := range 2 {
		cmd := exec.Command(os.Args[0], dir, strconv.Itoa(i))
		cmd.ExtraFiles = []*os.File{f}
		must(cmd.Start())
		workers.Go(func() { must(cmd.Wait()) })
	}
	workers.Wait()
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func work(dir, number string) error {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	data, err := os.Open(filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := answer(c, data, log, number); err != nil {
			fmt.Fprintln(c, "error:", err)
		}
		c.Close()
	}
}

func answer(c net.Conn, data, log *os.File, number string) error {
	ask, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	what, arg, _ := strings.Cut(strings.TrimSpace(ask), " ")
	if what == "log" {
		if _, err := log.WriteString(arg + "\n"); err != nil {
			return err
		}
		_, err = fmt.Fprintln(c, number)
		return err
	}
	n, err := strconv.Atoi(arg)
	if err != nil {
		return err
	}
	if _, err := data.Seek(0, 0); err != nil {
		return err
	}
	lines := bufio.NewScanner(data)
	for range n {
		lines.Scan()
	}
	_, err = fmt.Fprintln(c, lines.Text())
	return err
}
