package copyup

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

const someFile = Origin("0123456789abcdef-a1-5f.3")

func claimsIn(t *testing.T) (c *Claims, dir string) {
	t.Helper()
	dir = t.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return &Claims{Dir: int(d.Fd()), Who: "me", Stale: time.Hour}, dir
}

func take(t *testing.T, c *Claims, kind Kind) *Claim {
	t.Helper()
	l, err := c.Take(context.Background(), someFile, kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l.Fd >= 0 {
			unix.Close(l.Fd)
		}
	})
	return l
}

func TestClaimExcludes(t *testing.T) {
	c, dir := claimsIn(t)
	enough := errors.New("enough")
	for _, have := range []Kind{ForCopy, Lock} {
		l := take(t, c, have)
		for _, want := range []Kind{ForCopy, Lock} {
			looks := 0
			_, err := c.Take(context.Background(), someFile, want, func() error {
				if looks++; looks == 3 {
					return enough
				}
				return nil
			})
			if !errors.Is(err, enough) {
				t.Errorf("a claim of kind %d beside one of kind %d: %v", want, have, err)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := c.Take(ctx, someFile, Lock, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("waiting for a claim cannot be interrupted: %v", err)
		}
		if !l.Held() {
			t.Error("it was not held")
		}
		l.Release()
		if es, _ := os.ReadDir(dir); len(es) != 0 {
			t.Errorf("left over: %v", es)
		}
	}
}

func TestRevokedClaimIsNotPublished(t *testing.T) {
	c, dir := claimsIn(t)
	l := take(t, c, ForCopy)
	lock := take(t, c, Revoke)
	if err := l.publish(c.Dir, "target"); !errors.Is(err, ErrRevoked) {
		t.Errorf("published: %v", err)
	}
	if l.Held() {
		t.Error("what was revoked says it was held")
	}
	l.Release()
	if _, err := os.Lstat(dir + "/" + string(someFile)); err != nil {
		t.Errorf("the other's lock was taken away: %v", err)
	}
	// A lock is not revoked.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if _, err := c.Take(ctx, someFile, Revoke, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock was revoked: %v", err)
	}
	if !lock.Held() {
		t.Error("the lock was not held")
	}
}

func TestStaleClaimIsBroken(t *testing.T) {
	c, _ := claimsIn(t)
	for _, have := range []Kind{ForCopy, Lock} {
		l := take(t, c, have)
		c.Stale = time.Millisecond
		second := take(t, c, Lock)
		c.Stale = time.Hour
		l.made = l.made.Add(-2 * c.Stale)
		if l.Held() {
			t.Error("a broken claim says it was held")
		}
		l.Release()
		second.made = second.made.Add(-2 * c.Stale)
		if !second.Held() {
			t.Error("who broke it does not hold it")
		}
		second.Release()
	}
}

// TestBrokenLate: two find a claim stale. One breaks it and has its own; the other,
// held up until then, breaks that, and what it makes of the file is revoked.
func TestBrokenLate(t *testing.T) {
	c, _ := claimsIn(t)
	dead := take(t, c, Lock)
	var seen unix.Statx_t
	if err := sys.StatxNow(c.Dir, dead.name, &seen); err != nil {
		t.Fatal(err)
	}
	dead.Release()
	l := take(t, c, Lock)
	if err := c.takeAway(l.name, &seen); err != nil {
		t.Fatal(err)
	}
	copies := take(t, c, ForCopy)
	if l.Kept() {
		t.Error("a claim that was broken a moment after it was made says it was kept")
	}
	if err := copies.publish(c.Dir, "target"); !errors.Is(err, ErrRevoked) {
		t.Errorf("what was copied meanwhile is published: %v", err)
	}
	l.Release()
}

func TestLivingClaimIsNotBroken(t *testing.T) {
	c, _ := claimsIn(t)
	c.Stale = 200 * time.Millisecond
	for _, have := range []Kind{ForCopy, Lock} {
		l := take(t, c, have)
		looks := 0
		begin := time.Now()
		enough := errors.New("enough")
		_, err := c.Take(context.Background(), someFile, Lock, func() error {
			looks++
			l.showLife()
			if time.Since(begin) > 2*c.Stale {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Errorf("a claim of kind %d whose owner lives was broken: %v", have, err)
		}
		l.Release()
	}
}

func TestClaimIsPublishedByDescriptor(t *testing.T) {
	c, dir := claimsIn(t)
	l := take(t, c, ForCopy)
	if _, err := unix.Write(l.Fd, []byte("mine")); err != nil {
		t.Fatal(err)
	}
	// Somebody else has the name by now, and his file is not what is published.
	if err := os.Link(dir+"/"+string(someFile), dir+"/aside"); err != nil {
		t.Fatal(err)
	}
	take2 := take(t, c, Revoke)
	if err := l.publish(c.Dir, "target"); err != nil {
		t.Fatal(err)
	}
	if err := l.publish(c.Dir, "target"); err != nil {
		t.Errorf("the same once more, as over NFS: %v", err)
	}
	b, err := os.ReadFile(dir + "/target")
	if err != nil || string(b) != "mine" {
		t.Errorf("published was %q, %v", b, err)
	}
	take2.Release()
	other := take(t, c, ForCopy)
	if err := other.publish(c.Dir, "target"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("over another's file: %v", err)
	}
}

func TestOriginIsOfTheCopyAndStays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: trusted xattrs")
	}
	c, _ := claimsIn(t)
	l := take(t, c, ForCopy)
	src := Source{Origin: someFile, Xattrs: map[string][]byte{XattrOrigin: []byte("of an earlier migration")}}
	src.Attr.Mode = unix.S_IFREG | 0o640
	cp, err := File(context.Background(), src, Place{Dir: c.Dir, Name: "target", Work: c.Dir, Claim: l}, Config{Owner: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.Publish(); err != nil {
		t.Fatal(err)
	}
	l.Release()
	if o, err := ReadOrigin(c.Dir, "target"); o != someFile || err != nil {
		t.Errorf("the origin is %q, %v", o, err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(c.Dir, "target", &st, 0); err != nil || st.Nlink != 1 || st.Mode&0o777 != 0o640 {
		t.Errorf("the published copy has %d links and mode %o, %v", st.Nlink, st.Mode, err)
	}
}

func TestSweeperBreaksWhatDoesNotChange(t *testing.T) {
	c, dir := claimsIn(t)
	ctx := context.Background()
	s := c.Sweeper()
	l := take(t, c, ForCopy)
	count := func() int {
		t.Helper()
		if err := s.Look(ctx); err != nil {
			t.Fatal(err)
		}
		es, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	if n := count() + count(); n != 2 {
		t.Errorf("a young claim was swept: %d", n)
	}
	c.Stale = 0
	l.showLife()
	if n := count(); n != 1 {
		t.Errorf("a claim that changed was swept: %d", n)
	}
	if n := count(); n != 0 {
		t.Errorf("a claim that did not change is left: %d", n)
	}
	c.Stale = time.Hour
	l = take(t, c, ForCopy)
	other, _ := claimsIn(t)
	if err := l.publish(other.Dir, "target"); err != nil {
		t.Fatal(err)
	}
	if count(); l.Held() {
		t.Error("what is left of a published copy is not swept")
	}
}

// Nobody breaks a claim for the time that xattrs take.
func TestClaimLivesWhileXattrsAreSet(t *testing.T) {
	c, _ := claimsIn(t)
	l := take(t, c, ForCopy)
	src := Source{Origin: someFile, Xattrs: map[string][]byte{"user.a": {1}, "user.b": {2}}}
	src.Attr.Mode = unix.S_IFREG | 0o640
	src.Attr.Known = layers.KnownTimes
	alive, times := 0, 0
	var cp *Copy
	var err error
	hooked(func(what sys.Change) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case what == "setxattr" && l.beat != nil:
			alive++
		case what == "utimes" && l.beat == nil:
			times++
		}
		return nil
	}, func() {
		cp, err = File(context.Background(), src, Place{Dir: c.Dir, Name: "target", Work: c.Dir, Claim: l}, Config{})
	})
	if err != nil {
		t.Fatal(err)
	}
	cp.Nameless()
	if alive != 3 || times != 1 {
		t.Errorf("%d xattrs while life is shown, and %d times after", alive, times)
	}
}

// Nobody breaks a claim for the time that its data takes to become durable.
func TestClaimLivesWhileDataIsSynced(t *testing.T) {
	for _, size := range []int64{quickSync + 1, 1} {
		c, _ := claimsIn(t)
		l := take(t, c, ForCopy)
		src := Source{File: reads{size: size}, Size: size}
		src.Attr.Mode, src.Attr.Size = unix.S_IFREG|0o640, size
		living, quiet := 0, 0
		var cp *Copy
		var err error
		hooked(func(what sys.Change) error {
			if what != "fsync" && what != "fdatasync" {
				return nil
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			switch {
			case l.beat != nil:
				living++
			case size > quickSync && living == 0:
				return unix.EIO
			default:
				quiet++
			}
			return nil
		}, func() {
			cp, err = File(context.Background(), src, Place{Dir: c.Dir, Name: "target", Work: c.Dir, Claim: l}, Config{})
		})
		if err != nil {
			t.Fatalf("%d bytes are synced while nothing shows life: %v", size, err)
		}
		cp.Nameless()
		if want := size > quickSync; (living == 1) != want || quiet != 1 {
			t.Errorf("%d bytes: %d syncs with a sign of life, then %d", size, living, quiet)
		}
	}
}
