#! arg SOURCE_DATE_EPOCH=src
FROM scratch AS src
ARG V=1
RUN x
FROM alpine
