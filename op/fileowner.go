package op

import (
	"bytes"
	"context"
	"time"

	"github.com/moby/sys/user"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
	"github.com/strata-build/strata/tree"
)

// maxUserFile is how much of a passwd or group file is read: the tree may be hostile.
const maxUserFile = 10 << 20

// ids is a resolved graph.Owner. Not set means as in the source of a copy, and root otherwise.
type ids struct {
	set      bool
	uid, gid uint32
}

func (o ids) meta(mode uint32, t *time.Time) tree.Meta {
	return tree.Meta{Mode: mode, UID: o.uid, GID: o.gid, Time: t}
}

// owner resolves the owner of what an action makes. A name that the tree does not know is root, as with BuildKit. A
// negative GID stands for the user's own group.
func (l *fileLayer) owner(ctx context.Context, a *graph.Action) (ids, error) {
	o := a.Owner()
	if o == nil {
		return ids{}, nil
	}
	if o.UID < 0 || o.GID < graph.None {
		return ids{}, diag.Errorf(diag.Invalid, "the owner %d:%d is not a user and group", o.UID, o.GID)
	}
	out := ids{set: true, uid: uint32(o.UID), gid: uint32(max(o.GID, 0))}
	if o.GID < 0 {
		out.gid = out.uid
	}
	if o.User != "" {
		out.uid = 0
		data, err := l.userFile(ctx, a, o.UserIn, "/etc/passwd")
		if err != nil {
			return out, err
		}
		found, err := user.ParsePasswdFilter(bytes.NewReader(data), func(u user.User) bool { return u.Name == o.User })
		if err != nil {
			return out, diag.Errorf(diag.Invalid, "/etc/passwd: %w", err)
		}
		primary := uint32(0)
		if len(found) > 0 {
			out.uid, primary = uint32(found[0].Uid), uint32(found[0].Gid)
		}
		if o.GID < 0 {
			out.gid = primary
		}
	}
	if o.Group != "" {
		out.gid = 0
		data, err := l.userFile(ctx, a, o.GroupIn, "/etc/group")
		if err != nil {
			return out, err
		}
		found, err := user.ParseGroupFilter(bytes.NewReader(data), func(g user.Group) bool { return g.Name == o.Group })
		if err != nil {
			return out, diag.Errorf(diag.Invalid, "/etc/group: %w", err)
		}
		if len(found) > 0 {
			out.gid = uint32(found[0].Gid)
		}
	}
	return out, nil
}

// userFile reads a file of the tree that names come from. A tree without it knows no names.
func (l *fileLayer) userFile(ctx context.Context, a *graph.Action, in int, name string) ([]byte, error) {
	var data []byte
	var err error
	if in == a.In {
		data, err = l.u.ReadFile(ctx, name, maxUserFile) // as it is by now
	} else {
		f, _, ferr := l.run.picture(ctx, in)
		if ferr != nil {
			return nil, ferr
		}
		data, err = f.ReadFile(ctx, name, maxUserFile)
	}
	if err != nil && diag.KindOf(err) == diag.NotFound {
		return nil, nil
	}
	return data, err
}
