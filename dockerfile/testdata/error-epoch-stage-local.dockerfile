#! arg SOURCE_DATE_EPOCH=src
FROM scratch AS src
ADD a b
FROM alpine
