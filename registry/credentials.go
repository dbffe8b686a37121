package registry

import (
	"context"
	"os"
	"path/filepath"

	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/strata-build/strata/diag"
	"github.com/strata-build/strata/session"
)

// DockerCredentials reads logins as Docker keeps them: config.json in configDir ($DOCKER_CONFIG or ~/.docker if ""), with
// its auths, credsStore and credHelpers. The file is read at every call, so a login made meanwhile counts. No file, or no
// entry, is anonymous access.
func DockerCredentials(configDir string) Credentials {
	return func(ctx context.Context, host string) (session.Credential, error) {
		dir := configDir
		if dir == "" {
			dir = os.Getenv("DOCKER_CONFIG")
		}
		if dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return session.Credential{}, nil
			}
			dir = filepath.Join(home, ".docker")
		}
		path := filepath.Join(dir, "config.json")
		store, err := credentials.NewStore(path, credentials.StoreOptions{})
		if err != nil {
			return session.Credential{}, diag.Errorf(diag.Invalid, "%s: %w", path, err)
		}
		cred, err := store.Get(ctx, credentials.ServerAddressFromRegistry(host))
		if err != nil {
			return session.Credential{}, diag.Errorf(diag.Unavailable, "the login for %s: %w", host, err).
				WithHint("see credsStore and credHelpers in %s", path)
		}
		return session.Credential{Username: cred.Username, Password: cred.Password, IdentityToken: cred.RefreshToken, AccessToken: cred.AccessToken}, nil
	}
}
