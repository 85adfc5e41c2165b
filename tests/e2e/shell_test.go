package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/migratefs/migratefs/tests/testbed"
)

// makeLower makes the tree that the session below works on. All its times lie
// in 2001, in whole seconds, which is what every kind of lower can show.
const makeLower = `
mkdir -p docs/deep/er src data empty
echo one >docs/one; echo two >docs/two; echo three >docs/deep/three; echo four >docs/deep/er/four
printf '#!/bin/sh\necho hello\n' >src/run; chmod 755 src/run
ln -s ../docs/one src/link; ln -s /nowhere src/dangling
seq 200000 >data/big; echo secret >data/secret; chmod 600 data/secret; chown 12:34 data/secret
echo suid >data/suid; chmod 4755 data/suid
mkdir data/sticky; chmod 1777 data/sticky; mkfifo data/fifo
i=0; while [ $i -lt 40 ]; do echo $i >"data/sticky/n $i"; i=$((i+1)); done
git init -q repo; cd repo; git config user.name n; git config user.email e@e
seq 5000 >numbers; git add .; git commit -q -m first; seq 5001 >numbers; git commit -q -a -m second; cd ..
tar -cf archive.tar docs
find . -exec touch -h -d '2001-02-03 04:05:06 UTC' {} +
`

// linkLower adds what a remote lower cannot show.
const linkLower = `
ln docs/two docs/also-two; setfattr -n user.note -v here docs/one; setfacl -m u:12:r data/secret
touch -d '2001-02-03 04:05:06 UTC' docs/one docs/two data/secret docs
`

// session is what a user does, in a tree made by makeLower.
const session = `
cat docs/one
echo more >>docs/one
cat docs/one
rm docs/deep/three
mv docs/two docs/renamed
mv src/run data/run
mv docs/deep docs/deeper
cp -a data data-copy
cp -a docs/one empty/one
tar -xf archive.tar --one-top-level=unpacked
tar -cf - data | tar -xf - -C empty
git clone -q --no-hardlinks repo clone
cd clone; git fsck 2>&1; git log --format=%H%s; git status --short
git config user.name n; git config user.email e@e
echo last >>numbers; git commit -q -a -m third; git log --format=%s; cd ..
git -C repo status --short; git -C repo fsck 2>&1
chmod 640 docs/renamed; chown 5:6 data/big; chmod u-s data/suid
ln docs/renamed docs/linked; ln -s renamed docs/soft
sed -i 's/^100$/hundred/' data/big
printf XYZ | dd of=data/big bs=1 seek=1000 conv=notrunc 2>/dev/null
truncate -s 1000000 data/big
cat data/big | tail -c 20000 | tr '\0' 0 | md5sum
mv src moved; rm moved/dangling; ln -s elsewhere moved/dangling
rm -r data/sticky; mkdir data/sticky; echo new >data/sticky/new; ls data/sticky
mkdir -p a/b/c; mv a/b/c top; rmdir a/b a
mv archive.tar empty/; rm -f empty/archive.tar; echo again >archive.tar
echo over >over; mv over docs/one
find . -path ./clone/.git -prune -o -path ./repo/.git -prune -o -type f -print | LC_ALL=C sort | xargs -d '\n' md5sum
rmdir docs 2>&1 | sed 's/.*: //'
cat docs/nothing 2>&1 | sed 's/.*: //'
`

// sh runs a script in a directory with nothing of this machine's settings, and
// returns what it printed.
func sh(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("bash", "-eu", "-c", script)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C", "TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		"GIT_AUTHOR_DATE=2001-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2001-01-01T00:00:00Z"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in %s: %v\n%s", dir, err, out)
	}
	return string(out)
}

// gitNotes is what git writes that holds the path of the tree, inode numbers or
// the time of day.
var gitNotes = []string{"clone/.git/index", "clone/.git/config", "clone/.git/logs", "clone/.git/packed-refs", "repo/.git/index"}

// oldTimes returns name and mtime of every file that nobody has touched since
// the tree was made.
func oldTimes(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if slices.Contains(gitNotes, rel) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		st, err := d.Info()
		if err == nil && time.Since(st.ModTime()) > 24*time.Hour {
			lines = append(lines, fmt.Sprintf("%s %d", rel, st.ModTime().UnixNano()))
		}
		return err
	}))
	return lines
}

// TestSessionAsOnExt4 does the same work on a mount and on a plain directory,
// and compares what it printed and what it left.
func TestSessionAsOnExt4(t *testing.T) {
	testbed.NeedFUSE(t)
	for _, c := range []struct{ name, mode string }{
		{"local lower, overlay", "overlay"},
		{"local lower, migrate", "migrate"},
		{"remote lower", "remote"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := testbed.TempDir(t)
			at := func(name string) string { return filepath.Join(dir, name) }
			for _, d := range []string{"lower", "upper", "mnt"} {
				must(t, os.Mkdir(at(d), 0o755))
			}
			sh(t, at("lower"), makeLower)
			if c.mode != "remote" {
				sh(t, at("lower"), linkLower)
			}
			testbed.Run(t, "cp", "-a", at("lower"), at("plain"))
			// The root of the mount is the upper's.
			testbed.Run(t, "touch", "-r", at("lower"), at("upper"))
			lower := testbed.Snapshot(t, at("lower"), testbed.Usual|testbed.Mtime|testbed.Numbers)

			var m *testbed.Mounted
			if c.mode == "remote" {
				s := testbed.StartSSHD(t)
				m = testbed.Mount(t, "lowerdir="+s.Target(at("lower"))+",upperdir="+at("upper"), at("mnt"),
					testbed.MountConfig{Env: s.Env()})
			} else {
				m = testbed.Mount(t, "mode="+c.mode+",lowerdir="+at("lower")+",upperdir="+at("upper"), at("mnt"))
			}
			testbed.Same(t, "the lower", testbed.Snapshot(t, at("plain"), testbed.Usual|testbed.Mtime),
				"the mount before the session", testbed.Snapshot(t, m.Dir, testbed.Usual|testbed.Mtime))

			want, got := sh(t, at("plain"), session), sh(t, m.Dir, session)
			if want != got {
				t.Errorf("the session printed on the plain directory\n%s\non the mount\n%s", want, got)
			}
			compare := func(when string) {
				t.Helper()
				testbed.Same(t, "the plain directory", testbed.Snapshot(t, at("plain"), testbed.Usual, gitNotes...),
					when, testbed.Snapshot(t, m.Dir, testbed.Usual, gitNotes...))
				want, got := oldTimes(t, at("plain")), oldTimes(t, m.Dir)
				if !slices.Equal(want, got) {
					t.Errorf("%s: times of what was not touched:\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
			compare("the mount")
			m.Unmount()
			if c.mode != "migrate" {
				testbed.Same(t, "the lower", lower, "the lower after the session",
					testbed.Snapshot(t, at("lower"), testbed.Usual|testbed.Mtime|testbed.Numbers))
			}
			if c.mode == "remote" {
				return
			}
			m = testbed.Mount(t, "mode="+c.mode+",lowerdir="+at("lower")+",upperdir="+at("upper"), at("mnt"))
			compare("the mount made again")
			m.Unmount()
		})
	}
}
