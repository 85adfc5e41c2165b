package oracle

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"golang.org/x/sys/unix"
)

// op is one operation: everything it needs is in it, so that a sequence stays
// meaningful when operations are taken out of it.
type op struct {
	kind  string
	proc  int // which process does it
	path  string
	path2 string
	slot  int // an open file
	slot2 int
	off   int64
	n     int64
	flags int
	mode  uint32
	uid   int
	data  byte
}

func (o op) String() string {
	var b strings.Builder
	if o.proc != 0 {
		fmt.Fprintf(&b, "[%d] ", o.proc)
	}
	fmt.Fprintf(&b, "%s", o.kind)
	if o.path != "" {
		fmt.Fprintf(&b, " %s", o.path)
	}
	if o.path2 != "" {
		fmt.Fprintf(&b, " %s", o.path2)
	}
	fmt.Fprintf(&b, " slot=%d slot2=%d off=%d n=%d flags=%#x mode=%#o uid=%d data=%d", o.slot, o.slot2, o.off, o.n, o.flags, o.mode, o.uid, o.data)
	return b.String()
}

// line is o in a form that parseOp reads back.
func (o op) line() string {
	return fmt.Sprintf("%q %q %q %d %d %d %d %d %#x %#o %d %d",
		o.kind, o.path, o.path2, o.proc, o.slot, o.slot2, o.off, o.n, o.flags, o.mode, o.uid, o.data)
}

func parseOp(line string) (o op, err error) {
	_, err = fmt.Sscanf(line, "%q %q %q %d %d %d %d %d %v %v %d %d",
		&o.kind, &o.path, &o.path2, &o.proc, &o.slot, &o.slot2, &o.off, &o.n, &o.flags, &o.mode, &o.uid, &o.data)
	return o, err
}

const slots = 6

// procs is how many processes take part; the first does most.
const procs = 3

// weights says how often each kind of operation comes.
var weights = []struct {
	kind string
	n    int
}{
	{"open", 14}, {"close", 6}, {"pwrite", 10}, {"append", 4}, {"pread", 8}, {"ftruncate", 3}, {"fstat", 5},
	{"truncate", 3}, {"unlink", 8}, {"mkdir", 6}, {"rmdir", 5}, {"rename", 14}, {"link", 7}, {"symlink", 3},
	{"readlink", 2}, {"chmod", 3}, {"fchmod", 1}, {"chown", 3}, {"utimens", 4}, {"setxattr", 3}, {"getxattr", 2},
	{"listxattr", 2}, {"removexattr", 2}, {"fsetxattr", 1}, {"readdir", 6}, {"stat", 10}, {"fallocate", 3}, {"fsync", 1},
	{"mmap", 2}, {"copyrange", 2}, {"read", 5}, {"setacl", 1}, {"mkfifo", 1}, {"fsyncdir", 1}, {"mapold", 2},
	{"mknod", 2}, {"lock", 5}, {"getlk", 2}, {"flock", 3},
	{"fdatasync", 1}, {"syncfs", 1}, {"fchown", 1}, {"futimens", 1}, {"fgetxattr", 1}, {"fremovexattr", 1}, {"flink", 3}, {"reopen", 3},
	{"where", 2}, {"extents", 1}, {"ofdlock", 2}, {"store", 3}, {"tmpfile", 2}, {"access", 2}, {"statx", 1},
	{"opendir", 5}, {"dirwhere", 2}, {"dirlist", 3}, {"dirstat", 2}, {"dirsync", 1}, {"dircreate", 3}, {"dirmkdir", 2}, {"dirunlink", 2},
	{"dirrmdir", 2}, {"dirchmod", 1}, {"dirrename", 3}, {"dirlink", 2}, {"dirinto", 2}, {"dirsetxattr", 1}, {"dirgetxattr", 2}, {"dirtimes", 1},
}

var names = []string{"a", "b", "c", "d", "e", "f", "g"}

// taste is what a sequence does more often than others, and what it leaves out: what
// goes wrong when a few kinds of operations meet on a few files is rare where all
// come as often everywhere.
type taste struct {
	weights []int
	total   int
	few     []string // paths that come again and again
}

func newTaste(r *rand.Rand) *taste {
	t := &taste{}
	for _, w := range weights {
		n := w.n * []int{0, 1, 1, 1, 4}[r.IntN(5)]
		if w.kind == "open" {
			n = max(n, w.n)
		}
		t.weights = append(t.weights, n)
		t.total += n
	}
	for range []int{0, 3, 6, 12}[r.IntN(4)] {
		t.few = append(t.few, randomPath(r))
	}
	return t
}

func (t *taste) kind(r *rand.Rand) string {
	k := r.IntN(t.total)
	for i, w := range weights {
		if k -= t.weights[i]; k < 0 {
			return w.kind
		}
	}
	panic("no kind")
}

func (t *taste) path(r *rand.Rand) string {
	if len(t.few) > 0 && r.IntN(3) > 0 {
		return t.few[r.IntN(len(t.few))]
	}
	return randomPath(r)
}

func randomPath(r *rand.Rand) string {
	depth := 1 + r.IntN(3)
	parts := make([]string, depth)
	for i := range parts {
		parts[i] = names[r.IntN(len(names))]
		if i < depth-1 { // where directories are
			parts[i] = names[r.IntN(4)]
		}
	}
	return strings.Join(parts, "/")
}

// generate makes n operations.
func generate(r *rand.Rand, n int) []op {
	t := newTaste(r)
	ops := make([]op, n)
	for i := range ops {
		ops[i] = t.generateOne(r)
	}
	return ops
}

func (t *taste) generateOne(r *rand.Rand) op {
	o := op{kind: t.kind(r), slot: r.IntN(slots), slot2: r.IntN(slots), data: byte(1 + r.IntN(255))}
	o.path, o.path2 = t.path(r), t.path(r)
	o.off, o.n = r.Int64N(20000), r.Int64N(9000)
	if r.IntN(6) == 0 {
		o.off = 0
	}
	o.mode = []uint32{0o644, 0o755, 0o4755, 0o2755, 0o600, 0o777, 0o6777, 0o2770, 0}[r.IntN(9)]
	if r.IntN(6) == 0 {
		o.uid = 1000
	}
	if r.IntN(3) == 0 {
		o.proc = 1 + r.IntN(procs-1)
	}
	switch o.kind {
	case "open", "reopen":
		o.flags = []int{unix.O_RDONLY, unix.O_RDONLY, unix.O_RDWR, unix.O_RDWR, unix.O_WRONLY,
			unix.O_RDWR | unix.O_APPEND, unix.O_RDWR | unix.O_CREAT, unix.O_RDWR | unix.O_CREAT, unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC,
			unix.O_RDWR | unix.O_TRUNC, unix.O_RDWR | unix.O_CREAT | unix.O_EXCL, unix.O_RDONLY | unix.O_CREAT}[r.IntN(12)]
	case "rename", "dirrename", "dirinto":
		o.flags = []int{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT}[r.IntN(7)]
	case "fallocate":
		const punch, keep, zero = unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE
		o.flags = []int{0, keep, punch | keep, zero, zero | keep}[r.IntN(5)]
	case "tmpfile", "dircreate":
		o.flags = []int{0, 0, unix.O_EXCL}[r.IntN(3)]
	case "setxattr", "fsetxattr":
		o.flags = []int{0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE}[r.IntN(4)]
	}
	return o
}
