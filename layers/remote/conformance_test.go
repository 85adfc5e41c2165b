package remote

import (
	"strings"
	"testing"
	"time"

	"github.com/migratefs/migratefs/layers"
	"github.com/migratefs/migratefs/layers/layertest"
)

// limits is what SFTP version 3 cannot show.
var limits = layertest.Limits{
	Unknown:      layers.KnownCtime | layers.KnownNlink | layers.KnownIno | layers.KnownAlloc,
	WholeSeconds: true,
	NoXattrs:     true,
}

func TestConformance(t *testing.T) {
	for name, server := range map[string]string{
		"sftp-server":   sftpServer(t),
		"internal-sftp": "internal-sftp",
	} {
		t.Run(name, func(t *testing.T) {
			s := startSSHD(t, "Subsystem sftp "+server)
			layertest.Run(t, limits, func(t *testing.T, source string) layers.Layer {
				cfg := s.layer(source)
				if strings.Contains(t.Name(), "FIFO") {
					cfg.Timeout = 10 * time.Second // half of it passes while OPEN hangs
				}
				return open(t, cfg)
			})
		})
	}
}
