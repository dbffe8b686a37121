FROM alpine
RUN --mount=type=cache,target=/src/.cache --mount=type=secret,id=k,target=/src/.key --mount=target=/src make
