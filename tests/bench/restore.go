package main

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// A process that holds files open is dumped on one host and goes on on another. What
// counts is when it does, what has come over the link by then, and when the first host
// can be switched off. Two hosts are made of network and mount namespaces; what goes from
// one to the other goes through a proxy that makes a round trip take longer. One dump
// serves every run: of all ways in which the process comes to the second host, each begins
// with nothing there, and the source's files warm.

const (
	heldFiles = 16  // that the process has open
	heldPart  = 100 // of each it reads one in so many bytes, from its offset on

	heldDir   = "/srv/job"
	imagesDir = "/srv/images"
)

// hop is one way in which a process comes to another host.
type hop struct {
	name     string
	programs []string
	// before makes what is there already, which is not timed.
	before func(s *scene) error
	// start has the process restored; what runs until the process ends is returned.
	start func(s *scene) (*testbed.Process, error)
	// fetch brings the file i before the process first reads of it; nil: nobody has to.
	fetch func(s *scene, i int) error
	// complete returns when the source may be switched off; nil: it was so when the
	// process had read its part or, with never, it never is.
	complete func(s *scene) error
	never    bool
	end      func(s *scene) error
}

// hops are the ways; ours is first.
var hops = []hop{
	{
		name: "ours",
		start: func(s *scene) (*testbed.Process, error) {
			out, err := s.on(s.cfg.migratefs, "restore", "--criu", s.criu, "--from", "source", "--upperdir", "/srv/upper", "source:"+imagesDir)
			f := restoredLine.FindStringSubmatch(out)
			if err == nil && f == nil {
				err = fmt.Errorf("migratefs restore printed %q", out)
			}
			if err != nil {
				return nil, err
			}
			s.pid, _ = strconv.Atoi(f[1])
			s.view = f[2]
			return nil, nil
		},
		complete: func(s *scene) error {
			_, err := s.on(s.cfg.migratefs, "wait", "--complete", s.view)
			return err
		},
		end: func(s *scene) error {
			if s.pid == 0 {
				return nil
			}
			if err := syscall.Kill(s.pid, syscall.SIGKILL); err != nil {
				return err
			}
			return s.again(s.cfg.migratefs, "umount", s.view)
		},
	},
	{
		name:     "rsync, then criu restore",
		programs: []string{"rsync"},
		start: func(s *scene) (*testbed.Process, error) {
			if _, err := s.on("rsync", "-a", "source:"+imagesDir, ":"+heldDir, "/srv/"); err != nil {
				return nil, err
			}
			return s.alone("", s.criu, "restore", "-D", imagesDir, "-o", "restore.log")
		},
	},
	{
		name:     "sshfs + fuse-overlayfs, then criu restore",
		programs: []string{"sshfs", "fuse-overlayfs", "rsync"},
		never:    true,
		start: func(s *scene) (*testbed.Process, error) {
			if _, err := s.on("sh", "-ec", `mkdir /srv/low /srv/upper /srv/work /srv/root
rsync -a source:$1 /srv/
sshfs source:/ /srv/low
fuse-overlayfs -o lowerdir=/srv/low,upperdir=/srv/upper,workdir=/srv/work /srv/root`, "sh", imagesDir); err != nil {
				return nil, err
			}
			// CRIU and what it is made of are this host's, as everything in /usr: only the
			// process's files come over the link.
			return s.alone(`for d in proc sys dev run usr srv/images "${0%/*}"; do mount --rbind "/$d" "/srv/root/$d"; done
exec chroot /srv/root "$0" "$@"`, s.criu, "restore", "-D", imagesDir, "-o", "restore.log")
		},
		end: func(s *scene) error {
			return errors.Join(s.again("umount", "/srv/root"), s.again("umount", "/srv/low"))
		},
	},
	{
		// LazyFS needs a CRIU that was patched ten years ago and does not run on today's
		// kernels. What it does is done for it: the images come by scp, its files have
		// their sizes and nothing else when the process goes on, and with the first read of
		// each it comes whole, by an scp of its own. The program is there before, as LazyFS
		// serves no programs.
		name:     "LazyFS's way (emulated)",
		programs: []string{"scp"},
		before: func(s *scene) error {
			if err := os.MkdirAll(s.b.Path(heldDir+"/files"), 0o755); err != nil {
				return err
			}
			for i := range heldFiles {
				f, err := os.Create(s.b.Path(heldFile(i)))
				if err != nil {
					return err
				}
				if err := errors.Join(f.Truncate(s.size/heldFiles), f.Close()); err != nil {
					return err
				}
			}
			return command("cp", "-r", s.a.Path(heldDir+"/bin"), s.b.Path(heldDir+"/bin"))
		},
		start: func(s *scene) (*testbed.Process, error) {
			if _, err := s.on("scp", "-q", "-r", "source:"+imagesDir, "/srv/"); err != nil {
				return nil, err
			}
			return s.alone("", s.criu, "restore", "-D", imagesDir, "-o", "restore.log")
		},
		fetch: func(s *scene, i int) error {
			_, err := s.on("scp", "-q", "source:"+heldFile(i), heldFile(i))
			return err
		},
	},
}

var restoredLine = regexp.MustCompile(`(?s)runs, outside as (\d+)\n.*migratefs umount (/\S+)\n`)

func heldFile(i int) string { return fmt.Sprintf("%s/files/f%02d", heldDir, i) }

// stage is a moment in the life of a process that was moved.
type stage int

const (
	firstAct stage = iota // it has done something
	partRead              // it has read of each file what it reads
	allHere               // the source may be switched off
	stages
)

// hopped is what was found of one size over one link.
type hopped struct {
	size    int64
	rtt     time.Duration
	images  int64                        // bytes
	program int64                        // bytes of it that the process had touched
	took    map[string][stages][]float64 // seconds since the dump was done, by way
	down    map[string][stages]int64     // bytes that had come by then, of the last run
}

// scene is the two hosts.
type scene struct {
	cfg  *config
	a, b *testbed.Host
	link *testbed.Proxy
	criu string
	size int64  // of all files together
	sum  uint64 // of what is read of them

	program int64 // bytes of the process's program that it has touched

	pid  int    // of ours
	view string //
}

// on runs a command on the second host and returns what it printed.
func (s *scene) on(name string, args ...string) (string, error) {
	cmd := s.b.Command(name, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", name, err, out.String())
	}
	return out.String(), nil
}

// again runs a command that unmounts: who has just ended may keep it busy for a moment.
func (s *scene) again(name string, args ...string) (err error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err = s.on(name, args...); err == nil {
			return nil
		}
	}
	return err
}

// alone starts a command on the second host in mount and pid namespaces of its own, where
// the pids of the process are free; script, a shell's, may run it.
func (s *scene) alone(script string, command ...string) (*testbed.Process, error) {
	args := []string{"--mount", "--pid", "--fork", "--mount-proc", "--kill-child"}
	if script != "" {
		args = append(args, "sh", "-ec", script)
	}
	return testbed.Start(s.b.Command("unshare", append(args, command...)...))
}

// restores measures every way with every size over every link.
func (b *bed) restores() (all []hopped, err error) {
	criu, err := exec.Command("tests/testbed/criu.sh").Output()
	if err != nil {
		return nil, fmt.Errorf("tests/testbed/criu.sh: %w", err)
	}
	for _, mib := range b.cfg.sizes {
		err := standing(func(tb *stand) error {
			s := &scene{cfg: b.cfg, criu: strings.TrimSpace(string(criu)), size: mib << 20}
			found, err := b.restoresOf(tb, s)
			all = append(all, found...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// restoresOf is restores for the size of s.
func (b *bed) restoresOf(tb *stand, s *scene) (found []hopped, err error) {
	if err := os.Setenv("TMPDIR", b.dir); err != nil { // of the hosts
		return nil, err
	}
	s.a, s.b = testbed.NewHosts(tb)
	s.link = testbed.NewProxyOn(tb, s.b, "")
	s.b.Knows(testbed.StartSSHD(tb, testbed.SSHDConfig{Host: s.a, Through: s.link, SFTP: "internal-sftp"}))
	images, err := s.dump()
	if err != nil {
		return nil, err
	}
	// What CRIU finds out about a kernel it notes in /run for the next time.
	if _, err := s.on(s.criu, "check"); err != nil {
		return nil, err
	}
	for _, rtt := range rtts {
		s.link.SetRTT(rtt)
		note := hopped{s.size, rtt, images, s.program, map[string][stages][]float64{}, map[string][stages]int64{}}
		for range s.cfg.runs {
			for i := range hops {
				if err := s.hop(&hops[i], &note); err != nil {
					return nil, fmt.Errorf("%s: %w", hops[i].name, err)
				}
			}
		}
		found = append(found, note)
	}
	return found, nil
}

// dump makes the files on the first host and the process that holds them, and dumps it. It
// returns the size of the images.
func (s *scene) dump() (int64, error) {
	for _, dir := range []string{"bin", "files"} {
		if err := os.MkdirAll(s.a.Path(heldDir+"/"+dir), 0o755); err != nil {
			return 0, err
		}
	}
	program := heldDir + "/bin/holder"
	if err := command("gcc", "-O1", "-static", "-Wl,--build-id", "-o", s.a.Path(program), "tests/bench/testdata/holder.c"); err != nil {
		return 0, err
	}
	each := s.size / heldFiles
	random := rand.NewChaCha8([32]byte{1})
	sum := fnv.New64a()
	for i := range heldFiles {
		f, err := os.Create(s.a.Path(heldFile(i)))
		if err != nil {
			return 0, err
		}
		_, err = io.CopyN(f, random, each)
		if err == nil {
			_, err = io.Copy(sum, io.NewSectionReader(f, each/2, each/heldPart))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
	}
	s.sum = sum.Sum64()
	unix.Sync()
	time.Sleep(3 * time.Second) // what was changed within the second of the clock is looked at again
	holder, err := testbed.Start(s.a.Command(program, heldDir+"/files", strconv.Itoa(heldFiles), strconv.FormatInt(each/heldPart, 10)))
	if err != nil {
		return 0, err
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(s.a.Path(heldDir + "/ready")); err == nil {
			break
		}
		if holder.WaitFor(0) || time.Now().After(end) {
			return 0, fmt.Errorf("the process that is to be moved does not start: %v", holder.Wait())
		}
	}
	if err := os.Mkdir(s.a.Path(imagesDir), 0o755); err != nil {
		return 0, err
	}
	if s.program, err = residentOf(holder.Pid, program); err != nil {
		return 0, err
	}
	dump := s.a.Command(s.criu, "dump", "-t", strconv.Itoa(holder.Pid), "-D", imagesDir, "-o", "dump.log")
	if out, err := dump.CombinedOutput(); err != nil {
		why, _ := os.ReadFile(s.a.Path(imagesDir + "/dump.log"))
		return 0, fmt.Errorf("criu dump: %w: %s%s", err, out, why)
	}
	var images int64
	entries, err := os.ReadDir(s.a.Path(imagesDir))
	for _, e := range entries {
		if st, err := e.Info(); err == nil {
			images += st.Size()
		}
	}
	return images, err
}

// residentOf returns how many bytes of a mapped file a process has touched, as far as the
// kernel tells (Rss of proc_pid_smaps(5)).
func residentOf(pid int, path string) (sum int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	ofIt := false
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"):
			ofIt = f[len(f)-1] == path
		case ofIt && f[0] == "Rss:" && len(f) == 3:
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0, err
			}
			sum += kib << 10
		}
	}
	if sum == 0 {
		return 0, fmt.Errorf("process %d has nothing of %q", pid, path)
	}
	return sum, nil
}

// hop moves the process once, and notes what it took.
func (s *scene) hop(h *hop, note *hopped) (err error) {
	for _, p := range h.programs {
		if _, err := exec.LookPath(p); err != nil {
			return nil
		}
	}
	took, down := note.took[h.name], note.down[h.name]
	if slices.ContainsFunc(took[partRead], func(v float64) bool { return v > tooSlow.Seconds() }) {
		return nil
	}
	s.pid, s.view = 0, ""
	if h.before != nil {
		if err := h.before(s); err != nil {
			return err
		}
	}
	talk, err := s.listen(h)
	if err != nil {
		return err
	}
	_, from := s.link.Bytes()
	began := time.Now()
	reached := func(st stage, at time.Time, bytes int64) {
		took[st] = append(took[st], at.Sub(began).Seconds())
		down[st] = bytes - from
		log.Printf("%d MiB, %v, %s: %s after %v, %.1f MiB", s.size>>20, note.rtt, h.name, stageNames[st], at.Sub(began).Round(time.Millisecond), float64(down[st])/(1<<20))
	}
	process, err := h.start(s)
	defer func() {
		talk.close()
		if process != nil {
			process.KillTree()
			<-process.Done()
		}
		if h.end != nil {
			err = errors.Join(err, h.end(s))
		}
		err = errors.Join(err, s.clean())
		note.took[h.name], note.down[h.name] = took, down
	}()
	if err != nil {
		return err
	}
	if err := talk.wait(process); err != nil {
		return fmt.Errorf("%w: %s", err, s.why())
	}
	if talk.sum != s.sum {
		return fmt.Errorf("the process has read something else than what is in its files")
	}
	reached(firstAct, talk.first, talk.firstDown)
	reached(partRead, talk.read, talk.readDown)
	if h.never || h.complete != nil && slices.ContainsFunc(took[allHere], func(v float64) bool { return v > tooSlow.Seconds() }) {
		return nil
	}
	if h.complete != nil {
		if err := h.complete(s); err != nil {
			return err
		}
		_, bytes := s.link.Bytes()
		reached(allHere, time.Now(), bytes)
		return nil
	}
	reached(allHere, talk.read, talk.readDown)
	return nil
}

// why is what CRIU has said.
func (s *scene) why() string {
	b, _ := os.ReadFile(s.b.Path(imagesDir + "/restore.log"))
	return string(b[max(0, len(b)-2000):])
}

// clean takes away what a run has left on the second host.
func (s *scene) clean() error {
	_, err := s.on("find", "/srv", "/var/lib", "-mindepth", "1", "-maxdepth", "1", "-exec", "rm", "-rf", "--one-file-system", "{}", "+")
	return err
}

// talk is what the process says, and when.
type talk struct {
	s         *scene
	fetch     func(i int) error
	say, hear *os.File // FIFOs
	ended     chan error
	closing   sync.Once

	first, read         time.Time // by the process's clock
	firstDown, readDown int64
	sum                 uint64
}

// listen makes the FIFOs that the process looks for.
func (s *scene) listen(h *hop) (*talk, error) {
	t := &talk{s: s, ended: make(chan error, 1)}
	if h.fetch != nil {
		t.fetch = func(i int) error { return h.fetch(s, i) }
	}
	for _, f := range []struct {
		name string
		file **os.File
	}{{"say", &t.say}, {"hear", &t.hear}} {
		path := s.b.Path("/run/bench." + f.name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, err
		}
		var err error
		if *f.file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
			return nil, err
		}
	}
	go func() { t.ended <- t.follow() }()
	return t, nil
}

// follow hears the process out.
func (t *talk) follow() error {
	lines := bufio.NewReader(t.say)
	for {
		var what string
		var n int64
		var sum uint64
		line, err := lines.ReadString('\n')
		_, down := t.s.link.Bytes()
		if err == nil {
			_, err = fmt.Sscan(line, &what, &n, &sum)
		}
		if err != nil {
			return err
		}
		answer := "g"
		switch what {
		case "first":
			t.first, t.firstDown = time.Unix(0, n), down
			if t.fetch != nil {
				answer = "a"
			}
		case "want":
			if err := t.fetch(int(n)); err != nil {
				return err
			}
		case "read":
			t.read, t.readDown, t.sum = time.Unix(0, n), down, sum
			return nil
		}
		if _, err := t.hear.WriteString(answer); err != nil {
			return err
		}
	}
}

// wait waits until the process has read its part. Process, if not nil, lives as long.
func (t *talk) wait(process *testbed.Process) error {
	var gone <-chan struct{}
	if process != nil {
		gone = process.Done()
	}
	select {
	case err := <-t.ended:
		return err
	case <-gone:
		return fmt.Errorf("criu restore: %w", process.Wait())
	case <-time.After(30 * time.Minute):
		return errors.New("the process does not read its files")
	}
}

// close ends what listens.
func (t *talk) close() {
	t.closing.Do(func() {
		t.say.Close()
		t.hear.Close()
	})
}

// heldSizes are the sizes that are measured if nobody says which, in MiB.
func heldSizes(quick bool) []int64 {
	if quick {
		return []int64{10, 50}
	}
	return []int64{10, 1 << 10, 8 << 10}
}

// sizesOf reads sizes in MiB, "10,1024".
func sizesOf(text string) (mib []int64, err error) {
	for _, s := range list(text) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 2 {
			return nil, fmt.Errorf("-sizes %q: give MiB, 2 at least, as 10,1024", text)
		}
		mib = append(mib, n)
	}
	return mib, nil
}
