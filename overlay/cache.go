package overlay

import "github.com/migratefs/migratefs/layers/extent"

// CacheConfig says how much is kept of what is fetched of files that are not ours.
type CacheConfig struct {
	// Limit is so many bytes; 0: what leaves the filesystem a reserve; negative:
	// nothing. Percent, unless 0, says it as a part of the filesystem.
	Limit   int64
	Percent float64
}

func (fs *FS) storeConfig() extent.Config {
	return extent.Config{Logger: fs.log, Limit: fs.cfg.Cache.Limit, Percent: fs.cfg.Cache.Percent}
}
