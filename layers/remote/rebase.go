package remote

import (
	"slices"
	"strings"

	"github.com/migratefs/migratefs/layers"
)

// rebase makes a target of the symlink p that leads into the layer by an absolute
// path of the source one that leads to the same place within the layer. Others stay
// what they are, those with ".." too: where they lead only the source can tell.
func (l *Layer) rebase(p layers.Path, target string) string {
	if !l.cfg.Rebase || target == "" || target[0] != '/' {
		return target
	}
	for _, root := range []string{l.root.path, l.cfg.Target.Path} {
		rest, ok := strings.CutPrefix(target, strings.TrimSuffix(root, "/"))
		if !ok || rest != "" && rest[0] != '/' {
			continue
		}
		if slices.Contains(strings.Split(rest, "/"), "..") {
			return target
		}
		dir, _ := p.Split()
		up := strings.Repeat("../", len(dir.Components()))
		rest = strings.TrimLeft(rest, "/")
		if up+rest == "" {
			return "."
		}
		if rest == "" {
			up = strings.TrimSuffix(up, "/")
		}
		if len(up)+len(rest) > pathMax {
			return target
		}
		return up + rest
	}
	return target
}
