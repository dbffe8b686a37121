FROM alpine
WORKDIR /w/
RUN --mount=type=cache x
