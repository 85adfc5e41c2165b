package copyup

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// oldAndNew are two directories; what they are given is on one filesystem.
func oldAndNew(t *testing.T) (old, next string) {
	t.Helper()
	dir := t.TempDir()
	old, next = filepath.Join(dir, "old"), filepath.Join(dir, "new")
	must(t, os.Mkdir(old, 0o755))
	must(t, os.Mkdir(next, 0o755))
	return old, next
}

func write(t testing.TB, name, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(t, os.WriteFile(name, []byte(content), 0o644))
}

func TestPlanCounts(t *testing.T) {
	old, next := oldAndNew(t)
	at := func(name string) string { return filepath.Join(old, name) }
	write(t, at("a/small"), "12345")
	write(t, at("a/linked"), "1234567")
	must(t, os.Link(at("a/linked"), at("second")))
	must(t, os.Mkdir(at("b"), 0o755))
	must(t, os.Link(at("second"), at("b/third")))
	write(t, at("b/half"), "123")
	must(t, os.Link(at("b/half"), filepath.Join(filepath.Dir(old), "outside")))
	must(t, os.Symlink("x", at("sym")))
	must(t, unix.Mkfifo(at("fifo"), 0o600))
	write(t, at(".migratefs/ours"), "is not counted")
	write(t, at("b/.migratefs/theirs"), "is")
	f, err := os.Create(at("sparse"))
	must(t, err)
	must(t, f.Truncate(1<<20))
	_, err = f.WriteAt(make([]byte, 4096), 512<<10)
	must(t, err)
	must(t, f.Close())
	now := time.Now()
	day := 24 * time.Hour
	must(t, os.Chtimes(at("a/small"), now.Add(-100*day), now.Add(-3*365*day)))
	must(t, os.Chtimes(at("b/half"), now.Add(-time.Hour), now.Add(5*day)))

	for _, workers := range []int{1, 8} {
		p, err := NewPlan(context.Background(), PlanConfig{Old: old, New: next, Workers: workers, Now: now})
		must(t, err)
		if p.Files.Files != 5 || p.Files.Bytes != 5+7+3+2+1<<20 {
			t.Errorf("files: %+v", p.Files)
		}
		if p.Directories != 4 || p.Symlinks != 1 || p.Special["fifo"] != 1 || p.Names != 9 {
			t.Errorf("%d directories, %d symlinks, %v, %d names", p.Directories, p.Symlinks, p.Special, p.Names)
		}
		if want := (Links{Files: 2, Names: 4, Outside: 1, OutsideFiles: 1}); p.Links != want {
			t.Errorf("hard links: %+v, want %+v", p.Links, want)
		}
		if p.Sparse.Files != 1 || p.Sparse.Bytes != 1<<20 {
			t.Errorf("sparse: %+v", p.Sparse)
		}
		if p.Largest == nil || p.Largest.Path != "sparse" {
			t.Errorf("largest: %+v", p.Largest)
		}
		block := int64(4096)
		if want := (Size{Bytes: 8 * block, Inodes: 10}); p.Need != want { // 3 directories, 4 small files, 4 KiB of the sparse one
			t.Errorf("needs %+v, want %+v", p.Need, want)
		}
		if got := byDays(p.Atime, 180); got.Bytes != 5 {
			t.Errorf("read within 180 days: %+v", got)
		}
		if got := byDays(p.Mtime, 5*365); got.Bytes != 5 {
			t.Errorf("modified within 5 years: %+v", got)
		}
		if got := byDays(p.Mtime, 0); got.Bytes != 3 {
			t.Errorf("modified in the future: %+v", got)
		}
		if !p.Same || !p.Fits || len(p.Issues) > 0 || p.Unread != nil {
			t.Errorf("same %v, fits %v, issues %v, unread %v", p.Same, p.Fits, p.Issues, p.Unread)
		}
		es, err := os.ReadDir(next)
		must(t, err)
		if len(es) > 0 {
			t.Errorf("left in NEW: %v", es)
		}
	}
}

func byDays(of []Age, days int) Count {
	for _, a := range of {
		if a.Days == days {
			return a.Count
		}
	}
	return Count{}
}

// A NEW that refuses much: a small ramfs has no xattrs, a small tmpfs no room.
func TestPlanOnWhatCannotHoldIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	old, next := oldAndNew(t)
	write(t, filepath.Join(old, "noted"), strings.Repeat("x", 100<<10))
	must(t, unix.Setxattr(filepath.Join(old, "noted"), "user.note", []byte("n"), 0))
	write(t, filepath.Join(old, "second"), "x")
	for _, name := range []string{"third", "fourth"} {
		write(t, filepath.Join(old, name), "x")
	}
	must(t, os.Chown(filepath.Join(old, "second"), 1234, 1235))
	plan := func(fsType, options string) *Plan {
		t.Helper()
		must(t, unix.Mount(fsType, next, fsType, 0, options))
		defer func() { must(t, unix.Unmount(next, 0)) }()
		p, err := NewPlan(context.Background(), PlanConfig{Old: old, New: next})
		must(t, err)
		if es, _ := os.ReadDir(next); len(es) > 0 {
			t.Errorf("left in NEW: %v", es)
		}
		return p
	}
	p := plan("ramfs", "mode=0755")
	if len(p.Issues) != 1 || p.Issues[0].Kind != "xattr" || !p.Issues[0].Fatal || p.Issues[0].Names != 1 ||
		p.Issues[0].Paths[0] != "noted" || !strings.Contains(p.Issues[0].What, "user.*") || p.Fits {
		t.Errorf("on ramfs: fits %v, %+v", p.Fits, p.Issues)
	}
	if p := plan("tmpfs", "mode=0755,size=64k"); p.Fits || len(p.Issues) > 0 || p.Room.Bytes != 64<<10 {
		t.Errorf("on a small tmpfs: fits %v, %+v, %+v", p.Fits, p.Issues, p.Room)
	}
	if p := plan("tmpfs", "mode=0755,size=1m,nr_inodes=4"); p.Fits {
		t.Errorf("on a tmpfs of few inodes: fits, %+v of %+v", p.Need, p.Room)
	}
	if p := plan("tmpfs", "mode=0755,size=1m"); !p.Fits {
		t.Errorf("on a tmpfs with room: %+v of %+v, %+v", p.Need, p.Room, p.Issues)
	}
}

func TestPlanAsksForQuotas(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: foreign owners, mounts")
	}
	old, next := oldAndNew(t)
	must(t, unix.Mount("tmpfs", next, "tmpfs", 0, "mode=0755"))
	t.Cleanup(func() { _ = unix.Unmount(next, 0) })
	for name, uid := range map[string]int{"full": 1001, "soft": 1002, "free": 1003, "none": 1004} {
		write(t, filepath.Join(old, name), "12345")
		must(t, os.Chown(filepath.Join(old, name), uid, 2000))
	}
	answers := map[uint32]sys.Quota{
		1001: {Bytes: 8192, BytesHard: 8192 + 4095, BytesSoft: 1 << 30},
		1002: {Inodes: 5, InodesSoft: 5, InodesHard: 6},
		1003: {Bytes: 1 << 40},
	}
	p, err := NewPlan(context.Background(), PlanConfig{Old: old, New: next, Quota: func(_, kind int, id uint32) (sys.Quota, error) {
		if kind == sys.GroupQuota {
			return sys.Quota{}, unix.ESRCH
		}
		if q, ok := answers[id]; ok {
			return q, nil
		}
		return sys.Quota{}, unix.ENOENT
	}})
	must(t, err)
	got := map[uint64]QuotaFit{}
	for _, q := range p.Quotas {
		got[q.ID] = q
	}
	if len(got) != 2 || got[1001].Fits || got[1001].Over || !got[1002].Fits || !got[1002].Over {
		t.Errorf("quotas: %+v", p.Quotas)
	}
	if p.Fits || p.QuotaUnknown != "" {
		t.Errorf("fits %v, unknown %q", p.Fits, p.QuotaUnknown)
	}
	p, err = NewPlan(context.Background(), PlanConfig{Old: old, New: next})
	must(t, err)
	if !p.Fits || p.QuotaUnknown == "" {
		t.Errorf("a tmpfs has no quotas that can be asked: fits %v, %q", p.Fits, p.QuotaUnknown)
	}
}

// What is made in NEW is charged to NEW's project as well, and to its quota groups.
func TestPlanAsksForQuotasOfNew(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	old, next := oldAndNew(t)
	for name, content := range map[string]string{"one": "1", "two": strings.Repeat("2", 5<<20)} {
		write(t, filepath.Join(old, name), content)
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	disk := func(fs string) {
		t.Helper()
		image := filepath.Join(t.TempDir(), fs)
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, 400<<20))
		run("mkfs."+fs, "-q", image)
		run("mount", "-o", "loop", image, next)
		t.Cleanup(func() { run("umount", next) })
	}
	plan := func(old, next string, quota func(fd, kind int, id uint32) (sys.Quota, error)) (p *Plan, says string) {
		t.Helper()
		p, err := NewPlan(context.Background(), PlanConfig{Old: old, New: next, Quota: quota})
		must(t, err)
		for _, q := range p.Quotas {
			says += fmt.Sprintf("%s %d %q: %v of %d, ", q.Kind, q.ID, q.Name, q.Fits, q.Hard.Bytes>>20)
		}
		return p, says
	}

	t.Run("project", func(t *testing.T) {
		disk("xfs")
		in := filepath.Join(next, "in")
		must(t, os.Mkdir(in, 0o755))
		asked := func(_, kind int, id uint32) (sys.Quota, error) {
			if kind != sys.ProjectQuota || id != 42 {
				return sys.Quota{}, unix.ESRCH
			}
			return sys.Quota{Bytes: 1 << 20, BytesHard: 6 << 20}, nil
		}
		if p, says := plan(old, in, asked); !p.Fits || says != "" {
			t.Errorf("a project that is not asked for: fits %v, %s", p.Fits, says)
		}
		run("xfs_io", "-c", "chproj 42", "-c", "chattr +P", in)
		if p, says := plan(old, in, asked); p.Fits || says != `project 42 "": false of 6, ` {
			t.Errorf("fits %v, %s", p.Fits, says)
		}
	})
	t.Run("btrfs", func(t *testing.T) {
		disk("btrfs")
		none := func(_, _ int, _ uint32) (sys.Quota, error) { return sys.Quota{}, unix.ESRCH }
		sub, beside := filepath.Join(next, "sub"), filepath.Join(next, "beside")
		run("btrfs", "subvolume", "create", sub)
		run("btrfs", "subvolume", "create", beside)
		if p, says := plan(old, sub, none); !p.Fits || says != "" {
			t.Errorf("without quotas: fits %v, %s", p.Fits, says)
		}
		run("btrfs", "quota", "enable", next)
		run("btrfs", "quota", "rescan", "-w", next)
		run("btrfs", "qgroup", "create", "1/7", next)
		run("btrfs", "qgroup", "create", "2/9", next)
		run("btrfs", "qgroup", "assign", "--no-rescan", "1/7", "2/9", next)
		run("btrfs", "qgroup", "limit", "20M", sub)
		run("btrfs", "qgroup", "limit", "-e", "30M", sub)
		write(t, filepath.Join(sub, "there"), strings.Repeat("3", 12<<20))
		if p, says := plan(old, sub, none); !p.Fits || says != `qgroup 256 "0/256": true of 20, exclusive qgroup 256 "0/256": true of 30, ` {
			t.Errorf("12 of 20 MiB used: fits %v, %s", p.Fits, says)
		}
		write(t, filepath.Join(sub, "more"), strings.Repeat("4", 5<<20))
		if p, says := plan(old, sub, none); p.Fits || says != `qgroup 256 "0/256": false of 20, exclusive qgroup 256 "0/256": true of 30, ` {
			t.Errorf("17 of 20 MiB used: fits %v, %s", p.Fits, says)
		}
		// Groups of groups; of one that OLD is in, too, nothing is taken.
		for _, s := range []string{sub, beside} {
			run("btrfs", "qgroup", "limit", "none", s)
			run("btrfs", "qgroup", "limit", "-e", "none", s)
			run("btrfs", "qgroup", "assign", s, "1/7", next)
		}
		run("btrfs", "qgroup", "limit", "21M", "2/9", next)
		above := fmt.Sprintf(`qgroup %d "2/9": false of 21, `, uint64(2)<<48+9)
		if p, says := plan(old, sub, none); p.Fits || says != above {
			t.Errorf("17 of 21 MiB of the group used: fits %v, %s", p.Fits, says)
		}
		write(t, filepath.Join(beside, "moves"), strings.Repeat("5", 3<<20))
		if p, says := plan(beside, sub, none); !p.Fits || says != "" {
			t.Errorf("within the group: fits %v, %s", p.Fits, says)
		}
	})
}

// Whatever bytes are in a name, the report is JSON and tells them.
func TestPlanQuotesNames(t *testing.T) {
	old, next := oldAndNew(t)
	const odd = "a\xff\n\"\\"
	write(t, filepath.Join(old, odd), "x")
	p, err := NewPlan(context.Background(), PlanConfig{Old: old, New: next})
	must(t, err)
	b, err := json.Marshal(p)
	must(t, err)
	var back struct{ Largest struct{ Path string } }
	must(t, json.Unmarshal(b, &back))
	if want := `a\xff\n\"\\`; back.Largest.Path != want {
		t.Errorf("%q, want %q", back.Largest.Path, want)
	}
}

func TestPlanSaysWhatItCannotRead(t *testing.T) {
	old, next := oldAndNew(t)
	write(t, filepath.Join(old, "d/f"), "x")
	w := &planWalk{cfg: PlanConfig{Old: old, New: next, Now: time.Now()}, sum: newTally(time.Now())}
	w.unread("d", unix.EIO)
	pr, err := newProbe(next)
	must(t, err)
	w.probe = pr
	p, err := w.plan()
	must(t, err)
	must(t, pr.close())
	if p.Unread == nil || p.Unread.Names != 1 || p.Unread.Paths[0] != "d" || !strings.Contains(p.Unread.What, "input/output") {
		t.Errorf("unread: %+v", p.Unread)
	}
}
