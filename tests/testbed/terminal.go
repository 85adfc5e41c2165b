package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
	"golang.org/x/sys/unix"
)

// Terminal is a pseudo terminal with a program on it, and what somebody would see who
// sits in front of it: as xterm and its kin have it, as far as programs of this
// repository need it. Lines that are longer than it becomes are broken, as in terminals
// that do that.
type Terminal struct {
	Process *Process

	tb     testing.TB
	master *os.File

	mu       sync.Mutex
	cols     int
	rows     [][]rune // what is on the screen; a cell behind one that is two wide is 0
	row, col int
	hidden   bool   // the cursor
	raw      []byte // all that came
	part     []byte // of a character or a sequence of control
}

// StartTerminal starts cmd on a terminal of that size.
func StartTerminal(tb testing.TB, cmd *exec.Cmd, cols, rows int) *Terminal {
	tb.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	t := &Terminal{tb: tb, master: master, cols: cols, rows: make([][]rune, rows)}
	if cols == 0 || rows == 0 { // it does not say, and has some size
		t.cols, t.rows = 80, make([][]rune, 24)
	}
	conn, err := master.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	number, slave := 0, -1
	cerr := conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		if number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN); err != nil {
			return
		}
		slave, err = unix.Open(fmt.Sprintf("/dev/pts/%d", number), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if cerr != nil || err != nil {
		tb.Fatal(cerr, err)
	}
	t.setSize(cols, rows)
	end := os.NewFile(uintptr(slave), "terminal")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = end, end, end
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	t.Process, err = Start(cmd)
	end.Close()
	if err != nil {
		tb.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			t.show(b[:n])
			if err != nil {
				return
			}
		}
	}()
	tb.Cleanup(func() {
		t.Process.KillTree()
		<-read
		master.Close()
	})
	return t
}

func (t *Terminal) setSize(cols, rows int) {
	conn, err := t.master.SyscallConn()
	if err == nil {
		cerr := conn.Control(func(fd uintptr) {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(cols), Row: uint16(rows)})
		})
		if err == nil {
			err = cerr
		}
	}
	if err != nil {
		t.tb.Fatal(err)
	}
}

// Resize makes the terminal another size, and tells the program.
func (t *Terminal) Resize(cols, rows int) {
	t.mu.Lock()
	var lines [][]rune
	at := 0 // the line of the cursor
	for i, line := range t.rows {
		if i == t.row {
			at = len(lines) + min(t.col, len(line))/cols
		}
		for len(line) > cols {
			lines, line = append(lines, line[:cols:cols]), line[cols:]
		}
		lines = append(lines, line)
	}
	// What is at the bottom stays; nothing but the cursor's line has to.
	for len(lines) > rows && len(lines[len(lines)-1]) == 0 && at < len(lines)-1 {
		lines = lines[:len(lines)-1]
	}
	if over := len(lines) - rows; over > 0 {
		lines, at = lines[over:], max(at-over, 0)
	}
	for len(lines) < rows {
		lines = append(lines, nil)
	}
	t.rows, t.cols, t.row, t.col = lines, cols, at, t.col%cols
	t.mu.Unlock()
	t.setSize(cols, rows)
}

// Type is what somebody types.
func (t *Terminal) Type(s string) {
	if _, err := t.master.WriteString(s); err != nil {
		t.tb.Error(err)
	}
}

// Screen is the lines of the screen, without blanks at their ends.
func (t *Terminal) Screen() (lines []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, row := range t.rows {
		lines = append(lines, strings.TrimRight(strings.ReplaceAll(string(row), "\x00", ""), " "))
	}
	return lines
}

// Cursor is the line and the column that the cursor is in, from 0 on, and whether it can
// be seen.
func (t *Terminal) Cursor() (row, col int, visible bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.row, t.col, !t.hidden
}

// Raw is all that the program has written.
func (t *Terminal) Raw() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.raw)
}

func (t *Terminal) show(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.raw = append(t.raw, b...)
	t.part = append(t.part, b...)
	for len(t.part) > 0 {
		n := t.one(t.part)
		if n == 0 {
			return // there is more to come
		}
		t.part = t.part[n:]
	}
}

// one shows the first character or obeys the first sequence of control, and returns how
// long it is; 0 if not all of it is there.
func (t *Terminal) one(b []byte) int {
	switch b[0] {
	case '\n':
		t.down()
		return 1
	case '\r':
		t.col = 0
		return 1
	case '\b':
		t.col = max(t.col-1, 0)
		return 1
	case 0x1b:
		return t.escape(b)
	}
	if b[0] < ' ' || b[0] == 0x7f {
		return 1
	}
	if !utf8.FullRune(b) {
		return 0
	}
	r, n := utf8.DecodeRune(b)
	width := runewidth.RuneWidth(r)
	if t.col+width > t.cols {
		t.col = 0
		t.down()
	}
	line := t.rows[t.row]
	for len(line) < t.col+width {
		line = append(line, ' ')
	}
	for i := range width {
		line[t.col+i] = 0
	}
	if width > 0 {
		line[t.col] = r
	}
	t.rows[t.row] = line
	t.col += width
	return n
}

func (t *Terminal) down() {
	if t.row++; t.row < len(t.rows) {
		return
	}
	t.row = len(t.rows) - 1
	copy(t.rows, t.rows[1:])
	t.rows[t.row] = nil
}

// escape obeys a sequence of control (ECMA-48): CSI, numbers, a letter.
func (t *Terminal) escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	if b[1] != '[' {
		t.tb.Errorf("a terminal was told %q", b[:2])
		return 2
	}
	n := 2
	for n < len(b) && b[n] < '@' {
		n++
	}
	if n == len(b) {
		return 0
	}
	arg := string(b[2:n])
	count, err := strconv.Atoi(arg)
	if err != nil || count == 0 {
		count = 1
	}
	switch b[n] {
	case 'A':
		t.row = max(t.row-count, 0)
	case 'B':
		t.row = min(t.row+count, len(t.rows)-1)
	case 'H':
		t.row, t.col = 0, 0
	case 'J':
		if arg == "2" {
			clear(t.rows)
			break
		}
		t.cut()
		clear(t.rows[t.row+1:])
	case 'K':
		t.cut()
	case 'h', 'l':
		if arg == "?25" {
			t.hidden = b[n] == 'l'
		}
	case 'm':
	default:
		t.tb.Errorf("a terminal was told %q", b[:n+1])
	}
	return n + 1
}

// cut takes away what is on the line from the cursor on.
func (t *Terminal) cut() { t.rows[t.row] = t.rows[t.row][:min(t.col, len(t.rows[t.row]))] }
