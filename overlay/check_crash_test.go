package overlay

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers/whiteout"
	"github.com/migratefs/migratefs/tests/testbed"
)

// check runs Check on the layers of the world.
func (w *world) check(repair bool) []Finding {
	w.t.Helper()
	var all []Finding
	cfg := CheckConfig{
		Mode: w.kind.mode, Upper: w.at("upper"), Format: whiteout.Trusted, Repair: repair, TrashDays: 0,
		Found: func(f Finding) {
			if !f.Note {
				all = append(all, f)
			}
		},
	}
	if w.kind.mode == Overlay {
		cfg.Work = w.at("work")
	}
	for i := range w.kind.lowers {
		if !w.kind.remote {
			cfg.Lowers = append(cfg.Lowers, w.at(fmt.Sprintf("l%d", i+1)))
		}
	}
	r, err := Check(context.Background(), cfg)
	must(w.t, err)
	if int(r.Found) != len(all) {
		w.t.Errorf("%d found, %d told", r.Found, len(all))
	}
	return all
}

func (f *Finding) String() string {
	s := fmt.Sprintf("%s: %s %q: %s", f.Kind, f.Where, string(f.Path), f.Means)
	if f.Mends != "" {
		s += " (" + f.Mends + ")"
	}
	if f.Error != "" {
		s += " ERROR " + f.Error
	}
	return s
}

// beyond returns what is in all and not in known.
func beyond(all, known []Finding) (out []Finding) {
	for _, f := range all {
		if !slices.ContainsFunc(known, func(g Finding) bool { return g.Kind == f.Kind && g.Where == f.Where && g.Path == f.Path }) {
			out = append(out, f)
		}
	}
	return out
}

// everything takes a picture of all layers and the work directory.
func (w *world) everything() *testbed.Tree {
	return testbed.Snapshot(w.t, w.dir, testbed.Usual|testbed.Mtime|testbed.Numbers)
}

// TestCheckAfterDeath checks what a death at any change of an operation leaves: it
// is nothing, or something that is mended, and then the tree is as before or after.
func TestCheckAfterDeath(t *testing.T) {
	each(t, func(t *testing.T, base string, k stacking, o *operation) {
		before, after, _ := o.expect(t, base, k)
		// Of every operation some, and of all together each: they have much in common.
		n, step := 1+len(o.name)%everyDeath, everyDeath
		if os.Getenv("MIGRATEFS_TEST_LONG") != "" {
			n, step = 1, 1
		}
		for ; o.checkDeathAt(t, base, k, n, before, after); n += step {
		}
	})
}

// everyDeath is how many changes lie between two deaths: all of them take minutes.
const everyDeath = 29

// remains reports what a crash may leave that is not mended without a mount: a copy
// that was cut as it came up, whose lower file is still there; and what a rename in
// the upper hides, which no record tells from what somebody put there, or what was hidden
// before and has moved with its directory.
func (o *operation) remains(f *Finding) bool {
	moves := strings.HasPrefix(o.name, "rename") || strings.HasPrefix(o.name, "exchange")
	return f.Kind == FoundDifferent && (strings.Contains(f.Means, "brought up") || moves)
}

func (o *operation) checkDeathAt(t *testing.T, base string, k stacking, n int, before, after sight) (met bool) {
	t.Helper()
	w := o.start(t, base, k)
	defer w.remove()
	w.first.endIfAny()
	w.close()
	known := w.check(false)
	must(t, w.open())
	if _, err := w.look(); err != nil {
		t.Fatal(err)
	}
	f := &fault{at: n, dead: true, err: errDead}
	f.set()
	errno := o.run(w)
	w.close()
	sys.SetHook(nil)
	where := "death at " + f.where()
	for _, x := range beyond(w.check(false), known) {
		if x.Mends == "" && !o.remains(&x) {
			t.Errorf("%s: %v", where, &x)
		}
	}
	for range 8 {
		if !slices.ContainsFunc(w.check(true), func(x Finding) bool { return x.Done }) {
			break
		}
	}
	for _, x := range beyond(w.check(false), known) {
		if !o.remains(&x) {
			t.Errorf("%s, and after the repair: %v", where, &x)
		}
	}
	must(t, w.open())
	w.judge(where+", and the repair", errno, before, after)
	return f.met()
}

// endIfAny is end for a driver that there may not be.
func (d *driver) endIfAny() {
	if d != nil {
		d.end()
	}
}
