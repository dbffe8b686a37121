package dockerfile

import (
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/strata-build/strata/dockerfile/lint"
	"github.com/strata-build/strata/graph"
)

// workdir is WORKDIR: a directory that is made if it is not there, which is a layer.
func (st *step) workdir(c *instructions.WorkdirCommand) error {
	if !st.workdirSet && !isAbs(c.Path, st.platform.OS) {
		lint.WorkdirRelativePath(st.lint, st.at, c.Path)
	}
	st.workdirSet = true
	if err := st.setWorkdir(c.Path); err != nil {
		return err
	}
	shown := slashed(st.cfg.Config.WorkingDir, st.platform.OS)
	dir := path.Clean(shown)
	if dir == "/" {
		st.commit(false, "WORKDIR %s", shown)
		return nil
	}
	f := newFileOp(st.root)
	f.do(graph.Action{Mkdir: &graph.Mkdir{Path: dir, Mode: 0o755, Parents: true, Owner: f.owner(st.cfg.Config.User), Time: st.p.epoch}})
	st.root = f.edge(graph.Named("%s", st.title(st.describe(st.p.lex, c.String(), st.env))), graph.From(st.at...))
	st.commit(true, "WORKDIR %s", shown)
	return nil
}

// setWorkdir changes the working directory.
func (s *stage) setWorkdir(dir string) error {
	p, err := absPath(s.cfg.Config.WorkingDir, dir, s.platform.OS, false)
	if err != nil {
		return err
	}
	// As BuildKit, which leaves an absolute path as it is written.
	if raw, err := noDrive(slashed(dir, s.platform.OS), s.platform.OS); err == nil && path.IsAbs(raw) {
		p = raw
	}
	if s.platform.OS == "windows" {
		p = strings.ReplaceAll(p, "/", `\`)
	}
	s.cfg.Config.WorkingDir = p
	return nil
}

// cwd is the working directory with slashes.
func (s *stage) cwd() string {
	if d := slashed(s.cfg.Config.WorkingDir, s.platform.OS); d != "" {
		return path.Clean(d)
	}
	return "/"
}

func slashed(p, os string) string {
	if os == "windows" {
		return strings.ReplaceAll(p, `\`, "/")
	}
	return p
}

// noDrive takes the drive letter off a path of Windows. Images have one drive.
func noDrive(p, os string) (string, error) {
	if os != "windows" || len(p) < 2 || p[1] != ':' {
		return p, nil
	}
	if p[0] != 'c' && p[0] != 'C' {
		return "", invalidf("the path %q is not on the system drive (C:)", p)
	}
	return p[2:], nil
}

func isAbs(p, os string) bool {
	p, err := noDrive(slashed(p, os), os)
	return err == nil && path.IsAbs(p)
}

// absPath joins a path to its parent unless it is absolute. With keepSlash a final "/" or "/." stays: they say that
// the path is a directory.
func absPath(parent, p, os string, keepSlash bool) (string, error) {
	p, err := noDrive(slashed(p, os), os)
	if err != nil {
		return "", err
	}
	parent, err = noDrive(slashed(parent, os), os)
	if err != nil {
		return "", err
	}
	out := path.Join("/", parent, p)
	if path.IsAbs(p) {
		out = path.Clean(p)
	}
	if keepSlash && (p == "" || p == "." || strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.")) && out != "/" {
		out += "/"
	}
	return out, nil
}
