package powerloss

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// points is how many moments are tried for each filesystem and mode when nobody says.
var points = map[string]int{"ext4": 20, "xfs": 6, "btrfs": 6}

func setting(t *testing.T, name string, usual int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return usual
	}
	n, err := strconv.Atoi(v)
	must(t, err)
	return n
}

func TestPowerLoss(t *testing.T) {
	testbed.NeedRoot(t)
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		for _, mode := range []string{"migrate", "single", "overlay"} {
			t.Run(kind+"/"+mode, func(t *testing.T) { powerLoss(t, kind, mode) })
		}
	}
}

func powerLoss(t *testing.T, kind, mode string) {
	seed := uint64(setting(t, "MIGRATEFS_POWERLOSS_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("MIGRATEFS_POWERLOSS_SEED=%d", seed)
	r, first, h := perform(t, kind, mode, rand.New(rand.NewPCG(seed, 1)))
	rng := rand.New(rand.NewPCG(seed, 2))
	n := setting(t, "MIGRATEFS_POWERLOSS_POINTS", points[kind])
	t.Logf("%d events of work in %d; %d moments", len(r.log)-first, len(r.log), n)
	dir := testbed.TempDir(t)
	for i := range n {
		// Spread over the log, with its end as the last.
		lo, hi := first+(len(r.log)-first)*i/n, first+(len(r.log)-first)*(i+1)/n
		at := lo + 1 + rng.IntN(max(hi-lo, 1))
		if i == n-1 {
			at = len(r.log)
		}
		keep := []float64{0, 1, 0.5, 0.9}[rng.IntN(4)]
		if !lose(t, r, h, kind, mode, filepath.Join(dir, strconv.Itoa(i)), at, keep, rng) {
			return
		}
	}
}

// perform does the work on layers that are recorded. Before the moment first, the
// layers were being made.
func perform(t *testing.T, kind, mode string, rng *rand.Rand) (r *recorder, first int, h *history) {
	t.Helper()
	r, disks, endDisks := record(t, sizes[kind], "lower", "upper")
	dir := testbed.TempDir(t)
	var umounts []func()
	for _, name := range []string{"lower", "upper"} {
		format(t, kind, filepath.Join(disks, name))
		point := filepath.Join(dir, name)
		must(t, os.Mkdir(point, 0o755))
		umounts = append(umounts, attach(t, kind, filepath.Join(disks, name), point))
		must(t, os.Mkdir(filepath.Join(point, "layer"), 0o755))
	}
	h = &history{}
	if kind == "btrfs" && mode == "overlay" {
		h.again = state{}
	}
	made := fill(t, filepath.Join(dir, "lower", "layer"))
	h.begin(0, func(s state) {
		for n, v := range made {
			s[n] = v
		}
	})
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	m := testbed.Mount(t, options(mode, dir), mnt)
	for _, name := range []string{"lower", "upper"} {
		must(t, syncfs(filepath.Join(dir, name)))
	}
	first = r.now()
	h.synced(first)

	w := &worker{t: t, r: r, h: h, root: mnt, rng: rand.New(rand.NewPCG(rng.Uint64(), 3))}
	// The kernel writes either disk whenever it likes.
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
				_ = syncfs(filepath.Join(dir, []string{"lower", "upper"}[rng.IntN(2)]))
			}
		}
	}()
	w.work(mode)
	if mode == "migrate" {
		testbed.Run(t, testbed.BuildRace(t), "drain", mnt) // what nobody has touched; no name shows anything else
	}
	close(stop)
	<-done
	last := h.last()
	if seen, err := look(mnt); err != nil {
		t.Fatal(err)
	} else if wrong := (&history{states: []state{last}, began: []int{0}}).wrong(0, seen); len(wrong) > 0 {
		t.Fatalf("before any power was lost: %q", short(wrong))
	}
	w.syncAll()
	for _, name := range []string{"lower", "upper"} {
		must(t, syncfs(filepath.Join(dir, name)))
	}
	h.synced(r.now())
	m.Unmount()
	for _, umount := range umounts {
		umount()
	}
	r.end()
	endDisks()
	return r, first, h
}

// options are those of a mount in a mode: single is migrate mode with hosts=single.
func options(mode, dir string) string {
	if mode == "single" {
		mode = "migrate,hosts=single"
	}
	return fmt.Sprintf("mode=%s,lowerdir=%s,upperdir=%s", mode, filepath.Join(dir, "lower/layer"), filepath.Join(dir, "upper/layer"))
}

func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// lose makes the disks of a power loss at the moment at, of which the part keep of
// what was not flushed is there, mounts them, and looks.
func lose(t *testing.T, r *recorder, h *history, kind, mode, dir string, at int, keep float64, rng *rand.Rand) bool {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	var umounts []func()
	for _, name := range []string{"lower", "upper"} {
		img := filepath.Join(dir, name+".img")
		must(t, r.write(img, name, at, keep, rng))
		point := filepath.Join(dir, name)
		must(t, os.Mkdir(point, 0o755))
		umounts = append(umounts, attach(t, kind, img, point))
	}
	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	m, err := testbed.TryMount(t, options(mode, dir), mnt)
	if err != nil {
		t.Errorf("moment %d, %.1f kept: the mount: %v\n%s", at, keep, err, m.Log())
		return false
	}
	seen, err := look(mnt)
	if err != nil {
		t.Errorf("moment %d, %.1f kept: %v\n%s", at, keep, err, m.Log())
	}
	wrong := h.wrong(at, seen)
	var raw []byte
	if len(wrong) > 0 {
		raw, _ = exec.Command("ls", "-lR", filepath.Join(dir, "upper"), filepath.Join(dir, "lower")).CombinedOutput()
	}
	for _, s := range short(wrong) {
		t.Errorf("moment %d, %.1f kept: %s", at, keep, s)
	}
	m.Unmount()
	for _, umount := range umounts {
		umount()
	}
	if err != nil || len(wrong) > 0 {
		t.Logf("the daemon said:\n%s\nthe layers:\n%s", m.Log(), raw)
		return false
	}
	must(t, os.RemoveAll(dir))
	return true
}

// write makes the image of a disk as a power loss at the moment at leaves it.
func (r *recorder) write(img, disk string, at int, keep float64, rng *rand.Rand) error {
	flushed := -1
	for i, e := range r.log[:at] {
		if e.disk == disk && e.data == nil {
			flushed = i
		}
	}
	f, err := os.Create(img)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(r.size); err != nil {
		return err
	}
	for i, e := range r.log[:at] {
		if e.disk != disk || e.data == nil || i > flushed && rng.Float64() >= keep {
			continue
		}
		if _, err := f.WriteAt(e.data, e.off); err != nil {
			return err
		}
	}
	return nil
}

// short makes long contents readable.
func short(all []string) (out []string) {
	for _, s := range all {
		if len(s) > 600 {
			sum := sha256.Sum256([]byte(s))
			s = s[:300] + "..." + s[len(s)-100:] + " sha256 " + hex.EncodeToString(sum[:4])
		}
		out = append(out, s)
	}
	return out
}
