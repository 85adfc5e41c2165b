package overlay

import (
	"sync"
	"time"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// losses counts what does not come along with copies, and says it without filling
// the log: of each attribute, one in ten seconds.
type losses struct {
	mu   sync.Mutex
	seen map[string]*loss // by name of the attribute
	acls sync.Once
}

type loss struct {
	count uint64
	said  time.Time
}

// lossesRemembered bounds the table: names of attributes are what users make of them.
const lossesRemembered = 1000

// leftOut is told of an xattr that did not come along with a copy.
func (fs *FS) leftOut(e *copyup.XattrError) {
	l := &fs.losses
	l.mu.Lock()
	name := e.Name
	if l.seen == nil {
		l.seen = make(map[string]*loss)
	}
	if l.seen[name] == nil && len(l.seen) >= lossesRemembered {
		name = "others"
	}
	if l.seen[name] == nil {
		l.seen[name] = &loss{}
	}
	s := l.seen[name]
	s.count++
	count, now := s.count, time.Now()
	say := now.Sub(s.said) > 10*time.Second
	if say {
		s.said = now
	}
	l.mu.Unlock()
	if say {
		fs.log.Warn("extended attribute not brought up", "path", string(e.Path), "attribute", e.Name, "so_far", count, "cause", e.Err)
	}
}

// LeftOut returns how many extended attributes did not come along with copies, by
// name.
func (fs *FS) LeftOut() map[string]uint64 {
	l := &fs.losses
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := make(map[string]uint64, len(l.seen))
	for name, s := range l.seen {
		counts[name] = s.count
	}
	return counts
}

// warnOfACLs says at mount that NFSv4 ACLs stay behind, where a lower has them.
func (fs *FS) warnOfACLs() {
	for _, l := range fs.lowers {
		if !l.isLocal() {
			continue
		}
		names, _ := sys.Listxattr(l.root, "")
		for _, name := range names {
			if name == copyup.NFSv4ACL {
				fs.sayACLs(l.ID())
			}
		}
	}
}

// seeACL says it when the first file with one comes up.
func (fs *FS) seeACL(x layers.Xattrs, path layers.Path) {
	if _, ok := x[copyup.NFSv4ACL]; ok {
		fs.sayACLs(string(path))
	}
}

func (fs *FS) sayACLs(where string) {
	fs.losses.acls.Do(func() {
		fs.log.Warn("NFSv4 ACLs do not come along: what comes up has its mode alone", "seen_at", where)
	})
}
