package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/local"
)

// A directory that lies in several layers is renamed in each by a call of its own, in
// migrate mode with hosts=single; so are two files of which one is a directory, and that do
// not lie in one layer, when they change places. Before the first call UPPER/.migratefs/rename says
// what moves, whole and durable; it goes when all are durable. Who finds it ends the
// rename: what moves is known by its inode and birth time, so that whatever a crash, a
// loss of power or somebody else has left, no other file is touched.
//
//	migratefs rename 1
//	from "old/name"                   quoted as a Go string
//	to "new/name"
//	part LAYER-INO-SEC.NSEC           the directory in one layer, in hexadecimal; in the
//	part ...                          order in which they move
//	back LAYER-INO-SEC.NSEC           in an exchange: what has the new name in one layer, and gets
//	back ...                          the old one, by the same call as the part of that layer
//	over LAYER-INO-SEC.NSEC           if an empty directory is replaced: it
//	file from                         in an exchange, if what has this name is no directory; or "to"
//	as UID GID GROUP ...              with creds=caller: who renames
//	end

const (
	intentName  = "rename"
	intentFirst = "migratefs rename 1"
	// intentMax is more than two paths take, however they are quoted.
	intentMax = 1 << 20
)

// intentPatience is how long a mount waits for another to end what a third has left;
// but for a test it is constant.
var intentPatience = 10 * time.Second

// intent is a rename in several layers.
type intent struct {
	from, to layers.Path
	parts    []copyup.Origin // what moves from one to the other
	back     []copyup.Origin // and, in an exchange, the other way
	over     copyup.Origin   // empty if nothing is replaced
	file     string          // the end that is no directory: "from", "to" or none
	as       *sys.Cred       // nil: the daemon itself
}

func (in *intent) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nfrom %q\nto %q\n", intentFirst, string(in.from), string(in.to))
	for _, o := range in.parts {
		fmt.Fprintf(&b, "part %s\n", o)
	}
	for _, o := range in.back {
		fmt.Fprintf(&b, "back %s\n", o)
	}
	if in.over != "" {
		fmt.Fprintf(&b, "over %s\n", in.over)
	}
	if in.file != "" {
		fmt.Fprintf(&b, "file %s\n", in.file)
	}
	if in.as != nil {
		ids := append([]uint32{in.as.UID, in.as.GID}, in.as.Groups...)
		fmt.Fprintf(&b, "as %s\n", strings.Trim(fmt.Sprint(ids), "[]"))
	}
	b.WriteString("end\n")
	return b.Bytes()
}

func parseIntent(b []byte) (*intent, error) {
	lines := strings.Split(string(b), "\n")
	n := len(lines)
	in := &intent{}
	if n < 6 || lines[0] != intentFirst || lines[n-2] != "end" || lines[n-1] != "" {
		return nil, layers.ErrCorrupt
	}
	for i, p := range []*layers.Path{&in.from, &in.to} {
		word, value, _ := strings.Cut(lines[1+i], " ")
		path, err := strconv.Unquote(value)
		*p = layers.Path(path)
		top, _, _ := strings.Cut(path, "/")
		if err != nil || word != [...]string{"from", "to"}[i] || path == "" || !p.Valid() || top == Reserved {
			return nil, layers.ErrCorrupt
		}
	}
	last := 0 // the words come in their order
	for _, line := range lines[3 : n-2] {
		word, value, _ := strings.Cut(line, " ")
		order := slices.Index(intentWords, word)
		if order < last || order == last && order > lastOfMany || !in.take(word, value) {
			return nil, layers.ErrCorrupt
		}
		last = order
	}
	if len(in.parts) == 0 || len(in.back) > 0 && in.over != "" || len(in.back) == 0 && in.file != "" {
		return nil, layers.ErrCorrupt
	}
	return in, nil
}

// intentWords are what lines after the two names begin with; up to lastOfMany there may
// be several of each.
var intentWords = []string{"part", "back", "over", "file", "as"}

const lastOfMany = 1

// take reads one line of an intent, and reports whether it is one.
func (in *intent) take(word, value string) bool {
	switch word {
	case "file":
		in.file = value
		return value == "from" || value == "to"
	case "as":
		return in.takeCred(value)
	}
	if !isIndexName(value) || len(value) <= shortID || value[shortID] != '-' {
		return false
	}
	switch o := copyup.Origin(value); word {
	case "part":
		in.parts = append(in.parts, o)
	case "back":
		in.back = append(in.back, o)
	case "over":
		in.over = o
	}
	return true
}

func (in *intent) takeCred(value string) bool {
	var ids []uint32
	for word := range strings.SplitSeq(value, " ") {
		id, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			return false
		}
		ids = append(ids, uint32(id))
	}
	if len(ids) < 2 {
		return false
	}
	in.as = &sys.Cred{UID: ids[0], GID: ids[1], Groups: ids[2:]}
	return true
}

// layerOf is the short id of the layer that a part lies in.
func layerOf(o copyup.Origin) string { return string(o[:shortID]) }

// readIntent returns what the upper says of a rename that was begun, and the file that
// says so; nil if there is none.
func readIntent(upper int) (in *intent, fd int, err error) {
	fd, err = sys.OpenBeneath(upper, Reserved+"/"+intentName, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if nothing(err) {
		return nil, -1, nil
	}
	if err != nil {
		return nil, -1, err
	}
	b := make([]byte, intentMax)
	n, err := sys.Pread(fd, b, 0)
	if err == nil {
		in, err = parseIntent(b[:n])
	}
	if err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("%s/%s: %w", Reserved, intentName, err)
	}
	return in, fd, nil
}

// journey is an intent with its directories at hand.
type journey struct {
	intent
	legs []leg
	over leg // to is where over lies
}

// leg is what moves in one layer.
type leg struct {
	part     copyup.Origin // from one name to the other; empty if nothing does
	back     copyup.Origin // the other way
	from, to int           // the directories with its names; -1 for one that is not there
}

func (l *leg) layer() string { return layerOf(l.part + l.back) }

// open opens what the journey leads through. rootOf is the root of the layer with a
// short id, -1 if it is not at hand.
func (in *intent) open(rootOf func(layer string) int) (j *journey, err error) {
	j = &journey{intent: *in, legs: in.route()}
	if in.over != "" {
		j.over = leg{part: in.over, from: -1, to: -1}
	}
	for _, l := range j.all() {
		root := rootOf(l.layer())
		if root < 0 {
			err = fmt.Errorf("the layer whose %s/%s begins with %s is not among these: %w", Reserved, idName, l.layer(), unix.ENXIO)
		}
		if err == nil {
			l.from, err = openParentOf(root, in.from)
		}
		if err == nil {
			l.to, err = openParentOf(root, in.to)
		}
		if err != nil {
			j.close()
			return nil, err
		}
	}
	return j, nil
}

// route returns the legs of what moves, in their order: one for each layer.
func (in *intent) route() (legs []leg) {
	for _, o := range in.parts {
		legs = append(legs, leg{part: o, from: -1, to: -1})
	}
	for _, o := range in.back {
		i := slices.IndexFunc(legs, func(l leg) bool { return l.back == "" && l.layer() == layerOf(o) })
		if i < 0 {
			legs = append(legs, leg{back: o, from: -1, to: -1})
			continue
		}
		legs[i].back = o
	}
	return legs
}

func openParentOf(root int, p layers.Path) (int, error) {
	dir, _ := p.Split()
	fd, err := sys.OpenBeneath(root, string(dir), unix.O_PATH|unix.O_DIRECTORY, 0)
	if nothing(err) {
		return -1, nil
	}
	return fd, err
}

func (j *journey) close() {
	for _, l := range j.all() {
		closeFd(l.from)
		closeFd(l.to)
	}
}

// all are the legs, and where what is replaced lies.
func (j *journey) all() (legs []*leg) {
	for i := range j.legs {
		legs = append(legs, &j.legs[i])
	}
	if j.over.part != "" {
		legs = append(legs, &j.over)
	}
	return legs
}

func (j *journey) names() (from, to string) {
	_, from = j.from.Split()
	_, to = j.to.Split()
	return from, to
}

// isAt reports whether name in dir is o, which is a directory unless isFile is set.
func isAt(dir int, name string, o copyup.Origin, isFile bool) (bool, error) {
	if dir < 0 || o == "" {
		return false, nil
	}
	var stx unix.Statx_t
	if err := sys.Statx(dir, name, &stx); err != nil {
		return false, ignoreGone(err)
	}
	a := local.AttrOf(&stx)
	return a.IsDir() != isFile && copyup.OriginOf(layerOf(o), &a) == o, nil
}

// areAt reports whether what moves in l is in the directory part, by the name there, and
// what moves the other way in the directory back.
func (j *journey) areAt(l *leg, part int, name string, back int, backName string) (first, second bool, err error) {
	if first, err = isAt(part, name, l.part, j.file == "from"); err == nil {
		second, err = isAt(back, backName, l.back, j.file == "to")
	}
	return first, second, err
}

// begun reports whether anything has moved, so far as it is not taken back.
func (j *journey) begun() (bool, error) {
	from, to := j.names()
	for i := range j.legs {
		l := &j.legs[i]
		if part, back, err := j.areAt(l, l.to, to, l.from, from); part || back || err != nil {
			return err == nil, err
		}
	}
	if j.over.part == "" {
		return false, nil
	}
	stands, err := isAt(j.over.to, to, j.over.part, false)
	return !stands, err
}

// errSplit: a directory has moved in some layers and not in others.
var errSplit = errors.New("it has moved in a part of the layers")

// complete moves what has not moved yet. If that cannot be done it takes all back, and
// returns why; errSplit if neither can be.
//
// What is replaced goes with the last step, so that all before can be taken back.
func (j *journey) complete() error {
	for i := range j.legs {
		if err := j.forth(&j.legs[i], i == len(j.legs)-1 && j.replaces()); err != nil {
			return j.giveUp(err)
		}
	}
	if j.over.part == "" || j.replaces() {
		return nil
	}
	_, name := j.names()
	if stands, err := isAt(j.over.to, name, j.over.part, false); err != nil || !stands {
		return err
	}
	if err := sys.Rmdir(j.over.to, name); err != nil && err != unix.ENOENT {
		return j.giveUp(err)
	}
	return nil
}

// replaces reports whether what is replaced lies in the layer of the last leg.
func (j *journey) replaces() bool {
	return j.over.part != "" && j.over.layer() == j.legs[len(j.legs)-1].layer()
}

func (j *journey) forth(l *leg, replace bool) error {
	from, to := j.names()
	part, back, err := j.areAt(l, l.from, from, l.to, to)
	if err == nil && part && replace {
		return sys.Rename(l.from, from, l.to, to, 0)
	}
	if err != nil {
		return err
	}
	return swap(part, back, l.from, from, l.to, to)
}

// swap moves name old in the directory from to name in the directory to if part says so, and the
// other way round if back does. What does not move has moved already, or somebody took it away.
func swap(part, back bool, from int, old string, to int, name string) error {
	switch {
	case part && back:
		return sys.Rename(from, old, to, name, unix.RENAME_EXCHANGE)
	case part:
		return renameToFree(from, old, to, name)
	case back:
		return renameToFree(to, name, from, old)
	}
	return nil
}

// renameToFree renames to a name that must be free, also where no call can ask for
// that.
func renameToFree(from int, old string, to int, name string) error {
	err := sys.Rename(from, old, to, name, unix.RENAME_NOREPLACE)
	if err != unix.EINVAL && err != unix.ENOSYS {
		return err
	}
	if has, err := inUpper(to, name); err != nil || has {
		return errors.Join(err, unix.EEXIST)
	}
	return sys.Rename(from, old, to, name, 0)
}

// giveUp takes back what was done before cause.
func (j *journey) giveUp(cause error) error {
	from, to := j.names()
	if j.over.part != "" {
		if stands, err := isAt(j.over.to, to, j.over.part, false); err != nil || !stands {
			return fmt.Errorf("%w: %w", cause, errSplit)
		}
	}
	for i := len(j.legs) - 1; i >= 0; i-- {
		l := &j.legs[i]
		part, back, err := j.areAt(l, l.to, to, l.from, from)
		if err == nil {
			err = swap(part, back, l.to, to, l.from, from)
		}
		if err != nil {
			return fmt.Errorf("%w: %w, and it cannot be taken back: %w", cause, errSplit, err)
		}
	}
	return cause
}

// sync makes durable what complete did.
func (j *journey) sync(cfg copyup.Config) error {
	for _, l := range j.all() {
		for i, fd := range []int{l.from, l.to} {
			if fd < 0 || i > 0 && fd == l.from {
				continue
			}
			err := copyup.SyncDir(fd, cfg)
			if errors.Is(err, unix.EACCES) { // a request of creds=caller
				err = sys.AsSelf(func() error { return copyup.SyncDir(fd, cfg) })
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// finishIntent ends the rename that the upper says was begun, if there is one: what has
// begun to move moves, or all of it back.
func finishIntent(upper int, rootOf func(layer string) int) error {
	in, fd, err := readIntent(upper)
	if in == nil || err != nil {
		return err
	}
	defer unix.Close(fd)
	// Mounts with hosts=many may find what one with hosts=single left, at once.
	for until := time.Now().Add(intentPatience); ; time.Sleep(100 * time.Millisecond) {
		if err = sys.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(until) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) { // two at once could each undo what the other does
		return fmt.Errorf("the rename of %q to %q was interrupted and another mount is ending it: try again: %w", string(in.from), string(in.to), unix.EBUSY)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink == 0 {
		return err
	}
	err = errors.ErrUnsupported
	if in.as != nil { // first with the rights that it was begun with
		err = sys.As(*in.as, func() error { return in.finish(rootOf) })
	}
	if err != nil {
		err = in.finish(rootOf)
	}
	if err != nil {
		return fmt.Errorf("the rename of %q to %q was interrupted and cannot be ended: %w", string(in.from), string(in.to), err)
	}
	return dropIntent(upper)
}

func (in *intent) finish(rootOf func(layer string) int) error {
	j, err := in.open(rootOf)
	if err != nil {
		return err
	}
	defer j.close()
	begun, err := j.begun()
	if begun && err == nil {
		if err = j.complete(); err != nil && !errors.Is(err, errSplit) {
			err = nil // it is as before
		}
	}
	if err != nil {
		return err
	}
	return j.sync(copyup.Config{})
}

// dropIntent removes the intent of the upper, for what it says is done and durable, or
// not begun.
func dropIntent(upper int) error {
	dir, err := sys.OpenBeneath(upper, Reserved, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := ignoreGone(sys.Unlink(dir, intentName)); err != nil {
		return err
	}
	return sys.Fsync(dir)
}

// writeIntent makes in durable, whole or not at all. work is a directory for what is not
// finished, on the same filesystem.
func writeIntent(upper, work int, in *intent) (err error) {
	dir, err := sys.OpenBeneath(upper, Reserved, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	temp := copyup.TempName()
	fd, err := sys.Create(work, temp, unix.O_WRONLY|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err = sys.Pwrite(fd, in.encode(), 0); err == nil {
		err = sys.Fsync(fd)
	}
	if err == nil {
		err = sys.Rename(work, temp, dir, intentName, 0)
	}
	if err != nil {
		_ = sys.Unlink(work, temp)
		return err
	}
	return sys.Fsync(dir)
}
