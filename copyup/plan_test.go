package copyup

import (
	"context"
	"encoding/json"
	"os"
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
	got := map[uint32]QuotaFit{}
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
