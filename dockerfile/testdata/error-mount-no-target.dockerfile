FROM alpine
RUN --mount=type=cache x
