package powerloss

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// state is what each name shows: the content, and the mode where a step changes it.
type state map[string]string

// history is all that the names showed, and since when that cannot be lost.
type history struct {
	states []state
	began  []int // states[i] may show from this moment on
	safe   []safety

	// again holds what names may show although they are gone. On btrfs the loss of a
	// name can survive without the whiteout that takes its place: the log tree, which
	// the next fsync of any file writes, has the names of the file that lost it, and
	// not the whiteout. The kernel's overlayfs fails this test there, too.
	again state
}

// whitened notes that name goes from above what the lower has.
func (h *history) whitened(name string) {
	if first, ok := h.states[0][name]; ok && h.again != nil {
		h.again[name] = first
	}
}

// safety: from the moment at on, name (or, if empty, all names) shows no older state
// than the i-th.
type safety struct {
	name  string
	i, at int
}

func (h *history) last() state { return h.states[len(h.states)-1] }

// begin adds what the names show after a step that begins now.
func (h *history) begin(now int, then func(state)) {
	s := state{}
	if len(h.states) > 0 {
		s = maps.Clone(h.last())
	}
	then(s)
	h.states, h.began = append(h.states, s), append(h.began, now)
}

// synced notes that the names (all if none are given) were made durable before now.
func (h *history) synced(now int, names ...string) {
	if len(names) == 0 {
		names = []string{""}
	}
	for _, n := range names {
		h.safe = append(h.safe, safety{n, len(h.states) - 1, now})
	}
}

// span is which states may show when the power goes at the moment at.
func (h *history) span(at int, covers func(safety) bool) (from, to int) {
	for i, b := range h.began {
		if b <= at {
			to = i
		}
	}
	for _, s := range h.safe {
		if s.at <= at && (s.name == "" || covers(s)) {
			from = max(from, s.i)
		}
	}
	return min(from, to), to
}

// wrong says what of the seen names cannot be when the power went at the moment at.
func (h *history) wrong(at int, seen state) (all []string) {
	names := map[string]bool{}
	for _, s := range append(slices.Clone(h.states), seen) {
		for n := range s {
			names[n] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if v, ok := h.again[name]; ok && token(v) == token(seen[name]) {
			continue
		}
		from, to := h.span(at, func(s safety) bool { return s.name == name })
		var may []string
		for _, s := range h.states[from : to+1] {
			may = append(may, show(s, name))
		}
		if got := show(seen, name); !slices.Contains(may, got) && !torn(seen[name], name, h.states[from:to+1]) {
			all = append(all, fmt.Sprintf("%s shows %s; it may show %s", name, got, strings.Join(slices.Compact(may), " or ")))
		}
	}
	return append(all, h.lost(at, seen)...)
}

// torn reports whether v is what an append that nobody synced may leave on ext4: the
// new length, and zeros where the new bytes go, in a block that was there before or, of a
// file that its application had made empty, in one that is allocated and not yet written. No copy
// of a lower file is ever empty first.
func torn(v, name string, may []state) bool {
	for i := 1; i < len(may); i++ {
		old, there := may[i-1][name]
		now := may[i][name]
		if there && strings.HasPrefix(now, old) && v == old+strings.Repeat("\x00", len(now)-len(old)) {
			return true
		}
	}
	return false
}

func show(s state, name string) string {
	if v, ok := s[name]; ok {
		return fmt.Sprintf("%q", v)
	}
	return "nothing"
}

// token is what a file's content begins with, whatever it is called.
func token(content string) string {
	t, _, _ := strings.Cut(content, ":")
	return t
}

// lost finds files that every state has under some name, and the seen one under none.
func (h *history) lost(at int, seen state) (all []string) {
	has := map[string]bool{}
	for _, v := range seen {
		has[token(v)] = true
	}
	always := map[string]bool{}
	for _, s := range h.states {
		for _, v := range s {
			always[token(v)] = true
		}
	}
	for tok := range always {
		// What was made durable under any name is the file's.
		from, to := h.span(at, func(s safety) bool { return token(h.states[s.i][s.name]) == tok })
		for _, s := range h.states[from : to+1] {
			there := false
			for _, v := range s {
				there = there || token(v) == tok
			}
			if !there {
				always[tok] = false
			}
		}
		if always[tok] && !has[tok] {
			all = append(all, "the file "+tok+" has no name at all")
		}
	}
	return all
}
