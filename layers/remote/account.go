package remote

import (
	"fmt"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// account is the user that ssh runs as when it is not the daemon's own.
type account struct {
	name, home string
	uid, gid   uint32
	groups     []uint32
}

// lookupAccount finds a user. The system's own programs are asked first: only
// they see directories such as LDAP in a binary that is linked statically.
func lookupAccount(name string) (*account, error) {
	fail := func(err error) (*account, error) {
		return nil, fmt.Errorf("ssh_as=%s: %w: name a user of this host", strconv.Quote(name), err)
	}
	if err := checkUser(name); err != nil {
		return fail(fmt.Errorf("the name %w", err))
	}
	uid, gid, home, err := passwd(name)
	if err != nil {
		return fail(err)
	}
	a := &account{name: name, home: home}
	list, err := groupList(name)
	if err != nil {
		return fail(err)
	}
	for _, x := range []struct {
		text string
		id   *uint32
	}{{uid, &a.uid}, {gid, &a.gid}} {
		n, err := strconv.ParseUint(x.text, 10, 32)
		if err != nil {
			return fail(fmt.Errorf("id %q is not a number", x.text))
		}
		*x.id = uint32(n)
	}
	for _, g := range list {
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return fail(fmt.Errorf("group %q is not a number", g))
		}
		a.groups = append(a.groups, uint32(n))
	}
	return a, nil
}

func passwd(name string) (uid, gid, home string, err error) {
	if out, err := exec.Command("getent", "passwd", "--", name).Output(); err == nil {
		if f := strings.Split(strings.TrimSpace(string(out)), ":"); len(f) == 7 && f[0] == name {
			return f[2], f[3], f[5], nil
		}
	}
	u, err := user.Lookup(name)
	if err != nil {
		return "", "", "", err
	}
	return u.Uid, u.Gid, u.HomeDir, nil
}

func groupList(name string) ([]string, error) {
	if out, err := exec.Command("id", "-G", "--", name).Output(); err == nil {
		return strings.Fields(string(out)), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	return u.GroupIds()
}

// env is the whole environment of the child: nothing of the daemon's reaches it,
// an agent's socket least of all.
func (a *account) env() []string {
	return []string{
		"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
		"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "SHELL=/bin/sh",
	}
}

func (a *account) credential() *syscall.Credential {
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
}
