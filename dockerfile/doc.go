// Package dockerfile turns a Dockerfile into a build graph and an image configuration.
//
// [Plan] reads the text, finds the stages that the target needs, asks a [Resolver] for their base images (in parallel)
// and runs every instruction of those stages: each adds vertices to the stage's graph, changes the stage's
// configuration, or both. The grammar is that of BuildKit's parser, the semantics are those of its Dockerfile frontend;
// history rows and the names of steps are the same too.
//
// Vocabulary. A *stage* is a FROM and what follows it; a *base* is the image or the stage that it starts from; the
// *context* is the directory, repository or archive that COPY and ADD read; a *named context* replaces an image or a
// stage by name; the *main scope* holds the ARGs above the first FROM.
//
//	src := &diag.Source{Name: "Dockerfile", Data: []byte("FROM alpine\nCOPY . /src\nRUN make -C /src\n")}
//	plan, err := dockerfile.Plan(ctx, dockerfile.Request{Source: src}, resolver)
//	plan.Targets[0].Root   // Exec(make) <- File(COPY) <- Image(docker.io/library/alpine:latest@sha256:…), Local(context)
//	plan.Targets[0].Config // Cmd of alpine, WorkingDir "/", History: …, COPY . /src # buildkit, RUN /bin/sh -c make -C /src # buildkit
//
// Each instruction has a file; instruct.go lists them. The rules of [Check] are in package lint.
package dockerfile
