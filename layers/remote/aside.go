package remote

import (
	"context"
	"errors"
)

// A stripe is a part of a file that one bulk lane was asked for.
type stripe struct {
	c        *conn
	b        *burst
	from, to int // in what is to be read
}

// stripeSize is about how much of a file one lane is asked for at a time.
const stripeSize = 1 << 20

// readAside reads b for the background over the bulk lanes, as many at once as
// there is room for, and returns how much of it, from the start, has come: less
// where anything went wrong, which the main connection is to find out about. The
// error is the context's.
//
// Each stripe opens the file by its path, and is believed only if all that is so
// that Open asks for, and the version is the one that was opened.
func (f *File) readAside(ctx context.Context, b []byte, off int64) (n int, err error) {
	l := f.l
	if f.astray.Load() || len(l.lanes.bulk) == 0 {
		return 0, nil
	}
	err = l.exchangeOn(ctx, l.background, func(ctx context.Context, c *conn) error {
		if c.main {
			return nil
		}
		var err error
		if c.predicts() {
			n, err = f.stripes(ctx, b, off, n)
		} else {
			n, err = f.onLane(ctx, c, b, off)
		}
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		l.distrust(c, err)
		if !errors.Is(err, errLost) && !errors.Is(err, errUnpredicted) && !broken(err) {
			f.astray.Store(true) // renamed, perhaps: its handle still leads there
		}
		return nil
	})
	return n, err
}

// stripes reads b from done on and returns up to where it has come.
func (f *File) stripes(ctx context.Context, b []byte, off int64, done int) (int, error) {
	var flying []stripe
	defer func() {
		for _, s := range flying {
			s.b.abandon()
		}
	}()
	for at := done; done < len(b); {
		for at < len(b) {
			s, err := f.startStripe(ctx, b, off, at, len(flying) == 0)
			if err != nil {
				return done, err
			}
			if s.b == nil {
				break
			}
			flying, at = append(flying, s), s.to
		}
		s := flying[0]
		replies, err := s.b.wait(ctx)
		if err != nil {
			return done, err
		}
		flying = flying[1:]
		if err := f.takeStripe(s, b, replies); err != nil {
			f.l.distrust(s.c, err)
			return done, err
		}
		done = s.to
	}
	return done, nil
}

// startStripe asks the lane with the most room for a part of b that begins at. If no
// lane has room it waits for some or returns no burst.
func (f *File) startStripe(ctx context.Context, b []byte, off int64, at int, wait bool) (s stripe, err error) {
	l := f.l
	c := l.bulk(nil)
	if c == nil || !c.predicts() {
		return s, errUnpredicted
	}
	full := l.path(f.path)
	size := max(1, stripeSize/c.caps.chunk) * c.caps.chunk
	s = stripe{c: c, from: at, to: min(at+size, len(b))}
	reqs := append(askBlock(c, full, off+int64(at), s.to-at),
		askPath(fxpLstat, full), askPath(fxpRealpath, full), l.askRoot(c))
	if wait {
		s.b, err = c.start(ctx, reqs...)
	} else {
		s.b, err = c.tryStart(ctx, reqs...)
	}
	return s, err
}

func (f *File) takeStripe(s stripe, b []byte, replies []reply) error {
	rest := len(replies) - 3
	if _, err := f.l.vouch(replies[rest:], f.l.path(f.path), &f.attr); err != nil {
		return err
	}
	parts, err := f.l.readBlock(s.c, replies[:rest], &f.attr, s.to-s.from)
	if err != nil {
		return err
	}
	at := b[s.from:s.to]
	for _, p := range parts {
		at = at[copy(at, p):]
	}
	recycle(replies)
	return nil
}

// onLane reads b through a handle of its own, on a lane where none can be predicted.
func (f *File) onLane(ctx context.Context, c *conn, b []byte, off int64) (int, error) {
	if err := c.opens.take(ctx, c.dead, 1); err != nil {
		return 0, err
	}
	defer c.opens.give(1)
	handle, _, err := f.l.openHandle(ctx, c, f.path, &f.attr, false)
	if err != nil {
		return 0, err
	}
	defer c.post(askHandle(fxpClose, handle))
	if err := f.fill(ctx, c, handle, b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}
