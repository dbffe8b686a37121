FROM alpine AS unused
WORKDIR rel
FROM alpine
