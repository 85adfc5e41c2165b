package packages

import (
	"errors"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// name is how the tables below call a block: its document and its first words.
func (b block) name() string {
	first, _, _ := strings.Cut(b.text, "\n")
	return b.doc + ": " + strings.Join(strings.Fields(first), " ")
}

// notRun are the blocks that TestCommands does not run, and why: another test does, or
// nobody can here.
var notRun = map[string]string{
	"README.md: /mnt what programs see": "a picture",
	"README.md: dnf install ./migratefs-*.x86_64.rpm # Fedora, EL 8 to 10; Debian: apt install ./migratefs_*_amd64.deb":      "TestPackages installs both, with rpm and dpkg",
	"README.md: make demo two hosts are made on this machine; a job is dumped on one and restored on the other with none of": "make test is what runs this",

	"README.md: migratefs resolve --list /data": "tests/e2e/conflict_test.go does so, with files that are in conflict",

	"docs/container-image.md: docker run --rm -it --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined \\":           inImage,
	"docs/container-image.md: docker run -d --name data --stop-timeout 120 --pid host --device /dev/fuse --cap-add SYS_ADMIN \\":          inImage,
	"docs/container-image.md: podman run -d --name data --stop-timeout 120 --pid host --device /dev/fuse --cap-add SYS_ADMIN \\":          inImage,
	"docs/container-image.md: docker run --rm --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined migratefs doctor": inImage,

	"docs/containers.md: # runc checkpoint --image-path /srv/images --work-path /srv/log job":                                                      inContainers,
	"docs/containers.md: # scp -q -r a:/srv/images /srv/images":                                                                                    inContainers,
	"docs/containers.md: # runc delete --force job":                                                                                                inContainers,
	"docs/containers.md: # ln -s /usr/bin/migratefs /usr/local/bin/migratefs-runc":                                                                 inContainers,
	"docs/containers.md: b# runc checkpoint --image-path /srv/images --work-path /srv/log job":                                                     inContainers,
	"docs/containers.md: a# migratefs -o criu=/srv/images,lowerdir=b:/srv/bundle/rootfs,upperdir=/srv/upper,hard /srv/back/rootfs":                 inContainers,
	"docs/containers.md: [engine.runtimes]":                                                                                                        inPodman,
	"docs/containers.md: a# podman container checkpoint --export web.tar.zst --ignore-rootfs web":                                                  inPodman,
	"docs/containers.md: b# scp a:web.tar.zst .":                                                                                                   inPodman,
	"docs/containers.md: b# mkdir empty archive && tar -C empty -c . | podman import - localhost/web:1":                                            inPodman,
	"docs/containers.md: b# podman container checkpoint --export web.tar.zst --ignore-rootfs web":                                                  inPodman,
	"docs/containers.md: b# mkdir -p /srv/bundle/rootfs /srv/ck && tar -C /srv/ck -xf web.tar.zst checkpoint spec.dump":                            byHand,
	"docs/containers.md: a# ctr tasks checkpoint --exit --image-path /srv/images --work-path /srv/log web":                                         byHand,
	"docs/containers.md: b# task=/run/containerd/io.containerd.runtime.v2.task/default/web":                                                        byHand,
	"docs/containers.md: a# docker inspect -f '{{.GraphDriver.Data.UpperDir}}:{{.GraphDriver.Data.LowerDir}}' web":                                 noEngine,
	"docs/containers.md: [crio.runtime.runtimes.migratefs]":                                                                                        noEngine,
	"docs/migration.md: sbatch --array=0-15 /usr/share/migratefs/slurm/migratefs-drain.sbatch --older 30d /scratch":                                "there is no Slurm here",
	"docs/migration.md: b# migratefs restore --lazy-pages a:/srv/images":                                                                           "tests/e2e/restore_pages_test.go does so, with other names of hosts",
	"docs/migration.md: b# migratefs dump -D /srv/images 4711":                                                                                     "tests/e2e/dump_test.go does so, with other numbers and names",
	"docs/migration.md: a# criu dump -t 4711 -D /srv/images --external 'mnt[/data]:data'":                                                          "tests/e2e/own_mounts_test.go does so, with other numbers and names",
	"docs/control.md: # migratefs status":                                                                                                          "TestStatus in tests/cli does so, with other mounts",
	"docs/operating.md: level=DEBUG msg=\"sftp open\" source=source:/data channel=1 id=16 path=\"/data/a b\" result=ok handle=00000000 took=979µs": "lines of a log",
	"docs/operating.md: # cat /etc/migratefs/scratch.conf":                                                                                         "TestUnitUnderSystemd does",
}

const (
	inImage      = "TestImage does what it asks for"
	inContainers = "tests/e2e/container_test.go does so, with other names of containers and hosts"
	inPodman     = "tests/e2e/podman_test.go does so, with other names of containers and hosts"
	byHand       = "it was run by hand: the document says so"
	noEngine     = "there is no Docker and no CRI-O here: the document says so"
)

// step is a block that is run on host b.
type step struct {
	block  string            // its name
	before string            // a script of bash that makes what the block begins with
	on     map[string]string // what stands for what
	fails  map[string]int    // exit codes of commands that do not end with 0, by a part of them
	after  string            // a script that must succeed then
	each   string            // and one after each command
	fstab  bool              // the block is lines of fstab, which are mounted
}

var figures = regexp.MustCompile(`\d[\d.,:-]*( (B|[KMGT]iB))?`)

// shape is a line without its figures.
func shape(line string) string {
	return strings.Join(strings.Fields(figures.ReplaceAllString(line, "N")), " ")
}

// Every block of commands in the documents is run as it stands there, on two hosts with
// the names that the documents use, and prints what the document shows; or it is in the
// table of those that are not run, or another test runs it.
func TestCommands(t *testing.T) {
	all := map[string]block{}
	for _, b := range blocks(t) {
		if _, twice := all[b.name()]; twice {
			t.Errorf("two blocks are called %q", b.name())
		}
		all[b.name()] = b
	}
	known := map[string]bool{}
	for name := range notRun {
		known[name] = true
	}
	for _, s := range sessions {
		for _, st := range s.steps {
			known[st.block] = true
		}
	}
	for name := range known {
		if _, ok := all[name]; !ok {
			t.Errorf("no block is called %q any more", name)
		}
	}
	for name := range all {
		if !known[name] {
			t.Errorf("the block %q is neither run nor among those that are not: see the tables", name)
		}
	}
	if t.Failed() {
		return
	}
	for _, s := range sessions {
		t.Run(s.name, func(t *testing.T) {
			a, b := twoHosts(t)
			a.Run("bash", "-euc", s.a)
			b.Run("bash", "-euc", s.b)
			for _, st := range s.steps {
				runStep(t, b, st, all[st.block])
			}
		})
	}
}

func runStep(t *testing.T, h *testbed.Host, st step, b block) {
	t.Helper()
	h.Run("bash", "-euc", st.before)
	commands := b.commands()
	if st.fstab {
		for i, c := range commands {
			h.Run("sh", "-c", `echo "$1" >>/etc/fstab`, "sh", c.line)
			commands[i].line = "mount " + strings.Fields(c.line)[1]
		}
	}
	for _, c := range commands {
		line := c.line
		for from, to := range st.on {
			line = strings.ReplaceAll(line, from, to)
		}
		want := 0
		for part, code := range st.fails {
			if strings.Contains(line, part) {
				want = code
			}
		}
		// What a daemon in the background keeps open is not waited for.
		out := testbed.Output{}
		cmd := h.Command("bash", "-c", `cd /root; eval "$1" </dev/null >/run/out 2>&1; code=$?; cat /run/out; exit $code`, "bash", line)
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		got := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			got = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Fatalf("%s\n%s\nends with %d, want %d:\n%s", b.name(), line, got, want, out.String())
		}
		lines := []string{}
		for l := range strings.Lines(out.String()) {
			lines = append(lines, shape(l))
		}
		for _, l := range c.shows {
			if !slices.Contains(lines, shape(l)) {
				t.Errorf("%s\n%s\ndoes not print\n%s\nbut\n%s", b.name(), line, l, out.String())
			}
		}
		h.Run("bash", "-euc", st.each)
	}
	h.Run("bash", "-euc", st.after)
}

// session is blocks that are run one after the other, on two new hosts.
type session struct {
	name  string
	a, b  string // scripts of bash that make what the hosts have
	steps []step
}

var sessions = []session{
	{
		name: "storage",
		b: `
			mount -t tmpfs old /oldscratch
			mount -t tmpfs new /newscratch
			cd /oldscratch
			mkdir -p alice/run1 alice/run2 bob/big
			for i in $(seq 40); do echo $i >alice/run1/in.$i; echo $i >alice/run2/out.$i; done
			touch -d "200 days ago" alice/run1/*
			head -c 2M /dev/urandom >bob/big/a
			head -c 18K /dev/urandom >bob/thesis.tex
			chown 1002:100 bob/thesis.tex
			echo mine >bob/notes`,
		steps: []step{
			{block: "docs/migration.md: # migratefs plan /oldscratch /newscratch"},
			{block: "docs/migration.md: # migratefs -o lowerdir=/oldscratch,upperdir=/newscratch /scratch", after: `migratefs umount /scratch`},
			{block: "docs/migration.md: # migratefs undo --list /scratch/bob",
				before: `migratefs -o lowerdir=/oldscratch,upperdir=/newscratch,trash_days=30 /scratch; rm /scratch/bob/thesis.tex`,
				after:  `cmp /scratch/bob/thesis.tex /scratch/bob/thesis.old; migratefs umount /scratch`},
			{block: "docs/migration.md: /oldscratch /scratch fuse.migratefs lowerdir=/oldscratch,upperdir=/newscratch 0 0", fstab: true},
			{block: "docs/migration.md: # migratefs drain --dry-run /scratch", after: `[ ! -e /oldscratch/alice/run1 ]; [ ! -e /oldscratch/bob ]`},
			{block: "docs/migration.md: # migratefs drain /scratch",
				before: `mkdir -p /newscratch/alice/run2; echo other >/newscratch/alice/run2/out.7`, fails: map[string]int{"drain": 3}},
			{block: "docs/migration.md: # rm /oldscratch/alice/run2/out.7"},
			{block: "docs/migration.md: # migratefs umount /scratch", after: `grep -qx mine /scratch/bob/notes; mount --move /scratch /newscratch`},
			{block: "docs/migration.md: # migratefs check /newscratch /oldscratch", after: `[ ! -e /newscratch/.migratefs ]; ! mountpoint -q /oldscratch`},
			{block: "README.md: migratefs -o lowerdir=/oldscratch,upperdir=/newscratch /scratch",
				before: `mount -t tmpfs old /oldscratch`, after: `migratefs umount /scratch; umount /oldscratch /newscratch`},
		},
	},
	{
		name: "source",
		a: `
			mkdir /data
			echo from the source >/data/f`,
		b: `
			mkdir -p /data /var/data
			mount -t tmpfs var /var
			mkdir /var/data
			mount -t tmpfs old /oldscratch
			mount -t tmpfs new /newscratch`,
		steps: []step{
			{block: "README.md: migratefs -o lowerdir=user@host:/data,upperdir=/var/data /data", after: `grep -qx "from the source" /data/f`},
			{block: "docs/control.md: curl --unix-socket /run/migratefs/control/0-42.sock http://migratefs/v1/status",
				on: map[string]string{"/run/migratefs/control/0-42.sock": "/run/migratefs/control/*.sock"}, after: `migratefs set /data | grep -q fill_rate=1`},
			{block: "docs/operating.md: # migratefs bugreport /data"},
			{block: "README.md: migratefs drain /data # brings all of it; wait --complete waits for that, with --timeout",
				after: `grep -qx "from the source" /var/data/f; rm -r /var/data; mkdir /var/data`},
			{block: "docs/operating.md: scratch /scratch migratefs lowerdir=/oldscratch,upperdir=/newscratch,x-systemd.requires-mounts-for=/oldscratch,x-systemd.requires-mounts-for=/newscratch 0 0",
				fstab: true, after: `findmnt -t fuse.migratefs /scratch; findmnt -t fuse.migratefs /data; umount /scratch /data; umount /oldscratch /newscratch`},
		},
	},
	{
		name: "checkpoint",
		a: `
			mkdir /srv/job /IMAGES
			cp /usr/bin/sleep /srv/job/job
			echo input >/srv/job/input
			chmod -R a+rX /srv/job
			cd /
			setsid /srv/job/job 10000 </srv/job/input >/srv/job/log 2>&1 &
			until [ "$(readlink /proc/$!/exe)" = /srv/job/job ]; do sleep 0.1; done
			criu dump -t $! -D /IMAGES -o dump.log >/dev/null 2>&1 || { grep Error /IMAGES/dump.log; exit 1; }
			chmod -R a+rX /IMAGES`,
		b: `mkdir -p /lazyfs /var/lib/job1; scp -q -r host:/IMAGES /root/IMAGES`,
		steps: []step{
			{block: "README.md: migratefs restore user@host:/IMAGES", each: `
				job=
				for p in /proc/[0-9]*; do
					if [ "$(readlink $p/exe)" = /srv/job/job ] && [ "$(readlink $p/ns/net)" = "$(readlink /proc/self/ns/net)" ]; then job=${p#/proc/}; fi
				done
				[ -n "$job" ]
				[ "$(readlink /proc/$job/fd/0)" = /srv/job/input ]
				kill $job
				while [ -e /proc/$job ]; do sleep 0.1; done
				migratefs umount --all`},
			{block: "README.md: migratefs -o criu=IMAGES,lowerdir=user@host:/,upperdir=/var/lib/job1 /mnt", before: `mkdir -p /mnt`,
				after: `
					grep -qx input /mnt/srv/job/input
					grep -qx input /lazyfs/srv.job.input
					migratefs umount --all`},
		},
	},
}
