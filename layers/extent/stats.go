package extent

import "sync/atomic"

// Stats are totals since OpenStore, and what is kept now.
type Stats struct {
	Hits, Misses int64 // reads of which all was here, and others
	HitBytes     int64 // that were asked for by the first
	Fetched      int64 // bytes that came from sources

	Used  int64 // bytes that cached objects take, as far as is known
	Limit int64 // as Store.Limit
}

type counters struct{ hits, misses, hitBytes, fetched atomic.Int64 }

func (c *counters) hit(n int64) {
	c.hits.Add(1)
	c.hitBytes.Add(n)
}

// Stats returns the totals so far.
func (s *Store) Stats() Stats {
	return Stats{
		Hits: s.count.hits.Load(), Misses: s.count.misses.Load(), HitBytes: s.count.hitBytes.Load(),
		Fetched: s.count.fetched.Load(), Used: s.used.Load(), Limit: s.limit.Load(),
	}
}
