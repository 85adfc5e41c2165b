package remote

import (
	"os"
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
				if server == "internal-sftp" {
					cfg.Connections = 1
				}
				if strings.Contains(t.Name(), "FIFO") {
					cfg.Timeout = 10 * time.Second // half of it passes while OPEN hangs
				}
				return open(t, cfg)
			})
		})
	}
}

// The same against another server, if an ssh_config names one as "source" that runs on
// this host, as root: ProFTPD's mod_sftp, or sftp-server behind Dropbear.
func TestConformanceElsewhere(t *testing.T) {
	config := os.Getenv("REMOTE_TEST_SSH_CONFIG")
	if config == "" {
		return
	}
	layertest.Run(t, limits, func(t *testing.T, source string) layers.Layer {
		cfg := Config{Target: Target{Host: "source", Path: source}, SSHConfig: config, Timeout: 10 * time.Second}
		return open(t, cfg)
	})
}
