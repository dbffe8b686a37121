FROM alpine
RUN <<EOT
never ends
