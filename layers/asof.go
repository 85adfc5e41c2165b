package layers

import (
	"context"
	"sync/atomic"
	"time"
)

// AsOf is the age of what a layer has answered under a context: a layer that
// answers from memory says when its storage was asked. The zero value is ready.
type AsOf struct {
	oldest atomic.Int64 // nanoseconds from asOfZero to the oldest answer; 0 where there is none
}

var asOfZero = time.Now().Add(-time.Hour) // before any answer

// AsOfKey is the key under which a context has its *AsOf.
var AsOfKey any = asOfKey{}

type asOfKey struct{}

// AnsweredAsOf notes in ctx that a layer answers with what its storage was asked for
// at t.
func AnsweredAsOf(ctx context.Context, t time.Time) {
	a, ok := ctx.Value(AsOfKey).(*AsOf)
	if !ok {
		return
	}
	at := max(int64(t.Sub(asOfZero)), 1)
	for {
		old := a.oldest.Load()
		if old != 0 && old <= at || a.oldest.CompareAndSwap(old, at) {
			return
		}
	}
}

// Age is how old the oldest answer is; 0 if no layer has told.
func (a *AsOf) Age() time.Duration {
	at := a.oldest.Load()
	if at == 0 {
		return 0
	}
	return max(time.Since(asOfZero)-time.Duration(at), 0)
}

// AgeOf is the age of what was answered under ctx; 0 where nobody notes it.
func AgeOf(ctx context.Context) time.Duration {
	if a, ok := ctx.Value(AsOfKey).(*AsOf); ok {
		return a.Age()
	}
	return 0
}
