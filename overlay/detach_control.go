package overlay

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/layers"
)

// StateReport is a State as it is told. Bytes are bytes of content.
type StateReport struct {
	Phase     Phase         `json:"state"` // lazy, filling, complete, detached; empty: no layer is on another host
	Scope     string        `json:"scope"` // in words
	ScopeKind ScopeKind     `json:"scope_kind"`
	Looked    *time.Time    `json:"looked,omitempty"` // when the scope was last looked through
	Here      Amount        `json:"here"`
	Missing   Amount        `json:"missing"`
	AtRisk    Amount        `json:"at_risk"`
	Left      int64         `json:"left"` // names
	Away      copyup.Quoted `json:"away,omitempty"`
	LostReads int64         `json:"lost_reads"`
	Lost      []LostReport  `json:"lost,omitempty"`
	Job       JobState      `json:"job"`
}

// LostReport is a LostRead as it is told.
type LostReport struct {
	Path    copyup.Quoted `json:"path"`
	When    time.Time     `json:"when"`
	Pid     uint32        `json:"pid"`
	Process copyup.Quoted `json:"process"`
	Why     copyup.Quoted `json:"why"`
}

// MissingReport is a Missing as it is told.
type MissingReport struct {
	Path  copyup.Quoted `json:"path"` // empty: a file without a name
	Bytes int64         `json:"bytes"`
	Why   copyup.Quoted `json:"why,omitempty"`
}

// Report is m as it is told.
func (m *Missing) Report() MissingReport {
	r := MissingReport{Path: copyup.Quoted(m.Path), Bytes: m.Bytes}
	if m.Why != nil {
		r.Why = copyup.Quoted(m.Why.Error())
	}
	return r
}

// EndOrder is what the daemon is told about the end of the migration.
type EndOrder struct {
	Do    string    `json:"do"`              // look, drain, detach, or stop what is under way
	Scope ScopeKind `json:"scope,omitempty"` // empty: what is usual for the mount
	Paths [][]byte  `json:"paths,omitempty"` // of ScopePaths, from the root of the mount
	Force bool      `json:"force,omitempty"` // detach: what is missing is given up
}

// Report is s as it is told. The last lost reads are told as far as they are few.
func (s *State) Report() StateReport {
	const few = 20
	r := StateReport{
		Phase: s.Phase, Scope: s.Scope.String(), ScopeKind: s.Scope.What, Here: s.Here, Missing: s.Missing, AtRisk: s.AtRisk,
		Left: s.Left, LostReads: s.LostReads, Job: s.Job,
	}
	if !s.Looked.IsZero() {
		at := s.Looked.UTC()
		r.Looked = &at
	}
	if s.Away != nil {
		r.Away = copyup.Quoted(s.Away.Error())
	}
	for _, l := range s.Lost[max(0, len(s.Lost)-few):] {
		r.Lost = append(r.Lost, LostReport{copyup.Quoted(l.Path), l.When.UTC(), l.Pid, copyup.Quoted(l.Process), copyup.Quoted(l.Err.Error())})
	}
	return r
}

// controlEnding answers questions about the end of the migration.
func (fs *FS) controlEnding(ctx context.Context, attr string) ([]byte, error) {
	if attr == ControlState {
		s, err := fs.State(ctx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(s.Report())
	}
	page, _ := strings.CutPrefix(attr, ControlMissing)
	number, err := strconv.Atoi(page)
	if err != nil || number < 0 {
		return nil, unix.ENODATA
	}
	all, err := fs.MissingNow(ctx)
	if err != nil {
		return nil, err
	}
	return pageOfMissing(all, number)
}

// pageOfMissing is the page of that number.
func pageOfMissing(all []Missing, number int) ([]byte, error) {
	var page []byte
	for _, m := range all {
		line, err := json.Marshal(m.Report())
		if err != nil {
			return nil, err
		}
		if len(page) > 0 && len(page)+len(line)+1 > controlPage {
			if number == 0 {
				return page, nil
			}
			number, page = number-1, page[:0]
		}
		page = append(append(page, line...), '\n')
	}
	if number > 0 || len(page) == 0 {
		return nil, unix.ENODATA
	}
	return page, nil
}

// endOrder begins what value says.
func (fs *FS) endOrder(value []byte) error {
	var o EndOrder
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return fmt.Errorf("%w: %w", unix.EINVAL, err)
	}
	var scope *Scope
	switch o.Scope {
	case "":
		s := fs.ending.usual()
		scope = &s
	case ScopeNamed, ScopeAll, ScopeChanged:
		scope = &Scope{What: o.Scope}
	case ScopePaths:
		scope = &Scope{What: o.Scope}
		for _, p := range o.Paths {
			if p := layers.Path(p); p.Valid() {
				scope.Paths = append(scope.Paths, p)
				continue
			}
			return unix.EINVAL
		}
	default:
		return unix.EINVAL
	}
	switch o.Do {
	case "stop":
		fs.endJob()
		return nil
	case opLook, opDrain, opDetach:
		_, err := fs.startJob(o.Do, scope, o.Force)
		return err
	}
	return unix.EINVAL
}
