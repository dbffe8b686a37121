#! arg SOURCE_DATE_EPOCH=src
FROM scratch AS src
FROM alpine
