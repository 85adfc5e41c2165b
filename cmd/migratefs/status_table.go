package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/migratefs/migratefs/internal/control"
)

// statusColumns are what is told of a mount among others.
var statusColumns = []column[*seenMount]{
	{"STATE", 0, stateWord},
	{"AT RISK", 7, told(func(st *control.Status) string {
		if m := migrationOf(st); m.AtRisk.Files > 0 {
			return bytesText(m.AtRisk.Bytes)
		}
		return ""
	})},
	{"MISSING", 6, told(func(st *control.Status) string {
		part, all := progressOf(st)
		return someBytes(all - part)
	})},
	{"HERE", 4, told(func(st *control.Status) string {
		part, all := progressOf(st)
		if all == 0 {
			return ""
		}
		return fmt.Sprintf("%d%%", percent(part, all))
	})},
	{"LEFT", 3, told(func(st *control.Status) string {
		if part, all := progressOf(st); part == all || st.Fill.Rate < 1 {
			return ""
		}
		return etaText(st)
	})},
	{"MODE", 5, told(func(st *control.Status) string { return onLine(st.Mode) })},
	{"FREE ABOVE", 2, told(func(st *control.Status) string {
		for i := range st.Layers {
			if l := &st.Layers[i]; l.Role == "upper" {
				return someBytes(l.Free)
			}
		}
		return ""
	})},
	{"FROM", 1, told(lowersText)},
}

// told is what a mount's daemon tells; nothing, if it tells nothing.
func told(text func(st *control.Status) string) func(s *seenMount) string {
	return func(s *seenMount) string {
		if s.status == nil {
			return ""
		}
		return text(s.status)
	}
}

// lowersText is the highest lower, and how many more there are.
func lowersText(st *control.Status) (text string) {
	more := 0
	for i := range st.Layers {
		switch l := &st.Layers[i]; {
		case l.Role == "upper":
		case text == "":
			text = onLine(string(l.Name))
		default:
			more++
		}
	}
	if more > 0 {
		text += fmt.Sprintf(" +%d", more)
	}
	return text
}

// stateWord is needs in a word or two, or how far the way from the source is.
func stateWord(s *seenMount) string {
	st := s.status
	switch {
	case st != nil:
	case errors.Is(s.err, control.ErrForbidden):
		return "not yours"
	case errors.Is(s.err, control.ErrNoDaemon) && isDead(s.point):
		return "DEAD"
	case errors.Is(s.err, control.ErrNoDaemon):
		return "no socket"
	default:
		return "NO ANSWER"
	}
	for i := range st.Layers {
		if l := &st.Layers[i]; !l.Reachable {
			return onLine(l.Role) + " AWAY"
		}
	}
	switch {
	case st.Memory != nil && st.Memory.Why != "":
		return "memory AWAY"
	case st.Fill.Conflicts > 0:
		return "CONFLICTS"
	case len(st.Drains) > 0:
		return "draining"
	case st.State == "":
		return "mounted"
	}
	return onLine(st.State)
}

// showTable prints a line for each mount.
func showTable(out io.Writer, all []*seenMount, width int) {
	t := table[*seenMount]{columns: statusColumns, title: "MOUNTPOINT", paths: true}
	for _, s := range all {
		name := shownName(s.point)
		if s.elsewhere {
			name = fmt.Sprintf("%s (of process %d)", s.point, s.status.PID)
		}
		t.add(s, onLine(name))
	}
	t.print(out, width)
}
