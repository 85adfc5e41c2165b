package seed

import "github.com/migratefs/migratefs/layers"

// Names returns every seeded name as it is in the layer, with the directories that
// lead there, but for the root.
func (l *Layer) Names() []layers.Path {
	var names []layers.Path
	for _, p := range sorted(l.nodes) {
		if p != layers.Root {
			names = append(names, p)
		}
	}
	return names
}
