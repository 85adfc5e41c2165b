package criu

import (
	"fmt"
	"strings"
)

// shortOptions are CRIU's one-letter options that make sense for a restore
// (criu/config.c).
var shortOptions = map[byte]string{
	'j': "shell-job",
	'l': "file-locks",
	'x': "ext-unix-sk",
	'J': "join-ns",
	'M': "ext-mount-map",
}

// ourOptions are those that migratefs decides about.
var ourOptions = map[string]string{
	"images-dir":     "give the directory to migratefs restore",
	"root":           "the view is the root",
	"log-file":       "it lies in the work directory",
	"work-dir":       "it lies under /run/migratefs",
	"pidfile":        "the pids are printed",
	"restore-detach": "the command returns when the process runs",
	"config":         "give its options here",
	"action-script":  "it would be looked for in the view",
	"libdir":         "plugins would be looked for in the view",
}

// ConfigLines turns options as `criu restore` takes them ("--tcp-established",
// "--external", "mnt[x]:/y") into the lines of a CRIU configuration file, which
// is how a client of its RPC gives options that the protocol has no field for.
func ConfigLines(args []string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(args); i++ {
		name, value, hasValue, err := optionName(args[i])
		if err != nil {
			return "", err
		}
		if why, ours := ourOptions[name]; ours {
			return "", fmt.Errorf("criu option %q cannot be given: %s", "--"+name, why)
		}
		if !hasValue && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			i++
			value, hasValue = args[i], true
		}
		if strings.ContainsAny(name+value, "\n\x00\"") {
			return "", fmt.Errorf("criu option %q holds a character that CRIU's configuration cannot", args[i])
		}
		b.WriteString(name)
		if hasValue {
			fmt.Fprintf(&b, " \"%s\"", value)
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

func optionName(arg string) (name, value string, hasValue bool, err error) {
	if long, ok := strings.CutPrefix(arg, "--"); ok && long != "" {
		name, value, hasValue = strings.Cut(long, "=")
		if name == "" || strings.ContainsAny(name, " \t#") {
			return "", "", false, fmt.Errorf("%q is not a criu option", arg)
		}
		return name, value, hasValue, nil
	}
	if len(arg) >= 2 && arg[0] == '-' && arg[1] == 'v' {
		return "", "", false, fmt.Errorf("criu option %q: its log is always complete; give -v to migratefs", arg)
	}
	if len(arg) >= 2 && arg[0] == '-' {
		if long := shortOptions[arg[1]]; long != "" {
			return long, arg[2:], len(arg) > 2, nil
		}
	}
	return "", "", false, fmt.Errorf("%q is not a criu option in its long form (--name)", arg)
}
