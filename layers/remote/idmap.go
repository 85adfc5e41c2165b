package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/migratefs/migratefs/layers"
)

const (
	extUsersGroups = "users-groups-by-id@openssh.com"

	// nobody is who owns what nobody here does: the kernel's overflow id.
	nobody = 65534

	// mostOwners bounds the users, and the groups, of a source that are told apart:
	// a server that makes up new ones with each answer gets no further.
	mostOwners = 1 << 16

	// manyOwners is how many ids one request asks the names of.
	manyOwners = 500

	// maxDatabase is the longest /etc/passwd that is read of a source.
	maxDatabase = 16 << 20
)

// errNames: an answer holds ids whose names were not asked for yet. The operation
// is made again once they are known.
var errNames = errors.New("owners whose names are not known yet")

// idmap turns the ids of a source into those of the owners of the same name here.
// What is known stays for the life of the layer: a file does not change its owner
// because somebody got a name meanwhile.
type idmap struct {
	users, groups ids

	// local finds ids of this host by name, in the database "passwd" or "group". It
	// is the system's, but in tests.
	local func(ctx context.Context, database string, names []string) (map[string]uint32, error)
}

// ids are the users, or the groups.
type ids struct {
	database string // immutable
	unknown  uint32 // immutable; for those that this host does not have
	most     int    // immutable; how many are told apart

	mu    sync.Mutex
	here  map[uint32]uint32
	asked map[uint32]bool // to be asked for
	names map[uint32]bool // of here, those that have a name on this host
}

func newIDMap(uid, gid *uint32) *idmap {
	m := &idmap{local: getent}
	m.users.init("passwd", uid)
	m.groups.init("group", gid)
	return m
}

func (s *ids) init(database string, unknown *uint32) {
	s.database, s.unknown, s.most = database, nobody, mostOwners
	if unknown != nil {
		s.unknown = *unknown
	}
	s.here, s.asked, s.names = make(map[uint32]uint32), make(map[uint32]bool), make(map[uint32]bool)
}

// of returns the id here of the source's id; named is false if there is nobody of
// that name. ok is false if the name has to be asked for.
func (s *ids) of(id uint32) (here uint32, named, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	here, ok = s.here[id]
	switch {
	case ok:
		return here, s.names[id], true
	case len(s.here)+len(s.asked) >= s.most:
		return s.unknown, false, true
	}
	s.asked[id] = true
	return 0, false, false
}

// wanted returns the ids that are to be asked for.
func (s *ids) wanted() (list []uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.asked {
		list = append(list, id)
	}
	return list
}

// know takes in what was found out about list.
func (s *ids) know(list []uint32, names map[uint32]string, local map[string]uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range list {
		delete(s.asked, id)
		here, ok := local[names[id]]
		if !ok || names[id] == "" {
			here, ok = s.unknown, false
		}
		s.here[id], s.names[id] = here, ok
	}
}

// learn asks the server, and then this host, about all ids that operations met.
func (l *Layer) learn(ctx context.Context, c *conn) error {
	users, groups := l.ids.users.wanted(), l.ids.groups.wanted()
	userNames, groupNames, err := l.namesOf(ctx, c, users, groups)
	if err != nil {
		return err
	}
	for _, s := range []struct {
		ids   *ids
		list  []uint32
		names map[uint32]string
	}{{&l.ids.users, users, userNames}, {&l.ids.groups, groups, groupNames}} {
		var ask []string
		for _, name := range s.names {
			ask = append(ask, name)
		}
		var local map[string]uint32
		if len(ask) > 0 {
			if local, err = l.ids.local(ctx, s.ids.database, ask); err != nil {
				return fmt.Errorf("idmap=name: asking this host for owners: %w", err)
			}
		}
		s.ids.know(s.list, s.names, local)
	}
	return nil
}

// namesOf returns the names that ids have on the source: by OpenSSH's extension (9.1),
// which our own server has as well, or out of the source's /etc/passwd and /etc/group.
func (l *Layer) namesOf(ctx context.Context, c *conn, users, groups []uint32) (u, g map[uint32]string, err error) {
	if !c.caps.names {
		if u, err = readDatabase(ctx, c, "/etc/passwd"); err == nil {
			g, err = readDatabase(ctx, c, "/etc/group")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("idmap=name: the server does not tell names (OpenSSH's does from 9.1 on, migratefs sftp-server does), "+
				"and the source's /etc/passwd and /etc/group cannot be read: %w", err)
		}
		return u, g, nil
	}
	u, g = make(map[uint32]string), make(map[uint32]string)
	for len(users)+len(groups) > 0 {
		uids, gids := users[:min(len(users), manyOwners)], groups[:min(len(groups), manyOwners)]
		ask := askOurs(extUsersGroups, packed(uids), packed(gids))
		ask.weight = 64 << 10
		replies, err := c.do(ctx, ask)
		if err != nil {
			return nil, nil, err
		}
		d, err := replies[0].expect(fxpExtendedReply)
		if err != nil {
			return nil, nil, err
		}
		for _, s := range []struct {
			ids  []uint32
			into map[uint32]string
		}{{uids, u}, {gids, g}} {
			list := decode(d.Bytes())
			for _, id := range s.ids {
				if name := string(list.Bytes()); validOwner(name) {
					s.into[id] = name
				}
			}
			d.Bad = d.Bad || list.Bad
		}
		if d.Bad {
			return nil, nil, corrupt("malformed names of owners")
		}
		users, groups = users[len(uids):], groups[len(gids):]
	}
	return u, g, nil
}

func packed(ids []uint32) string {
	var b []byte
	for _, id := range ids {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return string(b)
}

// validOwner reports whether name can be one that this host knows.
func validOwner(name string) bool {
	return name != "" && len(name) <= 255 && name[0] != '-' && !strings.ContainsAny(name, ":\n\x00")
}

// readDatabase reads name and number out of /etc/passwd or /etc/group.
func readDatabase(ctx context.Context, c *conn, path string) (map[uint32]string, error) {
	replies, err := c.do(ctx, askPath(fxpStat, path))
	if err != nil {
		return nil, err
	}
	if a, err := replies[0].attrs(); err != nil || !a.IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(err, unix.EINVAL))
	}
	if replies, err = c.do(ctx, askOpen(path)); err != nil {
		return nil, err
	}
	handle, err := replies[0].handle()
	if err != nil {
		return nil, err
	}
	defer c.post(askHandle(fxpClose, handle))
	var all []byte
	for len(all) < maxDatabase {
		if replies, err = c.do(ctx, askRead(handle, int64(len(all)), c.caps.chunk)); err != nil {
			return nil, err
		}
		data, err := replies[0].data()
		if isStatus(err, fxEOF) {
			return parseDatabase(all), nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, data...)
	}
	return nil, fmt.Errorf("%s: %w", path, unix.EFBIG)
}

func parseDatabase(b []byte) map[uint32]string {
	m := make(map[uint32]string)
	for line := range bytes.Lines(b) {
		f := strings.Split(strings.TrimSuffix(string(line), "\n"), ":")
		if len(f) < 4 || !validOwner(f[0]) {
			continue
		}
		id, err := strconv.ParseUint(f[2], 10, 32)
		if _, known := m[uint32(id)]; err == nil && !known { // the first one counts
			m[uint32(id)] = f[0]
		}
	}
	return m
}

// getent asks the system's program, since only it sees directories such as LDAP.
// Names that it does not know are left out. (One that is a number finds the owner
// with that id, by another name.)
func getent(ctx context.Context, database string, names []string) (map[string]uint32, error) {
	found := make(map[string]uint32)
	for len(names) > 0 {
		some := names[:min(len(names), 500)]
		names = names[len(some):]
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		out, err := exec.CommandContext(ctx, "getent", append([]string{"--", database}, some...)...).Output()
		cancel()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 2) { // 2: some are not there
			return nil, err
		}
		for line := range bytes.Lines(out) {
			f := strings.Split(string(line), ":")
			if len(f) < 3 {
				continue
			}
			if id, err := strconv.ParseUint(f[2], 10, 32); err == nil {
				found[f[0]] = uint32(id)
			}
		}
	}
	return found, nil
}

// squash gives a the owner that it has here, and hides what remote_group=none hides.
// It is errNames if that has to be asked for first.
func (l *Layer) squash(a *layers.Attr) error {
	if l.cfg.NoGroup && !l.ours.xattrs && a.Type() != unix.S_IFLNK {
		a.Mode &^= 0o070 // may be the mask of an ACL that we cannot see
		if a.IsRegular() {
			a.Mode &^= unix.S_ISGID
		}
	}
	if l.ids == nil {
		if l.cfg.UID != nil {
			a.UID = *l.cfg.UID
		}
		if l.cfg.GID != nil {
			a.GID = *l.cfg.GID
		}
		if l.cfg.UID != nil && l.cfg.GID != nil {
			a.Known |= layers.KnownOwner
		}
		return nil
	}
	if !a.Has(layers.KnownOwner) {
		return nil
	}
	uid, _, okUser := l.ids.users.of(a.UID)
	gid, _, okGroup := l.ids.groups.of(a.GID)
	if !okUser || !okGroup {
		return errNames
	}
	a.UID, a.GID = uid, gid
	return nil
}
