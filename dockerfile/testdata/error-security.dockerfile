FROM alpine
RUN --security=none x
