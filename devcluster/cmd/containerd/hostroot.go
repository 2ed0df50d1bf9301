package main

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/platforms"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// hostRoot is the overlay snapshotter with the machine's own root below the image's lowest layer.
// A container so sees the machine's programs, read-only, and an image need hold next to nothing.
type hostRoot struct{ snapshots.Snapshotter }

func (h hostRoot) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := h.Snapshotter.Mounts(ctx, key)
	return onHostRoot(mounts), err
}

func (h hostRoot) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := h.Snapshotter.Prepare(ctx, key, parent, opts...)
	if parent == "" { // an image's layer is about to be unpacked into it
		return mounts, err
	}
	return onHostRoot(mounts), err
}

func (h hostRoot) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := h.Snapshotter.View(ctx, key, parent, opts...)
	if parent == "" {
		return mounts, err
	}
	return onHostRoot(mounts), err
}

// onHostRoot adds "/" as the lowest layer. A snapshot of one layer is a bind mount, which has no
// layers to add to: it becomes an overlay, read-only for want of an upper directory.
func onHostRoot(mounts []mount.Mount) []mount.Mount {
	for i, m := range mounts {
		if m.Type == "bind" {
			mounts[i] = mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + m.Source + ":/"}}
			continue
		}
		for j, option := range m.Options {
			if strings.HasPrefix(option, "lowerdir=") {
				m.Options[j] = option + ":/"
			}
		}
	}
	return mounts
}

func init() {
	registry.Register(&plugin.Registration{
		Type: plugins.SnapshotPlugin,
		ID:   "hostroot",
		InitFn: func(ic *plugin.InitContext) (any, error) {
			ic.Meta.Platforms = append(ic.Meta.Platforms, platforms.DefaultSpec())
			root := ic.Properties[plugins.PropertyRootDir]
			ic.Meta.Exports["root"] = root
			snapshotter, err := overlay.NewSnapshotter(root)
			if err != nil {
				return nil, err
			}
			return hostRoot{snapshotter}, nil
		},
	})
}
