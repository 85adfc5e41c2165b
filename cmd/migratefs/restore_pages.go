package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/criu"
	"github.com/migratefs/migratefs/criu/lazypages"
	"github.com/migratefs/migratefs/internal/control"
	"github.com/migratefs/migratefs/internal/sys"
)

// With --lazy-pages a restore has one more helper (package lazypages). It is outside of the
// pid namespace of what was restored: it must not end before that, and the end of init's
// namespace ends everything in it. It ends when all memory is here, or when init does.

// pagesPlan is what it is told, as JSON on descriptor planFd.
type pagesPlan struct {
	Images string
	Mount  string // if not "", Images is a mount, which is of no use when all is here
	State  string // CRIU's work directory
	Dir    string // the restore's
	Arch   string
	Tasks  []uint32
	Init   int // the process with which all ends whose memory it is
}

// pagesReport is its answer, as JSON on descriptor reportFd: CRIU can begin.
type pagesReport struct {
	Error string
	Bytes int64 // that may come later
}

// pagesState is what it writes down, in the restore's directory.
type pagesState struct {
	Pid     int
	Started uint64 // of Pid, as in restoreState
	Total   int64  // bytes
	Missing int64
	Error   string // why nothing comes at present
}

const (
	pagesFile = "memory.json"

	// pagesPatience is how long those who are about to end are waited for.
	pagesPatience = 10 * time.Second

	// aliveFd is never closed: its end tells init that no holder is left either (watchMemory).
	aliveFd = 5

	// holderName is what ps shows of the process that waits for our end: pkill migratefs does
	// not mean it.
	holderName = "held-memory"
	bothKilled = "the processes that gave what was restored its memory were killed: nothing of it goes on, since what is missing is zeros\n"
	holderLast = "the process that gave what was restored its memory was killed: nothing of it goes on, since what is missing would be zeros\n"
)

func newRestorePagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "restore-pages",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			report := os.NewFile(reportFd, "report")
			unix.CloseOnExec(planFd)
			unix.CloseOnExec(reportFd)
			unix.CloseOnExec(aliveFd)
			var plan pagesPlan
			f := os.NewFile(planFd, "plan")
			err := json.NewDecoder(f).Decode(&plan)
			_ = f.Close()
			if err != nil {
				return usageErrorf("restore-pages is started by migratefs restore only")
			}
			signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
			p := &pagesServer{plan: plan, log: slog.New(pagesLog())}
			if err = p.start(); err != nil {
				p.letGo()
				_ = json.NewEncoder(report).Encode(pagesReport{Error: oneLine(err.Error())})
				return &codeError{exitFailure, errors.New("")}
			}
			_ = json.NewEncoder(report).Encode(pagesReport{Bytes: p.server.State().Total})
			_ = report.Close()
			return p.run()
		},
	}
}

// pagesLog is where it writes: as a daemon in the background does.
func pagesLog() slog.Handler {
	if j := control.NewJournal(); j != nil {
		return j
	}
	return control.NewText(os.Stderr)
}

// pagesServer is that helper.
type pagesServer struct {
	plan   pagesPlan
	log    *slog.Logger
	self   int // pidfds, never closed: the holder has them, too
	init   int
	server *lazypages.Server
	socket *net.UnixListener
	wrote  pagesState

	mu     sync.Mutex
	holder int           // its pid
	done   bool          // there is to be none any more
	gone   chan struct{} // closed when there is none
}

// start does what must be done before CRIU begins.
func (p *pagesServer) start() (err error) {
	if p.init, err = unix.PidfdOpen(p.plan.Init, 0); err != nil {
		return fmt.Errorf("the helper that restores has ended: %w", err)
	}
	if p.self, err = unix.PidfdOpen(os.Getpid(), 0); err != nil {
		return err
	}
	// Where it may: without it others lose theirs.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	if err := p.hold(); err != nil {
		return err
	}
	p.gone = make(chan struct{})
	go p.keepHolder()
	var tasks []*criu.LazyMemory
	for _, pid := range p.plan.Tasks {
		t, err := criu.Lazy(os.DirFS(p.plan.Images), p.plan.Arch, pid)
		if err != nil {
			return err
		}
		tasks = append(tasks, t)
	}
	if p.server, err = lazypages.New(p.plan.Images, p.plan.Mount != "", tasks, p.log); err != nil {
		return err
	}
	addr := &net.UnixAddr{Name: filepath.Join(p.plan.State, lazypages.Socket), Net: "unix"}
	if p.socket, err = net.ListenUnix("unix", addr); err != nil {
		return err
	}
	return p.write()
}

func (p *pagesServer) hold() (err error) {
	if p.holder, err = sys.HoldFiles(p.self, p.init, holderName, holderLast); err != nil {
		return fmt.Errorf("start the process that holds the memory: %w", err)
	}
	return nil
}

// run serves until all is here, or nobody is left.
func (p *pagesServer) run() error {
	ended, served := make(chan error, 1), make(chan error, 1)
	go func() { ended <- waitPidfd(p.init) }()
	go func() { served <- p.server.Serve(context.Background(), p.socket) }()
	tick := time.NewTicker(500 * time.Millisecond)
	for {
		select {
		case err := <-ended:
			if err != nil {
				return err // and the holder does what is to be done
			}
			p.letGo()
			p.unmount()
			_ = os.Remove(filepath.Join(p.plan.Dir, pagesFile)) // see awaitPages
			return nil
		case err := <-served:
			if err != nil {
				// CRIU has failed, and init says so and ends; or it fails now that nobody listens.
				fmt.Fprintf(os.Stderr, "migratefs: memory: %s\n", oneLine(err.Error()))
				time.AfterFunc(pagesPatience, func() { _ = unix.PidfdSendSignal(p.init, unix.SIGKILL, nil, 0) })
				continue
			}
			if _, err := unix.Write(aliveFd, []byte{1}); err != nil {
				continue // init has ended
			}
			p.log.Info("all memory of the restored process is here", "bytes", p.wrote.Total)
			p.letGo()
			p.unmount()
			return p.write()
		case <-tick.C:
			if err := p.write(); err != nil {
				p.log.Warn("how far the memory is cannot be written down", "cause", err)
			}
		}
	}
}

// keepHolder starts another holder if somebody kills it.
func (p *pagesServer) keepHolder() {
	defer close(p.gone)
	for {
		if _, err := unix.Wait4(p.holder, nil, 0, nil); errors.Is(err, unix.EINTR) {
			continue
		}
		p.mu.Lock()
		for !p.done {
			if err := p.hold(); err == nil {
				break
			}
			p.mu.Unlock()
			time.Sleep(time.Second)
			p.mu.Lock()
		}
		done := p.done
		p.mu.Unlock()
		if done {
			return
		}
		p.log.Warn("the process that holds the memory of what was restored was killed: another is started")
	}
}

// letGo ends the holder: nothing is left that it would have to hold.
func (p *pagesServer) letGo() {
	if p.gone == nil {
		return
	}
	p.mu.Lock()
	p.done = true
	_ = unix.Kill(p.holder, unix.SIGKILL)
	p.mu.Unlock()
	<-p.gone
}

// unmount ends the mount of the images.
func (p *pagesServer) unmount() {
	if p.plan.Mount != "" {
		if err := unmount(p.plan.Mount, howToUnmount{lazy: true}); err != nil && !errors.Is(err, unix.EINVAL) {
			p.log.Warn("the images stay mounted", "path", p.plan.Mount, "cause", err)
		}
	}
}

// write writes down how far it is, if that has changed.
func (p *pagesServer) write() error {
	st := p.server.State()
	now := pagesState{Pid: os.Getpid(), Started: startTime(os.Getpid()), Total: st.Total, Missing: st.Missing, Error: st.Error}
	if now == p.wrote {
		return nil
	}
	b, err := json.Marshal(now)
	if err != nil {
		return err
	}
	path := filepath.Join(p.plan.Dir, pagesFile)
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	p.wrote = now
	return nil
}

// waitPidfd waits until the process of a pidfd has ended.
func waitPidfd(fd int) error {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, -1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// readPages returns how far the memory is of the process whose restore's directory is dir;
// nil if all of it is here, or there is none.
func readPages(dir string) *pagesState {
	if dir == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(dir, pagesFile))
	if err != nil {
		return nil
	}
	var s pagesState
	if json.Unmarshal(b, &s) != nil || s.Missing == 0 || startTime(s.Pid) != s.Started {
		return nil // without its helper there is no process either
	}
	return &s
}

// awaitPages waits until that helper has ended, too, after the process: it unmounts the images.
func awaitPages(dir string) {
	for end := time.Now().Add(pagesPatience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if readPages(dir) == nil {
			return
		}
	}
}

// text says how far it is.
func (s *pagesState) text() string {
	text := fmt.Sprintf("%s of %s are still in the images only", bytesText(s.Missing), bytesText(s.Total))
	if s.Error != "" {
		text += ", and do not come: " + s.Error
	}
	return text
}

// startPages starts that helper for what init restores, and waits until CRIU can begin.
// As long as it lives, or who holds the memory, alive is open.
func (r *restoreCommand) startPages(ctx context.Context, init int, alive *os.File) error {
	plan := pagesPlan{Images: r.plan.Images, State: r.plan.State, Dir: r.dir, Arch: r.checkpoint.Arch, Init: init}
	if isRemote(r.images) {
		plan.Mount = r.imagesDir()
	}
	for _, t := range r.checkpoint.Tasks {
		plan.Tasks = append(plan.Tasks, t.PID)
	}
	b, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pr.Close()
	defer pw.Close()
	ar, aw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ar.Close()
	defer aw.Close()
	log, err := os.OpenFile(filepath.Join(r.plan.State, helperLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "restore-pages")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{pr, aw, alive}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("the helper that brings memory: %w", err)
	}
	r.pages = cmd.Process
	r.undo = append(r.undo, func() { _ = os.Remove(filepath.Join(r.plan.State, lazypages.Socket)) })
	_ = pr.Close()
	_ = aw.Close()
	go func() {
		_, _ = pw.Write(b)
		_ = pw.Close()
	}()
	defer context.AfterFunc(ctx, func() { _ = ar.Close() })()
	var rep pagesReport
	if err := json.NewDecoder(ar).Decode(&rep); err != nil {
		return fmt.Errorf("the helper that brings memory ended without a word: somebody has killed it, or %s says why", r.keepLog())
	}
	if rep.Error != "" {
		return errors.New(rep.Error)
	}
	r.say("%s of memory come when they are needed", bytesText(rep.Bytes))
	return nil
}

// endPages waits for the end of that helper, which ends with init, if it does not wait for the source.
func (r *restoreCommand) endPages() {
	if r.pages != nil {
		defer time.AfterFunc(pagesPatience, func() { _ = r.pages.Kill() }).Stop()
		_, _ = r.pages.Wait()
	}
}
