package remote

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/migratefs/migratefs/layers"
)

// Who has waited for another's attempt before does not wait for the timeout again.
func TestWaitedBefore(t *testing.T) {
	f := newFake()
	l := f.open(t, func(c *Config) { c.Timeout = time.Hour })
	file, err := l.Open(soon(t), "f", nil)
	must(t, err)
	defer file.Close()
	f.set(func() { f.lie = func(q *query) ([]byte, bool) { return nil, q.typ == fxpRead } }) // no answer
	b := make([]byte, 100)
	_, err = file.ReadAt(layers.WaitedSince(soon(t), time.Now().Add(-time.Hour)), b, 300_000)
	if !errors.Is(err, layers.ErrOffline) || errors.Is(err, context.DeadlineExceeded) && soon(t).Err() != nil {
		t.Errorf("%v, want ErrOffline", err)
	}
}
