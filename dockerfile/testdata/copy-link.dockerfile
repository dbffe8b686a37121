FROM alpine AS a
COPY --link x /x
COPY --link --chmod=755 --chown=1:2 y /y
ADD --link https://example.com/z /z
FROM scratch
COPY --link --from=a /x /x
COPY --link --from=a /y /y
