#! arg BUILDKIT_SYNTAX=dockerfile.v0
# syntax=example.com/other
FROM scratch
