# Strata builds itself. The Go tool chain ("go") and the module cache ("modules") are named contexts, so that nothing is
# downloaded; compiled packages stay in a cache mount from one build to the next.
FROM debian AS build
ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    GOFLAGS="-buildvcs=false -modcacherw" GOPROXY=file:///modules GOSUMDB=off GOTOOLCHAIN=local CGO_ENABLED=0
COPY --from=go . /usr/local/go/
WORKDIR /src
COPY . .
RUN --mount=type=bind,from=modules,target=/modules \
    --mount=type=cache,target=/root/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    go build -trimpath -ldflags "-s -w" -o /out/strata ./cmd/strata

FROM scratch
COPY --from=build /out/strata /usr/bin/strata
ENTRYPOINT ["/usr/bin/strata"]
CMD ["version"]
