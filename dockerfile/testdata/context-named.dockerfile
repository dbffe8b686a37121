#! context alpine=docker-image://busybox:1
#! context src=local:mydir
#! context docs=local:docs
#! context repo=https://github.com/user/repo.git#main:sub
#! context file=https://example.com/file
#! context lay=oci-layout://st@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
#! context in=input:thing
#! context bake=target:other
#! context none=docker-image://scratch
FROM alpine
COPY --from=src a /
COPY --from=docs a /
COPY --from=repo a /
COPY --from=file context /
COPY --from=lay a /
COPY --from=in a /
COPY --from=bake a /
COPY --from=none a /
