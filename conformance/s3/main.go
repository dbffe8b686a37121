// S3 stands in for the two programs with which the tests run an object store: a server in memory (called silo there) and its
// client (called mc). It is one program under both names.
//
//	silo server --json --address 127.0.0.1:9000 DIR
//	mc alias set buildkit http://127.0.0.1:9000 KEY SECRET
//	mc mb --region us-east-1 buildkit/bucket
package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

func main() {
	run := client
	if filepath.Base(os.Args[0]) == "silo" {
		run = server
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func server(args []string) error {
	i := slices.Index(args, "--address")
	if i < 0 || i+1 == len(args) {
		return errors.New("usage: silo server --address ADDRESS DIR")
	}
	store := gofakes3.New(s3mem.New(), gofakes3.WithoutVersioning()).Server()
	return http.ListenAndServe(args[i+1], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/minio/health/") {
			return
		}
		store.ServeHTTP(w, r)
	}))
}

// client keeps the address of an alias in a file of MC_CONFIG_DIR.
func client(args []string) error {
	dir := os.Getenv("MC_CONFIG_DIR")
	switch {
	case len(args) >= 4 && args[0] == "alias" && args[1] == "set":
		return os.WriteFile(filepath.Join(dir, args[2]), []byte(args[3]), 0o600)
	case len(args) >= 2 && args[0] == "mb":
		alias, bucket, _ := strings.Cut(args[len(args)-1], "/")
		address, err := os.ReadFile(filepath.Join(dir, alias))
		if err != nil {
			return err
		}
		req, err := http.NewRequest(http.MethodPut, string(address)+"/"+bucket, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("cannot make the bucket %s: %s", bucket, resp.Status)
		}
		return resp.Body.Close()
	case len(args) >= 2 && args[0] == "admin" && args[1] == "trace":
		wait := make(chan os.Signal, 1)
		signal.Notify(wait, syscall.SIGTERM, os.Interrupt)
		<-wait
		return nil
	}
	return fmt.Errorf("%q is not known here", args)
}
