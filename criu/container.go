package criu

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
)

// Container is what a container engine wrote beside the images.
type Container struct {
	ID, Name string
	Engine   string // "podman", "cri-o", "containerd"; "" if it does not say
	Image    string // the container image it was made from
	Mounts   []ContainerMount

	// RootfsDiff is the size of the tar of what the container changed in its root
	// directory, DevShm of that of its /dev/shm, in bytes; 0: none.
	RootfsDiff, DevShm int64
	Volumes            []string // tars of volumes that the archive holds

	// KeptRunning: made by a kubelet, which always lets the container go on.
	KeptRunning bool
}

// ContainerMount is one of the container's mounts as its OCI configuration has it.
type ContainerMount struct {
	Destination, Source, Type string
}

// ociSpec and engineConfig are what is read of spec.dump and config.dump.
type ociSpec struct {
	Root struct {
		Path string `json:"path"`
	} `json:"root"`
	Mounts []struct {
		Destination string   `json:"destination"`
		Source      string   `json:"source"`
		Type        string   `json:"type"`
		Options     []string `json:"options"`
	} `json:"mounts"`
	Annotations map[string]string `json:"annotations"`
}

type engineConfig struct {
	ID              string `json:"id"`
	Name            string `json:"name"`
	RootfsImage     string `json:"rootfsImage"`
	RootfsImageName string `json:"rootfsImageName"`
}

// container reads what the engine wrote, and where it says that the container's
// directories are.
func (l *loader) container(a *archive) error {
	var spec ociSpec
	var conf engineConfig
	for name, into := range map[string]any{"spec.dump": &spec, "config.dump": &conf} {
		m := a.beside[name]
		if m == nil {
			continue
		}
		if err := json.Unmarshal(m.data, into); err != nil {
			return &ImageError{File: name, Err: fmt.Errorf("not JSON of its kind (%v)", err)}
		}
	}
	c := &Container{ID: conf.ID, Name: conf.Name, Image: conf.RootfsImageName, Engine: engineOf(spec.Annotations)}
	if c.Image == "" {
		c.Image = conf.RootfsImage
	}
	for name, m := range a.beside {
		switch {
		case name == rootfsDiff:
			c.RootfsDiff = m.size
		case name == devShm:
			c.DevShm = m.size
		case path.Dir(name) == "volumes":
			c.Volumes = append(c.Volumes, path.Base(name))
		}
	}
	slices.Sort(c.Volumes)
	for _, m := range spec.Mounts {
		c.Mounts = append(c.Mounts, ContainerMount{m.Destination, m.Source, m.Type})
	}
	l.c.Container, l.c.ByRuntime = c, true
	l.containerTrees(spec.Root.Path, c.Mounts)
	l.containerCautions(c)
	return nil
}

// engineOf goes by the annotations that engines leave.
func engineOf(notes map[string]string) string {
	switch {
	case notes["io.container.manager"] == "libpod", notes["io.podman.annotations.autoremove"] != "":
		return "podman"
	case notes["io.container.manager"] == "cri-o", notes["io.kubernetes.cri-o.Name"] != "":
		return "cri-o"
	case notes["io.kubernetes.cri.container-name"] != "":
		return "containerd"
	}
	return ""
}

// containerTrees fills in where the engine says the trees lie on its host.
func (l *loader) containerTrees(root string, mounts []ContainerMount) {
	from := make(map[string]string)
	for _, m := range mounts {
		if m.Type == "bind" && checkPath(m.Source) == nil {
			from[path.Clean(m.Destination)] = m.Source
		}
	}
	for i := range l.c.Trees {
		t := &l.c.Trees[i]
		switch dir := from[t.Point]; {
		case t.root && checkPath(root) == nil:
			t.HostDir = root
		case !t.root && dir != "":
			t.HostDir = dir
		}
	}
}

// emptyTar is the size of a tar of a directory with nothing in it.
const emptyTar = 3 * 512

func (l *loader) containerCautions(c *Container) {
	// podman, whose checkpoints end the container, has annotations of cri-o's too.
	c.KeptRunning = c.Engine == "cri-o" || c.Engine == "containerd"
	if c.KeptRunning {
		l.twoCopies("the kubelet checkpoints containers and lets them run on: this one goes on where it is")
	}
	caution := func(what, name string, size int64, remedy string) {
		if size > emptyTar {
			l.obstacle(Obstacle{
				Level: Caution, What: what, Path: name,
				Why: fmt.Sprintf("the archive holds %d bytes that the container has changed, which are not CRIU's to restore", size), Remedy: remedy,
			})
		}
	}
	caution("container layer", rootfsDiff, c.RootfsDiff, "unpack it into the upper, and remove what deleted.files names, unless the lower is the container's own root directory on the source")
	caution("shared memory", devShm, c.DevShm, "unpack it into the container's /dev/shm before its processes run")
}
