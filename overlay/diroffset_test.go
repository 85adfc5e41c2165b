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
