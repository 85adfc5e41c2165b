package testbed

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// browserPatience is how long a browser may take to show a page: it is the heaviest
// program that tests start.
const browserPatience = 4 * time.Minute

var makers = regexp.MustCompile(`^[A-Z]+ (https?://)?[a-z0-9.-]+\.(google|googleapis|gvt1|gstatic)\.com[:/]`)

// Page is what a browser made of a file.
type Page struct {
	DOM      string   // the document as it was when it was loaded and scripts had run
	Picture  string   // a PNG file
	Requests []string // the first lines of what it asked the network for, but for what is its makers'
}

// Browse opens a file in Chromium, in a window of that size. All its requests go to a
// proxy that answers none.
func Browse(tb testing.TB, file string, width, height int, flags ...string) Page {
	tb.Helper()
	dir := TempDir(tb)
	asked := &asked{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	go asked.serve(l)
	p := Page{Picture: filepath.Join(dir, "page.png")}
	args := append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
		"--disable-domain-reliability", "--disable-client-side-phishing-detection", "--no-pings", "--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-sync",
		"--disable-background-networking", "--disable-component-update", "--disable-default-apps",
		"--disable-features=OptimizationHints,MediaRouter,Translate,NetworkTimeServiceQuerying",
		"--proxy-server=http://" + l.Addr().String(), "--proxy-bypass-list=<-loopback>",
		"--user-data-dir=" + filepath.Join(dir, "profile"),
		"--window-size=" + strconv.Itoa(width) + "," + strconv.Itoa(height),
		"--screenshot=" + p.Picture, "--dump-dom",
	}, flags...)
	program, err := exec.LookPath("chromium-browser") // Fedora's
	if err != nil {
		program = Program(tb, "chromium")
	}
	cmd := exec.Command(program, append(args, "file://"+file)...)
	var out, errs Output
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir)
	proc, err := Start(cmd)
	if err != nil {
		tb.Fatal(err)
	}
	ended := proc.WaitFor(browserPatience)
	proc.KillTree()
	if err := proc.Wait(); !ended || err != nil {
		tb.Fatalf("chromium (ended by itself: %v): %v\n%s", ended, err, errs.String())
	}
	p.DOM = out.String()
	for _, line := range asked.list() {
		// Whatever flags it has, it asks for updates and the time. No page of ours names these.
		if !makers.MatchString(line) {
			p.Requests = append(p.Requests, line)
		}
	}
	return p
}

// asked is a proxy that notes what it is asked for, and hangs up.
type asked struct {
	mu    sync.Mutex
	lines []string
}

func (a *asked) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			line, _ := bufio.NewReader(c).ReadString('\n')
			a.mu.Lock()
			defer a.mu.Unlock()
			a.lines = append(a.lines, strings.TrimSpace(line))
		}()
	}
}

func (a *asked) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string{}, a.lines...)
}
