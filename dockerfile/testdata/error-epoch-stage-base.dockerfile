#! arg SOURCE_DATE_EPOCH=src
FROM alpine AS src
FROM alpine
