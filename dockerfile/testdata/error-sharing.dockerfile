FROM alpine
RUN --mount=type=cache,target=/a,sharing=lock x
