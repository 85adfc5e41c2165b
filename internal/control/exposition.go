package control

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/migratefs/migratefs/overlay"
)

// exposition is Prometheus' text format, version 0.0.4
// (prometheus.io/docs/instrumenting/exposition_formats).
type exposition struct{ bytes.Buffer }

// family begins one metric.
func (e *exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP migratefs_%s %s\n# TYPE migratefs_%s %s\n", name, help, name, kind)
}

// labels are names and values, in turns.
func (e *exposition) sample(name string, v float64, labels ...string) {
	e.WriteString("migratefs_" + name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := ","
		if i == 0 {
			sep = "{"
		}
		fmt.Fprintf(e, "%s%s=\"%s\"", sep, labels[i], labelValue(labels[i+1]))
	}
	if len(labels) > 0 {
		e.WriteByte('}')
	}
	e.WriteByte(' ')
	e.WriteString(strconv.FormatFloat(v, 'g', -1, 64))
	e.WriteByte('\n')
}

// labelValue escapes what the format has to have escaped, and what is no text.
func labelValue(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(s)
}

func (e *exposition) one(name, kind, help string, v float64) {
	e.family(name, kind, help)
	e.sample(name, v)
}

// each is a metric with one label.
func each[V int64 | uint64](e *exposition, name, kind, help, label string, all map[string]V) {
	e.family(name, kind, help)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		e.sample(name, float64(all[k]), label, k)
	}
}

// histogram is one with the labels given.
func (e *exposition) histogram(name string, h *overlay.Histogram, labels ...string) {
	sum := uint64(0)
	for i, n := range h.Buckets {
		sum += n
		le := "+Inf"
		if b := overlay.BucketBound(i); b > 0 {
			le = strconv.FormatFloat(b.Seconds(), 'g', -1, 64)
		}
		e.sample(name+"_bucket", float64(sum), append(slices.Clone(labels), "le", le)...)
	}
	e.sample(name+"_sum", h.Sum.Seconds(), labels...)
	e.sample(name+"_count", float64(sum), labels...)
}
