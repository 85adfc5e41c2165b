package extent

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/internal/sys"
	"github.com/migratefs/migratefs/layers"
)

// The file "epochs" says, for each of the last boots, up to which epoch all
// records of all maps are durable, data first. See FORMAT.md.
const (
	epochsName    = "epochs"
	epochsTmp     = "epochs.tmp"
	epochsMagic   = "mfsepoch"
	epochsVersion = 1
	epochLen      = 24
	maxBoots      = 64 // older maps are fetched again
)

type bootEpoch struct {
	boot    bootID
	durable int64
}

// readBootID returns the kernel's boot id.
func readBootID() (id bootID, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, err
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(b) != len(id) {
		return id, errors.New("boot_id is not a UUID")
	}
	return bootID(b), nil
}

func encodeEpochs(list []bootEpoch) []byte {
	b := make([]byte, 16, 16+len(list)*epochLen+4)
	copy(b, epochsMagic)
	binary.LittleEndian.PutUint32(b[8:], epochsVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(list)))
	for _, e := range list {
		b = append(b, e.boot[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(e.durable))
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeEpochs(b []byte) ([]bootEpoch, error) {
	bad := fmt.Errorf("%s: %w", epochsName, layers.ErrCorrupt)
	if len(b) < 20 || string(b[:8]) != epochsMagic || binary.LittleEndian.Uint32(b[8:]) != epochsVersion {
		return nil, bad
	}
	n := binary.LittleEndian.Uint32(b[12:])
	if n > maxBoots || len(b) != 20+int(n)*epochLen ||
		binary.LittleEndian.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return nil, bad
	}
	list := make([]bootEpoch, n)
	for i := range list {
		e := b[16+i*epochLen:]
		list[i] = bootEpoch{bootID(e[:16]), int64(binary.LittleEndian.Uint64(e[16:]))}
		if list[i].durable < 0 {
			return nil, bad
		}
	}
	return list, nil
}

// loadEpochs reads the file and begins an epoch of this boot. Without the file,
// or with a damaged one, nothing is durable but what barriers vouch for.
func (s *Store) loadEpochs() error {
	if s.shared {
		s.epoch = 1
		return nil
	}
	b, err := readWhole(s.dir, epochsName, 20+maxBoots*epochLen)
	if err == nil {
		s.epochs, err = decodeEpochs(b)
	}
	if err != nil && err != unix.ENOENT {
		if !errors.Is(err, layers.ErrCorrupt) {
			return fmt.Errorf("%s: %w", epochsName, err)
		}
		s.log.Warn("extent store: epochs are lost, unsynced extents will be fetched again", "err", err)
	}
	s.epoch = s.durableEpoch(s.boot) + 1
	return nil
}

func (s *Store) durableEpoch(boot bootID) int64 {
	if s.shared {
		return maxSize // as good as durable: it is proved
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.epochs {
		if e.boot == boot {
			return e.durable
		}
	}
	return 0
}

// Sync makes everything durable that was recorded before it was called, in all
// objects, with one syncfs(2). After a power loss this is what is still known of
// objects on which nobody called Object.Sync. The store calls it by itself every
// Config.SyncEvery, and when it is closed.
func (s *Store) Sync() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if s.shared || !s.unsynced.Swap(false) {
		return nil
	}
	if s.syncErr != nil {
		return s.syncErr
	}
	// From here on records belong to the next epoch: none of them may count as
	// durable because of a syncfs that had passed its data already.
	s.gate.Lock()
	ended := s.epoch
	s.epoch++
	s.gate.Unlock()
	if err := sys.Syncfs(s.dir); err != nil {
		// Pages that could not be written may be dropped and the next syncfs
		// succeed: in this process epochs prove nothing any more.
		s.syncErr = fmt.Errorf("extent store: syncfs: %w", err)
		return s.syncErr
	}
	list := []bootEpoch{{s.boot, ended}}
	for _, e := range s.epochs {
		if e.boot != s.boot && len(list) < maxBoots {
			list = append(list, e)
		}
	}
	if err := s.writeEpochs(list); err != nil {
		s.unsynced.Store(true)
		return fmt.Errorf("extent store: %s: %w", epochsName, err)
	}
	s.mu.Lock()
	s.epochs = list
	s.mu.Unlock()
	return nil
}

func (s *Store) writeEpochs(list []bootEpoch) error {
	fd, err := sys.Create(s.dir, epochsTmp, unix.O_WRONLY|unix.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := sys.Pwrite(fd, encodeEpochs(list), 0); err != nil {
		return err
	}
	if err := sys.Fdatasync(fd); err != nil {
		return err
	}
	if err := sys.Rename(s.dir, epochsTmp, s.dir, epochsName, 0); err != nil {
		return err
	}
	return sys.Fsync(s.dir)
}

// syncEvery runs until stop is closed.
func (s *Store) syncEvery(d time.Duration) {
	defer close(s.stopped)
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			s.reclaimSoon()
			if err := s.Sync(); err != nil && !errors.Is(err, s.reported) {
				s.log.Error("extents are not durable", "err", err)
				s.reported = err
			}
		}
	}
}
