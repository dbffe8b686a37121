#! arg SOURCE_DATE_EPOCH=src
FROM scratch AS src
ADD https://e.com/a https://e.com/b /
FROM alpine
