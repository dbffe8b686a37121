#! arg BUILDKIT_MULTI_PLATFORM=perhaps
FROM alpine
