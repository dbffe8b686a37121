#! arg SOURCE_DATE_EPOCH=src
FROM scratch AS src
ARG V=1
ADD https://e.com/$V.tar.gz /
FROM scratch
ARG SOURCE_DATE_EPOCH
LABEL a=b
