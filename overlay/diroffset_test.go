package overlay

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/migratefs/migratefs/layers"
)

// An offset leads on from the entry it was given with, in any list that the
// directory has later.
func TestOffsetsOutliveTheList(t *testing.T) {
	var es []layers.Entry
	for i := range 1000 {
		es = append(es, layers.Entry{Name: fmt.Sprintf("name %d", i)})
	}
	es = append(es, layers.Entry{Name: ".."}, layers.Entry{Name: "."})
	before := newListing(es)
	if before.entries[0].Name != "." || before.entries[1].Name != ".." || len(before.from(0).entries) != len(es) {
		t.Fatal("a directory does not begin with . and ..")
	}
	at := before.offsets[500]
	var want []string
	for _, e := range before.entries[501:] {
		want = append(want, e.Name)
	}
	// Half of what was listed before the offset is removed, the entry itself too.
	left := append([]layers.Entry{}, before.entries[:500:500]...)
	rand.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
	after := newListing(append(left[:250:250], before.entries[501:]...)).from(at)
	var got []string
	for _, e := range after.entries {
		got = append(got, e.Name)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d names are listed, not the %d that are left", len(got), len(want))
	}
	for i := range before.offsets[1:] {
		if before.offsets[i] >= before.offsets[i+1] || int64(before.offsets[i+1]) < 0 {
			t.Fatalf("offsets %d and %d", before.offsets[i], before.offsets[i+1])
		}
	}
}

// Clients of an NFS server keep offsets: they are the same in every version.
func TestOffsetsStay(t *testing.T) {
	if got := nameOffset("a name"); got != 0x9a31fe06105428e {
		t.Errorf("%#x", got)
	}
}

// A process that was restored goes on where it was, if that was ours; at the
// beginning, where it was on another filesystem, and at the end of any.
func TestForeignOffsets(t *testing.T) {
	var es []layers.Entry
	for i := range 100 {
		es = append(es, layers.Entry{Name: fmt.Sprintf("name %d", i)})
	}
	l := newListing(es)
	for off, want := range map[uint64]int{
		0:                  100,
		l.offsets[30]:      69,
		l.offsets[30] + 1:  100,
		1234:               100,
		0x5fab1234deadbeef: 100,
		1<<31 - 1:          0,
		1<<63 - 1:          0,
	} {
		if got := len(l.from(l.foreign(off)).entries); got != want {
			t.Errorf("at %#x %d names follow, want %d", off, got, want)
		}
	}
}
