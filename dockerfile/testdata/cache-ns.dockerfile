#! arg BUILDKIT_CACHE_MOUNT_NS=team
#! arg BUILDKIT_SANDBOX_HOSTNAME=box
#! arg BUILDKIT_MULTI_PLATFORM=1
FROM alpine
RUN --mount=type=cache,target=/c a
