FROM alpine
RUN --mount=from=scratch,target=/empty,rw true
RUN --mount=type=cache,from=1.2.3,target=/c true
