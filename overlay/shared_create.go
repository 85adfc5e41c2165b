package overlay

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/copyup"
	"github.com/migratefs/migratefs/internal/sys"
)

// claim takes what who gives the name to a lower file, by a rename or a link, must
// have, too, in each lower that has a part of the directory. What is made of the name
// shows at once: if it had to be taken back, others would have seen it, and if we
// died before that, it would hide their file for good.
func (b *birth) claim(ctx context.Context) error {
	fs, d := b.fs, dentry{b.n, b.name}
	if !fs.many() || b.name == "" {
		return nil
	}
	var err error
	if b.claims, err = fs.claimNames(ctx, claimedName{dentry: d, free: true}); err != nil || len(b.claims) == 0 {
		return err
	}
	origins, err := fs.originsAt(d)
	if err == nil && len(origins) > 0 {
		err = unix.EEXIST
	}
	return err
}

// wasFirst is called when a name was made in the upper. If our claim of it was broken,
// another host may have given it to a lower file meanwhile, by a rename or a link. If that
// was before, what we made hides that file: it is taken back, and the name exists. If it
// was after, that host finds ours. id is what was made; zero if that is to be looked for.
func (b *birth) wasFirst(ctx context.Context, id fileID) error {
	fs, d := b.fs, dentry{b.n, b.name}
	if !fs.many() || len(b.claims) > 0 && b.claims.held() {
		return nil
	}
	b.claims.release() // others may have those that we need now, and wait for it
	origins, err := fs.originsAt(d)
	if err != nil {
		// Whether it hides anything cannot be told: it is not made, then.
		if sys.Rmdir(b.dir.fd, b.name) != nil {
			if is, err := idAt(b.dir.fd, b.name); err == nil && (id == fileID{} || is.is(id)) {
				_, _ = fs.removeIf(b.dir.fd, b.name, is)
			}
		}
		return err
	}
	if len(origins) == 0 {
		return nil
	}
	if id == (fileID{}) {
		if id, err = idAt(b.dir.fd, b.name); err != nil {
			return ignoreGone(err)
		}
		if o, err := copyup.ReadOrigin(b.dir.fd, b.name); err != nil || o != "" {
			return err // another's by now
		}
	}
	// Whoever gives names to these files has their claims.
	claims, err := fs.claimNames(ctx, claimedName{dentry: d, kind: copyup.Lock})
	if err != nil {
		return err
	}
	defer claims.release()
	if still, err := fs.claimedAt(d, claims, ""); err != nil || !still {
		return err // gone again
	}
	if err := sys.Rmdir(b.dir.fd, b.name); err == nil || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return unix.EEXIST
	}
	taken, err := fs.removeIf(b.dir.fd, b.name, id)
	switch {
	case err != nil:
		return err
	case taken:
		return unix.EEXIST
	}
	return nil // it was replaced
}
