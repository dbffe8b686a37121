ARG WHICH=second
FROM alpine AS first
RUN a
FROM alpine AS second
RUN b
FROM scratch
ARG IMG=busybox
COPY --from=$WHICH /b /b
COPY --from=0 /a /a
COPY --from=${IMG}:1 /c /c
COPY --from=Second /d /d
