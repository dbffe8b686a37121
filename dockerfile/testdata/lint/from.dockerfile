ARG EMPTY
ARG VER=
FROM alpine:${VER} AS a
FROM ${EMPTY:-alpine} AS b
FROM alpine:${VRE:-1} AS c
FROM --platform=$TARGETPLATFORM alpine AS d
FROM --platform=linux/arm64 alpine AS e
FROM --platform=linux/arm64 alpine AS f-arm64
FROM --platform=${BULIDPLATFORM:-linux/amd64} alpine AS g
