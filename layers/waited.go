package layers

import (
	"context"
	"time"
)

type waitedKey struct{}

// WaitedSince tells a layer since when somebody waits for what is done under ctx, who has
// waited for another's attempt before. It counts in how long a layer tries.
func WaitedSince(ctx context.Context, t time.Time) context.Context {
	return context.WithValue(ctx, waitedKey{}, t)
}

// Waited is for how long somebody has waited before what is done under ctx began.
func Waited(ctx context.Context) time.Duration {
	if t, ok := ctx.Value(waitedKey{}).(time.Time); ok {
		return time.Since(t)
	}
	return 0
}
