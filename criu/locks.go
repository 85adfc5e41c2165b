package criu

import (
	filelock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
)

// lockKinds are CRIU's flags of a lock (its include/file-lock.h).
var lockKinds = map[uint32]LockKind{1: "posix", 2: "flock", 4: "ofd", 8: "lease"}

// locks reads the locks on files: one image for all tasks, before CRIU 2 one
// for each.
func (l *loader) locks() error {
	type descriptor struct {
		pid uint32
		fd  int64
	}
	paths := make(map[descriptor]string)
	for _, f := range l.files {
		for _, r := range f.Refs {
			if r.Kind == Descriptor {
				paths[descriptor{r.PID, int64(r.FD)}] = f.Path
			}
		}
	}
	lock := func(e *filelock.FileLockEntry) error {
		kind := lockKinds[e.GetFlag()]
		if kind == "" {
			l.warn("a lock of kind %d, which is not known here", e.GetFlag())
			kind = "unknown"
		}
		pid := uint32(e.GetPid())
		l.c.Locks = append(l.c.Locks, Lock{
			Kind: kind, PID: pid, FD: e.GetFd(), Path: paths[descriptor{pid, int64(e.GetFd())}], Off: e.GetStart(), Len: e.GetLen(),
		})
		return l.oneMore()
	}
	if err := ignoreMissing(each(l.fsys, "filelocks.img", magicFileLocks, lock)); err != nil {
		return err
	}
	old, err := l.numbered("filelocks-")
	if err != nil {
		return err
	}
	for _, o := range old {
		if err := each(l.fsys, o.file, magicFileLocks, lock); err != nil {
			return err
		}
	}
	return nil
}
