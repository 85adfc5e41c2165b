package traps

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/tests/testbed"
)

// An upper that has no extended attributes (ramfs): by default a file that has some
// does not come up, and the log says why; with xattr=lenient it does, and the log
// says what it lost, unless somebody could then do more with it.
func TestXattrsTheUpperCannotHold(t *testing.T) {
	for _, policy := range []string{"strict", "lenient"} {
		t.Run(policy, func(t *testing.T) {
			testbed.NeedRoot(t)
			s := layers(t)
			disk := filepath.Join(s.dir, "disk")
			must(t, os.Mkdir(disk, 0o755))
			must(t, unix.Mount("ramfs", disk, "ramfs", 0, "mode=0755"))
			t.Cleanup(func() { must(t, unix.Unmount(disk, 0)) })
			s.upper = filepath.Join(disk, "upper")
			must(t, os.Mkdir(s.upper, 0o755))
			for _, name := range []string{"plain", "noted", "given", "denied"} {
				put(t, filepath.Join(s.lower, name), "content", 0o640)
			}
			must(t, unix.Setxattr(filepath.Join(s.lower, "noted"), "user.note", []byte("n"), 0))
			must(t, unix.Setxattr(filepath.Join(s.lower, "given"), "system.posix_acl_access", acl(6, 6, 4, 6, 0), 0))
			must(t, unix.Setxattr(filepath.Join(s.lower, "denied"), "system.posix_acl_access", acl(6, 0, 4, 6, 4), 0))
			s.mount(t, "migrate,xattr="+policy)
			write := func(name string) error {
				f := s.open(t, name, os.O_WRONLY|os.O_APPEND)
				defer f.Close()
				_, err := f.Write([]byte(" and more"))
				return err
			}
			for _, name := range []string{"plain", "noted", "given", "denied"} {
				fails := name == "denied" || policy == "strict" && name != "plain"
				err := write(name)
				switch {
				case !fails && (err != nil || content(t, filepath.Join(s.upper, name)) != "content and more"):
					t.Errorf("%s: %v", name, err)
				case fails && (!errors.Is(err, unix.EOPNOTSUPP) || content(t, s.Path(name)) != "content" || content(t, filepath.Join(s.lower, name)) != "content"):
					t.Errorf("%s: %v, want EOPNOTSUPP", name, err)
				}
			}
			log := s.Log()
			want := []string{`request failed.*user.note.*noted`} // of a kind, one in a second is logged
			if policy == "lenient" {
				want = []string{`not brought up.*noted.*user.note`, `not brought up.*given.*posix_acl_access`, `posix_acl_access.*denied`}
				if st := lstat(t, filepath.Join(s.upper, "given")); st.Mode&0o777 != 0o640 {
					t.Errorf("without its ACL, a file has mode %o", st.Mode)
				}
			}
			for _, w := range want {
				if !inOneLine(log, strings.Split(w, ".*")) {
					t.Errorf("no %q in the log:\n%s", w, log)
				}
			}
		})
	}
}

// inOneLine reports whether one line of log has all words, in this order.
func inOneLine(log string, words []string) bool {
	for line := range strings.Lines(log) {
		ok := true
		for _, w := range words {
			_, line, ok = strings.Cut(line, w)
			if !ok {
				break
			}
		}
		if ok {
			return true
		}
	}
	return false
}
