package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/migratefs/migratefs/copyup"
)

// bytesText is a number of bytes as people read it.
func bytesText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n)/1024, "KMGTPE"
	for f >= 999.95 && len(units) > 1 {
		f, units = f/1024, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", f, units[0])
}

// onLine is s as it may be shown whoever it comes from: what is no text, or would move
// the cursor or turn the direction of writing, is escaped as in Go and C.
func onLine(s string) string {
	var b strings.Builder
	for s != "" {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 || !strconv.IsGraphic(r) {
			q := strconv.Quote(s[:n])
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func ownerText(id uint32, name string) string {
	if name == "" {
		return strconv.FormatUint(uint64(id), 10)
	}
	return fmt.Sprintf("%s (%d)", name, id)
}

// ownerNames asks the host's databases (passwd, group) for names, those of its
// directory service included: the Go library knows files only. Who has no name
// there is not in the answer.
func ownerNames(ctx context.Context, database string, of []copyup.Charge) map[uint32]string {
	const many = 500 // arguments of one command
	names := map[uint32]string{}
	for ids := range slices.Chunk(of, many) {
		args := []string{database}
		for _, c := range ids {
			args = append(args, strconv.FormatUint(uint64(c.ID), 10))
		}
		out, _ := exec.CommandContext(ctx, "getent", args...).Output() // fails if one of them is not there
		for line := range strings.Lines(string(out)) {
			f := strings.Split(line, ":")
			if len(f) < 3 {
				continue
			}
			if id, err := strconv.ParseUint(f[2], 10, 32); err == nil && names[uint32(id)] == "" {
				names[uint32(id)] = f[0]
			}
		}
	}
	return names
}
