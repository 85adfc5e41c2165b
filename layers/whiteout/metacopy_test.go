package whiteout

import (
	"bytes"
	"errors"
	"testing"

	"github.com/migratefs/migratefs/layers"
)

func TestParseMark(t *testing.T) {
	digest := bytes.Repeat([]byte{7}, 32)
	for _, c := range []struct {
		name  string
		value []byte
		want  Mark
		bad   bool
	}{
		{name: "empty, as the kernel writes it"},
		{name: "a header alone", value: []byte{0, 4, 0, 0}},
		{name: "a digest", value: append([]byte{0, 36, 0, 1}, digest...), want: Mark{Algorithm: 1, Digest: digest}},
		{name: "cut short", value: []byte{0, 3, 0}, bad: true},
		{name: "another length", value: []byte{0, 5, 0, 1}, bad: true},
		{name: "a later version", value: []byte{1, 4, 0, 0}, bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseMark(c.value)
			if c.bad != errors.Is(err, layers.ErrCorrupt) || got.Algorithm != c.want.Algorithm || !bytes.Equal(got.Digest, c.want.Digest) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
