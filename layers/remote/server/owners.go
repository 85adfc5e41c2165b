package server

import (
	"context"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// owners are the names of users and groups, as far as they were asked for. The zero
// value is ready.
type owners struct {
	users, groups map[uint32]string
}

// mostOwners bounds what is remembered of each.
const mostOwners = 1 << 16

// user returns the name of a user, or its number.
func (o *owners) user(id uint32) string {
	if o.users == nil || len(o.users) > mostOwners {
		o.users = make(map[uint32]string)
	}
	return orNumber(nameOf(o.users, "passwd", id), id)
}

// group returns the name of a group, or its number.
func (o *owners) group(id uint32) string {
	if o.groups == nil || len(o.groups) > mostOwners {
		o.groups = make(map[uint32]string)
	}
	return orNumber(nameOf(o.groups, "group", id), id)
}

func orNumber(name string, id uint32) string {
	if name == "" {
		return strconv.FormatUint(uint64(id), 10)
	}
	return name
}

// nameOf finds a name: "" if there is none. This program has no name service
// switch, so that what is not in the files getent(1) is asked for.
func nameOf(known map[uint32]string, database string, id uint32) string {
	name, ok := known[id]
	if ok {
		return name
	}
	number := strconv.FormatUint(uint64(id), 10)
	if database == "passwd" {
		if u, err := user.LookupId(number); err == nil {
			name = u.Username
		}
	} else if g, err := user.LookupGroupId(number); err == nil {
		name = g.Name
	}
	if name == "" {
		name = getent(database, number)
	}
	known[id] = name
	return name
}

// getent asks the system's program, which is not looked for in a PATH that the
// client may have set.
func getent(database, key string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/getent", "--", database, key)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	name, _, ok := strings.Cut(string(out), ":")
	if !ok || strings.ContainsAny(name, "\n\x00/") {
		return ""
	}
	return name
}

// usersGroups serves users-groups-by-id@openssh.com: ids in two strings, names in
// two strings, an empty one where there is none.
func (s *server) usersGroups(q *request) error {
	uids, gids := q.Bytes(), q.Bytes()
	if q.Bad || len(uids)%4 != 0 || len(gids)%4 != 0 {
		return unix.EINVAL
	}
	s.owners.user(0)
	s.owners.group(0)
	list := func(b []byte, known map[uint32]string, database string) (names []byte) {
		for d := decode(b); len(d.B) > 0 && len(names) < maxPacket/4; {
			names = str(names, nameOf(known, database, d.U32()))
		}
		return names
	}
	s.answer(fxpExtendedReply, q.id, func(b []byte) []byte {
		b = str(b, list(uids, s.owners.users, "passwd"))
		return str(b, list(gids, s.owners.groups, "group"))
	})
	return nil
}
