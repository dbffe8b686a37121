package dockerfile

import (
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/graph"
)

var scpStyle = regexp.MustCompile(`^([a-zA-Z0-9._-]+@)([a-zA-Z0-9.-]+):(.*?)(?:\?(.*?))?(?:#(.*))?$`)

// ParseGit reads the forms of a git source that Docker knows: a git:// or ssh:// URL, user@host:path, or an http(s) URL
// whose path ends in ".git"; then "#REF:SUBDIR" or a query with ref, tag, branch, subdir, checksum (or commit),
// keep-git-dir, submodules, mtime and fetch-by-commit. With context, the old form "github.com/user/repo" is one too.
// False means that the string is no git source, an error that it is a wrong one.
// Source: Docker's documentation of build contexts, "URL fragments" and "URL queries".
func ParseGit(s string, context bool) (*graph.Git, bool, error) {
	if strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") {
		return nil, false, nil
	}
	if context && strings.HasPrefix(s, "github.com/") {
		s = "https://" + strings.TrimSuffix(s, "/")
		if u, err := url.Parse(s); err == nil && !strings.HasSuffix(u.Path, ".git") {
			u.Path += ".git"
			s = u.String()
		}
	}
	var query, fragment string
	g := &graph.Git{AuthToken: "GIT_AUTH_TOKEN", AuthHeader: "GIT_AUTH_HEADER"} // secrets that a client may have, as in BuildKit
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		switch scheme = strings.ToLower(scheme); scheme {
		case "git", "ssh", "http", "https":
		default:
			return nil, false, nil
		}
		u, err := url.Parse(s)
		if err != nil || (scheme == "http" || scheme == "https") && !strings.HasSuffix(u.Path, ".git") {
			return nil, false, nil
		}
		query, fragment = u.RawQuery, u.Fragment
		u.RawQuery, u.Fragment, u.RawFragment, u.ForceQuery = "", "", "", false
		g.Remote = u.String()
	} else if m := scpStyle.FindStringSubmatch(s); m != nil {
		g.Remote, query, fragment = m[1]+m[2]+":"+m[3], m[4], m[5]
	} else {
		return nil, false, nil
	}
	if fragment != "" {
		ref, sub, _ := strings.Cut(fragment, ":")
		g.Ref, g.Subdir = ref, strings.TrimPrefix(path.Join("/", sub), "/")
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, true, invalidf("invalid query of git source %q: %w", s, err)
	}
	if err := gitQuery(g, values); err != nil {
		return nil, true, err
	}
	return g, true, nil
}

var gitKeys = []string{"ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules", "mtime", "fetch-by-commit"}

// gitQuery takes the query of a git URL apart.
func gitQuery(g *graph.Git, q url.Values) error {
	one := func(k string) (string, error) {
		v := q[k]
		if len(v) > 1 {
			return "", invalidf("query %q has multiple values", k)
		}
		if v[0] == "" && !slices.Contains([]string{"keep-git-dir", "submodules", "fetch-by-commit"}, k) {
			return "", invalidf("query %q has no value", k)
		}
		return v[0], nil
	}
	for k := range q {
		if !slices.Contains(gitKeys, k) {
			return didYouMean(invalidf("unexpected query %q", k), k, gitKeys)
		}
	}
	for _, k := range gitKeys {
		if !q.Has(k) {
			continue
		}
		v, err := one(k)
		if err == nil {
			err = gitOption(g, k, v)
		}
		if err != nil {
			return err
		}
	}
	if q.Has("tag") && q.Has("branch") {
		return invalidf("branch conflicts with tag")
	}
	return nil
}

func gitOption(g *graph.Git, k, v string) error {
	set := func(field *string, v string) error {
		if *field != "" && *field != v {
			name := k
			if field == &g.Ref {
				name = "ref"
			}
			return invalidf("%s conflicts: %q vs %q", name, *field, v)
		}
		*field = v
		return nil
	}
	flag := func(field *bool, invert bool) error {
		b := true
		if v != "" {
			var err error
			if b, err = strconv.ParseBool(v); err != nil {
				return invalidf("invalid %s value: %q", k, v)
			}
		}
		*field = b != invert
		return nil
	}
	switch k {
	case "ref":
		return set(&g.Ref, v)
	case "tag":
		return set(&g.Ref, "refs/tags/"+strings.TrimPrefix(v, "refs/tags/"))
	case "branch":
		return set(&g.Ref, "refs/heads/"+strings.TrimPrefix(v, "refs/heads/"))
	case "subdir":
		return set(&g.Subdir, v)
	case "checksum", "commit":
		return set(&g.Checksum, v)
	case "keep-git-dir":
		return flag(&g.KeepDir, false)
	case "submodules":
		return flag(&g.SkipSubmodules, true)
	case "fetch-by-commit":
		return flag(&g.FetchByCommit, false)
	case "mtime":
		if v != "checkout" && v != "commit" {
			return diag.Errorf(diag.Invalid, "invalid mtime value: %q (must be \"checkout\" or \"commit\")", v)
		}
		g.MTimeCommit = v == "commit"
	}
	return nil
}

// gitAdvice reports whether the user wants to hear what git advises.
func (r *Request) gitAdvice() (bool, error) {
	const name = "BUILDKIT_GIT_ADVICE"
	if v := r.BuildArgs[name]; v != "" {
		return parseBool(name, v)
	}
	return false, nil
}
