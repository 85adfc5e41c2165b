package packages

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/tests/testbed"
)

// buildImage builds the Dockerfile with buildah, whose steps run in a chroot: no
// registry is asked, its two base images are made of the bare roots, and Go, its modules
// and its cache are this machine's. $1 becomes the image's root filesystem.
const buildImage = `
	store=$DIR/images
	mkdir -p "$store" "$1"
	exec 9>"$store/lock"
	flock 9
	bh() { buildah --root "$store/root" --runroot "$store/run" --storage-driver overlay "$@" 9>&-; }
	# base NAME ROOTS: an image of an overlay of ROOTS.
	base() {
		if [ -n "$(bh images -q "$1" 2>/dev/null)" ]; then return; fi
		local c d
		c=$(bh from scratch)
		d=$(bh mount "$c")
		mkdir from work
		mount -t overlay overlay -o "lowerdir=$2" from
		cp -a from/. "$d"
		umount from
		rmdir from work
		bh config --env PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin --env GOPATH=/go "$c"
		bh commit -q --rm "$c" "$1"
	}
	mkdir empty
	base docker.io/library/debian:bookworm-slim "empty:$DIR/minimal"
	base docker.io/library/golang:1.26-bookworm "$DIR/more:$DIR/minimal"
	bh build --isolation chroot --network host --layers --pull-never --quiet -t migratefs \
		-v "$GOROOT:/usr/local/go:ro" -v "$GOMODCACHE:/go/pkg/mod" -v "$GOCACHE:/root/.cache/go-build" "$MODULE"
	c=$(bh from --pull-never migratefs)
	cp -a "$(bh mount "$c")/." "$1"
	bh inspect --type image migratefs >"$1.json"
	bh rm "$c" >/dev/null
	bh image prune -f >/dev/null || bh rmi --prune >/dev/null
	echo "built"
`

// image builds the image and returns its root filesystem.
func image(t *testing.T) (rootfs string) {
	t.Helper()
	testbed.NeedRoot(t)
	minimal, _ := bareRoots(t)
	rootfs = filepath.Join(testbed.TempDir(t), "rootfs")
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "bash", "-euc", testbed.LetGo+buildImage, "bash", rootfs)
	cmd.Dir = testbed.TempDir(t)
	cmd.Env = append(os.Environ(), "DIR="+filepath.Dir(minimal), "MODULE="+testbed.ModuleDir())
	for _, name := range []string{"GOROOT", "GOMODCACHE", "GOCACHE"} {
		v, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, name+"="+strings.TrimSpace(string(v)))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return rootfs
}

// container is what 'docker run' and 'podman run' are asked for.
type container struct {
	caps, devices []string
	binds         []bind
	hostPID       bool
	entrypoint    string
	args          []string // behind the image's name
}

type bind struct{ src, dst, options string }

// parseRun reads the command line of a document. A flag that is not known here is one
// that the documents do not need.
func parseRun(t *testing.T, line string) (c container) {
	t.Helper()
	out, err := exec.Command("bash", "-c", `printf '%s\0' `+line).Output()
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")[2:]
	for len(words) > 0 {
		flag := words[0]
		words = words[1:]
		if !strings.HasPrefix(flag, "-") {
			if flag != "migratefs" {
				t.Errorf("%s: the image is %q", line, flag)
			}
			c.args = words
			return c
		}
		value := ""
		if !slices.Contains([]string{"--rm", "-it", "-d"}, flag) {
			value, words = words[0], words[1:]
		}
		switch flag {
		case "--rm", "-it", "-d", "--name", "--stop-timeout", "--security-opt":
		case "--device":
			c.devices = append(c.devices, value)
		case "--cap-add":
			c.caps = append(c.caps, "CAP_"+value)
		case "--pid":
			c.hostPID = value == "host"
		case "--entrypoint":
			c.entrypoint = value
		case "-v":
			f := append(strings.Split(value, ":"), "rprivate")
			c.binds = append(c.binds, bind{f[0], f[1], f[2]})
		case "--mount":
			m := map[string]string{}
			for kv := range strings.SplitSeq(value, ",") {
				k, v, _ := strings.Cut(kv, "=")
				m[k] = v
			}
			c.binds = append(c.binds, bind{m["src"], m["dst"], m["bind-propagation"]})
		default:
			t.Fatalf("%s: %s is not known", line, flag)
		}
	}
	t.Fatalf("%s: no image", line)
	return c
}

// config is the config.json that Docker would give to runc, on a host where migratefs'
// image is rootfs. What this machine lacks, rlimits and a seccomp filter among it, is
// left out, and so is the network: it is the host's.
func (c container) config(rootfs string) []byte {
	type object = map[string]any
	// What Docker and Podman leave to a container.
	caps := append([]string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}, c.caps...)
	mounts := []object{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=64k"}},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"ro"}},
		{"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf", "options": []string{"rbind", "ro"}},
		{"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": []string{"rbind", "ro"}},
	}
	propagation := "rprivate"
	for _, b := range c.binds {
		mounts = append(mounts, object{"destination": b.dst, "type": "bind", "source": b.src, "options": append([]string{"rbind"}, strings.Split(b.options, ",")...)})
		if strings.Contains(b.options, "rshared") {
			propagation = "rshared"
		}
	}
	devices := []object{}
	rules := []object{{"allow": false, "access": "rwm"}}
	for _, d := range c.devices {
		devices = append(devices, object{"path": d, "type": "c", "major": 10, "minor": 229, "fileMode": 0o666})
		rules = append(rules, object{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"})
	}
	namespaces := []object{{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}}
	if !c.hostPID {
		namespaces = append(namespaces, object{"type": "pid"})
	}
	args := append([]string{"/usr/bin/migratefs"}, c.args...)
	if c.entrypoint != "" {
		args = append([]string{c.entrypoint}, c.args...)
	}
	b, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"root":       object{"path": rootfs},
		"hostname":   "container",
		"process": object{
			"args": args, "cwd": "/", "env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
			"user":         object{"uid": 0, "gid": 0},
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"mounts": mounts,
		"linux": object{"namespaces": namespaces, "devices": devices, "rootfsPropagation": propagation,
			"resources": object{"devices": rules}},
	})
	if err != nil {
		panic(err) // of what is marshalled above
	}
	return b
}

// runc runs runc on a host, with nothing of ours open, and returns what it and the
// container printed.
func runc(t *testing.T, h *testbed.Host, args ...string) string {
	t.Helper()
	script := `for fd in {3..20}; do eval "exec $fd>&-"; done; "$0" "$@" </dev/null >/run/runc.out 2>&1; code=$?; cat /run/runc.out; exit $code`
	out, err := h.Command("bash", append([]string{"-c", script, testbed.Program(t, "runc")}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("runc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The image is what its Dockerfile says, and no more; and the lines of
// docs/container-image.md do with it what they are there for. They are Docker's and
// Podman's: what these would ask runc for, runc is asked for.
func TestImage(t *testing.T) {
	rootfs := image(t)
	minimal, _ := bareRoots(t)
	// What no package of Debian has brought, beside what the volumes of the build leave.
	got := testbed.Run(t, "bash", "-euc", `
		cd "$2"
		packages() { chroot "$1" dpkg-query -W -f '${Package}\n' | sort; }
		echo packages: $(comm -13 <(packages "$1") <(packages .) | comm -23 - <(chroot . apt-mark showauto | sort))
		find etc usr ! -type d -o -name migratefs | sort >"$2.files"
		comm -13 <(cd "$1"; find etc usr | sort) "$2.files" |
			grep -v -x -F -f <(cat var/lib/dpkg/info/*.list | sed -e 's,^/,,' -e 's,^\(bin\|lib\|sbin\)/,usr/\1/,') | grep -v -e '^usr/lib/.*\.so' -e '^etc/hosts$' -e '^etc/.*-$'
		chroot . fusermount3 -V | cut -d " " -f 1
		chroot . ssh -V 2>&1 | cut -c 1-7`, "bash", minimal, rootfs)
	if want := `packages: fuse3 openssh-client
etc/migratefs
etc/sysconfig/migratefs
usr/bin/lazyfs
usr/bin/migratefs
usr/bin/migratefs-crun
usr/bin/migratefs-runc
usr/sbin/mount.fuse.migratefs
usr/sbin/mount.migratefs
usr/sbin/umount.fuse.migratefs
usr/share/licenses/migratefs
usr/share/licenses/migratefs/LICENSE
fusermount3
OpenSSH
`; got != want {
		t.Errorf("in the image are\n%s\nwant\n%s", got, want)
	}

	a, b := twoHosts(t)
	a.Run("bash", "-euc", `mkdir /data; echo from the source >/data/f; chmod -R a+rX /data`)
	b.Run("bash", "-euc", `
		mkdir -p -m 700 /root/.ssh /srv/upper /srv/data
		for name in IdentityFile:id UserKnownHostsFile:known_hosts; do
			cp "$(awk -v "name=${name%:*}" '$1 == name { print $2 }' /etc/ssh/ssh_config)" /root/.ssh/${name#*:}
		done
		sed 's,^\(\s*\(IdentityFile\|UserKnownHostsFile\)\) .*/,\1 /root/.ssh/,' /etc/ssh/ssh_config >/root/.ssh/config
		mount --bind /srv /srv
		mount --make-rshared /srv`)
	id := "migratefs-test-" + filepath.Base(filepath.Dir(rootfs))
	t.Cleanup(func() { _ = b.Command("runc", "delete", "--force", id).Run() })
	// start makes a container that does as the arguments say.
	start := func(c container, how ...string) string {
		bundle := testbed.TempDir(t)
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), c.config(rootfs), 0o644); err != nil {
			t.Fatal(err)
		}
		return runc(t, b, append(append([]string{"run"}, how...), "--bundle", bundle, id)...)
	}
	seen := func(point string) {
		t.Helper()
		testbed.Until(t, "the mount to be seen on the host", func() bool {
			return b.Command("mountpoint", "-q", point).Run() == nil
		})
	}
	ended := func(point string) {
		t.Helper()
		testbed.Until(t, "the end of the container", func() bool {
			out, _ := b.Command("runc", "state", id).Output()
			return strings.Contains(string(out), `"stopped"`)
		})
		runc(t, b, "delete", id)
		if b.Command("mountpoint", "-q", point).Run() == nil {
			t.Errorf("%s is still mounted", point)
		}
	}

	prints := map[string]string{"ls -l /data": " f\n", "migratefs doctor": "yes a mount\n"}
	lines := 0
	for _, blk := range blocks(t) {
		if blk.doc != "docs/container-image.md" {
			continue
		}
		for _, cmd := range blk.commands() {
			lines++
			c := parseRun(t, cmd.line)
			if !strings.Contains(cmd.line, " -d ") {
				out := start(c)
				for part, want := range prints {
					if strings.Contains(cmd.line, part) && !strings.Contains(out, want) {
						t.Errorf("%s\ndoes not print %q but\n%s", cmd.line, want, out)
					}
				}
				continue
			}
			start(c, "--detach")
			seen("/srv/data")
			if got := b.Run("sh", "-ec", "cat /srv/data/f; echo changed >/srv/data/f"); got != "from the source\n" {
				t.Errorf("%s\nshows %q", cmd.line, got)
			}
			runc(t, b, "kill", id, "TERM")
			ended("/srv/data")
			if got := b.Run("sh", "-ec", "cat /srv/upper/f; rm -r /srv/upper; mkdir /srv/upper"); got != "changed\n" {
				t.Errorf("%s\nleaves %q", cmd.line, got)
			}
		}
	}
	if lines != 4 {
		t.Errorf("%d lines are in docs/container-image.md", lines)
	}

	// The DaemonSet, as a kubelet would run its container: / of the node on /host, and
	// mounts go both ways.
	yaml, err := os.ReadFile(filepath.Join(testbed.ModuleDir(), "packaging", "kubernetes", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	list := func(key string) []string {
		m := regexp.MustCompile(`\b` + key + `:\s+(?:exec: \{command: )?\[(.*?)\]`).FindSubmatch(yaml)
		if m == nil {
			t.Fatalf("daemonset.yaml has no %s", key)
		}
		var words []string
		// Commas stand in quoted words, too.
		for _, w := range regexp.MustCompile(`"[^"]*"|[^", ]+`).FindAllString(string(m[1]), -1) {
			words = append(words, strings.Trim(w, `"`))
		}
		return words
	}
	b.Run("sh", "-ec", "mount -t tmpfs old /oldscratch; mount -t tmpfs new /newscratch; echo old >/oldscratch/f; mount --make-rshared /")
	start(container{
		caps: []string{"CAP_SYS_ADMIN"}, devices: []string{"/dev/fuse"}, hostPID: true,
		binds: []bind{{"/", "/host", "rshared"}}, args: list("args"),
	}, "--detach")
	seen("/scratch")
	runc(t, b, append([]string{"exec", id}, list("readinessProbe")...)...)
	if got := b.Run("sh", "-ec", "echo more >>/scratch/f; cat /scratch/f; while [ -e /oldscratch/f ]; do sleep 0.1; done"); got != "old\nmore\n" {
		t.Errorf("the DaemonSet's mount shows %q", got)
	}
	runc(t, b, append([]string{"exec", id}, list("preStop")...)...)
	ended("/scratch")
	b.Run("umount", "/oldscratch", "/newscratch")
}
