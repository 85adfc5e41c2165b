package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// program is something people run. It works in workDir.
type program struct {
	name string
	// Without these it cannot run here; they are not installed for the tests.
	needs []string
	long  bool // takes too long to be run each time

	dump    []string // options of CRIU's for both
	restore []string

	start func(m *move) (pid int) // returns when it can be dumped
	save  func(m *move, pid int)  // dumps it; nil: the usual way
	check func(m *move, r restored)
}

var programs = []program{
	{name: "pipeline", start: startPipeline, check: checkPipeline},
	{name: "sqlite", dump: fileLocks, restore: fileLocks, needs: []string{"/usr/bin/python3"}, start: startSQLite, check: checkSQLite, long: true},
	{name: "redis", needs: []string{"redis-server", "redis-cli"}, start: startRedis, check: checkRedis, long: true},
	{name: "postgres", needs: []string{postgresBin + "/postgres"}, start: startPostgres, save: dumpPostgres, check: checkPostgres, long: true},
	{name: "go server", needs: []string{"/usr/bin/python3"}, start: startServer, check: checkServer, long: true},
	{name: "tmux", needs: []string{"tmux"}, start: startTmux, check: checkTmux, long: true},
}

// TestPrograms moves real programs, at work, to a host that has none of their
// files.
func TestPrograms(t *testing.T) {
	for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
		for _, p := range programs {
			if !everything() && (p.long || rtt > 0) {
				continue
			}
			t.Run(fmt.Sprintf("%s %v", p.name, rtt), func(t *testing.T) {
				for _, need := range p.needs {
					if _, err := exec.LookPath(need); err != nil {
						t.Fatalf("install it: %v", err)
					}
				}
				m := newHostsAt(t, rtt)
				must(t, os.MkdirAll(m.a.Path(workDir), 0o755))
				must(t, os.MkdirAll(m.a.Path(jobDir+"/bin"), 0o755))
				pid := p.start(m)
				if p.save == nil {
					m.dump(pid, p.dump...)
				} else {
					p.save(m, pid)
				}
				m.before = testbed.Snapshot(t, m.a.Path(jobDir), testbed.Usual|testbed.Mtime|testbed.Numbers)
				r := m.restore(append([]string{"--upperdir", "/srv/upper", "/srv/images", "--"}, p.restore...)...)
				p.check(m, r)
				m.sourceUntouched()
				m.endTree(r)
			})
		}
	}
}

// launch starts a command on a as a session of its own that has nothing open
// from outside, which CRIU could not dump.
func (m *move) launch(command string) (pid int) {
	m.t.Helper()
	p, err := testbed.Start(m.a.Command("bash", "-c",
		"for fd in {3..20}; do eval \"exec $fd>&-\"; done; cd /; exec setsid bash -c \"$1\" </dev/null >/dev/null 2>&1", "bash", command))
	must(m.t, err)
	return p.Pid
}

// startPipeline: three stages, each a process of its own.
func startPipeline(m *move) int {
	pid := m.launch(`cd ` + workDir + `
i=0
while :; do i=$((i + 1)); echo $i; sleep 0.01; done |
	tee -a copy |
	while read -r n; do echo $((n * 2)) >>doubled; done`)
	testbed.Until(m.t, "the pipeline to flow", func() bool { return len(lines(m.a.Path(workDir+"/doubled"))) >= 20 })
	return pid
}

func checkPipeline(m *move, r restored) {
	for name, factor := range map[string]int{"copy": 1, "doubled": 2} {
		had := len(lines(m.a.Path(workDir + "/" + name)))
		path := m.b.Path(r.view + workDir + "/" + name)
		testbed.Until(m.t, "the pipeline to flow on", func() bool { return len(lines(path)) >= had+50 })
		for i, l := range lines(path) {
			if l != strconv.Itoa((i+1)*factor) {
				m.t.Fatalf("line %d of %q is %q", i+1, name, l)
			}
		}
	}
}

// lines are the whole lines of a file.
func lines(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	all := strings.Split(string(b), "\n")
	return all[:len(all)-1]
}

// sqliteJob has a transaction open, and a query whose rows it has read in part,
// on one database with a rollback journal; another has a write-ahead log.
const sqliteJob = `
import os, signal, sqlite3, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.chdir("` + workDir + `")

def other(statement):
    "What a process that has nothing to do with this one is told."
    r = subprocess.run([sys.executable, "-c", '''
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
try:
    print(db.execute(sys.argv[2]).fetchall())
except sqlite3.OperationalError as e:
    print(e)
''', name, statement], capture_output=True, text=True)
    return r.stdout.strip() + r.stderr

def expect(got, want):
    if got != want:
        raise SystemExit("%s: %r, want %r" % (name, got, want))

dbs = {}
for name in ["journal.db", "wal.db"]:
    db = dbs[name] = sqlite3.connect(name, isolation_level=None)
    db.execute("pragma journal_mode=" + ("wal" if name == "wal.db" else "delete"))
    db.execute("create table t(n integer primary key, text)")
    db.execute("begin")
    db.executemany("insert into t values(?, ?)", [(i, "x" * 500) for i in range(5000)])
    db.execute("commit")
    db.execute("begin immediate")
    db.execute("insert into t values(5000, 'under way')")
    expect(other("begin immediate"), "database is locked")
rows = dbs["journal.db"].execute("select n from t order by n")
for i in range(100):
    expect(rows.fetchone(), (i,))
open("ready", "w").close()
signal.sigwait([signal.SIGUSR1])

try:
    name = "journal.db"
    expect(other("begin immediate"), "database is locked")
    for i in range(100, 5001):
        expect(rows.fetchone(), (i,))
    for name, db in dbs.items():
        db.execute("insert into t values(5001, 'moved')")
        db.execute("commit")
        expect(other("select count(*) from t"), "[(5002,)]")
        expect(other("pragma integrity_check"), "[('ok',)]")
        expect(other("insert into t values(5002, 'theirs')"), "[]")
        expect(db.execute("select text from t where n > 5000").fetchall(), [("moved",), ("theirs",)])
    said = "ok"
except BaseException as e:
    said = repr(e)
with open("said.new", "w") as f:
    f.write(said)
os.rename("said.new", "said")
signal.sigwait([signal.SIGTERM])
`

func startSQLite(m *move) int {
	must(m.t, os.WriteFile(m.a.Path(jobDir+"/bin/job.py"), []byte(sqliteJob), 0o755))
	pid := m.launch("exec /usr/bin/python3 " + jobDir + "/bin/job.py")
	testbed.Until(m.t, "the databases", func() bool { _, err := os.Stat(m.a.Path(workDir + "/ready")); return err == nil })
	return pid
}

func checkSQLite(m *move, r restored) {
	must(m.t, syscall.Kill(r.pid, syscall.SIGUSR1))
	var said []byte
	testbed.Until(m.t, "the script", func() (ok bool) {
		b, err := os.ReadFile(m.b.Path(r.view + workDir + "/said"))
		said = b
		return err == nil
	})
	if string(said) != "ok" {
		m.t.Errorf("the script says %s", said)
	}
}

// startRedis: every write goes to the append-only file. No TCP: CRIU 4.1 cannot dump
// a listening TCP socket on Linux 6.16 and later (getsockopt SO_PASSCRED).
func startRedis(m *move) int {
	pid := m.launch("cd " + workDir + " && exec redis-server --port 0 --unixsocket " + workDir + "/sock --appendonly yes --appendfsync always --save '' --dir " + workDir)
	testbed.Until(m.t, "redis to answer", func() bool { return m.a.Command("redis-cli", "-s", workDir+"/sock", "ping").Run() == nil })
	m.a.Run("sh", "-c", "seq 1000 | sed 's/.*/set key& value&/' | redis-cli -s "+workDir+"/sock >/dev/null")
	return pid
}

func checkRedis(m *move, r restored) {
	sock := r.view + workDir + "/sock"
	m.b.Run("sh", "-c", "seq 1001 2000 | sed 's/.*/set key& value&/' | redis-cli -s "+sock+" >/dev/null")
	expect := func(got, want string) {
		m.t.Helper()
		if strings.TrimSpace(got) != want {
			m.t.Errorf("redis says %q, want %q", got, want)
		}
	}
	expect(m.b.Run("redis-cli", "-s", sock, "dbsize"), "2000")
	expect(m.b.Run("redis-cli", "-s", sock, "get", "key777"), "value777")
	expect(m.b.Run("redis-cli", "-s", sock, "bgrewriteaof"), "Background append only file rewriting started")
	testbed.Until(m.t, "the rewrite", func() bool {
		return strings.Contains(m.b.Run("redis-cli", "-s", sock, "info", "persistence"), "aof_rewrite_in_progress:0")
	})
	expect(m.b.Run("redis-cli", "-s", sock, "set", "last", "one"), "OK")
	// What it wrote, a new one reads.
	_ = m.b.Command("redis-cli", "-s", sock, "shutdown", "nosave").Run()
	again, err := testbed.Start(m.b.Command("redis-server", "--port", "0", "--unixsocket", "/srv/sock", "--appendonly", "yes", "--save", "", "--dir", r.view+workDir))
	must(m.t, err)
	testbed.Until(m.t, "a new redis to answer", func() bool { return m.b.Command("redis-cli", "-s", "/srv/sock", "get", "last").Run() == nil })
	testbed.Until(m.t, "a new redis to have read it all", func() bool {
		return strings.TrimSpace(m.b.Run("redis-cli", "-s", "/srv/sock", "dbsize")) == "2001"
	})
	expect(m.b.Run("redis-cli", "-s", "/srv/sock", "get", "key1500"), "value1500")
	again.KillTree()
}

const postgresBin = "/usr/lib/postgresql/15/bin"

// startPostgres: in an IPC namespace, since it has a segment of System V shared
// memory.
func startPostgres(m *move) int {
	m.a.Run("chown", "postgres", workDir)
	as := "setpriv --reuid postgres --regid postgres --clear-groups "
	m.a.Run("sh", "-c", "cd / && exec "+as+postgresBin+"/initdb -D "+workDir+"/pg -A trust -U postgres --no-sync")
	pid := m.launch("exec unshare --ipc " + as + postgresBin + "/postgres -D " + workDir + "/pg -k " + workDir +
		" -c listen_addresses= -c dynamic_shared_memory_type=mmap -c shared_buffers=16MB")
	testbed.Until(m.t, "postgres to answer", func() bool {
		return m.a.Command("psql", "-h", workDir, "-U", "postgres", "-c", "select 1").Run() == nil
	})
	m.a.Run("psql", "-h", workDir, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c",
		"create table t(n int primary key, s text); insert into t select n, repeat('x', 100) from generate_series(1, 20000) n;")
	return pid
}

// dumpPostgres: without CAP_SYS_RESOURCE, which CRIU's service would have, only who is of
// its user can dump it.
func dumpPostgres(m *move, pid int) {
	m.a.Run("install", "-d", "-o", "postgres", "/srv/images")
	out, err := m.a.Command("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--inh-caps=+all,-sys_resource", "--ambient-caps=+all,-sys_resource",
		m.criu, "dump", "--unprivileged", "-t", strconv.Itoa(pid), "-D", "/srv/images", "-o", "dump.log", "-v4", "--link-remap").CombinedOutput()
	if err != nil {
		m.t.Fatalf("criu dump: %v\n%s\n%s", err, out, m.a.Run("sh", "-c", "grep -a Error /srv/images/dump.log || true"))
	}
	must(m.t, os.CopyFS(m.b.Path("/srv/images"), os.DirFS(m.a.Path("/srv/images"))))
	m.sshd.ForgetRequests()
}

func checkPostgres(m *move, r restored) {
	query := func(sql string) string {
		m.t.Helper()
		return strings.TrimSpace(m.b.Run("psql", "-h", r.view+workDir, "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-At", "-c", sql))
	}
	if got := query("select count(*), sum(length(s)) from t"); got != "20000|2000000" {
		m.t.Errorf("the table holds %s", got)
	}
	query("insert into t select n, 'moved' from generate_series(20001, 30000) n")
	query("checkpoint")
	query("vacuum full t")
	query("create extension if not exists amcheck; select bt_index_check('t_pkey', true)")
	// Ended as in a crash; a new one recovers what it left.
	must(m.t, syscall.Kill(r.pid, syscall.SIGQUIT))
	testbed.Until(m.t, "postgres to end", func() bool { _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.pid)); return err != nil })
	m.b.Run("install", "-d", "-o", "postgres", "/srv/sock")
	m.b.Run("mkdir", "/srv/again") // nobody but root gets to the view
	m.b.Run("mount", "--bind", r.view+workDir, "/srv/again")
	again, err := testbed.Start(m.b.Command("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups",
		postgresBin+"/postgres", "-D", "/srv/again/pg", "-k", "/srv/sock", "-c", "listen_addresses="))
	must(m.t, err)
	testbed.Until(m.t, "a new postgres to answer", func() bool {
		out, err := m.b.Command("psql", "-h", "/srv/sock", "-U", "postgres", "-At", "-c", "select count(*) from t").Output()
		return err == nil && strings.TrimSpace(string(out)) == "30000"
	})
	again.KillTree()
	testbed.Until(m.t, "its files to be closed", func() bool { return m.b.Command("umount", "/srv/again").Run() == nil })
}

// startServer: a parent and two workers that it has started, which share a
// listening socket.
func startServer(m *move) int {
	bin := testbed.BuildProgram(m.t, "./tests/e2e/testdata/server")
	b, err := os.ReadFile(bin)
	must(m.t, err)
	must(m.t, os.WriteFile(m.a.Path(jobDir+"/bin/server"), b, 0o755))
	testbed.Run(m.t, "sh", "-c", "seq 200000 >"+m.a.Path(workDir+"/data"))
	pid := m.launch("exec " + jobDir + "/bin/server " + workDir)
	testbed.Until(m.t, "the server to answer", func() bool { _, err := ask(m.a.Path(workDir), "line 1"); return err == nil })
	for i := range 20 {
		if _, err := ask(m.a.Path(workDir), fmt.Sprintf("log %d", i)); err != nil {
			m.t.Fatal(err)
		}
	}
	return pid
}

// ask sends a line to the server whose files the test reaches at dir, and returns
// the line it answers.
func ask(dir, line string) (string, error) {
	// The path through /proc is too long for a socket's.
	out, err := exec.Command("env", "-C", dir, "/usr/bin/python3", "-c", `
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("sock")
s.sendall(sys.argv[1].encode() + b"\n")
print(s.makefile().readline())
`, line).Output()
	return strings.TrimSpace(string(out)), err
}

func checkServer(m *move, r restored) {
	workers := map[string]bool{}
	dir := m.b.Path(r.view + workDir)
	for i := 20; i < 60; i++ {
		who, err := ask(dir, fmt.Sprintf("log %d", i))
		must(m.t, err)
		workers[who] = true
		n := 1 + i*1999
		if got, err := ask(dir, fmt.Sprintf("line %d", n)); err != nil || got != strconv.Itoa(n) {
			m.t.Errorf("line %d is %q, %v", n, got, err)
		}
	}
	if len(workers) != 2 {
		m.t.Errorf("these workers answered: %v", workers)
	}
	for i, l := range lines(m.b.Path(r.view + workDir + "/log")) {
		if l != strconv.Itoa(i) {
			m.t.Fatalf("line %d of the log is %q", i, l)
		}
	}
	if n := len(lines(m.b.Path(r.view + workDir + "/log"))); n != 60 {
		m.t.Errorf("the log has %d lines", n)
	}
}

// startTmux: a server, with a shell in a terminal.
func startTmux(m *move) int {
	sock := workDir + "/sock"
	m.a.Run("bash", "-c", `for fd in {3..20}; do eval "exec $fd>&-"; done; cd `+workDir+`; exec env -i PATH="$PATH" TERM=screen LC_ALL=C.UTF-8 setsid tmux -S `+sock+` -f /dev/null new-session -d -x 80 -y 24 'exec bash --norc --noprofile' </dev/null >/dev/null 2>&1`)
	pid, err := strconv.Atoi(strings.TrimSpace(m.a.Run("tmux", "-S", sock, "display-message", "-p", "#{pid}")))
	must(m.t, err)
	m.typeTmux(m.a, sock, "n=6; cd "+workDir+"; echo here >>file; echo ready $((n * 7))", "ready 42")
	return pid
}

// typeTmux types a line into the terminal, until the screen shows the answer.
func (m *move) typeTmux(h *testbed.Host, sock, line, answer string) {
	m.t.Helper()
	h.Run("tmux", "-S", sock, "send-keys", line, "Enter")
	testbed.Until(m.t, "the terminal to show "+answer, func() bool {
		return strings.Contains(h.Run("tmux", "-S", sock, "capture-pane", "-p"), answer)
	})
}

func checkTmux(m *move, r restored) {
	sock := r.view + workDir + "/sock"
	m.typeTmux(m.b, sock, "echo there >>file; cat file; echo moved $((n * 8)) $PWD", "moved 48 "+workDir)
	if screen := m.b.Run("tmux", "-S", sock, "capture-pane", "-p"); !strings.Contains(screen, "ready 42") || !strings.Contains(screen, "here\nthere\n") {
		m.t.Errorf("the screen is\n%s", screen)
	}
}
