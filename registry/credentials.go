package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
	"github.com/strata-build/strata/strictjson"
)

// DockerCredentials reads logins as Docker and Podman keep them: config.json in configDir with its auths, credsStore and
// credHelpers. If configDir is "", the files are $REGISTRY_AUTH_FILE, config.json in $DOCKER_CONFIG or ~/.docker and, without
// $DOCKER_CONFIG, Podman's auth.json; the first with a login counts. Entries may name a host or a path below it, of which
// the longest that the repository is in counts. The files are read at every call. No file or entry is anonymous access.
// Source: containers-auth.json(5).
func DockerCredentials(configDir string) Credentials {
	return func(ctx context.Context, target string) (session.Credential, error) {
		for _, path := range loginFiles(configDir) {
			cred, err := fileLogin(ctx, path, target)
			if err != nil || cred != auth.EmptyCredential {
				return session.Credential{Username: cred.Username, Password: cred.Password, IdentityToken: cred.RefreshToken, AccessToken: cred.AccessToken, From: path}, err
			}
		}
		return session.Credential{From: strings.Join(loginFiles(configDir), ", ")}, nil
	}
}

// loginFiles lists the files that may hold logins, in the order in which they count.
func loginFiles(configDir string) []string {
	if configDir != "" {
		return []string{filepath.Join(configDir, "config.json")}
	}
	var out []string
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		out = append(out, f)
	}
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return append(out, filepath.Join(dir, "config.json"))
	}
	home, _ := os.UserHomeDir() // without one its files are left out
	if home != "" {
		out = append(out, filepath.Join(home, ".docker", "config.json"))
	}
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		out = append(out, filepath.Join(run, "containers", "auth.json"))
	}
	if conf := cmp.Or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")); filepath.IsAbs(conf) {
		out = append(out, filepath.Join(conf, "containers", "auth.json"))
	}
	return out
}

// fileLogin finds the login for HOST/REPOSITORY, or HOST, in one file.
func fileLogin(ctx context.Context, path, target string) (auth.Credential, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(raw)) == "" {
		return auth.EmptyCredential, nil
	}
	var file struct {
		Auths   map[string]json.RawMessage `json:"auths"`
		Store   string                     `json:"credsStore"`
		Helpers map[string]string          `json:"credHelpers"`
	}
	if err == nil {
		err = strictjson.Unmarshal(raw, &file)
	}
	if err != nil {
		return auth.EmptyCredential, diag.Errorf(diag.Invalid, "%s: %w", path, err)
	}
	failed := func(key string, err error) error {
		return diag.Errorf(diag.Unavailable, "the login for %s: %w", key, err).WithHint("see auths, credsStore and credHelpers in %s", path)
	}
	byPlace := map[string]string{} // the file's own key of each place
	for key := range file.Auths {
		if place := loginPlace(key); byPlace[place] == "" || key < byPlace[place] {
			byPlace[place] = key
		}
	}
	helpers, err := credentials.NewStore(path, credentials.StoreOptions{})
	if err != nil {
		return auth.EmptyCredential, diag.Errorf(diag.Invalid, "%s: %w", path, err)
	}
	for place := loginPlace(target); ; {
		key, listed := byPlace[place]
		last := !strings.Contains(place, "/")
		if listed {
			cred, err := inlineLogin(ctx, path, key)
			if err != nil {
				return cred, failed(key, err)
			}
			if cred != auth.EmptyCredential {
				return cred, nil
			}
		}
		asked := cmp.Or(key, place)
		if place == DockerHub {
			asked = credentials.ServerAddressFromRegistry(place)
		}
		if _, ok := file.Helpers[asked]; !ok && file.Helpers[place] != "" {
			asked = place
		}
		if file.Helpers[asked] != "" || file.Store != "" && (listed || last) {
			cred, err := helpers.Get(ctx, asked)
			if err != nil {
				return cred, failed(asked, err)
			}
			if cred != auth.EmptyCredential {
				return cred, nil
			}
		}
		if last {
			return auth.EmptyCredential, nil
		}
		place = place[:strings.LastIndexByte(place, '/')]
	}
}

// inlineLogin decodes an entry of auths that holds the login itself.
func inlineLogin(ctx context.Context, path, key string) (auth.Credential, error) {
	store, err := credentials.NewFileStore(path)
	if err != nil {
		return auth.EmptyCredential, err
	}
	return store.Get(ctx, key)
}

// loginPlace returns HOST or HOST/PATH for a key of auths: without the scheme, and without the version that Docker's old
// entries end with. All names of Docker's hub are one.
func loginPlace(key string) string {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	host, path, _ := strings.Cut(strings.TrimRight(key, "/"), "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = DockerHub
	}
	if path == "" || path == "v1" || path == "v2" {
		return host
	}
	return host + "/" + path
}
