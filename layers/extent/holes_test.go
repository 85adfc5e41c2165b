package extent

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Zeros that are fetched take no room, where they lie over old bytes as well, and read
// back as zeros.
func TestZerosAreHoles(t *testing.T) {
	for name, ranges := range map[string][][2]int64{
		"all":              {{0, 4 << 20}},
		"in the middle":    {{1 << 20, 2 << 20}},
		"odd":              {{100_001, 900_003}, {1_000_000, 1_000_500}, {2_000_000, 2_300_001}},
		"beginning":        {{0, 300_000}},
		"to the end":       {{3_000_000, 4 << 20}},
		"none long enough": {{4096, 40_000}, {80_000, 120_000}},
	} {
		t.Run(name, func(t *testing.T) {
			want := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
			for _, r := range ranges {
				clear(want[r[0]:r[1]])
			}
			for _, off := range []int64{0, 4096, 12345} {
				fd, err := unix.Open(t.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				if _, err := sys.Pwrite(fd, bytes.Repeat([]byte{0xaa}, len(want)), 0); err != nil {
					t.Fatal(err)
				}
				o := &Object{data: fd}
				if err := o.putClean(want[off:], off); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(want))
				if n, err := sys.Pread(fd, got, 0); err != nil || n != len(got) || !bytes.Equal(got[off:], want[off:]) {
					t.Fatalf("from %d: content differs: %d, %v", off, n, err)
				}
				var st unix.Stat_t
				if err := unix.Fstat(fd, &st); err != nil {
					t.Fatal(err)
				}
				most := int64(len(want)) + 64<<10
				for _, r := range ranges {
					if from := max(r[0], off); r[1]-from >= holeMin+2*page {
						most -= r[1] - from - 2*page
					}
				}
				if st.Blocks*512 > most {
					t.Errorf("from %d: takes %d bytes, want at most %d", off, st.Blocks*512, most)
				}
			}
		})
	}
}
