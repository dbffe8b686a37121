#! arg SOURCE_DATE_EPOCH=src
ARG SOURCE_DATE_EPOCH
FROM scratch AS src
ADD https://github.com/user/repo.git /
FROM alpine
ARG SOURCE_DATE_EPOCH
RUN date
