package llb

import (
	"path"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

// maxActions bounds the actions of one op.
const maxActions = 50_000

// decodeFile reads file actions. LLB's may refer to actions that come later, a graph's may not: they are sorted.
func decodeFile(o *pb.FileOp, inputs int) (*graph.File, error) {
	if len(o.GetActions()) == 0 {
		return nil, invalidf("a file op without actions")
	}
	if len(o.Actions) > maxActions {
		return nil, invalidf("a file op with %d actions, more than %d", len(o.Actions), maxActions)
	}
	f := &fileDecoder{op: o, inputs: inputs, place: make([]int, len(o.Actions)), outs: map[int64]bool{}}
	for i := range o.Actions {
		if err := f.add(i); err != nil {
			return nil, err
		}
	}
	if len(f.outs) == 0 {
		return nil, invalidf("a file op without outputs")
	}
	for i := range len(f.outs) {
		if !f.outs[int64(i)] {
			return nil, invalidf("a file op with %d outputs, but without output %d", len(f.outs), i)
		}
	}
	return &graph.File{Actions: f.sorted}, nil
}

type fileDecoder struct {
	op     *pb.FileOp
	inputs int
	place  []int // of each action in sorted, plus 1; 0 = not reached, -1 = its own trees are being placed
	sorted []graph.Action
	outs   map[int64]bool
}

// add puts an action, and those that it builds on, at the end of the list.
func (f *fileDecoder) add(i int) error {
	switch {
	case f.place[i] > 0:
		return nil
	case f.place[i] < 0:
		return invalidf("file action %d builds on itself", i)
	}
	a := f.op.Actions[i]
	if a == nil {
		return invalidf("file action %d is missing", i)
	}
	f.place[i] = -1
	out, err := f.action(a)
	if err != nil {
		return err
	}
	if a.Output < int64(pb.SkipOutput) || a.Output >= int64(len(f.op.Actions)) || f.outs[a.Output] {
		return invalidf("file action %d has output %d, which is another's or none", i, a.Output)
	}
	out.Out = int(a.Output)
	if a.Output >= 0 {
		f.outs[a.Output] = true
	}
	f.sorted = append(f.sorted, *out)
	f.place[i] = len(f.sorted)
	return nil
}

// tree translates the number of a tree.
func (f *fileDecoder) tree(n int64) (int, error) {
	if n < int64(pb.Empty) || n >= int64(f.inputs+len(f.op.Actions)) {
		return 0, invalidf("a file action of tree %d, which does not exist", n)
	}
	if n < int64(f.inputs) {
		return int(n), nil
	}
	if err := f.add(int(n) - f.inputs); err != nil {
		return 0, err
	}
	return f.inputs + f.place[int(n)-f.inputs] - 1, nil
}

func (f *fileDecoder) action(a *pb.FileAction) (out *graph.Action, err error) {
	out = &graph.Action{}
	if out.In, err = f.tree(a.Input); err != nil {
		return nil, err
	}
	var paths []string
	switch x := a.Action.(type) {
	case *pb.FileAction_Copy:
		if x.Copy == nil {
			return nil, invalidf("a copy without content")
		}
		if out.From, err = f.tree(a.SecondaryInput); err != nil {
			return nil, err
		}
		paths = []string{x.Copy.Src, x.Copy.Dest}
		out.Copy, err = f.copy(x.Copy)
	case *pb.FileAction_Mkfile:
		if x.Mkfile == nil {
			return nil, invalidf("a mkfile without content")
		}
		m := &graph.Mkfile{Path: x.Mkfile.Path, Mode: uint32(x.Mkfile.Mode) & 0o777, Data: x.Mkfile.Data, Time: timeOf(x.Mkfile.Timestamp)}
		m.Owner, err = f.owner(x.Mkfile.Owner)
		out.Mkfile, paths = m, []string{m.Path}
	case *pb.FileAction_Mkdir:
		if x.Mkdir == nil {
			return nil, invalidf("a mkdir without content")
		}
		m := &graph.Mkdir{Path: x.Mkdir.Path, Mode: uint32(x.Mkdir.Mode) & 0o777, Parents: x.Mkdir.MakeParents, Time: timeOf(x.Mkdir.Timestamp)}
		m.Owner, err = f.owner(x.Mkdir.Owner)
		out.Mkdir, paths = m, []string{m.Path}
	case *pb.FileAction_Rm:
		if x.Rm == nil {
			return nil, invalidf("a rm without content")
		}
		out.Rm = &graph.Rm{Path: x.Rm.Path, AllowNotFound: x.Rm.AllowNotFound, Wildcard: x.Rm.AllowWildcard}
		paths = []string{x.Rm.Path}
	case *pb.FileAction_Symlink:
		if x.Symlink == nil {
			return nil, invalidf("a symlink without content")
		}
		m := &graph.Symlink{Target: x.Symlink.Oldpath, Path: x.Symlink.Newpath, Time: timeOf(x.Symlink.Timestamp)}
		m.Owner, err = f.owner(x.Symlink.Owner)
		out.Symlink, paths = m, []string{m.Path, m.Target}
	default:
		return nil, invalidf("a file action that is none of copy, mkfile, mkdir, rm and symlink")
	}
	for _, p := range paths {
		if err == nil {
			err = checkPath("the path", p)
		}
	}
	return out, err
}

func (f *fileDecoder) copy(c *pb.FileActionCopy) (*graph.Copy, error) {
	out := &graph.Copy{
		Src: c.Src, Dest: c.Dest, ModeStr: c.ModeStr, FollowSymlink: c.FollowSymlink, DirContents: c.DirCopyContents,
		Unpack: c.AttemptUnpackDockerCompatibility, CreateDest: c.CreateDestPath, Wildcard: c.AllowWildcard,
		AllowEmpty: c.AllowEmptyWildcard, Time: timeOf(c.Timestamp), Include: c.IncludePatterns, Exclude: c.ExcludePatterns,
		AlwaysReplace: c.AlwaysReplaceExistingDestPaths,
	}
	if c.ModeStr == "" && c.Mode != -1 {
		if c.Mode < 0 || c.Mode > 0o7777 {
			return nil, invalidf("a copy with the mode %#o", c.Mode)
		}
		mode := uint32(c.Mode)
		out.Mode = &mode
	}
	for _, r := range c.RequiredPaths {
		out.Required = append(out.Required, relative(c.Src, r))
	}
	var err error
	out.Owner, err = f.owner(c.Owner)
	return out, err
}

// relative returns a required path, which LLB gives from the root of the tree, from what is copied. One that is elsewhere
// keeps its slash.
func relative(src, p string) string {
	src, p = cleanRoot(src), cleanRoot(p)
	if src == "/" {
		return strings.TrimPrefix(p, "/")
	}
	if rest, ok := strings.CutPrefix(p, src+"/"); ok {
		return rest
	}
	return p
}

func absolute(src, p string) string {
	if path.IsAbs(p) {
		return p
	}
	return path.Join("/", src, p)
}

// owner reads an owner. Without a group it is the user's: the primary group of a name, the same number for a number.
func (f *fileDecoder) owner(o *pb.ChownOpt) (*graph.Owner, error) {
	if o == nil {
		return nil, nil
	}
	out := &graph.Owner{}
	var err error
	hasUser, hasGroup := false, false
	if out.User, out.UID, out.UserIn, hasUser, err = f.user(o.User); err != nil {
		return nil, err
	}
	if out.Group, out.GID, out.GroupIn, hasGroup, err = f.user(o.Group); err != nil {
		return nil, err
	}
	if hasUser && !hasGroup {
		out.GID = graph.None
	}
	return out, nil
}

func (f *fileDecoder) user(u *pb.UserOpt) (name string, id, in int, ok bool, err error) {
	switch u := u.GetUser().(type) {
	case *pb.UserOpt_ByName:
		if u.ByName.GetName() == "" || u.ByName.Input < 0 {
			return "", 0, 0, false, invalidf("a user or group without a name, or of no tree")
		}
		in, err = f.tree(u.ByName.Input)
		return u.ByName.Name, 0, in, true, err
	case *pb.UserOpt_ByID:
		return "", int(u.ByID), 0, true, nil
	}
	return "", 0, 0, false, nil
}

// timeOf reads a time in nanoseconds since 1970; -1 is none.
func timeOf(ns int64) *time.Time {
	if ns == -1 {
		return nil
	}
	t := time.Unix(0, ns).UTC()
	return &t
}

func nanos(t *time.Time) int64 {
	if t == nil {
		return -1
	}
	return t.UnixNano()
}

func encodeFile(f *graph.File, at *inputs) (*pb.FileOp, error) {
	o := &pb.FileOp{}
	for i := range f.Actions {
		a, err := encodeAction(&f.Actions[i], at)
		if err != nil {
			return nil, err
		}
		o.Actions = append(o.Actions, a)
	}
	return o, nil
}

func encodeAction(a *graph.Action, at *inputs) (*pb.FileAction, error) {
	in, err := at.of(a.In)
	if err != nil {
		return nil, err
	}
	out := &pb.FileAction{Input: in, SecondaryInput: int64(pb.Empty), Output: int64(a.Out)}
	var owner *graph.Owner
	var put func(*pb.ChownOpt)
	switch {
	case a.Copy != nil:
		if out.SecondaryInput, err = at.of(a.From); err != nil {
			return nil, err
		}
		c := encodeCopy(a.Copy)
		out.Action = &pb.FileAction_Copy{Copy: c}
		owner, put = a.Copy.Owner, func(o *pb.ChownOpt) { c.Owner = o }
	case a.Mkfile != nil:
		m := &pb.FileActionMkFile{Path: a.Mkfile.Path, Mode: int32(a.Mkfile.Mode), Data: a.Mkfile.Data, Timestamp: nanos(a.Mkfile.Time)}
		out.Action = &pb.FileAction_Mkfile{Mkfile: m}
		owner, put = a.Mkfile.Owner, func(o *pb.ChownOpt) { m.Owner = o }
	case a.Mkdir != nil:
		m := &pb.FileActionMkDir{Path: a.Mkdir.Path, Mode: int32(a.Mkdir.Mode), MakeParents: a.Mkdir.Parents, Timestamp: nanos(a.Mkdir.Time)}
		out.Action = &pb.FileAction_Mkdir{Mkdir: m}
		owner, put = a.Mkdir.Owner, func(o *pb.ChownOpt) { m.Owner = o }
	case a.Symlink != nil:
		m := &pb.FileActionSymlink{Oldpath: a.Symlink.Target, Newpath: a.Symlink.Path, Timestamp: nanos(a.Symlink.Time)}
		out.Action = &pb.FileAction_Symlink{Symlink: m}
		owner, put = a.Symlink.Owner, func(o *pb.ChownOpt) { m.Owner = o }
	case a.Rm != nil:
		out.Action = &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: a.Rm.Path, AllowNotFound: a.Rm.AllowNotFound, AllowWildcard: a.Rm.Wildcard}}
	default:
		return nil, diag.Errorf(diag.Invalid, "a file action without content")
	}
	if owner == nil {
		return out, nil
	}
	chown, err := encodeOwner(owner, at)
	if err == nil {
		put(chown)
	}
	return out, err
}

func encodeCopy(c *graph.Copy) *pb.FileActionCopy {
	out := &pb.FileActionCopy{
		Src: c.Src, Dest: c.Dest, Mode: -1, ModeStr: c.ModeStr, FollowSymlink: c.FollowSymlink, DirCopyContents: c.DirContents,
		AttemptUnpackDockerCompatibility: c.Unpack, CreateDestPath: c.CreateDest, AllowWildcard: c.Wildcard,
		AllowEmptyWildcard: c.AllowEmpty, Timestamp: nanos(c.Time), IncludePatterns: c.Include, ExcludePatterns: c.Exclude,
		AlwaysReplaceExistingDestPaths: c.AlwaysReplace,
	}
	if c.Mode != nil {
		out.Mode = int32(*c.Mode)
	} else if c.ModeStr != "" {
		out.Mode = 0 // as clients write it
	}
	for _, r := range c.Required {
		out.RequiredPaths = append(out.RequiredPaths, absolute(c.Src, r))
	}
	return out
}

func encodeOwner(o *graph.Owner, at *inputs) (*pb.ChownOpt, error) {
	user, err := encodeUser(o.User, o.UID, o.UserIn, at)
	if err != nil || o.Group == "" && o.GID == graph.None {
		return &pb.ChownOpt{User: user}, err
	}
	group, err := encodeUser(o.Group, o.GID, o.GroupIn, at)
	return &pb.ChownOpt{User: user, Group: group}, err
}

func encodeUser(name string, id, in int, at *inputs) (*pb.UserOpt, error) {
	if name == "" {
		return &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: uint32(id)}}, nil
	}
	n, err := at.of(in)
	if err == nil && n < 0 {
		err = diag.Errorf(diag.Unsupported, "LLB cannot look up the user or group %q in scratch", name)
	}
	return &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: name, Input: n}}}, err
}
