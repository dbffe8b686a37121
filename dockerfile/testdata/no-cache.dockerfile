#! no-cache
FROM alpine
COPY a /
RUN b
