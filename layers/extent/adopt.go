package extent

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
)

// Adopt turns a cached object into a pending one, under a new ID, durably and
// without moving data. Who has it open goes on with it and sees what is written
// to it; a later Cached of the same source makes a new object. What was fetched
// and not yet synced is durable only after the next Sync. On an error the object
// is a cached one still, or has lost its names and lives until it is closed.
//
// An object of another store stays what it is: what it holds is cloned, or copied up
// to 64 MiB, and the rest is missing. Pending opens the new one.
func (s *Store) Adopt(o *Object) (ID, error) {
	if o.store != s {
		return s.take(o)
	}
	o.syncMu.Lock()
	defer o.syncMu.Unlock()
	o.wmu.Lock()
	defer o.wmu.Unlock()
	old := o.name
	if old == "" || old[0] != 'c' {
		return ID{}, fmt.Errorf("adopt %q: not a cached object: %w", old, unix.EINVAL)
	}
	id := newID()
	err := o.settleDebt()
	if err == nil {
		err = sys.Fdatasync(o.mapFd)
	}
	if err == nil {
		err = s.move(old, id.name())
	}
	if err == nil {
		if err = sys.Fsync(s.dir); err == nil {
			o.name, o.pending = id.name(), true
			o.durable = o.chain.index
			s.rekey(o, o.name)
			return id, nil
		}
		if s.move(id.name(), old) != nil {
			s.abandon(o, id)
		}
	} else if !s.exists(old+dataSuffix) || !s.exists(old+mapSuffix) {
		s.abandon(o, id)
	}
	return ID{}, fmt.Errorf("adopt: %w", err)
}

// move renames both files of an object, or neither if it can.
func (s *Store) move(from, to string) error {
	if err := sys.Rename(s.dir, from+dataSuffix, s.dir, to+dataSuffix, 0); err != nil {
		return err
	}
	err := sys.Rename(s.dir, from+mapSuffix, s.dir, to+mapSuffix, 0)
	if err != nil {
		// If this fails too, the caller finds the data gone.
		_ = sys.Rename(s.dir, to+dataSuffix, s.dir, from+dataSuffix, 0)
	}
	return err
}

// abandon takes an object's names away, after half an Adopt could not be undone.
// It holds nothing yet that the source does not have.
func (s *Store) abandon(o *Object, id ID) {
	for _, name := range []string{o.name, id.name()} {
		if err := s.unlink(name); err != nil {
			s.log.Warn("remains of a failed adoption", "err", err)
		}
	}
	o.name = ""
	s.rekey(o, "")
}

func (s *Store) exists(name string) bool {
	var stx unix.Statx_t
	return sys.Statx(s.dir, name, &stx) == nil
}

// rekey files an open object under another name, or none.
func (s *Store) rekey(o *Object, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objs[o.entry.name] == o.entry {
		delete(s.objs, o.entry.name)
	}
	o.entry.name = name
	if name != "" {
		s.objs[name] = o.entry
	}
}
